"""The runs of one host: who asks for what, which are going on, and what becomes of them when it stops.

Floor 4; any thread. A run that is going on is a LiveRun with a thread of its own (`liverun.py`); what is over is in the
records and nowhere else. That a thread has one run at a time is the database's to decide: two that ask at once may both get
as far as being counted, one is recorded, the other is refused.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from hostler.errors import (
    EngineUnavailable,
    HostlerError,
    InvalidRequest,
    MissingParameter,
    NotFound,
    RunInProgress,
    ThreadNotFound,
)
from hostler.liverun import CANCEL_WAIT_S, LiveRun, Order
from hostler.records.ids import new_id
from hostler.records.objects import ACTIVE_RUN, Run, RunError, ThreadAssistant
from hostler.runplan import NewThread, RunRequest, assistant_of, resolve, with_assistant

if TYPE_CHECKING:
    from hostler.runtime import Runtime

log = logging.getLogger("hostler.runs")

CLOSE_TIMEOUT_S = 10.0
"""For the last lines of runs whose generations were ended by a stop: writing their end, and retrying that."""


class Runs:
    """See the module."""

    def __init__(self, runtime: Runtime) -> None:
        """Nothing is running.

        Args:
            runtime: Its records, its models, its places.
        """
        self._runtime = runtime
        self._lock = threading.Lock()  # protects the fields below
        self._live: dict[LiveRun, threading.Thread] = {}
        """From being asked for until the end is written."""
        self._lost: set[str] = set()
        """Ids of runs whose end could not be written: the records take them for active, and nobody works on them."""
        self._is_closed = False

    # -- beginning --------------------------------------------------------------------------------------------------

    def start(self, thread_id: str, request: RunRequest, *, is_followed: bool = False) -> LiveRun:
        """Begin a run in a thread; returns before it is recorded, see LiveRun.wait_recorded.

        Args:
            is_followed: Its events are kept for LiveRun.follow.

        Raises:
            ThreadNotFound, AssistantNotFound, ModelNotFound, RunInProgress, InvalidRequest, UnsupportedParameter
        """
        thread = self._runtime.records.threads.get(thread_id)
        self._refuse_second(thread_id)
        return self._begin(thread_id, None, thread.assistants, request, is_followed)

    def start_with_thread(self, new: NewThread, request: RunRequest, *, is_followed: bool = False) -> LiveRun:
        """Begin a run in a thread that is made for it, when it is recorded and not before; as `start`."""
        return self._begin(new_id("thread"), new, new.assistants, request, is_followed)

    def _begin(
        self,
        thread_id: str,
        new: NewThread | None,
        assistants: list[ThreadAssistant],
        request: RunRequest,
        is_followed: bool,
    ) -> LiveRun:
        runtime = self._runtime
        assistant = runtime.records.assistants.get(assistant_of(request, assistants))
        plan = resolve(request, assistants, assistant, runtime.settings.default_model)
        if not plan.model:
            raise MissingParameter(
                f"model is missing: neither the request, the thread nor the assistant {assistant.id} names one, and this "
                f"server has no default_model",
                param="model",
            )
        model_id = runtime.model(plan.model).manifest.id
        if new is not None:
            new = with_assistant(new, assistant)
        live = LiveRun(runtime, Order(thread_id, new, request, plan, model_id), is_followed=is_followed)
        thread = threading.Thread(target=live.work, args=(self._ended,), name=f"run in {thread_id}", daemon=True)
        with self._lock:
            if self._is_closed or not runtime.is_ready:
                raise EngineUnavailable("hostler is stopping and takes no new runs", retry_after_s=5.0)
            self._live[live] = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            with self._lock:
                del self._live[live]
            raise EngineUnavailable(f"A run could not be started: {error}", retry_after_s=5.0) from error
        return live

    def _refuse_second(self, thread_id: str) -> None:
        """Say early what the records would say in the end: no model need be started for it."""
        active = self._runtime.records.runs.active(thread_id)
        if active is not None and not self._mend(active):
            raise RunInProgress(
                f"The thread {thread_id} already has an active run {active.id}, which is {active.status}; wait for its end "
                f"or cancel it"
            )

    def get(self, thread_id: str, run_id: str) -> Run:
        """A run as it is recorded. One whose end was lost gets an end now: whoever polls it must not wait for ever.

        Raises:
            ThreadNotFound, RunNotFound
            StorageUnavailable: The end cannot be written now either.
        """
        records = self._runtime.records
        run = records.runs.get(thread_id, run_id)
        is_mended = run.status in ACTIVE_RUN and self._mend(run)
        return records.runs.get(thread_id, run_id) if is_mended else run

    # -- ending -----------------------------------------------------------------------------------------------------

    def cancel(self, thread_id: str, run_id: str) -> Run:
        """Cancel a run.

        Returns:
            The run: cancelled, or cancelling where the end takes its time, or whatever it came to just before.

        Raises:
            ThreadNotFound, RunNotFound
            InvalidRequest: It is over.
        """
        records = self._runtime.records
        run = records.runs.get(thread_id, run_id)
        live = self._find(run_id)
        if live is not None:
            live.cancel()
            live.wait_over(CANCEL_WAIT_S)
            return live.run or run
        if run.status in ACTIVE_RUN and self._mend(run):
            run = records.runs.get(thread_id, run_id)
        elif run.status in ACTIVE_RUN:
            run = records.runs.get(thread_id, run_id)  # it ended between these lines
            if run.status not in ACTIVE_RUN:
                return run
            raise RunInProgress(f"The run {run_id} is another server's, which shares this database; cancel it there")
        raise InvalidRequest(f"The run {run_id} cannot be cancelled any more, it is {run.status}", param="run_id")

    def thread_deleted(self, thread_id: str) -> None:
        """A thread is gone: what still generates for it is cancelled. Nothing more is written of it."""
        for live in self._all():
            if live.thread_id == thread_id:
                live.cancel()

    @property
    def is_busy(self) -> bool:
        """A run is going on, or being counted, or its end being written."""
        with self._lock:
            return bool(self._live)

    def close(self) -> None:
        """Take no more runs and wait until the end of each that goes on is written; their generations are over or ending."""
        with self._lock:
            self._is_closed = True
            threads = list(self._live.values())
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _all(self) -> list[LiveRun]:
        with self._lock:
            return list(self._live)

    def _find(self, run_id: str) -> LiveRun | None:
        return next((live for live in self._all() if live.run is not None and live.run.id == run_id), None)

    def _ended(self, live: LiveRun, error: HostlerError | None) -> None:
        run = live.run
        with self._lock:
            self._live.pop(live, None)
            if error is not None and run is not None and not isinstance(error, ThreadNotFound):
                log.error("the end of %s could not be written, so its thread counts as busy: %s", run.id, error.message)
                self._lost.add(run.id)

    def _mend(self, run: Run) -> bool:
        """Write the end of a run that was lost. False: it is none of those.

        Raises:
            StorageUnavailable: It cannot be written now either.
        """
        with self._lock:
            if run.id not in self._lost:
                return False
        try:
            error = RunError("server_error", "The end of this run could not be written when it came; its answer is lost")
            self._runtime.records.runs.finish(run.id, status="failed", last_error=error)
        except NotFound:
            pass  # its thread was deleted meanwhile
        with self._lock:
            self._lost.discard(run.id)
        return True
