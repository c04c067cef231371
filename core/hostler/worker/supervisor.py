"""The supervisor of one model: spawns its worker, waits until it is ready, restarts it when it dies, stops it.

Floor 3, in the host. (Skeleton: the signatures hold, the bodies are being written.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostler.domain import GenerationEvent, Message, Priority, SamplingParams
from hostler.engine import EngineInfo, EngineSettings, ModelFiles
from hostler.worker.exits import ExitReport
from hostler.worker.wire import PromptSettings


@dataclass(frozen=True)
class Limits:
    """Timeouts and sizes of one worker; the first four are settings of the same name."""

    start_timeout_s: float = 300.0
    """A load without Progress for so long is given up."""
    step_timeout_s: float = 120.0
    stop_timeout_s: float = 10.0
    """For the Stop message, then for SIGTERM, then SIGKILL."""
    stall_timeout_s: float = 60.0
    crash_window_s: float = 60.0
    crashes_before_backoff: int = 3
    first_backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    ring_bytes: int = 64 * 1024
    max_readers: int = 256
    """Reader groups alive at once; at least the host's max_requests."""


class WorkerSequence:
    """One submitted sequence. Any thread."""

    id: int
    index: int

    def cancel(self) -> None:
        """Drop it in whatever phase it is; the group then gives FinishEvent(CANCELLED)."""


class ReaderGroup:
    """The answers of one request (`n` of them), read by one thread over one wake word."""

    def wait(self, timeout_s: float) -> bool:
        """Sleep (GIL released) until drain() may have something; False after `timeout_s`."""
        raise NotImplementedError

    def drain(self) -> list[GenerationEvent]:
        """What has come, consecutive text of one answer joined; never blocks.

        Raises:
            HostlerError: A sequence failed (its class by the worker's code) or the worker died (EngineUnavailable with
                retry_after_s), after all events that came before it have been given.
        """
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """Every sequence submitted so far has had its FinishEvent."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Cancel all its sequences; from any thread."""

    def close(self) -> None:
        """Cancel what still runs and give rings and wake word back. Idempotent. Also a context manager."""


class Supervisor:
    """Looks after the worker of one model."""

    model_id: str
    info: EngineInfo | None
    """Of the running worker; None while there is none."""
    pid: int | None
    exit_report: ExitReport | None
    """Of the last worker that ended; kept while the next one runs."""
    crashes: int
    """Unexpected deaths since start()."""
    progress: float
    """Loaded fraction while starting."""

    def __init__(
        self,
        model_id: str,
        engine: str,
        environment: Mapping[str, str],
        files: ModelFiles,
        settings: EngineSettings,
        prompt: PromptSettings,
        *,
        limits: Limits | None = None,
        log_path: Path | None = None,
        on_change: Callable[[Supervisor], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is spawned yet.

        Args:
            engine: EngineSpec.engine, `package.module:Class`.
            environment: EngineSpec.environment; the user's own variables win.
            log_path: File that gets all the worker's output, rotated; None: only the last lines are kept.
            on_change: Called after each change of `state`, from the supervisor's thread, without locks held.
        """
        raise NotImplementedError

    @property
    def state(self) -> str:
        """`starting`, `running`, `stopping`, `stopped`, `backing_off` or `failed` (the first load did not succeed)."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin to start the worker; returns at once. From `stopped` or `failed` it starts anew."""

    def wait_ready(self, timeout_s: float | None = None) -> EngineInfo:
        """Block until the worker is ready.

        Raises:
            ModelLoadFailed, InvalidModelFile, ...: The first load failed; carries the last output.
            StartTimeout: It made no progress for start_timeout_s.
            StartCancelled: stop() was called meanwhile.
            EngineUnavailable: The worker keeps dying; retry_after_s says when the next try comes.
            TimeoutError: `timeout_s` is over and none of these; ask again.
        """
        raise NotImplementedError

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until the next start while backing off, else None."""
        raise NotImplementedError

    @property
    def active_count(self) -> int:
        """Sequences submitted and not yet closed by the worker (preparing, waiting, prefill, decode)."""
        raise NotImplementedError

    @property
    def free_rings(self) -> int:
        """How many more sequences submit() would take now; 0 while no worker is running."""
        raise NotImplementedError

    def reader_group(self) -> ReaderGroup:
        """A new group on the running worker.

        Raises:
            EngineUnavailable: No worker is running.
            QueueFull: `max_readers` groups are alive.
        """
        raise NotImplementedError

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
                is done with it, or the worker died): the moment to admit the next one.

        Raises:
            EngineUnavailable: The worker is gone.
            QueueFull: No ring is free; the caller's admission should not have let it come here.
        """
        raise NotImplementedError

    def call(self, name: str, argument: Any = None, timeout_s: float = 60.0) -> Any:
        """Ask the worker: `memory` -> MemoryUse fields; `tokenize` {text, add_special, parse_special} -> ids; `embed`
        {inputs: [str or ids]} -> {vectors, n_tokens}.

        Raises:
            HostlerError: As the worker says, or EngineUnavailable.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Stop the worker in order, by SIGTERM or by SIGKILL; returns when it is gone. Idempotent."""
