"""The admission queue and the request budget."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.domain import Priority
from hostler.errors import EngineUnavailable, QueueFull, RequestCancelled
from hostler.scheduler import AdmissionQueue, RequestBudget, Ticket
from hostler.turns import OVERTAKEN_A_RANK


def open_queue(n_slots: int = 2, queue_len: int = 2, n_admitted: int = 2) -> AdmissionQueue:
    queue = AdmissionQueue(n_slots, queue_len)
    queue.open(n_slots, n_admitted)
    return queue


def enter(queue: AdmissionQueue, n: int = 1, priority: Priority = Priority.NORMAL) -> Ticket:
    return queue.enter(n, priority)


def test_budget_refuses_the_request_past_its_size_and_takes_it_after_a_release() -> None:
    budget = RequestBudget(1)
    with budget.hold("start"):
        with pytest.raises(QueueFull, match="max_requests") as caught:
            budget.acquire("generation")
        assert caught.value.retry_after_s is not None

    budget.acquire("generation")
    assert budget.n_held == 1


def test_queue_admits_up_to_its_capacity_and_the_next_when_one_is_released() -> None:
    queue = open_queue()
    first, second, third = enter(queue), enter(queue), enter(queue)
    assert first.wait(0)
    assert second.wait(0)
    assert not third.wait(0)

    first.release()

    assert third.wait(0)


def test_queue_refuses_past_queue_len_with_a_time_to_come_back() -> None:
    queue = open_queue()
    for _ in range(4):
        enter(queue)

    with pytest.raises(QueueFull) as caught:
        enter(queue)

    assert caught.value.retry_after_s
    assert queue.n_queued == 2


def test_a_request_with_more_answers_than_slots_is_taken_when_nothing_waits() -> None:
    queue = open_queue(n_slots=2, queue_len=0, n_admitted=8)

    assert enter(queue, n=8).wait(0)


def test_waiting_requests_are_admitted_by_priority_then_in_order() -> None:
    queue = open_queue(n_slots=1, queue_len=8, n_admitted=1)
    running = enter(queue)
    batch, normal, interactive = (enter(queue, priority=p) for p in (Priority.BATCH, Priority.NORMAL, Priority.INTERACTIVE))

    running.release()
    assert (interactive.is_admitted, normal.is_admitted, batch.is_admitted) == (True, False, False)
    interactive.release()
    assert (normal.is_admitted, batch.is_admitted) == (True, False)


def test_an_interactive_request_stands_before_the_next_slot_however_many_of_a_batch_came_first() -> None:
    queue = open_queue(n_slots=4, queue_len=100, n_admitted=12)
    batch = [enter(queue, priority=Priority.BATCH) for _ in range(20)]
    normal = [enter(queue) for _ in range(20)]
    interactive = [enter(queue, priority=Priority.INTERACTIVE) for _ in range(3)]

    assert [sum(ticket.is_admitted for ticket in one) for one in (batch, normal, interactive)] == [8, 2, 2]
    batch[0].release()
    assert interactive[2].is_admitted
    for ticket in [*batch[1:8], *interactive]:
        ticket.release()
    assert sum(ticket.is_admitted for ticket in normal) == 10


def test_a_batch_request_is_not_overtaken_for_ever() -> None:
    queue = open_queue(n_slots=1, queue_len=1000, n_admitted=1)
    running = enter(queue)
    batch = enter(queue, priority=Priority.BATCH)
    n_overtaken = 0
    while not batch.is_admitted:
        following = enter(queue, priority=Priority.INTERACTIVE)
        running.release()
        running, n_overtaken = following, n_overtaken + following.is_admitted

    assert n_overtaken == 2 * OVERTAKEN_A_RANK


def test_a_paused_queue_keeps_its_waiters_until_the_model_runs_again() -> None:
    queue = open_queue(n_admitted=1)
    running = enter(queue)
    waiting = enter(queue)
    queue.pause()
    running.release()
    assert not waiting.wait(0)

    queue.open(2, 2)

    assert waiting.wait(0)


def test_failing_the_queue_gives_every_waiter_the_error_and_leaves_the_admitted_alone() -> None:
    queue = open_queue(n_admitted=1)
    running, waiting = enter(queue), enter(queue)

    queue.fail(EngineUnavailable("gone"))

    assert running.wait(0)
    with pytest.raises(EngineUnavailable, match="gone"):
        waiting.wait(0)


def test_cancelling_a_waiting_ticket_wakes_its_waiter_with_request_cancelled() -> None:
    queue = open_queue(n_admitted=1)
    enter(queue)
    waiting = enter(queue)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.wait(30)
        except RequestCancelled as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.cancel()
    thread.join(30)

    assert len(raised) == 1
    assert queue.n_queued == 0


@given(st.lists(st.tuples(st.sampled_from(["enter", "release", "cancel", "pause", "open"]), st.integers(1, 4)), max_size=60))
def test_no_order_of_events_admits_more_than_the_capacity_or_loses_a_place(steps: list[tuple[str, int]]) -> None:
    queue = open_queue(n_slots=3, queue_len=50, n_admitted=4)
    tickets: list[Ticket] = []
    for what, n in steps:
        if what == "enter":
            tickets.append(enter(queue, n=n))
        elif what == "pause":
            queue.pause()
        elif what == "open":
            queue.open(3, 4)
        elif tickets:
            ticket = tickets[n % len(tickets)]
            ticket.release() if what == "release" else ticket.cancel()
        assert sum(ticket.n_held for ticket in tickets) <= 4

    queue.open(3, 4)
    for ticket in tickets:
        ticket.release_all()

    assert queue.n_in_flight == 0
    assert all(ticket.is_over for ticket in tickets)
