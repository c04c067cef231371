"""Requests that answer when they like, and what a server's list says of them meanwhile."""

from __future__ import annotations

import http.client
import json
import select
import time
from typing import Any

import httpx

from support.server import POLL_S


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
