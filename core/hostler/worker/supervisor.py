"""The supervisor of one model: spawns its worker, waits until it is ready, restarts it when it dies, stops it.

Floor 3, in the host. One thread, the keeper, lives from start() to the end and makes every decision; any other thread
asks, submits, or waits. The worker's own threads (process.py) bring messages and its end here.

    start() ─▶ starting ──Loaded──▶ running ──stop()──▶ stopping ─▶ stopped
                 │  ▲                  │ died
                 │  │◀─── at once ─────┤
                 │  └──── pause ──── backing_off          (a worker that keeps dying is never given up in silence)
                 ▼
               failed      the first load did not succeed, so trying again would not either

It must not know scheduling, memory or HTTP.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostler.domain import EmbedRequest, MemoryUse, Message, Priority, SamplingParams
from hostler.engine import EngineInfo, EngineSettings, ModelFiles
from hostler.errors import EngineUnavailable, HostlerError, ModelLoadFailed, StartCancelled, StartTimeout
from hostler.ring import RingSegment
from hostler.worker.answers import ReaderGroup, RingTable, WorkerSequence, error_of
from hostler.worker.calls import CallTable, PendingCall
from hostler.worker.exits import ExitReport
from hostler.worker.process import Spawn, SpawnRequest, WorkerProcess, spawn_process, worker_command
from hostler.worker.restarts import RestartPolicy
from hostler.worker.wire import (
    WIRE_VERSION,
    Embedded,
    Hello,
    HostMessage,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    PromptSettings,
    Reply,
    SequenceClosed,
    Stop,
    WorkerMessage,
)

__all__ = ["Limits", "ReaderGroup", "Supervisor", "WorkerSequence"]

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
"""How often the beat of a busy worker is looked at."""
_SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)


@dataclass(frozen=True)
class Limits:
    """Timeouts and sizes of one worker; the first four are settings of the same name."""

    start_timeout_s: float = 300.0
    """A load without Progress for so long is given up."""
    step_timeout_s: float = 120.0
    """A worker with open sequences whose loop does not come round for so long is killed."""
    stop_timeout_s: float = 10.0
    """For the Stop message, then for SIGTERM, then SIGKILL."""
    stall_timeout_s: float = 60.0
    """A reader that takes nothing for so long loses its sequence."""
    crash_window_s: float = 60.0
    crashes_before_backoff: int = 3
    first_backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    ring_bytes: int = 64 * 1024
    """2,700 one-token frames: half a minute of a fast answer before its sequence pauses. A power of two."""
    max_readers: int = 256
    """Reader groups alive at once; at least the host's max_requests."""


class _Run:
    """One worker process with its rings, from spawn to end. The supervisor's lock protects the fields."""

    def __init__(self, segment: RingSegment, model_id: str, now: float) -> None:
        self.table = RingTable(segment, self, model_id)
        self.calls = CallTable(self, self.table.unavailable)
        self.process: WorkerProcess | None = None
        self.deadline_from = now
        """When the start deadline was renewed last: the spawn, then every Progress."""
        self.ready_at: float | None = None
        self.refusal: HostlerError | None = None
        """What LoadFailed said."""
        self.has_ended = False
        self.is_end_told = False
        """Whoever follows the state has heard that it is `starting` again."""
        self.beats = 0
        self.beat_at = now
        """When the loop was last seen to go round, or to have nothing to do."""

    def send(self, message: HostMessage) -> bool:
        """Write one message to the worker."""
        process = self.process
        return process is not None and process.send(message)


