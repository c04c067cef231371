"""The folder in which one conversion is done: what is finished, kept over kill -9, and who works on it.

Process of the command, one at a time by a lock that the system releases. What it holds:

    lock            locked while a command works here
    state.json      the request, and the finished steps with their results; written whole
    load/, build/   finished steps' folders; a step works in a .part, which gets its name when the step is done
    *.log           what the steps' processes said
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import msgspec

from hostler import HostlerError

VERSION = 1


class ConversionRuns(HostlerError):
    """Another command works on the same conversion."""

    code = "conversion_runs"


class State(msgspec.Struct):
    """What state.json holds."""

    version: int
    request: dict[str, Any]
    """What was asked for, and of which files, with which tools: another request begins anew."""
    done: dict[str, dict[str, Any]] = {}
    """Step -> its result."""


class Work:
    """One conversion's folder; a context manager that holds its lock."""

    def __init__(self, home: Path, name: str) -> None:
        """Nothing is made yet.

        Args:
            name: What tells this conversion from others: source, device and precision.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        self.folder = home / "conversions" / f"{quote(name, safe='')[:80].strip('.')}-{digest}"
        self.name = name
        self.state = State(VERSION, {})
        self._lock: int | None = None
        self._part: Path | None = None

    def __enter__(self) -> Work:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise ConversionRuns(f"{self.name} is being converted by another command; wait for it, or end that one")
        self._lock = descriptor
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)  # which gives the lock back
            self._lock = None

    def resume(self, request: dict[str, Any]) -> list[str]:
        """Read what an earlier command finished of the same request; what belongs to another one is removed.

        Returns:
            The steps that are finished.
        """
        request = msgspec.json.decode(msgspec.json.encode(request))
        state = self.read()
        if state is None or state.request != request:
            state = State(VERSION, request)
        # A step counts when its folder is there, too: each has its name before it stands in the state.
        state.done = {
            step: result for step, result in state.done.items() if not result.get("folder") or self.path(step).is_dir()
        }
        kept = {"lock", "state.json", *(step for step in state.done)}
        for path in self.folder.iterdir():
            if path.name not in kept and path.suffix != ".log":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.state = state
        self._save()
        return list(state.done)

    def read(self) -> State | None:
        """What an earlier command has left; None: nothing that can be read."""
        try:
            state = msgspec.json.decode((self.folder / "state.json").read_bytes(), type=State)
        except (OSError, msgspec.MsgspecError):
            return None
        return state if state.version == VERSION else None

    def path(self, step: str) -> Path:
        """A finished step's folder."""
        return self.folder / step

    def part(self, step: str) -> Path:
        """An empty folder for a step to work in; of a name that no process of an earlier command knows."""
        self._part = self.folder / f"{step}.{secrets.token_hex(4)}.part"
        self._part.mkdir()
        return self._part

    def log(self, step: str) -> Path:
        """Where a step's process writes what it has to say."""
        return self.folder / f"{step}.log"

    def finish(self, step: str, result: dict[str, Any]) -> None:
        """Note a finished step; the folder it worked in, if it had one, gets its name first."""
        has_folder = self._part is not None
        if self._part is not None:
            os.replace(self._part, self.path(step))
            self._part = None
        self.state.done[step] = {**result, "folder": has_folder}
        self._save()

    def drop(self) -> None:
        """Remove what a step that failed has left."""
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            self._part = None

    def used_bytes(self) -> int:
        """What lies here of finished steps."""
        files = [path for step in self.state.done for path in self.path(step).rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def remove(self) -> None:
        """Take the folder away; the conversion is over, and the lock given back."""
        shutil.rmtree(self.folder, ignore_errors=True)

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
