"""A real server whose model has another one that guesses for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.server import Server, run_hostler, serving

from . import tiny_models

N_TOKENS = 60
N_LAYERS = 60
"""So many that a row more costs a step next to nothing, and a guess of one layer far less than a step: on any machine,
however busy, guessing pays."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Knows a deep model, one of one layer that thinks alike, and others that cannot guess for it."""
    folder = tmp_path_factory.mktemp("draft")
    tiny_models.write_llama(folder / "deep.gguf", n_layers=N_LAYERS, deep=0.002)
    tiny_models.write_llama(folder / "shallow.gguf", n_layers=1)
    tiny_models.write_mamba(folder / "mamba.gguf")
    (folder / "parrot.echo").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "TOKENS", [*tiny_models.TOKENS[:261], "zzz", *tiny_models.TOKENS[262:]])
        tiny_models.write_llama(folder / "foreign.gguf", **{"tokenizer.ggml.tokens": (9, (8, tiny_models.TOKENS))})
    home = folder / "home"
    for path in [*folder.glob("*.gguf"), *folder.glob("*.echo")]:
        done = run_hostler(home, "import", str(path), "--id", path.stem)
        assert done.returncode == 0, done.stderr
    with serving(home) as server:
        yield server


def start(server: Server, model: str, **settings: object) -> Any:
    return server.call("PUT", f"/v1/models/{model}/start", {"ctx_len": 512, "n_parallel": 2, **settings})


def answer(server: Server) -> dict[str, Any]:
    body = {
        "model": "deep", "prompt": "kadobi le", "max_tokens": N_TOKENS, "temperature": 0, "ignore_eos": True,
        "cache_prompt": False,
    }  # fmt: skip
    response = server.call("POST", "/v1/completions", body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_answers_are_the_same_and_timings_tell_what_the_draft_model_guessed(server: Server) -> None:
    assert start(server, "deep", speculation="off").status_code == 200
    plain = answer(server)
    memory_bytes = server.model("deep")["hostler"]["memory_bytes"]
    server.call("PUT", "/v1/models/deep/stop")

    started = start(server, "deep", draft_model="shallow")
    assert started.status_code == 200, started.text
    guessed = answer(server)

    assert guessed["choices"][0]["text"] == plain["choices"][0]["text"]
    assert guessed["usage"]["completion_tokens"] == N_TOKENS
    assert plain["timings"].get("draft_n", 0) == 0
    assert guessed["timings"]["draft_n"] >= guessed["timings"]["draft_accepted_n"] > N_TOKENS // 4
    assert server.model("deep")["hostler"]["memory_bytes"] > memory_bytes
    server.call("PUT", "/v1/models/deep/stop")


@pytest.mark.parametrize(
    ("model", "draft", "why"),
    [
        ("deep", "foreign", "token 261 is b'zzz'"),
        ("deep", "mamba", "it is recurrent"),
        ("mamba", "shallow", "is recurrent"),
        ("deep", "parrot", "whose format is 'echo'"),
    ],
)
def test_a_draft_model_that_cannot_guess_is_a_400_that_names_the_setting(
    server: Server, model: str, draft: str, why: str
) -> None:
    refused = start(server, model, draft_model=draft)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "draft_model")
    assert why in error["message"]
    assert server.model(model)["state"] != "running"
    assert start(server, model).status_code == 200, "it starts without"
    server.call("PUT", f"/v1/models/{model}/stop")


@pytest.mark.parametrize(
    ("draft", "why"), [("nobody", "nobody does not exist"), ("smollm2", "not downloaded; get it with `hostler pull ")]
)
def test_a_draft_model_that_is_not_there_is_a_400_that_says_what_to_do(server: Server, draft: str, why: str) -> None:
    refused = start(server, "deep", draft_model=draft)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_value", "draft_model")
    assert why in error["message"]
    assert "Set draft_model to an id that `hostler list` shows, or unset it" in error["message"]
