"""When a dead worker is started again: pure numbers."""

from __future__ import annotations

from hostler.worker.restarts import RestartPolicy


def make() -> RestartPolicy:
    return RestartPolicy(window_s=60, crashes_before_backoff=3, first_backoff_s=1, max_backoff_s=60)


def test_single_crashes_far_apart_are_always_followed_by_a_start_at_once() -> None:
    policy = make()

    assert [policy.pause_after_crash(now, 31) for now in range(0, 1000, 31)] == [0] * 33


def test_the_third_crash_in_a_minute_begins_a_pause_that_doubles_to_its_limit() -> None:
    policy = make()
    pauses = [policy.pause_after_crash(float(now), 0) for now in range(12)]

    assert pauses == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_crashes_after_long_pauses_still_count_as_keeping_to_die() -> None:
    policy = make()
    for now in range(9):
        policy.pause_after_crash(float(now), 0)

    assert policy.pause_after_crash(1000, 5) == 60


def test_a_worker_that_was_ready_for_the_whole_window_begins_anew() -> None:
    policy = make()
    for now in range(9):
        policy.pause_after_crash(float(now), 0)

    assert policy.pause_after_crash(1000, 60) == 0
    assert policy.pause_after_crash(1001, 0) == 0
    assert policy.pause_after_crash(1002, 0) == 1


def test_an_endless_row_of_crashes_never_overflows() -> None:
    policy = make()

    assert {policy.pause_after_crash(0, 0) for _ in range(3000)} == {0, 1, 2, 4, 8, 16, 32, 60}
