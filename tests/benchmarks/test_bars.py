"""Bars, verdicts and the table of them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from bars import KEPT, MISSED, NOT_RUN, Bar, judge, write_csv, write_markdown

ROUNDS = {
    "hostler": [{"rate": 90.0, "ttft": 10.0}, {"rate": 50.0, "ttft": math.nan}, {"rate": 99.0, "ttft": 30.0}],
    "llama-server": [{"rate": 100.0, "ttft": 100.0}, {"rate": 50.0, "ttft": 100.0}, {"rate": 90.0, "ttft": 100.0}],
}


@pytest.mark.parametrize(
    ("bar", "reached", "n", "verdict"),
    [
        (Bar("rate", True, 1.0, "llama-server"), 1.0, 3, KEPT),
        (Bar("rate", True, 1.05, "llama-server"), 1.0, 3, MISSED),
        (Bar("ttft", False, 0.2, "llama-server"), 0.2, 2, KEPT),
        (Bar("ttft", False, 19.0), 20.0, 2, MISSED),
        (Bar("rate", True, 60.0, subject="llama-server"), 90.0, 3, KEPT),
    ],
)
def test_a_bar_is_held_against_the_median_of_the_rounds(bar: Bar, reached: float, n: int, verdict: str) -> None:
    one = judge("single", bar, ROUNDS, "abc1234")

    assert (one.reached, one.n, one.verdict) == (pytest.approx(reached), n, verdict)
    assert one.low <= one.reached <= one.high


def test_what_no_round_gave_is_not_run_and_says_why() -> None:
    peerless = judge("single", Bar("rate", True, 1.0, "other"), ROUNDS, "abc1234", "needs other")
    nameless = judge("single", Bar("itl", True, 1.0), ROUNDS, "abc1234")

    assert (peerless.verdict, peerless.note) == (NOT_RUN, "needs other")
    assert (nameless.verdict, nameless.note) == (NOT_RUN, "no round gave a value")
    assert math.isnan(nameless.reached)


def test_the_table_has_a_row_a_bar_in_both_forms(tmp_path: Path) -> None:
    bars = [Bar("rate", True, 1.05, "llama-server"), Bar("ttft", False, 0.2, "llama-server"), Bar("itl", False, 4.0)]
    verdicts = [judge("single", bar, ROUNDS, "abc1234") for bar in bars]

    write_csv(tmp_path / "results" / "summary.csv", verdicts)
    write_markdown(tmp_path / "results" / "summary.md", verdicts, "two cores", "python bench_all.py")

    with (tmp_path / "results" / "summary.csv").open(newline="") as source:
        rows = list(csv.DictReader(source))
    lines = (tmp_path / "results" / "summary.md").read_text(encoding="utf-8").splitlines()
    assert [row["verdict"] for row in rows] == [MISSED, KEPT, NOT_RUN]
    assert [row["reached"] for row in rows] == ["1", "0.2", ""]
    assert "| single | `rate` | ≥ 1.05 × llama-server | 1 (0.9 to 1.1) | 3 | **missed** | abc1234 |" in lines
    assert "| single | `itl` | ≤ 4 |  | 0 | not run: no round gave a value | abc1234 |" in lines
