"""The folder in which one model is tuned: what was measured, kept over kill -9, and who works on it.

Process of the command, one at a time by a lock that the system releases. What it holds:

    lock            locked while a command works here
    state.json      what was asked about which files, and every finished measurement; written whole
    *.gguf, *.npz   files to measure; written under a .part name; taken away when the command is through
    *.log           what the steps' processes said
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import msgspec

from hostler import HostlerError

VERSION = 1
KEPT = frozenset({"lock", "state.json"})


class TuningRuns(HostlerError):
    """Another command works on the same model."""

    code = "tuning_runs"


class State(msgspec.Struct):
    """What state.json holds."""

    version: int
    request: dict[str, Any]
    """Which files, by which library, on which machine: other ones begin anew."""
    done: dict[str, dict[str, Any]] = {}
    """Measurement -> its result."""


class Work:
    """One model's folder; a context manager that holds its lock."""

    def __init__(self, home: Path, model_id: str) -> None:
        digest = hashlib.sha256(model_id.encode()).hexdigest()[:8]
        self.folder = home / "tunings" / f"{quote(model_id, safe='')[:80].strip('.')}-{digest}"
        self.state = State(VERSION, {})
        self._model_id = model_id
        self._lock: int | None = None

    def __enter__(self) -> Work:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise TuningRuns(f"{self._model_id} is being tuned by another command; wait for it, or end that one")
        self._lock = descriptor
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)  # which gives the lock back
            self._lock = None

    def resume(self, request: dict[str, Any], *, is_again: bool = False) -> int:
        """Read what earlier commands measured of the same; what belongs to another request, or is half written, is removed.

        Returns:
            How many measurements are known.
        """
        request = msgspec.json.decode(msgspec.json.encode(request))
        state = self._read()
        if state is None or state.request != request:
            self.clear()
            state = State(VERSION, request)
        if is_again:
            state.done = {}
        for path in self.folder.glob("*.part"):
            path.unlink()
        self.state = state
        self._save()
        return len(state.done)

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A measurement, made unless it is known."""
        if name not in self.state.done:
            self.note(name, make())
        return self.state.done[name]

    def note(self, name: str, result: dict[str, Any]) -> None:
        """Keep a measurement."""
        self.state.done[name] = msgspec.json.decode(msgspec.json.encode(result))
        self._save()

    def path(self, name: str) -> Path:
        """A file of this folder."""
        return self.folder / name

    def file(self, name: str, make: Callable[[Path], object]) -> Path:
        """A file, made unless it is there; it has its name when it is whole."""
        path = self.folder / name
        if not path.exists():
            part = self.folder / f"{name}.part"
            part.unlink(missing_ok=True)
            try:
                make(part)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        return path

    def clear(self) -> None:
        """Take away all but the measurements."""
        for path in self.folder.iterdir():
            if path.name not in KEPT and path.suffix != ".log":
                path.unlink()

    def _read(self) -> State | None:
        try:
            state = msgspec.json.decode((self.folder / "state.json").read_bytes(), type=State)
        except (OSError, msgspec.MsgspecError):
            return None
        return state if state.version == VERSION else None

    def _save(self) -> None:
        part = self.folder / "state.part"
        with part.open("wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(self.state), indent=2))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, self.folder / "state.json")


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
