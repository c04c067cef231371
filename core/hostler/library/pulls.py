"""Downloads as jobs: one thread each, joined by everyone who wants the same model.

Floor 2; a job's thread belongs to this process and ends with it (it is a daemon: killing it loses nothing, see transfer.py).
Three ways to end early: `cancel` removes what arrived, `interrupt` keeps it, and so does every failure.
"""

from __future__ import annotations

import logging
import threading

import msgspec

from hostler.domain import Lifecycle
from hostler.errors import HostlerError, InternalError, RequestCancelled
from hostler.library import names
from hostler.library.changes import Change, Tell, tell_nobody
from hostler.library.disk import free_bytes, storage_error
from hostler.library.fetch import Stopped, StopSignal
from hostler.library.manifest import Manifest
from hostler.library.progress import FileProgress, ProgressBoard, PullProgress
from hostler.library.shelf import Shelf
from hostler.library.transfer import Resolve, Transfer, TransferLimits
from hostler.sources.contract import ResolvedSource, SourceContext

__all__ = ["FileProgress", "PullJob", "PullPlan", "PullProgress"]

_log = logging.getLogger("hostler.library")


class PullPlan(msgspec.Struct, frozen=True):
    """What a job is to do."""

    draft: Manifest
    reference: str
    """What the source is asked for."""
    resolve: Resolve
    resolved: ResolvedSource | None = None
    """The answer, where it was needed to know the id."""
    was_registered: bool = False
    """The model has a folder from before; it stays when the download fails without a byte."""
    is_catalogue: bool = False
    formats: frozenset[str] = frozenset()
    """What the installed engines take; a file: source may name a file of them."""


