"""What surrounds the builder: its progress, its options, and the configs that it reads."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hostler_onnxgenai.conversion.steps import build, compare


def test_the_builder_s_words_become_progress_and_are_passed_on() -> None:
    shown: list[tuple[str, float | None]] = []
    stream = io.StringIO()
    listener = build.Listener(stream, 4, lambda text, fraction=None: shown.append((text, fraction)))

    for text in ("Reading embedding layer\n", "Reading layer 0\n", "Reading decoder layer 2\n", "Reading LM head\n"):
        print(text, end="", file=listener)

    assert shown == [("reading layers", 0.0), ("reading layers", 0.25), ("quantizing and writing", 0.5)]
    assert stream.getvalue().count("\n") == 4


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers with one config to read."""

    def read(**config: Any) -> Any:
        found = types.SimpleNamespace(**config)
        auto = type("AutoConfig", (), {"from_pretrained": staticmethod(lambda *_, **__: found)})
        monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoConfig=auto))
        build.speak_older_configs()
        return auto.from_pretrained("x")

    return read


def test_a_gemma_3_has_its_rotary_bases_where_the_builder_looks(read: Any) -> None:
    full, sliding = {"rope_theta": 1e6, "rope_type": "default"}, {"rope_theta": 1e4, "rope_type": "default"}

    config = read(model_type="gemma3_text", rope_parameters={"full_attention": full, "sliding_attention": sliding})

    assert (config.rope_theta, config.rope_local_base_freq, config.rope_parameters) == (1e6, 1e4, full)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
        {"model_type": "gemma4_text", "rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
        {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ],
)
def test_other_configs_stay_as_they_are(read: Any, config: dict[str, Any]) -> None:
    assert vars(read(**config)) == config


def run_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, **changes: Any) -> dict[str, Any]:
    """Run the step with a builder of our own in place of the library's."""
    package = tmp_path / "site" / "made_up_genai"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "builder.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "made_up_genai", raising=False)
    monkeypatch.setattr(build, "BUILDER", "made_up_genai.builder")
    monkeypatch.setattr(build, "speak_older_configs", lambda: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    for name in ("source", "result"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "config.json").write_text('{"num_hidden_layers": 2}')
    arguments = {
        "source": str(tmp_path / "source"), "folder": str(tmp_path / "result"), "cache": str(tmp_path / "cache"),
        "precision": "int4", "device": "cpu", "options": {"algo_config": "k_quant_mixed"}, **changes,
    }  # fmt: skip
    return build.run(arguments, lambda *_: None)


WRITES = "import json, sys, pathlib\nfolder = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"


def test_the_builder_is_called_as_its_command_line_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = WRITES + "(folder / 'genai_config.json').write_text(json.dumps(sys.argv[1:]))"

    result = run_builder(tmp_path, monkeypatch, code)

    text = (tmp_path / "result" / "genai_config.json").read_text()
    given = json.loads(text)
    assert given[given.index("-p") + 1] == "int4"
    assert given[given.index("-e") + 1] == "cpu"
    assert given[given.index("--extra_options") + 1 :] == ["hf_token=false", "algo_config=k_quant_mixed"]
    assert result == {"size_bytes": len(text)}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit(2)", "the builder ended with 2; the log says why"),
        ("pass", "ended well and wrote no genai_config.json"),
        ("raise NotImplementedError('this model is not supported')", "this model is not supported"),
    ],
)
def test_a_builder_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    stdout = sys.stdout

    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        run_builder(tmp_path, monkeypatch, code)

    assert sys.stdout is stdout


@pytest.mark.parametrize(
    ("decoder", "room"),
    [({}, 150), ({"sliding_window": None}, 150), ({"sliding_window": {"window_size": 512}}, 513),
     ({"sliding_window": {"window_size": 4096}}, 2048)],
)  # fmt: skip
def test_the_check_gives_a_sliding_window_the_room_that_it_needs(tmp_path: Path, decoder: dict[str, Any], room: int) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"context_length": 2048, "decoder": decoder}}))

    assert compare._room(tmp_path, 150) == room
