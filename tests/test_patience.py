"""Calls that return, raise, hang and hold the interpreter's lock: each costs itself, none the others."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest

from hostler.patience import TookTooLong, call_each


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_outcomes_come_in_the_order_of_the_calls() -> None:
    assert list(call_each([lambda: 1, lambda: "two", lambda: None])) == [1, "two", None]


def test_no_calls_make_no_thread() -> None:
    before = threading.active_count()

    assert list(call_each([])) == []
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("bye"), KeyboardInterrupt()])
def test_what_a_call_raises_is_its_outcome_and_the_next_is_made(error: BaseException) -> None:
    def fail() -> None:
        raise error

    assert list(call_each([fail, lambda: 2])) == [error, 2]


def test_a_call_that_hangs_is_left_behind_with_the_place_where_it_stands() -> None:
    release = threading.Event()
    later: list[str] = []

    def wait_for_ever() -> None:
        release.wait()

    first, second, third = call_each([wait_for_ever, lambda: 2, lambda: later.append("once")], deadline_s=0.2)

    assert isinstance(first, TookTooLong)
    assert str(first).startswith("did not return within 0.2 s; it stands at ")
    assert __file__ in first.place
    assert first.place.endswith("in wait_for_ever")
    assert (second, third) == (2, None)
    release.set()
    for thread in threading.enumerate():
        if thread.name == "plugins":
            thread.join(10)
    assert later == ["once"], "the thread that was left behind has gone on with calls that another one made"


def test_several_calls_may_hang() -> None:
    release = threading.Event()

    outcomes = list(call_each([release.wait, lambda: 2, release.wait, lambda: 4], deadline_s=0.1))

    release.set()
    assert [type(outcome) for outcome in outcomes] == [TookTooLong, int, TookTooLong, int]


def test_a_process_ends_though_a_call_hangs() -> None:
    code = """
        import threading
        from hostler.patience import call_each
        print([type(outcome).__name__ for outcome in call_each([threading.Event().wait], 0.1)])
    """
    done = run(code)

    assert (done.returncode, done.stdout) == (0, "['TookTooLong']\n")


@pytest.mark.skipif(sys.platform == "win32", reason="uses the C library's sleep")
def test_a_call_that_holds_the_interpreter_ends_the_process_with_its_traceback() -> None:
    """Nothing else can: every other thread waits for the same lock."""
    code = """
        import ctypes
        import hostler.patience
        hostler.patience.LAST_RESORT_S = 0.3

        def hold_everything():
            ctypes.PyDLL(None).sleep(3600)

        list(hostler.patience.call_each([hold_everything], 0.1))
    """
    done = run(code)

    assert done.returncode == 1
    assert "in hold_everything" in done.stderr