class Supervisor:
    """Looks after the worker of one model."""

    def __init__(
        self,
        model_id: str,
        engine: str,
        environment: Mapping[str, str],
        files: ModelFiles,
        settings: EngineSettings,
        prompt: PromptSettings,
        *,
        takes_messages: bool = False,
        limits: Limits | None = None,
        log_path: Path | None = None,
        on_change: Callable[[Supervisor], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        spawn: Spawn = spawn_process,
    ) -> None:
        """Nothing is spawned yet.

        Args:
            engine: EngineSpec.engine, `package.module:Class`.
            environment: EngineSpec.environment; the user's own variables win.
            takes_messages: EngineSpec.takes_messages.
            log_path: File that gets all the worker's output, rotated; None: only the last lines are kept.
            on_change: Called after each change of `state`, without locks held; from the supervisor's threads, and for
                `starting` and `stopping` from the thread that called start() or stop().
            clock: Monotonic seconds, for deadlines and pauses; after turning a fake one call `look()`.
        """
        self.model_id = model_id
        self.limits = limits or Limits()
        self.info: EngineInfo | None = None
        """Of the running worker; None while there is none."""
        self.memory: MemoryUse | None = None
        """What the running worker's engine said right after loading."""
        self.exit_report: ExitReport | None = None
        """Of the last worker that ended; kept while the next one runs."""
        self.crashes = 0
        """Unexpected deaths since start()."""
        self.progress = 0.0
        """Loaded fraction while starting."""
        self.n_rings = max(2 * settings.n_parallel, settings.n_parallel + 8)
        """Sequences that a running worker takes: those in slots, and some that are prepared ahead."""
        self._engine = engine
        self._environment = dict(environment)
        self._files = files
        self._settings = settings
        self._prompt = prompt
        self._takes_messages = takes_messages
        self._log_path = log_path
        self._on_change = on_change
        self._clock = clock
        self._spawn = spawn
        self._changed = threading.Condition()  # protects all fields below
        self._state = "stopped"
        self._run: _Run | None = None
        self._keeper: threading.Thread | None = None
        self._is_stop_asked = False
        self._failure: Callable[[], HostlerError] | None = None
        """Makes the error of a failed first load, a fresh one for each who waits."""
        self._retry_at: float | None = None

    # -- what it is doing -------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """`starting`, `running`, `stopping`, `stopped`, `backing_off` or `failed` (the first load did not succeed)."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Of the worker process, None while there is none."""
        run = self._run
        return None if run is None or run.process is None or run.has_ended else run.process.pid

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until the next start while backing off, else None."""
        retry_at = self._retry_at
        return None if retry_at is None else max(0.0, retry_at - self._clock())

    @property
    def active_count(self) -> int:
        """Sequences submitted and not yet closed by the worker (preparing, waiting, prefill, decode)."""
        run = self._run
        return 0 if run is None else run.table.active_count

    @property
    def free_rings(self) -> int:
        """How many more sequences submit() would take now; 0 while no worker is running."""
        run = self._run
        return 0 if run is None or self._state != "running" else run.table.free_rings

    def last_output(self) -> str:
        """The last lines of the worker's output, dead or alive."""
        run = self._run
        if run is not None and run.process is not None:
            return run.process.last_output()
        return "" if self.exit_report is None else self.exit_report.last_output

    # -- start, wait, stop ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start the worker; returns at once. From `stopped` or `failed` it starts anew, else it does nothing."""
        with self._changed:
            if self._state not in {"stopped", "failed"}:
                return
            self._state = "starting"
            self._is_stop_asked = False
            self._failure = None
            self.exit_report = None
            self.crashes = 0
            self.progress = 0.0
            self._keeper = threading.Thread(target=self._keep, name=f"keeper-{self.model_id}", daemon=True)
            self._keeper.start()
        self._tell()

    def wait_ready(self, timeout_s: float | None = None) -> EngineInfo:
        """Block until the worker is ready.

        Raises:
            ModelLoadFailed, InvalidModelFile, ...: The first load failed; carries the last output.
            StartTimeout: It made no progress for start_timeout_s.
            StartCancelled: stop() was called meanwhile, or start() never was.
            EngineUnavailable: The worker keeps dying; retry_after_s says when the next try comes.
            TimeoutError: `timeout_s` is over and none of these; ask again.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                match self._state:
                    case "running":
                        assert self.info is not None
                        return self.info
                    case "failed":
                        assert self._failure is not None
                        raise self._failure()
                    case "stopping" | "stopped":
                        raise StartCancelled(f"The start of {self.model_id} was cancelled by a stop")
                    case "backing_off":
                        raise self._unavailable()
                remaining_s = None if until is None else until - time.monotonic()
                if remaining_s is not None and remaining_s <= 0:
                    raise TimeoutError(f"{self.model_id} is still starting")
                self._changed.wait(remaining_s)

    def stop(self) -> None:
        """Stop the worker: by message, by SIGTERM, by SIGKILL; returns when it is gone. Idempotent."""
        with self._changed:
            keeper = self._keeper
            if keeper is None or self._state in {"stopped", "failed"}:
                if self._state == "failed":
                    self._state = "stopped"
                return
            is_first = self._state != "stopping"
            self._is_stop_asked = True
            self._state = "stopping"
            self._changed.notify_all()
        if is_first:
            self._tell()
        if threading.current_thread() is not keeper:
            keeper.join()

    def look(self) -> None:
        """Make the keeper look at its deadlines now."""
        with self._changed:
            self._changed.notify_all()

    # -- sequences and calls ----------------------------------------------------------------------------------------

    def reader_group(self, *, gathers: bool = False) -> ReaderGroup:
        """A new group on the running worker.

        Args:
            gathers: See ReaderGroup.

        Raises:
            EngineUnavailable: No worker is running.
            QueueFull: `max_readers` groups are alive.
        """
        return self._running().table.reader_group(gathers=gathers)

    def submit(
        self,
        group: ReaderGroup,
        index: int,
        params: SamplingParams,
        *,
        messages: tuple[Message, ...] | None = None,
        prompt: str | tuple[int, ...] | None = None,
        cache_prompt: bool = True,
        priority: Priority = Priority.NORMAL,
        template_kwargs: dict[str, Any] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> WorkerSequence:
        """Send one sequence to the worker that `group` belongs to; any thread.

        Args:
            index: Which answer of the request it is; its events carry it.
            on_closed: Called once, without locks held, when its ring is free again (the worker closed it and its reader
                is done with it, or the worker died): the moment to admit the next one. Not called when this raises.

        Raises:
            EngineUnavailable: The worker is gone.
            QueueFull: No ring is free; the caller's admission should not have let it come here.
        """
        return group.submit(
            index,
            params,
            messages=messages,
            prompt=prompt,
            cache_prompt=cache_prompt,
            priority=priority,
            template_kwargs=template_kwargs,
            on_closed=on_closed,
        )

    def call(self, name: str, argument: Any = None, timeout_s: float = 60.0) -> Any:
        """Ask the worker: `memory` gives MemoryUse's fields as a dict; `tokenize` takes a text and gives ids; `count` takes
        a Counting and gives PromptSize's fields as a dict.

        Raises:
            HostlerError: As the worker says; EngineUnavailable when there is none, it dies, or the time is over.
        """
        call = self._running().calls.call(name, argument)
        try:
            if not call.wait(timeout_s):
                raise EngineUnavailable(
                    f"The engine of {self.model_id} did not answer {name} within {timeout_s:g} s", retry_after_s=1.0
                )
            return call.value()
        finally:
            call.close()

    def embed(self, request: EmbedRequest) -> PendingCall:
        """Send inputs to be embedded; close what it gives.

        Raises:
            EngineUnavailable: No worker is running.
        """
        return self._running().calls.embed(request)

    def _running(self) -> _Run:
        with self._changed:
            if self._run is None or self._state != "running":
                raise self._unavailable()
            return self._run

    def _unavailable(self) -> EngineUnavailable:
        report = self.exit_report
        match self._state:
            case "backing_off":
                pause = f"it is started again in {self.retry_after_s or 0:.0f} s"
            case "starting":
                pause = "it is starting"
            case _:
                pause = f"it is {self._state}"
        reason = "" if report is None else f"; the last worker {report.text()}"
        return EngineUnavailable(
            f"The engine of {self.model_id} is not running: {pause}{reason}",
            retry_after_s=max(1.0, self.retry_after_s or 0.0),
        )

    # -- keeper thread ----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        policy = RestartPolicy(
            self.limits.crash_window_s,
            self.limits.crashes_before_backoff,
            self.limits.first_backoff_s,
            self.limits.max_backoff_s,
        )
        has_been_ready = False
        while True:
            run = self._begin_run()
            if run is not None and run.process is not None:
                self._watch(run)
                run.process.join()
            with self._changed:
                ready_at = None if run is None else run.ready_at
                refusal = None if run is None else run.refusal
                has_been_ready = has_been_ready or ready_at is not None
                self._run = None
                self.info = None
                self.memory = None
                if self._is_stop_asked:
                    self._state = "stopped"
                elif not has_been_ready:
                    self._state = "failed"
                    self._failure = self._load_error(refusal)
                else:
                    now = self._clock()
                    self.crashes += 1
                    pause_s = policy.pause_after_crash(now, 0.0 if ready_at is None else now - ready_at)
                    self._state = "backing_off" if pause_s else "starting"
                    self._retry_at = now + pause_s if pause_s else None
                    self.progress = 0.0
                state = self._state
                self._changed.notify_all()
            if state in {"starting", "backing_off"}:
                _log.warning("%s: the worker %s; %s", self.model_id, self._reason(), state.replace("_", " "))
            is_news = not (state == "starting" and run is not None and run.is_end_told)
            del run
            if is_news:
                self._tell()
            if state in {"stopped", "failed"} or (state == "backing_off" and not self._pause()):
                return

    def _pause(self) -> bool:
        """Wait out the back-off; False when stop() came."""
        with self._changed:
            while not self._is_stop_asked and (remaining_s := self.retry_after_s):
                self._changed.wait(remaining_s)
            self._retry_at = None
            self._state = "stopped" if self._is_stop_asked else "starting"
            is_stopped = self._is_stop_asked
            self._changed.notify_all()
        self._tell()
        return not is_stopped

    def _begin_run(self) -> _Run | None:
        """Spawn a worker and send it Load; None when it could not be spawned."""
        try:
            segment = RingSegment.create(self.n_rings, self.limits.ring_bytes, self.limits.max_readers + 1)
            run = _Run(segment, self.model_id, self._clock())
            request = SpawnRequest(worker_command(), {**self._environment, **os.environ}, segment.pass_fds)
            with self._changed:
                # Its first messages must find the run complete, so they wait for this lock.
                self._run = run
                run.process = WorkerProcess(
                    request,
                    on_message=lambda _, message: self._receive(run, message),
                    on_end=lambda process: self._ended(run, process),
                    log_path=self._log_path,
                    spawn=self._spawn,
                )
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no more threads
            with self._changed:
                self._run = None
                self.exit_report = ExitReport("spawn_failed", detail=str(error))
            return None
        run.send(
            Load(
                WIRE_VERSION,
                self.model_id,
                self._engine,
                self._files,
                self._settings,
                self._prompt,
                segment.handle_for_child(),
                self.limits.stall_timeout_s,
                self._takes_messages,
            )
        )
        return run

    def _watch(self, run: _Run) -> None:
        """Return when the worker of this run has ended, by itself or by us."""
        process = run.process
        assert process is not None
        with self._changed:
            while not run.has_ended and not self._is_stop_asked:
                now = self._clock()
                if run.ready_at is None:
                    remaining_s = run.deadline_from + self.limits.start_timeout_s - now
                    kind, idle_s = "start_timeout", self.limits.start_timeout_s
                else:
                    self._note_beat(run, now)
                    remaining_s = run.beat_at + self.limits.step_timeout_s - now
                    kind, idle_s = "stalled", self.limits.step_timeout_s
                if remaining_s <= 0:
                    break
                self._changed.wait(min(remaining_s, _LOOK_S) if run.ready_at is not None else remaining_s)
            if run.has_ended:
                return
            is_stop = self._is_stop_asked
        if is_stop:
            self._stop_process(process)
        else:
            process.expect_end(kind, f"nothing happened for {idle_s:g} s")
            process.dump_tracebacks()
            process.signal(_SIGKILL)
        with self._changed:
            while not run.has_ended:
                self._changed.wait()

    def _note_beat(self, run: _Run, now: float) -> None:
        beats = run.table.segment.beats
        if beats != run.beats or (run.table.active_count == 0 and run.calls.n_embeds == 0):
            run.beats, run.beat_at = beats, now

    def _stop_process(self, process: WorkerProcess) -> None:
        process.expect_end("stopped")
        timeout_s = self.limits.stop_timeout_s
        until = time.monotonic() + timeout_s
        if process.send(Stop(), timeout_s) and process.wait(max(0.0, until - time.monotonic())) is not None:
            return
        process.signal(signal.SIGTERM)
        if process.wait(timeout_s) is None:
            process.dump_tracebacks()
            process.signal(_SIGKILL)

    # -- threads of the worker process ------------------------------------------------------------------------------

    def _receive(self, run: _Run, message: WorkerMessage) -> None:
        match message:
            case SequenceClosed(sequence_id):
                run.table.sequence_closed(sequence_id)
                return
            case Reply() | Embedded():
                run.calls.received(message)
                return
        is_ready = False
        with self._changed:
            match message:
                case Hello(version) if version != WIRE_VERSION:
                    _log.error("%s: worker speaks version %s, not %s", self.model_id, version, WIRE_VERSION)
                case Progress(fraction):
                    run.deadline_from = self._clock()
                    self.progress = fraction
                case Loaded(info, memory):
                    now = self._clock()
                    run.ready_at = run.beat_at = now
                    if not self._is_stop_asked:
                        self.info = info
                        self.memory = memory
                        self.progress = 1.0
                        self._state = "running"
                        is_ready = True
                case LoadFailed(code, text, param):
                    run.refusal = error_of(code, text, param)
            self._changed.notify_all()
        if is_ready:
            self._tell()

    def _ended(self, run: _Run, process: WorkerProcess) -> None:
        report = process.report
        assert report is not None
        with self._changed:
            self.exit_report = report
            if self._state == "running":
                # A client that meets the death and asks again at once shall wait for the restart; the keeper, which
                # tells of it, may still find that a pause is due.
                self._state = "starting"
                self.info = None
                run.is_end_told = True
        if run.is_end_told:
            # First the scheduling, so that no place that the dead sequences give back is filled for this worker.
            self._tell()
        run.table.worker_ended(report)
        run.calls.worker_ended()
        with self._changed:
            run.has_ended = True
            self._changed.notify_all()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _load_error(self, refusal: HostlerError | None) -> Callable[[], HostlerError]:
        report = self.exit_report
        assert report is not None
        output = report.last_output

        def make() -> HostlerError:
            if refusal is not None:
                return error_of(refusal.code, refusal.message, refusal.param, last_output=output)
            if report.kind == "start_timeout":
                return StartTimeout(
                    f"{self.model_id} made no progress with loading for {self.limits.start_timeout_s:g} s and was given up"
                    + (f". Its last output:\n{output}" if output else "")
                )
            return ModelLoadFailed(
                f"The worker of {self.model_id} {report.reason} while it loaded the model", last_output=output
            )

        return make

    def _reason(self) -> str:
        return "ended" if self.exit_report is None else self.exit_report.reason

    def _tell(self) -> None:
        if self._on_change is not None:
            try:
                self._on_change(self)
            except Exception:  # noqa: BLE001 - logged with its traceback; supervision must go on
                _log.exception("%s: the on_change callback failed", self.model_id)
