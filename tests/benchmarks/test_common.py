"""Statistics and result rows."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from common import CSV_FIELDS, Context, compare, describe_command, median, percentile, spread, write_csv, write_json
from hypothesis import given
from hypothesis import strategies as st

CONTEXT = Context(command="python bench.py", commit="abc1234", machine="two cores, fast")


def test_percentile_interpolates_between_the_nearest_ranks() -> None:
    values = [40.0, 10.0, 30.0, 20.0]

    assert percentile(values, 0) == 10
    assert percentile(values, 50) == 25
    assert percentile(values, 75) == 32.5
    assert percentile(values, 100) == 40


def test_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))


def test_spread_ignores_one_disturbed_round() -> None:
    calm, disturbed = [10.0, 10.0, 11.0, 11.0, 12.0], [10.0, 10.0, 11.0, 11.0, 900.0]

    assert spread(disturbed) == spread(calm) == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100), st.floats(0, 100))
def test_percentile_stays_inside_the_values_and_rises_with_q(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))

    assert min(values) - 1e-6 <= percentile(values, low) <= percentile(values, high) + 1e-6 <= max(values) + 2e-6


def test_compare_takes_the_ratio_inside_each_round() -> None:
    """A machine that gets slower halves both numbers of a round, and no ratio changes."""
    rounds = {"ours": [{"rate": 90.0}, {"rate": 45.0}], "theirs": [{"rate": 100.0}, {"rate": 50.0}]}

    ours, theirs = compare("serving", "single", rounds, {"rate": "tok/s"}, "theirs")

    assert (ours.median, ours.n, ours.baseline) == (67.5, 2, "theirs")
    assert ours.ratio == pytest.approx(0.9)
    assert ours.ratio_spread == pytest.approx(0)
    assert theirs.baseline == ""
    assert math.isnan(theirs.ratio)


def test_compare_leaves_out_what_nobody_measured_and_rounds_that_failed() -> None:
    rounds = {"ours": [{"rate": math.nan}, {"rate": 8.0}], "theirs": [{"rate": 1.0}, {"rate": 4.0}]}

    rows = compare("serving", "single", rounds, {"rate": "tok/s", "other": "ms"}, "theirs")

    assert [row.metric for row in rows] == ["rate", "rate"]
    assert (rows[0].n, rows[0].median, rows[0].ratio) == (1, 8.0, 2.0)


def test_csv_has_every_field_of_a_benchmark_row_and_nothing_for_missing_ratios(tmp_path: Path) -> None:
    path = tmp_path / "results" / "run.csv"
    rows = compare("host", "flood", {"hostler": [{"rate": 2.0}, {"rate": 4.0}]}, {"rate": "tok/s"}, "", "echo", "streams=16")

    write_csv(path, rows, CONTEXT)

    with path.open(newline="") as source:
        (record,) = csv.DictReader(source)
    assert tuple(record) == CSV_FIELDS
    assert {"command", "commit", "machine", "model", "settings", "n", "median", "spread"} <= set(record)
    assert (record["machine"], record["settings"], record["n"], record["median"]) == (
        "two cores, fast",
        "streams=16",
        "2",
        "3",
    )
    assert record["ratio"] == ""


def test_json_keeps_the_value_of_every_round(tmp_path: Path) -> None:
    rows = compare("host", "flood", {"hostler": [{"rate": 2.0}, {"rate": 4.0}]}, {"rate": "tok/s"}, "")

    write_json(tmp_path / "run.json", rows, CONTEXT)

    (row,) = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert row["values"] == [2.0, 4.0]
    assert row["ratio"] is None


def test_the_command_in_a_result_names_no_folder_of_this_machine() -> None:
    argv = ["benchmarks/b.py", "--spawn", "llama-server=/home/me/bin/llama-server", "--server", "a=http://127.0.0.1:1/v1,m"]

    said = describe_command(argv)

    assert said == "python b.py --spawn llama-server=llama-server --server a=http://127.0.0.1:1/v1,m"


def test_median_is_the_middle_value() -> None:
    assert median([3.0, 1.0, 2.0]) == 2
