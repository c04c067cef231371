"""Requests that answer when they like, what a server's list says of them meanwhile, and how they are ended amid it."""

from __future__ import annotations

import http.client
import json
import select
import time
from collections.abc import Callable
from typing import Any

import httpx

from support.server import POLL_S, eventually

GROWING = (3000, 7500, 15000)
"""Tokens to be evaluated or made: the next number where the last one was done before its request could be ended."""


class Asked:
    """A request on a connection of its own, which answers when it likes."""

    def __init__(self, url: str, model: str, fields: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        body = json.dumps({"model": model, **fields})
        self._connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})

    def is_answered(self) -> bool:
        return bool(select.select([self._connection.sock], [], [], 0)[0])

    def answer(self) -> tuple[int, Any]:
        try:
            with self._connection.getresponse() as response:
                return response.status, json.loads(response.read())
        finally:
            self._connection.close()

    def leave(self) -> None:
        self._connection.close()


def listed(http: httpx.Client, state: str = "", model: str = "") -> list[str]:
    """The ids of requests that are there, of one state or model where one is named."""
    found = http.get("/v1/requests").json()["data"]
    return [one["id"] for one in found if state in ("", one["state"]) and model in ("", one["model"])]


def caught(http: httpx.Client, asked: Asked, state: str, model: str = "") -> str:
    """The id of a request in this state; empty: it was answered before it was seen there."""
    while not asked.is_answered():
        found = listed(http, state, model)
        if found:
            return found[-1]
        time.sleep(POLL_S / 10)
    return ""


def n_evaluated_amid(http: httpx.Client, asked: Asked, model: str) -> int:
    """How much of its prompt is evaluated: some, and at most half of it; 0: it went on too fast to be seen so."""
    while not asked.is_answered():
        for one in http.get("/v1/requests").json()["data"]:
            if one["model"] == model and one["evaluated_tokens"]:
                return int(one["evaluated_tokens"]) if 2 * one["evaluated_tokens"] <= one["prompt_tokens"] else 0
        time.sleep(POLL_S / 10)
    return 0


def leave(http: httpx.Client, asked: Asked, found: str) -> bool:
    """Hang up; whether the request was there still."""
    is_there = found in listed(http)
    asked.leave()
    return is_there


def delete(http: httpx.Client, asked: Asked, found: str) -> bool:
    """Cancel it; whether its client is told so. False: it had just ended, or its answer was on its way."""
    deleted = http.delete(f"/v1/requests/{found}")
    status, answer = asked.answer()
    if deleted.status_code == 404 or status == 200:
        return False
    assert (deleted.status_code, status, answer["error"]["code"]) == (200, 499, "request_cancelled"), answer
    return True


End = Callable[[httpx.Client, Asked, str], bool]


def assert_ended_amid_prefill(url: str, http: httpx.Client, model: str, end: End) -> None:
    """A prompt is ended after some of it; what was evaluated then is all that is found when it is asked again.

    The model has one slot: had the prefill gone on, the second request would have had to wait for it, and find it whole.
    """
    for number, n_tokens in enumerate(GROWING):
        prompt = {"prompt": [65 + number] * n_tokens, "max_tokens": 1}
        asked = Asked(url, model, prompt)
        n_seen = n_evaluated_amid(http, asked, model)
        found = listed(http, "", model)
        if not n_seen or not found or not end(http, asked, found[0]):
            asked.leave()
            eventually(lambda: not listed(http), "nothing runs")
            continue
        again = http.post("/v1/completions", json={"model": model, **prompt})
        assert again.status_code == 200, again.text
        n_kept = again.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert n_seen <= n_kept, f"{n_seen} tokens were evaluated, and only {n_kept} of them are there"
        if n_kept < n_tokens - 1:
            return
        # The whole prompt: nothing stopped it, or it was done before the host had seen that its client has left.
    raise AssertionError(f"prompts of {GROWING} tokens were evaluated to their end each time")


def assert_ended_amid_decode(url: str, http: httpx.Client, model: str, end: End) -> None:
    """An answer is ended while it is made."""
    for n_tokens in GROWING:
        fields = {"prompt": [65, 66, 67], "max_tokens": n_tokens, "ignore_eos": True, "temperature": 0, "logprobs": 5}
        asked = Asked(url, model, fields)
        found = caught(http, asked, "decode", model)
        if found and end(http, asked, found):
            return
        asked.leave()
    raise AssertionError(f"of {GROWING} tokens all were made each time before the request could be ended")
