"""Who goes next, and how often one may be overtaken."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.domain import Priority
from hostler.turns import OVERTAKEN_A_RANK, Line

ANY_PRIORITY = st.sampled_from(list(Priority))


def test_the_higher_priority_goes_first_and_of_equals_the_earlier() -> None:
    line: Line[str] = Line()
    line.put("batch", 2, 1)
    line.put("late", 1, 4)
    line.put("interactive", 0, 3)
    line.put("early", 1, 2)

    assert [line.take() for _ in range(4)] == ["interactive", "early", "late", "batch"]


@pytest.mark.parametrize("priority", [Priority.NORMAL, Priority.BATCH])
def test_who_is_overtaken_again_and_again_is_raised_to_the_top(priority: Priority) -> None:
    line: Line[str] = Line()
    line.put("patient", priority.rank, 0)
    n_overtaken = 0
    for number in itertools.count(1):
        line.put("hasty", 0, number)
        if line.take() == "patient":
            break
        n_overtaken += 1

    assert n_overtaken == priority.rank * OVERTAKEN_A_RANK


def test_who_leaves_is_nobodys_turn() -> None:
    line: Line[str] = Line()
    for number, name in enumerate("abc"):
        line.put(name, 1, number)

    assert line.remove("a")
    assert not line.remove("a")
    assert line.first() == ("b", 1)
    assert line.clear() == ["b", "c"]
    assert len(line) == 0


@given(st.lists(st.one_of(ANY_PRIORITY, st.sampled_from(["take", "leave"])), max_size=400))
def test_no_order_of_comings_and_goings_overtakes_one_more_often_than_is_promised(steps: list[Priority | str]) -> None:
    line: Line[int] = Line()
    priorities: dict[int, Priority] = {}
    n_overtaken: dict[int, int] = {}

    def take() -> None:
        standing = sorted(line)
        taken = line.take()
        for one in standing:
            if one < taken:
                n_overtaken[one] += 1
                assert n_overtaken[one] <= priorities[one].rank * OVERTAKEN_A_RANK
            elif one != taken and priorities[one].rank < priorities[taken].rank:
                assert n_overtaken[taken] >= OVERTAKEN_A_RANK, "a lower priority went first that had not waited for it"

    for number, step in enumerate(steps):
        if isinstance(step, Priority):
            priorities[number], n_overtaken[number] = step, 0
            line.put(number, step.rank, number)
        elif len(line) and step == "take":
            take()
        elif len(line):
            line.remove(sorted(line)[number % len(line)])
    n_left = len(line)
    for _ in range(n_left):
        take()
    assert len(line) == 0
