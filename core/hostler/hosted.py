"""One model in this host: its lifecycle, its worker, its queue. Floor 4.

Who changes what: `changed` (a condition) protects every field of HostedModel. Three kinds of threads come here: waitress
threads that ask for a start or enter the queue, the one start thread of an attempt, and the supervisor's threads that tell
of a crash and of a restart. None of them holds `changed` while it waits for a worker.

    downloaded/stopped ──begin──▶ starting ──ready──▶ running ──stop──▶ stopping ──▶ stopped
                                    ▲   │failure: back to where it was  │crash
                                    └───┴───────────────────────────────┘ (the supervisor restarts the worker, at once
                                                                           or, if it keeps dying, after a pause)

INVARIANT: while `worker` is set there is exactly one worker process or a supervisor about to make one; a start thread that
finds one set stops it before it makes its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from hostler.domain import Lifecycle, Priority
from hostler.engine import EngineInfo
from hostler.errors import EngineUnavailable, HostlerError, ModelNotFound, StartCancelled, StartTimeout
from hostler.ledger import Grant
from hostler.library.manifest import Manifest
from hostler.scheduler import AdmissionQueue, Ticket
from hostler.weights import WarmWeights
from hostler.worker.supervisor import Supervisor


class StartAttempt:
    """One start that any number of callers wait for. Safe from any thread."""

    def __init__(self, *, is_restart: bool = False) -> None:
        self._over = threading.Event()
        self._error: HostlerError | None = None
        self.is_restart = is_restart
        """The supervisor runs it, after a crash; no start thread does."""
        self.is_cancelled = False
        """Set by a stop or delete; the start thread looks at it between its steps."""

    @property
    def is_open(self) -> bool:
        """It is going on and not called off."""
        return not self._over.is_set() and not self.is_cancelled

    @property
    def is_over(self) -> bool:
        """It ended, well or not."""
        return self._over.is_set()

    def finish(self, error: HostlerError | None) -> None:
        """Wake everyone who waits; the first call counts."""
        if not self._over.is_set():
            self._error = error
            self._over.set()

    def wait(self, timeout_s: float) -> None:
        """Wait for the end.

        Raises:
            HostlerError: The start failed.
            StartTimeout: It is still going on after `timeout_s`; it goes on without this caller.
        """
        if not self._over.wait(timeout_s):
            raise StartTimeout(f"The model is still starting after {timeout_s:g} s; it goes on starting, ask again later")
        if self._error is not None:
            raise self._error.copy()


Entered = Callable[["HostedModel", Lifecycle, str | None], None]
"""Called at each entry of a lifecycle, with the one before and, after a failure or a crash, its reason. Under `changed`: it
must not wait."""


def _tell_nobody(model: HostedModel, previous: Lifecycle, error: str | None) -> None:
    del model, previous, error


class HostedModel:
    """The state of one model that was started at least once, or is about to be."""

    def __init__(
        self,
        model_id: str,
        queue_len: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        on_enter: Entered = _tell_nobody,
    ) -> None:
        self.id = model_id
        self.clock = clock
        self._on_enter = on_enter
        self.manifest: Manifest | None = None
        """As it was when somebody asked for the model last; for what is told of it."""
        self.changed = threading.Condition(threading.RLock())
        self.lifecycle = Lifecycle.DOWNLOADED
        self.resting = Lifecycle.DOWNLOADED
        self.attempt: StartAttempt | None = None
        self.worker: Supervisor | None = None
        self.queue = AdmissionQueue(n_slots=1, queue_len=queue_len)
        self.chosen: dict[str, Any] = {}
        """The settings of the run, complete."""
        self.kept: dict[str, Any] = {}
        """The manifest's settings as they were when the run began."""
        self.engine = ""
        self.grant: Grant | None = None
        self.weights: WarmWeights | None = None
        self.info: EngineInfo | None = None
        self.last_error: str | None = None
        self.started_at: int | None = None
        self.last_used = clock()
        self.n_requests = 0
        """Generations that hold the model, waiting or running."""
        self.n_stops = 0
        """Ordered stops so far; a request that waited through one is not put back in the queue."""
        self.is_deleted = False

    # -- starting ---------------------------------------------------------------------------------------------------

    def begin_start(self, *, is_reload: bool = False) -> tuple[StartAttempt, bool]:
        """Join the start that is going on, or open one.

        Args:
            is_reload: The caller wants other settings than those of the run; a running model is started again.

        Returns:
            The attempt, and whether the caller must run it.

        Raises:
            ModelNotFound: It was deleted meanwhile.
        """
        with self.changed:
            self._refuse_deleted()
            if self.attempt is not None and self.attempt.is_open:
                return self.attempt, False
            if self.lifecycle is Lifecycle.RUNNING and not is_reload:
                attempt = StartAttempt()
                attempt.finish(None)
                return attempt, False
            if self.lifecycle is Lifecycle.STARTING and self.worker is not None and self.worker.state == "starting":
                # The pause after too many crashes is over and the supervisor tries again: join it.
                self.attempt = StartAttempt(is_restart=True)
                return self.attempt, False
            self.attempt = StartAttempt()
            if self.lifecycle in {Lifecycle.DOWNLOADED, Lifecycle.STOPPED}:
                self._enter(Lifecycle.STARTING)
            return self.attempt, True

    def enter_starting(self, attempt: StartAttempt) -> None:
        """The start thread goes to work; a stop that was going on is through.

        Raises:
            StartCancelled: It was stopped meanwhile.
        """
        with self.changed:
            if attempt.is_cancelled:
                raise StartCancelled(f"{self.id} was stopped while it started")
            self._enter(Lifecycle.STARTING)

    def loading(
        self,
        attempt: StartAttempt,
        worker: Supervisor,
        engine: str,
        grant: Grant,
        chosen: dict[str, Any],
        weights: WarmWeights,
    ) -> None:
        """Memory is granted and the worker is about to be spawned; from here on a stop stops it.

        Raises:
            StartCancelled: It was stopped meanwhile.
        """
        with self.changed:
            if attempt.is_cancelled:
                weights.close()
                raise StartCancelled(f"{self.id} was stopped while it started")
            self.worker, self.engine, self.grant, self.chosen = worker, engine, grant, chosen
            self.weights = weights

    def start_failed(self, attempt: StartAttempt, error: HostlerError) -> None:
        """The attempt is over without a worker: back to rest, everyone who waits gets the error."""
        with self.changed:
            attempt.finish(error)
            self.changed.notify_all()
            if self.attempt is not attempt:  # stopped, and already started anew: that start owns the state now
                return
            self._let_go()
            is_failure = not isinstance(error, StartCancelled)
            if is_failure:
                self.last_error = error.message
            if self.lifecycle is Lifecycle.STARTING:
                self._enter(self.resting, error.message if is_failure else None)
            self.queue.pause()
            self.queue.fail(error)

    def started(self, attempt: StartAttempt, worker: Supervisor, info: EngineInfo) -> None:
        """The worker is ready."""
        with self.changed:
            if attempt.is_cancelled:
                raise StartCancelled(f"{self.id} was stopped while it started")
            self.resting = Lifecycle.STOPPED
            self.last_error = None
            self.started_at = int(time.time())
            self._serve(worker, info)
            attempt.finish(None)

    def _serve(self, worker: Supervisor, info: EngineInfo) -> None:
        self.info = info
        self.last_used = self.clock()
        self._enter(Lifecycle.RUNNING)
        # The queue is paused until here, so all rings of the fresh worker are free.
        self.queue.open(info.n_slots, worker.n_rings)

    # -- what the supervisor tells ----------------------------------------------------------------------------------

    def worker_changed(self, worker: Supervisor) -> None:
        """Follow a crash and a restart of the running worker. Runs in a supervisor's thread.

        The first start and an ordered stop are told by the threads that run them.
        """
        with self.changed:
            is_restart = worker is self.worker and self.info is not None
            if not is_restart or self.lifecycle not in {Lifecycle.RUNNING, Lifecycle.STARTING}:
                return
            if worker.state == "running" and self.lifecycle is Lifecycle.STARTING and worker.info is not None:
                self._serve(worker, worker.info)
                self._end_restart(None)
            elif worker.state in {"starting", "backing_off", "failed"}:
                self._worker_lost(worker)

    def _worker_lost(self, worker: Supervisor) -> None:
        report = worker.exit_report
        self.last_error = report.text() if report is not None else "the worker is gone"
        self.queue.pause()
        if self.lifecycle is Lifecycle.RUNNING:
            self._enter(Lifecycle.STARTING, self.last_error)
        if worker.state == "starting" and (self.attempt is None or self.attempt.is_over):
            self.attempt = StartAttempt(is_restart=True)
        if worker.state != "starting":
            error = self.unavailable(worker)
            self.queue.fail(error)
            self._end_restart(error)

    def _end_restart(self, error: HostlerError | None) -> None:
        if self.attempt is not None and self.attempt.is_restart:
            self.attempt.finish(error)

    def unavailable(self, worker: Supervisor) -> EngineUnavailable:
        """The error for requests that meet a worker which keeps dying."""
        return EngineUnavailable(
            f"The engine of {self.id} keeps dying and is started again later: {self.last_error}",
            retry_after_s=worker.retry_after_s or 1.0,
        )

    # -- stopping ---------------------------------------------------------------------------------------------------

    def begin_stop(self, *, only_if_idle: bool = False, is_reload: bool = False) -> tuple[bool, Supervisor | None]:
        """Leave `running` or `starting`.

        Args:
            only_if_idle: Leave a model alone that has requests or is starting.
            is_reload: The open attempt is what stops it, so neither the attempt nor who waits for it is cancelled.

        Returns:
            Whether the caller must finish the stop, and the worker to stop, if there is one already.
        """
        with self.changed:
            has_open_attempt = self.attempt is not None and self.attempt.is_open
            if only_if_idle and (self.n_requests or has_open_attempt or self.lifecycle is not Lifecycle.RUNNING):
                return False, None
            if not is_reload:
                # In every state: behind a stop that is going on, a start may be waiting.
                self.n_stops += 1
                if self.attempt is not None and has_open_attempt:
                    self.attempt.is_cancelled = True
                self.queue.fail(self.was_stopped())
            if self.lifecycle not in {Lifecycle.RUNNING, Lifecycle.STARTING}:
                return False, None
            self._enter(Lifecycle.STOPPING)
            self.queue.pause()
            return True, self.worker

    def was_stopped(self) -> EngineUnavailable:
        """The error for requests that a stop ends."""
        return EngineUnavailable(f"{self.id} was stopped before the answer was complete", retry_after_s=1.0)

    def stopped(self) -> None:
        """The worker is gone."""
        with self.changed:
            self._let_go()
            self._enter(self.resting)
            if self.attempt is not None and self.attempt.is_cancelled:
                self.attempt.finish(StartCancelled(f"{self.id} was stopped while it started"))

    def wait_while_stopping(self) -> None:
        """Wait until an ordered stop is through; bounded by the supervisor's own limits."""
        with self.changed:
            self.changed.wait_for(lambda: self.lifecycle is not Lifecycle.STOPPING)

    def wait_while_cancelling(self) -> None:
        """Wait until a start that was called off is over, too."""

        def is_settled() -> bool:
            attempt = self.attempt
            is_cancelling = attempt is not None and attempt.is_cancelled and not attempt.is_over
            return self.lifecycle is not Lifecycle.STOPPING and not is_cancelling

        with self.changed:
            self.changed.wait_for(is_settled)

    def mark_deleted(self, *, is_deleted: bool) -> None:
        """Refuse, or take again, starts and requests."""
        with self.changed:
            self.is_deleted = is_deleted

    def _refuse_deleted(self) -> None:
        if self.is_deleted:
            raise ModelNotFound(f"The model {self.id} does not exist")

    # -- requests ---------------------------------------------------------------------------------------------------

    def enter_queue(self, n: int, priority: Priority, n_slots: int, *, is_new: bool) -> Ticket:
        """Take a place in the queue; call while holding `changed`, in the same breath as `begin_start`.

        Args:
            n: Sequences.
            n_slots: What the settings promise, for a model that has not said it itself yet.
            is_new: Count the request; False when one that is counted comes back. Each counted one calls `leave`.
        """
        with self.changed:
            self._refuse_deleted()
            if self.info is None:
                self.queue.n_slots = n_slots
            ticket = self.queue.enter(n, priority)
            self.n_requests += is_new
            return ticket

    def use(self) -> None:
        """Count a request that takes no place in the queue; it calls `leave`, too."""
        with self.changed:
            self._refuse_deleted()
            self.n_requests += 1

    def leave(self) -> None:
        """A request is over."""
        with self.changed:
            self.n_requests -= 1
            self.last_used = self.clock()
            self.changed.notify_all()

    @property
    def is_idle(self) -> bool:
        """Running with nothing to do."""
        with self.changed:
            return self.lifecycle is Lifecycle.RUNNING and self.n_requests == 0

    def _let_go(self) -> None:
        self.worker, self.info, self.grant, self.started_at = None, None, None, None
        if self.weights is not None:
            self.weights.close()
            self.weights = None

    def _enter(self, lifecycle: Lifecycle, error: str | None = None) -> None:
        previous, self.lifecycle = self.lifecycle, lifecycle
        if lifecycle is not previous:
            self._on_enter(self, previous, error)
        self.changed.notify_all()
