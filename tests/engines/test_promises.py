"""What hostler promises of every engine, asked of each of them over HTTP: the same behaviour, whoever computes.

What an engine truly cannot is a 400 and a row in docs/engines.md; nothing here is left out for one of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import psutil
import pytest

from support.server import eventually

PROMPT = "The roundhouse keeps its engines warm through the night. "
GREEDY: dict[str, Any] = {"temperature": 0.0, "extra_body": {"ignore_eos": True}}
ENDLESS = {"max_tokens": 400, "temperature": 0.0, "ignore_eos": True, "stream": True, "n": 4, "logprobs": 5}


def complete(client: openai.OpenAI, model: str, prompt: Any = PROMPT, **fields: Any) -> Any:
    return client.completions.create(model=model, prompt=prompt, **{"max_tokens": 24, **GREEDY, **fields})


def running(http: httpx.Client) -> list[dict[str, Any]]:
    return list(http.get("/v1/requests").json()["data"])


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_stream_brings_the_text_of_the_whole_answer_and_counts_it_alike(client: openai.OpenAI, model: str) -> None:
    whole = complete(client, model)
    chunks = list(complete(client, model, stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens > 0


def test_a_seed_draws_the_same_answer_again(client: openai.OpenAI, model: str) -> None:
    drawn = {complete(client, model, temperature=1.0, seed=7).choices[0].text for _ in range(3)}

    assert len(drawn) == 1


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI, model: str) -> None:
    text = complete(client, model).choices[0].text
    stop = text[len(text) // 2 :][:3]
    before = text[: text.index(stop)]

    for is_stream in (False, True):
        answer = complete(client, model, stop=[stop], stream=is_stream)
        parts = list(answer) if is_stream else [answer]
        assert "".join(part.choices[0].text for part in parts) == before
        assert parts[-1].choices[0].finish_reason == "stop"


def test_a_prompt_of_token_ids_is_one_of_text(client: openai.OpenAI, model: str) -> None:
    answer = complete(client, model, prompt=[5, 6, 7, 8], max_tokens=4)

    assert answer.usage.prompt_tokens == 4
    assert answer.usage.completion_tokens == 4


def test_log_probabilities_come_one_a_token_with_their_rivals(client: openai.OpenAI, model: str) -> None:
    logprobs = complete(client, model, max_tokens=5, logprobs=2).choices[0].logprobs

    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 5
    assert all(value <= 0 for value in logprobs.token_logprobs)
    assert all(len(rivals) >= 2 for rivals in logprobs.top_logprobs)


def test_a_prompt_that_was_just_there_is_not_evaluated_again(client: openai.OpenAI, model: str) -> None:
    prompt = f"{PROMPT} {model} " * 4
    first = complete(client, model, prompt=prompt, max_tokens=2)
    again = complete(client, model, prompt=prompt, max_tokens=2)

    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert again.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens // 2
    assert again.choices[0].text == first.choices[0].text


def test_answers_side_by_side_are_each_their_own(client: openai.OpenAI, model: str) -> None:
    """Text at temperature 0 may part at a near-tie in another batch; how much there is, and whose, may not."""
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = complete(client, model, prompt=[number + 5] * (number + 3), max_tokens=6 + number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {number: answer.usage.prompt_tokens for number, answer in answers.items()} == {n: n + 3 for n in range(8)}
    assert {number: answer.usage.completion_tokens for number, answer in answers.items()} == {n: n + 6 for n in range(8)}


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(client: openai.OpenAI, model: str, is_stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, model, prompt=[5] * 700, stream=is_stream)

    assert refused.value.code == "context_length_exceeded"
    assert "512" in str(refused.value)
    assert "700" in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": [10**9]}, "invalid_value", "prompt[0]"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"logit_bias": {"999999999": 1}}, "invalid_value", "logit_bias"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_field(
    http: httpx.Client, model: str, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = http.post("/v1/completions", json={"model": model, "prompt": "x", **fields})

    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


def test_tools_are_refused_and_never_ignored(http: httpx.Client, model: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "tools": tools}

    answer = http.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_embeddings_come_with_length_one_or_are_refused(http: httpx.Client, model: str) -> None:
    answer = http.post("/v1/embeddings", json={"model": model, "input": ["one", "two"]})

    if answer.status_code == 200:
        lengths = [sum(value * value for value in item["embedding"]) for item in answer.json()["data"]]
        assert lengths == pytest.approx([1.0, 1.0], abs=1e-5)
    else:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] in {"embeddings_disabled", "unsupported_parameter"}


def test_a_device_that_is_not_there_is_an_error_and_no_quiet_run_on_the_cpu(http: httpx.Client, model: str) -> None:
    answer = http.put(f"/v1/models/{model}/start", json={"device": "cuda"})

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "model_load_failed"
    assert "cuda" in answer.json()["error"]["message"].lower()
    assert http.get(f"/v1/models/{model}").json()["lifecycle"] in {"stopped", "downloaded"}


# -- cancellation, crashes, memory --------------------------------------------------------------------------------------


def interrupted(http: httpx.Client, model: str, interrupt: Callable[[], object]) -> str:
    """The code of the error that ends a stream which is interrupted after its first words.

    These models are small: an answer may be over before the interruption comes, and then another one is asked for.
    """
    for _ in range(50):
        with http.stream("POST", "/v1/completions", json={"model": model, "prompt": PROMPT * 3, **ENDLESS}) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            next(lines)
            interrupt()
            last = [line for line in lines if line.startswith("data:")][-1].removeprefix("data:").strip()
        if last != "[DONE]":
            return str(json.loads(last)["error"]["code"])
    raise AssertionError("fifty answers were over before they could be interrupted")


def test_a_cancelled_request_ends_with_its_error_and_frees_its_slot(http: httpx.Client, model: str) -> None:
    def cancel() -> None:
        for request in running(http):
            http.delete(f"/v1/requests/{request['id']}")

    assert interrupted(http, model, cancel) == "request_cancelled"

    eventually(lambda: not running(http), "the request is gone")


def test_a_client_that_leaves_ends_its_request(http: httpx.Client, model: str) -> None:
    with http.stream("POST", "/v1/completions", json={"model": model, "prompt": PROMPT * 3, **ENDLESS}) as answer:
        next(answer.iter_lines())

    eventually(lambda: not running(http), "the request of the client that left is gone")


def test_a_worker_that_is_killed_fails_its_stream_alone_and_the_next_request_works(
    http: httpx.Client, client: openai.OpenAI, model: str
) -> None:
    killed = []

    def kill() -> None:
        run = http.get(f"/v1/models/{model}").json()["hostler"]
        if run is not None and run["pid"] not in killed:
            killed.append(run["pid"])
            psutil.Process(run["pid"]).kill()

    assert interrupted(http, model, kill) == "engine_unavailable"

    assert complete(client, model, max_tokens=3).usage.completion_tokens == 3
    assert http.get(f"/v1/models/{model}").json()["hostler"]["pid"] not in killed


def test_a_stopped_model_leaves_no_process(http: httpx.Client, model: str) -> None:
    pid = http.get(f"/v1/models/{model}").json()["hostler"]["pid"]

    assert http.put(f"/v1/models/{model}/stop").json()["state"] == "stopped"

    eventually(lambda: not psutil.pid_exists(pid), "the worker's process is gone")
    assert http.get(f"/v1/models/{model}").json()["hostler"] is None
