"""A request is ended in the queue, in its prefill and while it is decoded, by DELETE and by leaving, on each engine alike.

Whether an end came in time is told by what the request would have taken else: many answers, of which almost all wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.server import eventually

from .asking import Asked, caught, listed

SLOW = {"ctx_len": 2048, "n_parallel": 2, "n_batch": 8}
DECODES = {"prompt": [[5, 6, 7]] * 64, "max_tokens": 1900, "ignore_eos": True, "temperature": 0, "logprobs": 5}
PREFILLS = {"prompt": [[number + 5] * 1900 for number in range(64)], "max_tokens": 1, "cache_prompt": False}
WAITS = {"prompt": "x", "max_tokens": 1}
FULL = {"prompt": [5, 6, 7], "max_tokens": 1900, "ignore_eos": True, "n": 2, "logprobs": 5}
PHASES = [("prefill", PREFILLS), ("decode", DECODES)]
SOON_S = 5.0


@pytest.fixture
def slow(model: str, http: httpx.Client) -> Iterator[str]:
    """The engine's model with two slots and small chunks; nothing else runs in it, before or after."""
    assert http.put(f"/v1/models/{model}/stop").status_code == 200
    answer = http.put(f"/v1/models/{model}/start", json=SLOW)
    assert answer.json()["state"] == "running", answer.text
    yield model
    http.put(f"/v1/models/{model}/stop")


def assert_every_slot_is_free(http: httpx.Client, model: str) -> None:
    """As many answers as there are slots all begin before one of them ends."""
    begun = set()
    with http.stream("POST", "/v1/completions", json={"model": model, "stream": True, **FULL}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                assert choice["finish_reason"] is None, f"an answer ended when only {begun} had begun"
                begun.add(choice["index"])
                if len(begun) == SLOW["n_parallel"]:
                    break
    eventually(lambda: not listed(http), "nothing runs")


@pytest.mark.parametrize(("state", "fields"), PHASES, ids=[state for state, _ in PHASES])
def test_a_request_that_is_deleted_ends_with_its_error_and_its_slots_are_free(
    url: str, http: httpx.Client, slow: str, state: str, fields: dict[str, Any]
) -> None:
    asked = Asked(url, slow, fields)
    found = caught(http, asked, state)
    assert found, "the answer came before its request was seen"

    assert http.delete(f"/v1/requests/{found}").status_code == 200

    _, answer = asked.answer()
    assert answer["error"]["code"] == "request_cancelled"
    eventually(lambda: not listed(http), "the request is gone", SOON_S)
    assert_every_slot_is_free(http, slow)


@pytest.mark.parametrize(("state", "fields"), PHASES, ids=[state for state, _ in PHASES])
def test_a_client_that_leaves_frees_the_slots_of_its_request(
    url: str, http: httpx.Client, slow: str, state: str, fields: dict[str, Any]
) -> None:
    asked = Asked(url, slow, fields)
    assert caught(http, asked, state), "the answer came before its request was seen"

    asked.leave()

    eventually(lambda: not listed(http), "the request is gone", SOON_S)
    assert_every_slot_is_free(http, slow)


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "left"])
def test_a_request_that_waits_can_be_ended_and_those_that_run_go_on(
    url: str, http: httpx.Client, slow: str, is_deleted: bool
) -> None:
    full = Asked(url, slow, DECODES)
    eventually(lambda: listed(http, "decode"), "the slots are full")
    before = set(listed(http))
    waiting = Asked(url, slow, WAITS)
    found = eventually(lambda: set(listed(http, "queued")) - before, "the request waits").pop()

    if is_deleted:
        assert http.delete(f"/v1/requests/{found}").status_code == 200
        assert waiting.answer()[1]["error"]["code"] == "request_cancelled"
    else:
        waiting.leave()

    eventually(lambda: found not in listed(http), "the request that waited is gone", SOON_S)
    assert listed(http, "decode")
    assert not full.is_answered()
    full.leave()
    eventually(lambda: not listed(http), "nothing runs", SOON_S)
    assert_every_slot_is_free(http, slow)
