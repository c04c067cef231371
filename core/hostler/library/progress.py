"""How far a download is, written by its one thread and read by any.

Floor 1. `_condition` guards everything; readers get frozen snapshots.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from hostler.domain import Lifecycle

SPEED_WINDOW_S = 5.0
"""The speed shown is that of the last so many seconds: steady enough to read, quick enough to show a stall."""
_SAMPLE_EVERY_S = 0.2
_LOOK_EVERY_S = 0.1


class FileProgress(msgspec.Struct, frozen=True):
    """One file of a download."""

    filename: str
    url: str
    """As it may be shown: no credentials, no query."""
    total_bytes: int | None
    done_bytes: int


class PullProgress(msgspec.Struct, frozen=True):
    """A snapshot of a download; the fields of `runtime.PullView`, and the phase."""

    id: str
    lifecycle: Lifecycle
    """downloading, downloaded or not_downloaded."""
    files: tuple[FileProgress, ...]
    total_bytes: int | None
    done_bytes: int
    speed: float
    """Bytes per second over the last seconds; 0 when it is not downloading."""
    elapsed_s: float
    error: str | None = None
    phase: str = "resolving"
    """resolving, verifying (what an earlier pull left), downloading, unpacking, checking; at the end done, cancelled,
    interrupted or failed."""


ENDS = frozenset({"done", "cancelled", "interrupted", "failed"})


class ProgressBoard:
    """Where a download's thread writes what it does."""

    def __init__(self, model_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        """A download that begins now."""
        self._condition = threading.Condition()
        self._clock = clock
        self._id = model_id
        self._started = clock()
        self._ended: float | None = None
        self._phase = "resolving"
        self._files: list[FileProgress] = []
        self._error: str | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def enter(self, phase: str) -> None:
        """Another phase begins."""
        with self._condition:
            if phase != self._phase:
                self._phase = phase
                self._samples.clear()
                self._condition.notify_all()

    def plan(self, files: Sequence[FileProgress]) -> None:
        """These files are to be fetched."""
        with self._condition:
            self._files = list(files)
            self._condition.notify_all()

    def advance(self, index: int, done_bytes: int, total_bytes: int | None) -> None:
        """File `index` has so many bytes now, and is to have so many."""
        with self._condition:
            old = self._files[index]
            self._files[index] = FileProgress(old.filename, old.url, total_bytes, done_bytes)
            now = self._clock()
            if not self._samples or now - self._samples[-1][0] >= _SAMPLE_EVERY_S:
                self._samples.append((now, sum(file.done_bytes for file in self._files)))
                while now - self._samples[0][0] > SPEED_WINDOW_S:
                    self._samples.popleft()

    def end(self, phase: str, error: str | None = None) -> None:
        """It is over; `phase` says how."""
        with self._condition:
            self._phase, self._error, self._ended = phase, error, self._clock()
            self._condition.notify_all()

    def snapshot(self) -> PullProgress:
        """What is so now."""
        with self._condition:
            return self._snapshot()

    def wait_end(self, timeout_s: float | None) -> bool:
        """Wait until `end` was called; False: the time is over."""
        with self._condition:
            return self._condition.wait_for(lambda: self._phase in ENDS, timeout_s)

    def wait_change(self, seen: PullProgress | None, timeout_s: float) -> PullProgress:
        """Wait until something differs from `seen`, or the time is over.

        Phases are told at once, bytes are looked at ten times a second: telling of each block would cost the download more
        than the disk does.
        """
        deadline = self._clock() + timeout_s
        with self._condition:
            while seen is not None and not _differs(seen, self._snapshot()):
                left_s = deadline - self._clock()
                if left_s <= 0:
                    break
                self._condition.wait(min(left_s, _LOOK_EVERY_S))
            return self._snapshot()

    def _snapshot(self) -> PullProgress:
        totals = [file.total_bytes for file in self._files]
        known = [total for total in totals if total is not None]
        lifecycle = Lifecycle.DOWNLOADING
        if self._phase in ENDS:
            lifecycle = Lifecycle.DOWNLOADED if self._phase == "done" else Lifecycle.NOT_DOWNLOADED
        return PullProgress(
            id=self._id,
            lifecycle=lifecycle,
            files=tuple(self._files),
            total_bytes=sum(known) if totals and len(known) == len(totals) else None,
            done_bytes=sum(file.done_bytes for file in self._files),
            speed=self._speed(),
            elapsed_s=(self._ended if self._ended is not None else self._clock()) - self._started,
            error=self._error,
            phase=self._phase,
        )

    def _speed(self) -> float:
        if self._phase != "downloading" or len(self._samples) < 2:
            return 0.0
        first_at, first_bytes = self._samples[0]
        last_bytes = sum(file.done_bytes for file in self._files)
        seconds = self._clock() - first_at
        return max(0.0, (last_bytes - first_bytes) / seconds) if seconds > 0 else 0.0


def _differs(one: PullProgress, other: PullProgress) -> bool:
    return (one.phase, one.done_bytes, one.files) != (other.phase, other.done_bytes, other.files)
