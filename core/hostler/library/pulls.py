"""Downloads as jobs: one thread each, joined by everyone who wants the same model. (Being written.)

Floor 2; a job's thread belongs to this process and ends with it; what arrived stays on disk as `<name>.part`.
"""

from __future__ import annotations

import msgspec

from hostler.domain import Lifecycle
from hostler.errors import HostlerError


class FileProgress(msgspec.Struct, frozen=True):
    """One file of a download."""

    filename: str
    url: str
    """As it may be shown: no credentials, no query."""
    total_bytes: int | None
    done_bytes: int


class PullProgress(msgspec.Struct, frozen=True):
    """A snapshot of a download; the fields of `runtime.PullView`."""

    id: str
    lifecycle: Lifecycle
    """downloading, downloaded or not_downloaded."""
    files: tuple[FileProgress, ...]
    total_bytes: int | None
    done_bytes: int
    speed: float
    """Bytes per second over the last seconds."""
    elapsed_s: float
    error: str | None = None
    phase: str = "resolving"
    """resolving, downloading, verifying, unpacking, done, cancelled, interrupted or failed."""


class PullJob:
    """One download. Any thread may ask; one thread works."""

    id: str
    """The model's id."""

    def progress(self) -> PullProgress:
        """What it is doing now."""
        raise NotImplementedError

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, well or not."""
        raise NotImplementedError

    @property
    def error(self) -> HostlerError | None:
        """Why it ended without the model; None while it runs and when it went well."""
        raise NotImplementedError

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False: the time is over and it still runs."""
        raise NotImplementedError

    def wait_change(self, seen: PullProgress | None, timeout_s: float) -> PullProgress:
        """Wait until there is something newer than `seen`, or the time is over; for progress bars and event streams."""
        raise NotImplementedError

    def result(self) -> None:
        """Wait for the end and raise what went wrong, if something did.

        Raises:
            DownloadFailed, InsufficientStorage, InvalidModelFile, RequestCancelled
        """
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask it to stop and to remove what arrived; returns at once."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Ask it to stop and to keep what arrived for the next pull; returns at once."""
        raise NotImplementedError
