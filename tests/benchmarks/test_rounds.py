"""What is kept of a long benchmark, and what is still to do."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rounds import OutOfTime, Rounds

ABOUT = {"commit": "abc1234"}


def open_rounds(path: Path, about: dict[str, str] = ABOUT, is_fresh: bool = False) -> Rounds:
    """Two subjects, three rounds."""
    return Rounds(path, ["ours", "theirs"], 3, about, is_fresh)


def test_who_goes_first_turns_with_the_round(tmp_path: Path) -> None:
    rounds = open_rounds(tmp_path / "a.json")

    assert list(rounds.go()) == [(0, "ours"), (0, "theirs"), (1, "theirs"), (1, "ours"), (2, "ours"), (2, "theirs")]


def test_a_run_goes_on_where_another_stopped_with_the_same_prompts(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    first = open_rounds(path)
    for number, subject in first.go():
        first.note(number, subject, {"rate": 1.0, "none": math.nan})
        if (number, subject) == (1, "theirs"):
            break

    second = open_rounds(path)

    assert second.seed == first.seed
    assert second.missing() == [(1, "ours"), (2, "ours"), (2, "theirs")]
    assert second.results["ours"][0]["rate"] == 1.0
    assert math.isnan(second.results["ours"][0]["none"])


@pytest.mark.parametrize(("about", "is_fresh"), [({"commit": "fff0000"}, False), (ABOUT, True)])
def test_another_commit_or_a_fresh_run_begins_anew(tmp_path: Path, about: dict[str, str], is_fresh: bool) -> None:
    path = tmp_path / "a.json"
    first = open_rounds(path)
    first.note(0, "ours", {"rate": 1.0})

    second = open_rounds(path, about, is_fresh)

    assert second.results == {}
    assert second.seed != first.seed


def test_a_torn_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"about": {"com')

    assert len(open_rounds(tmp_path / "a.json").missing()) == 6


def test_only_rounds_that_all_subjects_had_are_compared(tmp_path: Path) -> None:
    rounds = open_rounds(tmp_path / "a.json")
    rounds.note(0, "ours", {"rate": 1.0})
    rounds.note(1, "ours", {"rate": 2.0})
    rounds.note(1, "theirs", {"rate": 4.0})

    assert rounds.complete() == {"ours": [{"rate": 2.0}], "theirs": [{"rate": 4.0}]}


def test_nothing_is_begun_that_took_longer_before_than_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rounds = open_rounds(path)
    rounds.note(0, "ours", {"rate": 1.0})
    rounds._took_s["theirs"] = 1e9

    with pytest.raises(OutOfTime):
        list(rounds.go(stop_at=1e8))
