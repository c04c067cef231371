"""The board that a download writes and progress bars read."""

from __future__ import annotations

import threading

import pytest

from hostler.domain import Lifecycle
from hostler.library.progress import FileProgress, ProgressBoard


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(clock):
    board = ProgressBoard("a", clock)
    board.plan([FileProgress("x", "https://h/x", 1000, 0), FileProgress("y", "https://h/y", None, 0)])
    return board


def test_totals_are_known_when_every_files_is(board):
    assert board.snapshot().total_bytes is None

    board.advance(1, 0, 500)

    assert board.snapshot().total_bytes == 1500
    assert ProgressBoard("a").snapshot().total_bytes is None


def test_the_speed_is_that_of_the_last_seconds(board, clock):
    board.enter("downloading")
    for second in range(21):
        clock.now = float(second)
        # 10 bytes a second at first, 100 later.
        board.advance(0, 10 * second if second <= 10 else 100 + 100 * (second - 10), 10_000)

    assert board.snapshot().speed == pytest.approx(100)
    assert board.snapshot().elapsed_s == 20


def test_a_stall_shows_in_the_speed(board, clock):
    board.enter("downloading")
    board.advance(0, 0, 1000)
    clock.now = 1.0
    board.advance(0, 100, 1000)
    assert board.snapshot().speed == pytest.approx(100)

    clock.now = 10.0

    assert board.snapshot().speed == pytest.approx(10)


def test_only_a_download_has_a_speed(board, clock):
    board.enter("verifying")
    board.advance(0, 0, 1000)
    clock.now = 1.0
    board.advance(0, 1000, 1000)

    assert board.snapshot().speed == 0


@pytest.mark.parametrize(
    ("phase", "lifecycle"),
    [("done", Lifecycle.DOWNLOADED), ("failed", Lifecycle.NOT_DOWNLOADED), ("cancelled", Lifecycle.NOT_DOWNLOADED)],
)
def test_the_end_stops_the_clock_and_says_how(board, clock, phase, lifecycle):
    clock.now = 3.0
    board.end(phase, "why")
    clock.now = 9.0

    snapshot = board.snapshot()

    assert (snapshot.phase, snapshot.lifecycle, snapshot.error, snapshot.elapsed_s) == (phase, lifecycle, "why", 3.0)


def test_waiting_for_the_end_times_out_and_is_woken():
    board = ProgressBoard("a")
    assert not board.wait_end(0)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(board.wait_end(30)))
    thread.start()

    board.end("done")
    thread.join(30)

    assert ended == [True]


def test_waiting_for_a_change_is_woken_by_bytes_and_by_phases():
    board = ProgressBoard("a")
    board.plan([FileProgress("x", "u", 10, 0)])
    seen = board.snapshot()
    assert board.wait_change(seen, 0).done_bytes == 0

    board.advance(0, 5, 10)
    assert board.wait_change(seen, 30).done_bytes == 5

    seen = board.snapshot()
    found = []
    thread = threading.Thread(target=lambda: found.append(board.wait_change(seen, 30)))
    thread.start()
    board.enter("unpacking")
    thread.join(30)
    assert found[0].phase == "unpacking"
