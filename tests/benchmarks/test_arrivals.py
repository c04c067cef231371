"""What running streams feel of newcomers: which gaps count as steady, which as during a prefill."""

from __future__ import annotations

import pytest
from answers import Reply
from arrivals import SETTLE_S, evaluate


def stream(arrival_s: list[float]) -> Reply:
    """A stream that was running until it was cut."""
    return Reply(0.0, arrival_s[-1], 200, arrival_s, completion_tokens=len(arrival_s), is_cut=True)


def newcomer(sent_s: float, ttft_s: float) -> Reply:
    """A long prompt with a short answer."""
    return Reply(sent_s, sent_s + ttft_s + 0.1, 200, [sent_s + ttft_s, sent_s + ttft_s + 0.1], completion_tokens=2)


STEADY = [0.1, 0.4, *(1 + 0.02 * n for n in range(100))]  # to 2.98; what comes before SETTLE_S is over does not count
ALONE = newcomer(-9.0, 1.0)


def test_gaps_before_the_first_newcomer_are_steady_and_those_in_a_prefill_are_during() -> None:
    during = [3.06, 3.22, 3.30]  # gaps of 80, 160 and 80 ms; the newcomer waits from 3.0 to 3.28
    result = evaluate(ALONE, [newcomer(3.0, 0.28)], [[stream([*STEADY, *during, 5.30])]])

    assert STEADY[0] + SETTLE_S < STEADY[2]
    assert result["itl_steady"] == pytest.approx(20)
    assert result["itl_longest"] == pytest.approx(160)
    assert result["itl_longest_by_steady"] == pytest.approx(8)
    assert 4 < result["itl_p99_by_steady"] < 8
    assert result["ttft_by_alone"] == pytest.approx(0.28)
    assert result["stream_tok_s"] == pytest.approx(2 / 0.28)
    assert result["errors"] == 0


def test_gaps_just_behind_the_last_newcomer_count_as_much_as_those_before_the_first() -> None:
    behind = [4.0 + 0.04 * n for n in range(200)]  # the streams have grown long: 40 ms
    result = evaluate(ALONE, [newcomer(3.0, 0.5)], [[stream([*STEADY, 3.1, *behind])]])

    assert result["itl_steady"] == pytest.approx(30)


def test_a_stream_that_stands_still_for_a_whole_prefill_shows_it() -> None:
    result = evaluate(ALONE, [newcomer(3.0, 6.0)], [[stream([*STEADY, 9.5, 9.6])]])

    assert result["itl_longest"] == pytest.approx(6520)


def test_a_stream_that_began_anew_has_no_gap_between_its_parts() -> None:
    parts = [stream([*STEADY, 3.02]), stream([8.0, 8.1]), Reply(8.2, 8.3, is_cut=True)]

    result = evaluate(ALONE, [newcomer(3.0, 6.0)], [parts])

    assert result["itl_longest"] == pytest.approx(100)
    assert result["errors"] == 0


@pytest.mark.parametrize(
    "part", [Reply(0.0, 5.0, 200, [], is_cut=True), Reply(0.0, 5.0, 429, error="status 429")], ids=["never began", "refused"]
)
def test_a_round_whose_streams_did_not_run_gives_no_figures(part: Reply) -> None:
    assert evaluate(ALONE, [newcomer(3.0, 1.0)], [[part]]) == {"errors": 1.0}
