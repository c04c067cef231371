"""Random requests that fit, and growth that is seen."""

from __future__ import annotations

import pytest
from answers import Reply
from soak import Soak, make_requests, note


def test_requests_are_random_of_all_kinds_and_fit_the_context() -> None:
    requests = list(make_requests("m", 500, 512, seed=3))

    systems = [one.body["messages"][0] for one in requests if one.body["messages"][0]["role"] == "system"]
    assert 2 <= len({message["content"] for message in systems}) <= 6
    assert 0 < sum("cache" in message for message in systems) < len(systems)
    assert 0 < sum(one.cut_after_s is not None for one in requests) < 500
    assert {one.body["stream"] for one in requests} == {True, False}
    sizes = [
        sum(len(message["content"].split()) for message in one.body["messages"]) + one.body["max_tokens"] for one in requests
    ]
    assert max(sizes) <= 512 * (1 / 2 + 1 / 4 + 1 / 8)
    assert [one.body for one in make_requests("m", 500, 512, seed=3)] == [one.body for one in requests]


def test_pins_are_left_out_where_the_server_does_not_know_them() -> None:
    requests = make_requests("m", 300, 512, seed=3, can_pin=False)

    assert not any("cache" in message for one in requests for message in one.body["messages"])


def test_growth_compares_the_end_with_the_end_of_the_first_quarter() -> None:
    filling = [100.0 + n for n in range(20)]
    kept, grown = Soak([*filling, *[120.0] * 60]), Soak([*filling, *[120.0 + n for n in range(60)]])

    assert kept.growth() == pytest.approx(1.0)
    assert grown.growth() > 1.3


def test_what_was_cut_is_no_error() -> None:
    soak = Soak()

    note(soak, [Reply(0.0, is_cut=True), Reply(0.0, error="status 500"), Reply(0.0)], 12.5)

    assert (soak.n_requests, soak.n_cut, soak.errors, soak.rss) == (3, 1, ["status 500"], [12.5])
