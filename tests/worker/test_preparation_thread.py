"""The preparation thread's watch, order and leftovers, with preparations that do what the test says."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable

import pytest

from hostler.domain import Message, Priority, SamplingParams
from hostler.errors import EngineFailed, HostlerError, InvalidRequest
from hostler.text import StopStrings
from hostler.worker.preparation import Prepared
from hostler.worker.preparation_thread import Count, PreparationThread
from hostler.worker.wire import Counting, Submit
from support.workers import DEADLINE_S, wait_until


class WorkerExit(BaseException):
    """Stands for the end of the process."""


class Rig:
    """A preparation thread over a preparation that runs `scripts[id]`."""

    def __init__(
        self,
        render_timeout_s: float = 60.0,
        tokenize_timeout_s: float = 60.0,
        grace_s: float = 60.0,
        memory_limit_bytes: int = 1 << 40,
    ) -> None:
        self.results: queue.Queue[Prepared | tuple[int, HostlerError]] = queue.Queue()
        self.exits: queue.Queue[str] = queue.Queue()
        self.scripts: dict[int, Callable[[], object]] = {}
        self.prepared_ids: list[int] = []
        self.thread = PreparationThread(
            self,  # type: ignore[arg-type]
            render_timeout_s=render_timeout_s,
            tokenize_timeout_s=tokenize_timeout_s,
            grace_s=grace_s,
            memory_limit_bytes=memory_limit_bytes,
            on_prepared=self.results.put,
            on_failed=lambda sequence_id, error: self.results.put((sequence_id, error)),
            exit_worker=self._exit,
        )

    def _exit(self, message: str) -> None:
        self.exits.put(message)
        threading.Event().wait()  # the process would be gone

    def prepare(self, submit: Submit, on_rendered: Callable[[], None]) -> Prepared:
        self.prepared_ids.append(submit.sequence_id)
        if submit.messages is None:
            on_rendered()
        self.scripts.get(submit.sequence_id, lambda: None)()
        if submit.messages is not None:
            on_rendered()
        return Prepared(submit.sequence_id, [1], submit.params, StopStrings(()), True)

    def count(self, messages: tuple[Message, ...], kwargs: dict[str, object], on_rendered: Callable[[], None]) -> int:
        kwargs.get("script", lambda: None)()  # type: ignore[operator]
        on_rendered()
        return len(messages)

    def chat(self, sequence_id: int, script: Callable[[], object] | None = None, **more: object) -> None:
        self.put(sequence_id, script, messages=(Message("user", "x"),), **more)

    def put(self, sequence_id: int, script: Callable[[], object] | None = None, **more: object) -> None:
        if script is not None:
            self.scripts[sequence_id] = script
        self.thread.put(Submit(sequence_id, 0, SamplingParams(), **more))

    def next(self) -> Prepared | tuple[int, HostlerError]:
        return self.results.get(timeout=DEADLINE_S)


def spin() -> None:
    """What an endless template does: bytecode for ever."""
    while True:
        pass


def test_an_endless_rendering_is_interrupted_and_the_next_request_prepared() -> None:
    rig = Rig(render_timeout_s=0.2)
    rig.chat(1, spin)
    rig.chat(2)

    failed, prepared = rig.next(), rig.next()
    if isinstance(failed, Prepared):  # the next one may be faster than the news of this one
        failed, prepared = prepared, failed
    assert isinstance(failed, tuple)
    assert failed[0] == 1
    assert isinstance(failed[1], InvalidRequest)
    assert isinstance(prepared, Prepared)
    assert prepared.sequence_id == 2
    assert rig.exits.empty()


def test_a_rendering_that_cannot_be_interrupted_ends_the_worker() -> None:
    rig = Rig(render_timeout_s=0.2, grace_s=0.2)
    rig.chat(1, lambda: threading.Event().wait())

    assert "could not be interrupted" in rig.exits.get(timeout=DEADLINE_S)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_rendering_that_eats_memory_is_interrupted_long_before_its_deadline() -> None:
    rig = Rig(render_timeout_s=10_000.0, memory_limit_bytes=200 << 20)

    def eat() -> None:
        eaten = []
        while True:
            eaten.append(b"x" * (1 << 20))

    rig.chat(1, eat)

    failed = rig.next()
    assert isinstance(failed, tuple)
    assert "209715200 bytes of memory" in failed[1].message


def test_a_hung_tokenizer_ends_the_worker() -> None:
    rig = Rig(render_timeout_s=0.01, tokenize_timeout_s=0.2)
    rig.put(1, lambda: threading.Event().wait(), prompt="x")

    assert "tokenizer" in rig.exits.get(timeout=DEADLINE_S)


def test_the_deadline_of_a_rendering_is_kept_while_an_earlier_later_one_was_watched() -> None:
    """The watch sleeps towards the first job's far deadline when the second job's near one begins."""
    rig = Rig(render_timeout_s=0.2, tokenize_timeout_s=1000.0)
    rig.put(1, lambda: time.sleep(0.05), prompt="x")
    rig.chat(2, spin)

    assert isinstance(rig.next(), Prepared)
    failed = rig.next()
    assert isinstance(failed, tuple)
    assert failed[0] == 2


def test_many_quick_jobs_in_a_row_never_meet_the_deadline_of_another() -> None:
    rig = Rig(render_timeout_s=0.3)
    for sequence_id in range(1, 41):
        rig.chat(sequence_id, lambda: time.sleep(0.02))

    results = [rig.next() for _ in range(40)]

    assert [result.sequence_id for result in results if isinstance(result, Prepared)] == list(range(1, 41))


def test_what_waits_is_prepared_by_priority() -> None:
    rig = Rig()
    is_begun, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        is_begun.set()
        may_end.wait(DEADLINE_S)

    rig.chat(1, hold)
    assert is_begun.wait(DEADLINE_S)
    rig.chat(2, priority=Priority.BATCH)
    rig.chat(3)
    rig.chat(4, priority=Priority.INTERACTIVE)
    rig.chat(5)
    may_end.set()
    for _ in range(5):
        rig.next()

    assert rig.prepared_ids == [1, 4, 3, 5, 2]


def test_a_discarded_request_is_never_prepared() -> None:
    rig = Rig()
    may_end = threading.Event()
    rig.chat(1, lambda: may_end.wait(DEADLINE_S))
    rig.chat(2)
    rig.chat(3)
    rig.thread.discard(2)
    rig.thread.discard(99)
    may_end.set()

    assert [rig.next().sequence_id for _ in range(2)] == [1, 3]  # type: ignore[union-attr]
    assert rig.prepared_ids == [1, 3]


def test_a_task_runs_between_requests() -> None:
    rig = Rig()
    done = threading.Event()
    rig.chat(1)
    rig.thread.put_task(done.set)
    rig.chat(2)

    assert done.wait(DEADLINE_S)
    assert isinstance(rig.next(), Prepared)
    assert isinstance(rig.next(), Prepared)


def test_messages_are_counted_between_requests() -> None:
    rig = Rig()
    counted: queue.Queue[int | HostlerError] = queue.Queue()
    rig.chat(1)
    rig.thread.put_count(Count(Counting((Message("user", "x"),) * 3), counted.put))
    rig.chat(2)

    assert counted.get(timeout=DEADLINE_S) == 3
    assert [rig.next().sequence_id for _ in range(2)] == [1, 2]  # type: ignore[union-attr]


def test_an_endless_rendering_of_a_count_is_interrupted_and_told_to_its_caller() -> None:
    rig = Rig(render_timeout_s=0.2)
    counted: queue.Queue[int | HostlerError] = queue.Queue()
    rig.thread.put_count(Count(Counting((), {"script": spin}), counted.put))
    rig.chat(1)

    assert isinstance(counted.get(timeout=DEADLINE_S), InvalidRequest)
    assert isinstance(rig.next(), Prepared)
    assert rig.results.empty()
    assert rig.exits.empty()


def test_a_bug_in_counting_costs_that_count_only(capfd: pytest.CaptureFixture[str]) -> None:
    rig = Rig()
    counted: queue.Queue[int | HostlerError] = queue.Queue()
    rig.thread.put_count(Count(Counting((), {"script": lambda: [][0]}), counted.put))
    rig.thread.put_count(Count(Counting(()), counted.put))

    assert "IndexError" in str(counted.get(timeout=DEADLINE_S))
    assert counted.get(timeout=DEADLINE_S) == 0
    assert "Traceback" in capfd.readouterr().err


def test_a_bug_in_a_tokenizer_costs_that_request_only(capfd: pytest.CaptureFixture[str]) -> None:
    rig = Rig()
    rig.put(1, lambda: [][0], prompt="x")
    rig.put(2, prompt="x")

    failed = rig.next()
    assert isinstance(failed, tuple)
    assert isinstance(failed[1], EngineFailed)
    assert "IndexError" in failed[1].message
    assert isinstance(rig.next(), Prepared)
    assert "Traceback" in capfd.readouterr().err


def test_an_interrupted_thread_ends() -> None:
    before = threading.active_count()
    rig = Rig(render_timeout_s=0.1)
    for sequence_id in range(1, 4):
        rig.chat(sequence_id, spin)
        rig.next()

    wait_until(lambda: threading.active_count() == before + 2, "the end of the interrupted threads")