class PullJob:
    """One download. Any thread may ask; one thread works.

    `_lock` guards `_error`, `_manifest` and `_is_cancelled`.
    """

    def __init__(
        self,
        plan: PullPlan,
        shelf: Shelf,
        context: SourceContext,
        limits: TransferLimits,
        tell: Tell = tell_nobody,
    ) -> None:
        """Made by the library; `start` begins.

        Args:
            plan: What to do.
            shelf: Where it goes.
            context: What the source and the fetch may use.
            limits: Retries and disk.
            tell: Hears of the beginning and of the end, each once.
        """
        self.id = plan.draft.id
        """The model's id."""
        self.plan = plan
        self._shelf = shelf
        self._context = context
        self._limits = limits
        self._tell = tell
        self._board = ProgressBoard(self.id)
        self._stop = StopSignal()
        self._lock = threading.Lock()
        self._error: HostlerError | None = None
        self._manifest: Manifest | None = None
        self._is_cancelled = False
        self._thread = threading.Thread(target=self._run, name=f"pull {self.id}", daemon=True)

    @classmethod
    def finished(cls, manifest: Manifest, shelf: Shelf) -> PullJob:
        """A job with nothing to do: the model is here."""

        def no_source(reference: str, context: SourceContext) -> ResolvedSource:
            raise InternalError(f"{reference} was asked for with {context}, though nothing was to do")

        plan = PullPlan(manifest, manifest.source_url, no_source, was_registered=True)
        job = cls(plan, shelf, SourceContext(), TransferLimits())
        job._manifest = manifest
        job._board.plan(
            [
                FileProgress(file.path, names.shown_url(manifest.source_url), file.size_bytes, file.size_bytes)
                for file in manifest.files
            ]
        )
        job._board.end("done")
        return job

    def start(self) -> None:
        """Begin; called once."""
        self._tell(Change("downloading", self.plan.draft, Lifecycle.NOT_DOWNLOADED, Lifecycle.DOWNLOADING))
        self._thread.start()

    def progress(self) -> PullProgress:
        """What it is doing now."""
        return self._board.snapshot()

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self._board.wait_end(0)

    @property
    def error(self) -> HostlerError | None:
        """Why it ended without the model; None while it runs and when it went well."""
        with self._lock:
            return self._error

    @property
    def manifest(self) -> Manifest:
        """What it registers; complete once it went well, until then with the reference that was asked for."""
        with self._lock:
            if self._manifest is not None:
                return self._manifest
        draft, asked = self.plan.draft, names.normalised_source(self.plan.reference)
        return msgspec.structs.replace(draft, references=tuple(dict.fromkeys((*draft.references, asked))))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False: the time is over and it still runs."""
        return self._board.wait_end(timeout_s)

    def wait_change(self, seen: PullProgress | None, timeout_s: float) -> PullProgress:
        """Wait until there is something newer than `seen`, or the time is over; for progress bars and event streams."""
        return self._board.wait_change(seen, timeout_s)

    def result(self) -> Manifest:
        """Wait for the end and raise what went wrong, if something did.

        Raises:
            DownloadFailed, InsufficientStorage, InvalidModelFile, ModelExists, RequestCancelled
        """
        self.wait()
        error = self.error
        if error is not None:
            raise error
        return self.manifest

    def cancel(self) -> None:
        """Ask it to stop and to remove what arrived; returns at once. Once it has ended this does nothing."""
        with self._lock:
            self._is_cancelled = True
        self._stop.set()

    def interrupt(self) -> None:
        """Ask it to stop and to keep what arrived for the next pull; returns at once."""
        self._stop.set()

    def _run(self) -> None:
        phase, error, manifest = "failed", None, None
        try:
            transfer = Transfer(
                draft=self.plan.draft,
                reference=self.plan.reference,
                resolve=self.plan.resolve,
                resolved=self.plan.resolved,
                shelf=self._shelf,
                context=self._context,
                stop=self._stop,
                board=self._board,
                limits=self._limits,
                formats=self.plan.formats,
            )
            manifest = transfer.run()
            phase = "done"
        except Stopped:
            phase, error = self._stopped()
        except HostlerError as raised:
            # A stop makes sources and connections fail in their own words; what was asked for counts.
            phase, error = self._stopped() if self._stop.is_set else ("failed", raised)
        except OSError as raised:
            folder = self._shelf.models
            if self._stop.is_set:
                phase, error = self._stopped()
            else:
                error = storage_error(raised, folder, 0, free_bytes(folder))
        except Exception as raised:  # noqa: BLE001 - whoever waits for this thread must hear of it
            _log.exception("the download of %s ended in a bug", self.id)
            error = InternalError(f"The download of {self.id} ended in a bug: {type(raised).__name__}: {raised}")
        self._clean_up(phase)
        with self._lock:
            self._error, self._manifest = error, manifest
        # Before whoever waits is woken: what they do next must be told after this.
        self._tell_end(error, manifest)
        self._board.end(phase, error.message if error is not None else None)

    def _tell_end(self, error: HostlerError | None, manifest: Manifest | None) -> None:
        before = Lifecycle.DOWNLOADING
        if manifest is None or error is not None:
            reason = error.message if error is not None else None
            self._tell(Change("download_failed", self.plan.draft, before, Lifecycle.NOT_DOWNLOADED, reason))
            return
        self._tell(Change("registered", manifest, before, Lifecycle.DOWNLOADED))
        self._tell(Change("downloaded", manifest, before, Lifecycle.DOWNLOADED))

    def _stopped(self) -> tuple[str, HostlerError]:
        with self._lock:
            is_cancelled = self._is_cancelled
        if is_cancelled:
            return "cancelled", RequestCancelled(f"The download of {self.id} was cancelled; what had arrived was removed")
        return "interrupted", RequestCancelled(
            f"The download of {self.id} was interrupted; what has arrived is kept, pull again to go on"
        )

    def _clean_up(self, phase: str) -> None:
        """Leave nothing behind that nobody asked for: all of it after a cancel, an empty folder after a failure."""
        try:
            if phase == "cancelled":
                self._shelf.remove(self.id)
                if self.plan.was_registered and not self.plan.is_catalogue:
                    self._shelf.save(msgspec.structs.replace(self.plan.draft, files=(), is_complete=False))
            elif phase in {"failed", "interrupted"} and not self.plan.was_registered and not self._has_bytes():
                self._shelf.remove(self.id)
        except OSError as error:
            _log.warning("the folder of %s could not be tidied: %s", self.id, error)

    def _has_bytes(self) -> bool:
        folder = self._shelf.folder(self.id)
        try:
            found = [path for path in folder.iterdir() if path.name != "model.json" and not path.name.endswith(".log")]
            return any(path.stat().st_size > 0 for path in found)
        except OSError:
            return False
