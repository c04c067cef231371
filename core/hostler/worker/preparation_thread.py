"""The preparation thread and its watch: requests are rendered and tokenized beside the loop, in order of priority.

Floor 3, in the worker. A chat template is a stranger's program, so rendering has a deadline and may not take the memory
of the machine. When it does, the watch raises RenderTimeout inside the preparation thread and puts a fresh thread in its
place; when the old one does not die of it within a grace period (it is inside one endless operation), the worker exits:
a hostile template costs its own worker and nobody else.

Two threads: `preparation` does the work, `preparation-watch` looks after the job at hand.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from hostler.domain import Priority
from hostler.errors import EngineFailed, HostlerError, InternalError, InvalidRequest
from hostler.turns import Line
from hostler.worker.preparation import Preparation, Prepared
from hostler.worker.wire import Counting, Submit

GRACE_S = 2.0
"""For RenderTimeout to end the thread: it is raised between two bytecodes, so milliseconds are usual."""
TOKENIZE_TIMEOUT_S = 120.0
"""Tokenizing is native and cannot be interrupted; half a minute for the longest body, so this means that it hangs."""

MEMORY_LIMIT_BYTES = 1 << 30
"""How much the process may grow while a template renders; 32 times the longest prompt, and what doubling a string in a
loop reaches in a blink. Growth of the engine counts, too, but not so much in so short a time."""
_LOOK_S = 0.05
"""How often memory is looked at during one rendering; nearly all are over before the first look."""


class RenderTimeout(BaseException):
    """Raised into a preparation thread from outside. Not an Exception, so that nothing in a template catches it."""


@dataclass(frozen=True)
class Count:
    """Messages to be rendered and tokenized for the number of their tokens only."""

    counting: Counting
    on_done: Callable[[int | HostlerError], None]
    """Called once, in a thread of the preparation."""


Job = Submit | Count | Callable[[], None]


class _Worker:
    """One preparation thread. The lock of PreparationThread protects all fields."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.job = 0
        """Number of the job at hand."""
        self.fail: Callable[[HostlerError], object] | None = None
        """Tells whoever waits for the job at hand that it came to nothing; None: nobody is to be told."""
        self.deadline: float | None = None
        """None: between jobs."""
        self.is_rendering = False
        self.is_condemned = False
        """It has run into its deadline: whatever it still finishes is dropped, and it takes no further job."""


