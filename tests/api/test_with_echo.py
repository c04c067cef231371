"""The API over a real runtime and real workers, with echo, the engine without weights. Whole servers run in
tests/functional; here stands what needs an engine and is hard to script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from api.scripted_runtime import DEADLINE_S
from hostler.api.app import create_app
from hostler.config import load_settings
from hostler.plugins import get_plugins
from hostler.runtime import Runtime
from hostler.server import HttpServer, open_sockets, url_of


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts servers over one runtime with the models `parrot` and `lazy`, which takes its time to load; gives their URLs."""
    folder = tmp_path_factory.mktemp("parrot")
    settings = load_settings(folder / "home", environ={}).replace(stop_timeout_s=2)
    runtime = Runtime(settings, get_plugins())
    servers: list[HttpServer] = []
    sockets: list[Any] = []
    for name, text in {"parrot": "{}", "lazy": json.dumps({"manners": {"load_s": 0.5}})}.items():
        path = folder / f"{name}.echo"
        path.write_text(text)
        runtime.import_model(str(path))

    def start(keep_alive_s: float = 15.0) -> str:
        listeners = open_sockets("127.0.0.1", 0)
        sockets.extend(listeners)
        servers.append(HttpServer(create_app(runtime, settings, keep_alive_s=keep_alive_s), listeners, settings))
        servers[-1].start()
        return url_of(listeners)

    yield start
    runtime.close(0)
    for server in servers:
        server.close()
    for listener in sockets:
        listener.close()


@pytest.fixture(scope="module")
def client(parrot: Callable[..., str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{parrot()}/v1", api_key="unused", timeout=60, max_retries=0) as made:
        yield made


def test_several_prompts_are_answered_each_with_its_own_text(client: openai.OpenAI) -> None:
    prompts = [f"Prompt number {number}, and nothing else." for number in range(9)]

    answer = client.completions.create(model="parrot", prompt=prompts, max_tokens=100, temperature=0)

    assert [choice.text for choice in answer.choices] == prompts
    assert [choice.index for choice in answer.choices] == list(range(9))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(len(prompt) for prompt in prompts)


def test_several_prompts_stream_interleaved_and_whole(client: openai.OpenAI) -> None:
    prompts = ["\u00fcber \U0001f600 " * 20, "plain text " * 20]
    texts = ["", ""]

    with client.completions.create(model="parrot", prompt=prompts, max_tokens=1000, temperature=0, stream=True) as stream:
        for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text

    assert texts == prompts


def test_token_ids_are_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="parrot", prompt=[list(b"one"), list(b"two")], max_tokens=10, temperature=0)

    assert len(answer.choices) == 2
    assert all(choice.finish_reason == "stop" for choice in answer.choices)


def test_answers_with_one_seed_are_the_same_again_and_differ_from_each_other(client: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        messages: Any = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 5}]
        answer = client.chat.completions.create(model="parrot", messages=messages, n=3, seed=7, temperature=1.5)
        return [choice.message.content for choice in answer.choices]

    first = ask()

    assert ask() == first
    assert len(set(first)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_cover_the_text_byte_by_byte(client: openai.OpenAI, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": "Gr\u00fc\u00dfe"}]
    fields: Any = {"model": "parrot", "messages": messages, "logprobs": True, "top_logprobs": 3, "temperature": 0}
    if stream:
        with client.chat.completions.create(**fields, stream=True) as chunks:
            found = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    else:
        found = [client.chat.completions.create(**fields).choices[0].logprobs]

    tokens = [token for logprobs in found for token in logprobs.content]
    assert bytes(byte for token in tokens for byte in token.bytes) == "Gr\u00fc\u00dfe".encode()
    assert all(token.logprob <= 0 and 1 <= len(token.top_logprobs) <= 3 for token in tokens)


def test_a_stream_is_kept_alive_while_its_model_loads(parrot: Callable[..., str]) -> None:
    body = {"model": "lazy", "messages": [{"role": "user", "content": "Good morning"}], "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{parrot(keep_alive_s=0.1)}/v1/chat/completions", json=body, timeout=DEADLINE_S) as answer:
        lines = [line for line in answer.iter_lines() if line]

    assert answer.status_code == 200
    assert lines[:2] == [": keep-alive", ": keep-alive"]
    data = [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in data) == "Good morning"
    assert lines[-1] == "data: [DONE]"


def test_a_prompt_that_does_not_fit_is_400_streamed_or_not(client: openai.OpenAI) -> None:
    client.post("/models/parrot/start", cast_to=object, body={"ctx_len": 128})
    messages: Any = [{"role": "user", "content": "x" * 500}]

    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="parrot", messages=messages, stream=stream)

        assert raised.value.code == "context_length_exceeded"
        assert "128" in raised.value.message


def test_a_model_shows_what_its_worker_was_granted(client: openai.OpenAI) -> None:
    client.post("/models/parrot/start", cast_to=object, body={"ctx_len": "256", "n_parallel": 2})

    model: Any = client.models.retrieve("parrot")

    assert (model.parameters["ctx_len"], model.parameters["n_parallel"], model.lifecycle) == (256, 2, "running")
    assert model.hostler["pid"] > 0
    assert model.metadata["engine"] == "echo"
