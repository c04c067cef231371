"""What was read is not read again: between turns, between clients, and over a stop where the engine keeps files."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

KEEPS_FILES = {"llamacpp"}
"""The engines with a disk tier: see docs/prefix-cache.md."""
LONG = "The roundhouse has rules. " + " ".join(f"Rule {number}: no lamp, no key, no oil {number}." for number in range(9))


def ask(http: httpx.Client, model: str, prompt: str, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def n_cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture
def fresh(request: pytest.FixtureRequest, model: str) -> str:
    """A beginning that no other test has shown to the model."""
    return f"[{request.node.name}] {LONG}"


def test_the_second_turn_of_a_chat_reads_the_new_words_alone(http: httpx.Client, model: str, fresh: str) -> None:
    first = ask(http, model, fresh)
    second = ask(http, model, fresh + first["choices"][0]["text"] + " And then?")

    assert n_cached(first) < 40
    assert n_cached(second) >= first["usage"]["prompt_tokens"] - 2
    assert n_cached(second) < second["usage"]["prompt_tokens"]


def test_a_second_client_with_the_same_long_beginning_reads_only_its_own_question(
    http: httpx.Client, model: str, fresh: str
) -> None:
    n_shared = ask(http, model, fresh)["usage"]["prompt_tokens"]

    for question in (" Who has the key?", "\nIs there a lamp?"):
        answer = ask(http, model, fresh + question)
        assert n_shared - 4 <= n_cached(answer) <= n_shared + 2 < answer["usage"]["prompt_tokens"]


def test_a_beginning_is_taken_from_a_slot_that_is_still_at_work(http: httpx.Client, model: str, fresh: str) -> None:
    """Where the other is over already, as with tiny models it may be, its slot is idle and gives as much."""
    with http.stream("POST", "/v1/completions", json={
        "model": model, "prompt": fresh, "max_tokens": 100, "ignore_eos": True, "logprobs": 5, "stream": True,
    }) as running:  # fmt: skip
        lines = running.iter_lines()
        next(lines)
        second = ask(http, model, fresh + " Who?", max_tokens=1)
        assert list(lines)[-2:].count("data: [DONE]") == 1

    if model == "echo":  # it takes over idle slots only, it has nothing to copy
        assert n_cached(second) < second["usage"]["prompt_tokens"]
    else:
        assert n_cached(second) > second["usage"]["prompt_tokens"] // 2


def test_clients_side_by_side_each_find_the_beginning(http: httpx.Client, model: str, fresh: str) -> None:
    ask(http, model, fresh)
    found: list[int] = []
    threads = [threading.Thread(target=lambda n=n: found.append(n_cached(ask(http, model, f"{fresh} {n}")))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 3
    assert max(found) > 100
    if model != "echo":
        assert min(found) > 100


def test_a_request_that_wants_no_cache_reads_everything_and_says_the_same(http: httpx.Client, model: str, fresh: str) -> None:
    asked = [ask(http, model, fresh), ask(http, model, fresh, cache_prompt=False), ask(http, model, fresh)]

    assert n_cached(asked[1]) == 0
    assert n_cached(asked[2]) > 0
    assert asked[0]["usage"]["prompt_tokens"] == asked[1]["usage"]["prompt_tokens"]


def test_a_stop_and_a_start_leave_what_the_engine_keeps_in_files(http: httpx.Client, model: str, fresh: str) -> None:
    """That the answers are the same is asked of real weights, in tests/functional: random ones stand at near-ties."""
    ask(http, model, fresh)
    assert http.put(f"/v1/models/{model}/stop").json()["state"] == "stopped"
    again = ask(http, model, fresh)

    if model in KEEPS_FILES:
        assert n_cached(again) > 100
    else:
        assert n_cached(again) == 0