class PreparationThread:
    """Takes submits, counts and tasks from any thread, delivers results from its own."""

    def __init__(
        self,
        preparation: Preparation,
        *,
        render_timeout_s: float,
        on_prepared: Callable[[Prepared], None],
        on_failed: Callable[[int, HostlerError], None],
        exit_worker: Callable[[str], NoReturn],
        tokenize_timeout_s: float = TOKENIZE_TIMEOUT_S,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        grace_s: float = GRACE_S,
    ) -> None:
        """Start the threads.

        Args:
            on_failed: Gets the sequence's id.
            exit_worker: Ends the process with the sentence it is given.
        """
        self._preparation = preparation
        self._render_timeout_s = render_timeout_s
        self._tokenize_timeout_s = tokenize_timeout_s
        self._memory_limit_bytes = memory_limit_bytes
        self._grace_s = grace_s
        self._on_prepared = on_prepared
        self._on_failed = on_failed
        self._exit_worker = exit_worker
        self._lock = threading.Lock()  # protects the queue, the discarded ids and the current worker's fields
        self._has_jobs = threading.Condition(self._lock)
        self._queue: Line[tuple[int, Job]] = Line()
        self._n_taken_in = 0
        self._discarded: set[int] = set()
        self._deadline_is_earlier = threading.Condition(self._lock)
        self._watched_until = math.inf
        """When the watch looks next if nobody wakes it: PERF: it is woken once in a render's time, not for every job."""
        self._current = self._start_worker()
        threading.Thread(target=self._watch, name="preparation-watch", daemon=True).start()

    def put(self, submit: Submit) -> None:
        """Queue a request; one of on_prepared and on_failed follows, unless it is discarded."""
        self._put(submit.priority, submit)

    def put_count(self, count: Count) -> None:
        """Queue messages to be counted, under the same watch as a request's."""
        self._put(Priority.NORMAL, count)

    def put_task(self, task: Callable[[], None]) -> None:
        """Queue something else to be done in the thread; it delivers its result itself and raises nothing."""
        self._put(Priority.NORMAL, task)

    def discard(self, sequence_id: int) -> None:
        """Nobody wants this request any more; if it still waits here, leave it out."""
        with self._lock:
            if any(isinstance(job, Submit) and job.sequence_id == sequence_id for _, job in self._queue):
                self._discarded.add(sequence_id)

    # -- preparation thread -----------------------------------------------------------------------------------------

    def _put(self, priority: Priority, job: Job) -> None:
        with self._has_jobs:
            self._n_taken_in += 1
            self._queue.put((self._n_taken_in, job), priority.rank, self._n_taken_in)
            self._has_jobs.notify()

    def _start_worker(self) -> _Worker:
        worker = _Worker()
        worker.thread = threading.Thread(target=self._run, args=(worker,), name="preparation", daemon=True)
        worker.thread.start()
        return worker

    def _run(self, worker: _Worker) -> None:
        try:
            while self._do_next(worker):
                pass
        except RenderTimeout:
            pass  # condemned: the watch has told the request already

    def _do_next(self, worker: _Worker) -> bool:
        with self._has_jobs:
            while not self._queue:
                self._has_jobs.wait()
            worker.job, job = self._queue.take()
            if isinstance(job, Submit):
                if job.sequence_id in self._discarded:
                    self._discarded.remove(job.sequence_id)
                    return True
                worker.fail = partial(self._on_failed, job.sequence_id)
                worker.is_rendering = job.messages is not None
            elif isinstance(job, Count):
                worker.fail = job.on_done
                worker.is_rendering = True
            timeout_s = self._render_timeout_s if worker.is_rendering else self._tokenize_timeout_s
            self._set_deadline(worker, timeout_s)
        if not isinstance(job, Submit | Count):
            job()
            return self._is_done(worker)
        result = self._result(worker, job)
        if not self._is_done(worker):
            return False
        if isinstance(result, Prepared):
            self._on_prepared(result)
        elif isinstance(job, Count):
            job.on_done(result)
        elif isinstance(result, HostlerError):
            self._on_failed(job.sequence_id, result)
        return True

    def _result(self, worker: _Worker, job: Submit | Count) -> Prepared | int | HostlerError:
        try:
            if isinstance(job, Submit):
                return self._preparation.prepare(job, lambda: self._rendered(worker))
            counting = job.counting
            return self._preparation.count(
                counting.messages, counting.template_kwargs, lambda: self._rendered(worker)
            )
        except HostlerError as error:
            return error
        except MemoryError:
            return EngineFailed("The worker has not enough memory to prepare this prompt")
        except Exception as error:  # noqa: BLE001 - a bug of the engine's tokenizer costs this request only
            traceback.print_exc()
            kind = EngineFailed if not worker.is_rendering else InternalError
            return kind(f"The prompt could not be prepared: {type(error).__name__}: {error}")

    def _rendered(self, worker: _Worker) -> None:
        with self._lock:
            if not worker.is_condemned:
                worker.is_rendering = False
                self._set_deadline(worker, self._tokenize_timeout_s)

    def _set_deadline(self, worker: _Worker, timeout_s: float) -> None:
        worker.deadline = time.monotonic() + timeout_s
        if worker.deadline < self._watched_until:
            self._deadline_is_earlier.notify()

    def _is_done(self, worker: _Worker) -> bool:
        with self._lock:
            worker.deadline = None
            worker.is_rendering = False
            if not worker.is_condemned:
                worker.fail = None
            return not worker.is_condemned

    # -- watch ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        watched_job, bytes_before = 0, 0
        while True:
            with self._lock:
                worker = self._current
                if worker.deadline is None:
                    self._watched_until = math.inf
                    self._deadline_is_earlier.wait()
                    continue
                remaining_s = worker.deadline - time.monotonic()
                why = f"did not come to an end within {self._timeout_s(worker):g} s"
                if worker.is_rendering and remaining_s > 0:
                    n_bytes = _anonymous_bytes()
                    if worker.job != watched_job:
                        watched_job, bytes_before = worker.job, n_bytes
                    if n_bytes - bytes_before > self._memory_limit_bytes:
                        why, remaining_s = f"took more than {self._memory_limit_bytes} bytes of memory", 0.0
                    remaining_s = min(remaining_s, _LOOK_S)
                if remaining_s > 0:
                    self._watched_until = time.monotonic() + remaining_s
                    self._deadline_is_earlier.wait(remaining_s)
                    continue
                # Under the lock, so that this job and no later one is meant.
                self._condemn(worker, why)
            self._replace(worker, why)

    def _timeout_s(self, worker: _Worker) -> float:
        return self._render_timeout_s if worker.is_rendering else self._tokenize_timeout_s

    def _condemn(self, worker: _Worker, why: str) -> None:
        if not worker.is_rendering:
            self._exit_worker(f"the tokenizer {why}")
        worker.is_condemned = True
        thread = worker.thread
        assert thread is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(RenderTimeout))

    def _replace(self, worker: _Worker, why: str) -> None:
        thread = worker.thread
        assert thread is not None
        thread.join(self._grace_s)
        if thread.is_alive():
            self._exit_worker(f"the model's chat template {why} and could not be interrupted")
        print(f"a chat template {why} and was stopped", file=sys.stderr, flush=True)  # noqa: T201 - the worker's log
        with self._lock:
            self._current = self._start_worker()
        fail = worker.fail
        assert fail is not None
        fail(InvalidRequest(f"The model's chat template {why} on these messages, so it was stopped", param="messages"))


def _anonymous_bytes() -> int:
    """Memory of this process that is no file's; 0 where the system does not tell, which then never grows."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            _, resident, shared, *_ = stream.read().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * mmap.PAGESIZE
