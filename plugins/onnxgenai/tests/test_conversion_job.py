"""A whole conversion with steps that need no torch: their order, what is done once, the verdict, and what is refused first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hostler import HostlerError, InsufficientMemory, InsufficientStorage, ModelExists, find_model
from hostler.config import load_settings
from hostler.home import HomeLock
from hostler.library.store import Library
from hostler_onnxgenai.conversion import job
from hostler_onnxgenai.conversion.child import StepFailed
from hostler_onnxgenai.conversion.job import Conversion, ConversionRefused, Order
from hostler_onnxgenai.conversion.source import find_source
from hostler_onnxgenai.conversion.tools import MissingTools
from support.server import serving

from .converting import TOOLS, Steps, Told, write_folder, write_source

ALL = ["load", "reference", "build", "compare"]


@pytest.fixture
def settings(tmp_path: Path):
    settings = load_settings(tmp_path / "home", {}, {})
    Library(settings.home, {}).import_path(write_source(tmp_path), id="small")
    return settings


def convert(settings: Any, steps: Steps, *, model: str = "small", told: Told | None = None, **changes: Any) -> Any:
    limits = {name: changes.pop(name) for name in ("free_bytes", "free_memory") if name in changes}
    order = {"device": "cpu", "quant": "int4", "model_id": "small-onnx", **changes}
    conversion = Conversion(
        settings, Order(find_source(settings, model), **order), told or Told(), run=steps,
        **{"free_bytes": lambda _: 10**12, "free_memory": lambda: 10**12, **limits},
    )  # fmt: skip
    return conversion.run()


def test_a_model_is_loaded_built_checked_and_registered_under_a_new_id(settings) -> None:
    steps, told = Steps(), Told()

    done = convert(settings, steps, told=told)

    assert steps.ran == ALL
    found = find_model(settings, "small-onnx")
    assert (found.format, found.source_url, done.source_url) == ("onnxgenai", "convert:small", "convert:small")
    assert found.path.is_relative_to(settings.home / "models")
    metadata = found.metadata
    assert (metadata["quantization"], metadata["base_model"], metadata["base_quantization"]) == ("int4", "small", "Q4_1")
    assert metadata["converted_with"].endswith(", torch 2.9, transformers 5.0, onnxruntime-genai 0.18.0")
    assert metadata["kl_divergence"] == 0.2
    assert done.size_bytes > 10_000
    assert [step for step, _, _ in told.ended] == ["1/5 load", "2/5 reference", "3/5 build", "4/5 check", "5/5 register"]
    assert "  source: Paris, of course." in told.notes
    assert "  result: Paris." in told.notes


def test_the_work_folder_is_removed_unless_it_is_to_be_kept(settings) -> None:
    convert(settings, Steps())
    assert list((settings.home / "conversions").iterdir()) == []

    convert(settings, Steps(), model_id="again", keeps_work=True)
    (folder,) = (settings.home / "conversions").iterdir()
    assert {path.name for path in folder.iterdir()} >= {"load", "reference", "state.json"}


def test_a_safetensors_folder_is_built_from_where_it_lies(settings, tmp_path: Path) -> None:
    folder, steps = write_folder(tmp_path / "tiny"), Steps()

    convert(settings, steps, model=str(folder))

    assert steps.ran == ["reference", "build", "compare"]
    assert steps.arguments["build"]["source"] == str(folder)
    assert (steps.arguments["reference"]["runtime"], steps.arguments["reference"]["source"]) == ("transformers", str(folder))
    assert find_model(settings, "small-onnx").source_url == f"convert:{folder.as_uri()}"


def test_the_builder_is_told_precision_device_and_options_by_the_names_that_it_has(settings) -> None:
    newer, older = Steps(), Steps(tools={**TOOLS, "options": ["int4_algo_config"]})

    convert(settings, newer, quant="int4-mixed", model_id="newer")
    convert(settings, older, quant="int4-mixed", model_id="older")

    assert (newer.arguments["build"]["precision"], newer.arguments["build"]["device"]) == ("int4", "cpu")
    assert newer.arguments["build"]["options"] == {"algo_config": "k_quant_mixed"}
    assert older.arguments["build"]["options"] == {"int4_algo_config": "k_quant_mixed"}


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ALL)
def test_the_same_command_goes_on_after_the_last_finished_step(settings, failing: str) -> None:
    first, second, told = Steps(failing), Steps(), Told()
    with pytest.raises(HostlerError, match="no coal"):
        convert(settings, first)

    convert(settings, second, told=told)

    assert first.ran + second.ran == [*ALL[: ALL.index(failing) + 1], *ALL[ALL.index(failing) :]]
    assert [was_done for _, _, was_done in told.ended] == [step in ALL[: ALL.index(failing)] for step in [*ALL, "register"]]
    assert find_model(settings, "small-onnx").metadata["kl_divergence"] == 0.2


def test_another_id_or_a_verdict_overruled_repeats_no_step(settings) -> None:
    bad = {"kl": 7.0}
    with pytest.raises(ConversionRefused):
        convert(settings, Steps(check=bad))
    steps = Steps()

    convert(settings, steps, model_id="other", is_forced=True)

    assert steps.ran == []
    assert find_model(settings, "other").metadata["kl_divergence"] == 7.0


def test_a_source_that_has_changed_begins_anew(settings, tmp_path: Path) -> None:
    with pytest.raises(StepFailed):
        convert(settings, Steps("build"))
    path = write_source(tmp_path)
    path.touch()
    steps = Steps()

    convert(settings, steps)

    assert steps.ran == ALL


def test_other_versions_of_the_tools_begin_anew(settings) -> None:
    with pytest.raises(StepFailed):
        convert(settings, Steps("build"))
    steps = Steps(tools={**TOOLS, "packages": {**TOOLS["packages"], "transformers": "5.1"}})

    convert(settings, steps)

    assert steps.ran == ALL


def test_a_command_that_died_after_the_library_took_the_model_only_tidies_up(settings, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(job, "find_model", _interrupted_when_found(job.find_model))
        with pytest.raises(KeyboardInterrupt):
            convert(settings, Steps())
    steps = Steps()

    done = convert(settings, steps)

    assert (steps.ran, done.id) == ([], "small-onnx")
    assert done.check["kl"] == 0.2
    assert list((settings.home / "conversions").iterdir()) == []


def _interrupted_when_found(find: Any) -> Any:
    def look(settings: Any, name: str) -> Any:
        find(settings, name)
        raise KeyboardInterrupt

    return look


def test_a_home_in_use_is_told_and_nothing_is_lost(settings) -> None:
    steps = Steps()
    with HomeLock(settings.home, "pull"), pytest.raises(HostlerError, match="`hostler pull`"):
        convert(settings, steps)
    again = Steps()

    convert(settings, again)

    assert (steps.ran, again.ran) == (ALL, [])


@pytest.mark.slow
def test_a_running_server_takes_the_result_over_and_runs_it(settings) -> None:
    with serving(settings.home) as server:
        convert(settings, Steps())

        assert server.model("small-onnx")["lifecycle"] == "downloaded"
        body = {"model": "small-onnx", "prompt": "abc", "max_tokens": 4}
        answer = server.call("POST", "/v1/completions", body).json()
    assert answer["usage"]["completion_tokens"] > 0


# -- refused first ----------------------------------------------------------------------------------------------------


def test_a_disk_too_small_is_refused_with_both_numbers_before_anything_is_done(settings) -> None:
    steps = Steps()

    with pytest.raises(InsufficientStorage, match=r"needs \d+ bytes more in .*, and 1000 are free") as caught:
        convert(settings, steps, free_bytes=lambda _: 1000)

    assert steps.ran == []
    assert caught.value.available_bytes == 1000
    assert caught.value.needed_bytes > 25_000_000


def test_what_is_there_already_is_not_needed_again(settings) -> None:
    with pytest.raises(StepFailed):
        convert(settings, Steps("build"))
    with pytest.raises(InsufficientStorage) as caught:
        convert(settings, Steps(), free_bytes=lambda _: 1000)
    with pytest.raises(InsufficientStorage) as anew:
        convert(settings, Steps(), quant="int8", free_bytes=lambda _: 1000)

    assert caught.value.needed_bytes < anew.value.needed_bytes


def test_memory_too_small_is_refused_unless_forced(settings) -> None:
    steps = Steps()
    with pytest.raises(InsufficientMemory, match=r"needs about \d+ bytes of memory, and 1000 are free"):
        convert(settings, steps, free_memory=lambda: 1000)
    assert steps.ran == []

    convert(settings, steps, free_memory=lambda: 1000, is_forced=True)

    assert steps.ran == ALL


@pytest.mark.parametrize("taken", ["small", "smollm2"])
def test_an_id_that_has_a_meaning_already_is_refused(settings, taken: str) -> None:
    steps = Steps()

    with pytest.raises(ModelExists, match=f"{taken} is here already; choose another name with --id"):
        convert(settings, steps, model_id=taken)

    assert steps.ran == []


def test_missing_packages_are_named_with_the_way_to_install_them(settings) -> None:
    tools = {**TOOLS, "packages": {"torch": "2.9", "onnx": "1"}, "builder": ""}

    with pytest.raises(MissingTools, match="lacks transformers, onnx-ir, accelerate, gguf, onnxruntime-genai") as caught:
        convert(settings, Steps(tools=tools))

    assert f'{sys.executable} -m pip install "hostler-onnxgenai[cpu,convert]"' in str(caught.value)
    assert "--python" in str(caught.value)


def test_the_named_interpreter_converts_and_hostler_s_own_checks(settings) -> None:
    steps = Steps()

    convert(settings, steps, python="/other/bin/python")

    used = {step: steps.arguments[step]["python"] for step in ALL}
    assert used == {
        "load": "/other/bin/python", "build": "/other/bin/python", "reference": "/other/bin/python",
        "compare": sys.executable,
    }  # fmt: skip


def test_an_architecture_that_the_builder_does_not_know_is_refused_before_weights_are_read(settings, tmp_path: Path) -> None:
    folder, steps = write_folder(tmp_path / "tiny", architectures=["MambaForCausalLM"]), Steps()

    with pytest.raises(StepFailed, match="MambaForCausalLM, which this version of the builder does not know"):
        convert(settings, steps, model=str(folder))

    assert steps.ran == []


def test_without_llama_cpp_the_loaded_source_is_the_reference(settings) -> None:
    packages = {name: version for name, version in TOOLS["packages"].items() if name != "llama-cpp-python"}
    steps = Steps(tools={**TOOLS, "packages": packages})

    convert(settings, steps)

    assert steps.arguments["reference"]["runtime"] == "transformers"
    assert Path(steps.arguments["reference"]["source"]).name == "load"


# -- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"kl": 1.01}, "its mean KL divergence from the source is 1.010, and 1 is the most that int4 may cost"),
        ({"kl_decode": 2.01}, "from the source, as it goes on, is 2.010, and 2 is the most"),
        ({"kl": float("nan")}, "its mean KL divergence from the source is nan"),
        ({"same_tokens": False}, "its tokenizer makes other tokens"),
    ],
)
def test_a_result_that_strays_too_far_is_refused_and_kept(settings, check: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionRefused, match=message):
        convert(settings, Steps(check=check))

    (folder,) = (settings.home / "conversions").iterdir()
    assert (folder / "build" / "genai_config.json").is_file()
    with pytest.raises(HostlerError, match="does not exist"):
        find_model(settings, "small-onnx")


@pytest.mark.parametrize("failing", ["reference", "compare"])
def test_a_result_that_cannot_be_checked_is_registered_when_forced_only(settings, failing: str) -> None:
    with pytest.raises(ConversionRefused, match=f"cannot be checked: {failing} failed: no coal.*--force"):
        convert(settings, Steps(failing))
    told = Told()

    done = convert(settings, Steps(failing), told=told, is_forced=True)

    assert done.check is None
    assert "kl_divergence" not in find_model(settings, "small-onnx").metadata
    assert any(note.startswith(f"Not checked: {failing} failed") for note in told.notes)


def test_a_precision_has_its_own_ceiling(settings) -> None:
    with pytest.raises(ConversionRefused, match=r"0\.1 is the most that int8 may cost"):
        convert(settings, Steps(check={"kl": 0.3}), quant="int8")


def test_what_was_handed_over_is_readable_as_a_manifest_of_jan_s(settings) -> None:
    convert(settings, Steps())

    manifest = json.loads((find_model(settings, "small-onnx").path / "model.json").read_text())

    assert manifest["is_complete"] is True
    assert not any(file["is_link"] for file in manifest["files"])
    assert manifest["source_url"] == "convert:small"
