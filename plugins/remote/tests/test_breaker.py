"""The circuit breaker, on a clock that is turned by hand."""

from __future__ import annotations

from hostler_remote.breaker import MAX_PAUSE_FACTOR, Breaker


class Rig:
    def __init__(self, n_failures: int = 3, pause_s: float = 10.0) -> None:
        self.now = 100.0
        self.breaker = Breaker(n_failures, pause_s, lambda: self.now)

    def fail(self, n: int = 1) -> None:
        for _ in range(n):
            assert self.breaker.admit() is None
            self.breaker.failed()


def test_failures_that_are_not_in_a_row_do_not_open_it() -> None:
    rig = Rig()

    for _ in range(5):
        rig.fail(2)
        assert rig.breaker.admit() is None
        rig.breaker.succeeded()

    assert not rig.breaker.is_open


def test_it_opens_after_so_many_failures_in_a_row_and_says_for_how_long() -> None:
    rig = Rig()
    rig.fail(3)

    assert rig.breaker.is_open
    assert rig.breaker.admit() == 10.0
    rig.now += 4
    assert rig.breaker.admit() == 6.0


def test_after_the_pause_one_is_let_through_and_the_others_wait_for_it() -> None:
    rig = Rig()
    rig.fail(3)
    rig.now += 10

    assert rig.breaker.admit() is None
    assert rig.breaker.admit() == 1.0
    rig.breaker.answered()
    assert rig.breaker.admit() is None
    assert not rig.breaker.is_open


def test_a_probe_that_fails_doubles_the_pause_up_to_a_limit() -> None:
    rig = Rig()
    rig.fail(3)
    pauses = []
    for _ in range(6):
        rig.now += 10 * MAX_PAUSE_FACTOR
        rig.fail()
        pauses.append(rig.breaker.admit())

    assert pauses == [20.0, 40.0, 80.0, 80.0, 80.0, 80.0]


def test_a_probe_that_is_cancelled_lets_the_next_one_through() -> None:
    rig = Rig()
    rig.fail(3)
    rig.now += 10
    assert rig.breaker.admit() is None

    rig.breaker.given_up()

    assert rig.breaker.admit() is None


def test_those_that_were_under_way_when_it_opened_do_not_prolong_the_pause() -> None:
    rig = Rig()
    for _ in range(10):
        assert rig.breaker.admit() is None
    for _ in range(3):
        rig.breaker.failed()
    rig.now += 5
    for _ in range(7):
        rig.breaker.failed()

    assert rig.breaker.admit() == 5.0


def test_after_it_closed_it_counts_from_nothing() -> None:
    rig = Rig()
    rig.fail(3)
    rig.now += 10
    assert rig.breaker.admit() is None
    rig.breaker.answered()

    rig.fail(2)

    assert not rig.breaker.is_open
