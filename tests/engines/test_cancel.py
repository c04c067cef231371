"""A request is ended in the queue, in its prefill and while it is decoded, by DELETE and by leaving, on each engine alike.

That one came in time is told in the prefill by how much of the prompt was evaluated, while it is decoded by an answer that
would have taken seconds more, in the queue by those that run still.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from support.server import eventually

from .asking import (
    Asked,
    End,
    assert_ended_amid_decode,
    assert_ended_amid_prefill,
    caught,
    delete,
    leave,
    listed,
)
from .conftest import N_CTX

SLOW = {"ctx_len": N_CTX, "n_parallel": 2, "n_batch": 8, "speculation": "off", "cache_ram_mib": 0, "cache_disk_mib": 0}
WAITS = {"prompt": "x", "max_tokens": 1}
FULL = {"prompt": [5, 6, 7], "max_tokens": 15000, "ignore_eos": True, "temperature": 0, "n": 2, "logprobs": 5}
ENDS = pytest.mark.parametrize("end", [delete, leave])
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


@ENDS
def test_a_prefill_that_is_ended_stops_amid_its_prompt_and_its_slot_answers_another(
    url: str, http: httpx.Client, slow: str, end: End
) -> None:
    assert http.put(f"/v1/models/{slow}/start", json={**SLOW, "n_parallel": 1}).status_code == 200

    assert_ended_amid_prefill(url, http, slow, end)


@ENDS
def test_an_answer_that_is_ended_while_it_is_decoded_frees_its_slot(
    url: str, http: httpx.Client, slow: str, end: End
) -> None:
    assert_ended_amid_decode(url, http, slow, end)

    eventually(lambda: not listed(http), "the request is gone", SOON_S)
    assert_every_slot_is_free(http, slow)


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "left"])
def test_a_request_that_waits_can_be_ended_and_those_that_run_go_on(
    url: str, http: httpx.Client, slow: str, is_deleted: bool
) -> None:
    full = Asked(url, slow, FULL)
    running = caught(http, full, "decode")
    assert running
    waiting = Asked(url, slow, WAITS)
    found = eventually(lambda: listed(http, "queued"), "the request waits").pop()

    if is_deleted:
        assert http.delete(f"/v1/requests/{found}").status_code == 200
        assert waiting.answer()[1]["error"]["code"] == "request_cancelled"
    else:
        waiting.leave()

    eventually(lambda: found not in listed(http), "the request that waited is gone", SOON_S)
    assert listed(http) == [running]
    assert not full.is_answered()
    full.leave()
    eventually(lambda: not listed(http), "nothing runs", SOON_S)
    assert_every_slot_is_free(http, slow)
