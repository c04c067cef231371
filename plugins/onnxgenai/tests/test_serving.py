"""A real server with model folders: import, start, chat; and folders that are refused while the others answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from hostler_onnxgenai import tinymodel
from support.server import Server, run_hostler, serving

from .spoiling import change_config

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Knows the tiny model as `tiny`."""
    home = tmp_path_factory.mktemp("onnxgenai") / "home"
    done = run_hostler(home, "import", str(tiny), "--id", "tiny")
    assert done.returncode == 0, done.stderr
    with serving(home) as server:
        yield server


def chat(server: Server, model: str, *texts: str, **more: object) -> httpx.Response:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_a_folder_is_imported_started_and_answers(server: Server) -> None:
    answer = chat(server, "tiny", "hello", logprobs=True, top_logprobs=2).json()
    again = chat(server, "tiny", "hello").json()
    model = httpx.get(f"{server.url}/v1/models/tiny").json()

    assert answer["usage"]["completion_tokens"] >= 1
    assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert again["choices"][0]["message"] == answer["choices"][0]["message"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert (model["engine"], model["format"], model["state"]) == ("onnxgenai", "onnxgenai", "running")


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(server: Server) -> None:
    error = chat(server, "tiny", "ba " * 3000).json()["error"]

    assert error["code"] == "context_length_exceeded"
    assert str(tinymodel.N_CTX) in error["message"]


def truncate(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def set_config(path: str, value: object) -> Spoil:
    return lambda folder: change_config(folder, path, value)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate("model.onnx.data"), "model.onnx.data has 100 bytes"),
        (truncate("model.onnx"), "model.onnx is no sound ONNX file"),
        (truncate("tokenizer.json"), "tokenizer.json"),
        (remove("tokenizer.json"), "tokenizer.json is missing"),
        (set_config("model.decoder.num_hidden_layers", 9), "says 9 layers"),
        (set_config("model.decoder.num_attention_heads", 99), "says 99 heads, and model.onnx has 4"),
        (set_config("model.vocab_size", 100), "says vocab_size 100, and model.onnx computes 338 logits"),
        (set_config("model.context_length", 100_000), "has rotary embeddings for 2048 positions"),
        (set_config("model.eos_token_id", 99_999), "eos_token_id [99999], and the vocabulary has 338 tokens"),
        (lambda folder: tinymodel.write_llama(folder, opset=99), "Update onnxruntime-genai"),
        (set_config("model.decoder.session_options.custom_ops_library", "evil.so"), "custom_ops_library"),
        (set_config("model.decoder.session_options.provider_options", [{"cuda": {"x": "1"}}]), "option 'x' of cuda"),
        (set_config("model.decoder.session_options.provider_options", [{"cuda": {}}]), "cannot be loaded on cuda"),
    ],
)
def test_a_spoilt_folder_is_refused_with_its_reason_and_nobody_else_notices(
    server: Server, tmp_path: Path, spoil: Spoil, reason: str
) -> None:
    folder = tinymodel.write_llama(tmp_path / "bad")
    spoil(folder)
    imported = run_hostler(server.home, "import", str(folder), "--id", "bad")
    assert imported.returncode == 0, imported.stderr

    try:
        refused = chat(server, "bad", "hello")

        assert refused.status_code == 500
        assert refused.json()["error"]["code"] in {"model_load_failed", "invalid_model_file"}
        assert reason in refused.json()["error"]["message"]
        assert chat(server, "tiny", "hello").status_code == 200
    finally:
        run_hostler(server.home, "rm", "bad")


def test_a_folder_of_model_folders_is_refused_and_names_them(server: Server, tmp_path: Path) -> None:
    tinymodel.write_llama(tmp_path / "cpu-int4")

    refused = run_hostler(server.home, "import", str(tmp_path), "--id", "bad")

    assert refused.returncode != 0
    assert "model folders lie below it: cpu-int4" in " ".join(refused.stderr.split())


def test_more_memory_than_there_is_is_refused_before_the_load(server: Server, tmp_path: Path) -> None:
    folder = tinymodel.write_llama(tmp_path / "huge", n_ctx=1_000_000)
    assert run_hostler(server.home, "import", str(folder), "--id", "huge").returncode == 0

    refused = httpx.put(
        f"{server.url}/v1/models/huge/start", json={"settings": {"ctx_len": 1_000_000, "n_parallel": 256}}, timeout=60
    )

    assert refused.status_code == 507
    assert refused.json()["error"]["code"] == "insufficient_memory"
    assert chat(server, "tiny", "hello").status_code == 200
    run_hostler(server.home, "rm", "huge")
