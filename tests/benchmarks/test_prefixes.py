"""A long beginning before and after a restart."""

from __future__ import annotations

from typing import Any

import prefixes
import pytest
from answers import Reply
from streamclient import Address, Request


def reply(ttft_s: float, n_cached: int) -> Reply:
    """A finished answer to a prompt of 4,000 tokens."""
    return Reply(1.0, 3.0, 200, [1.0 + ttft_s, 3.0], prompt_tokens=4000, cached_tokens=n_cached, completion_tokens=8)


def test_figures_are_times_the_cold_request() -> None:
    result = prefixes.evaluate(reply(1.0, 0), reply(0.05, 3990), reply(0.2, 3900))

    assert result["ttft_cold"] == pytest.approx(1000)
    assert result["warm_by_cold"] == pytest.approx(0.05)
    assert result["restarted_by_cold"] == pytest.approx(0.2)
    assert (result["cached_warm"], result["cached_restarted"]) == (3990, 3900)


def test_a_request_that_failed_leaves_no_figures() -> None:
    assert prefixes.evaluate(reply(1.0, 0), Reply(0.0, error="cut"), reply(0.2, 0)) == {"errors": 1.0}


def test_all_three_share_the_beginning_and_the_restart_comes_before_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[Any] = []

    class Scripted:
        model = "m"
        address = Address("127.0.0.1", 1, "/v1")

        def restart(self) -> None:
            happened.append("restart")

    def run_clients(_: Address, clients: list[list[Request]]) -> list[list[Reply]]:
        happened.append(clients[0][0].body["messages"])
        return [[reply(0.1, 0)]]

    monkeypatch.setattr(prefixes, "run_clients", run_clients)

    result = prefixes.measure(Scripted(), "0", 1, n_words=50)  # type: ignore[arg-type]

    cold, warm, restart, first, restarted = happened
    assert restart == "restart"
    assert cold[0] == warm[0] == restarted[0]
    assert cold[0]["content"] not in str(first)
    assert len({str(cold[1]), str(warm[1]), str(restarted[1])}) == 3
    assert result["errors"] == 0
