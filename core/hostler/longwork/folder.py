"""The folder in which one long work is done: what is finished, kept over kill -9, and who works on it.

Floor 2; process of the command, one at a time by a lock that the system releases. What it holds:

    lock            locked while a command works here
    state.json      the request, and the finished steps with their results; written whole
    NAME/, NAME     folders and files of finished steps; each is made as a .part, which gets its name when it is whole
    NAME.log        what the steps' processes said
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import msgspec

from hostler.errors import HostlerError
from hostler.filelock import try_lock

VERSION = 1
KEPT = frozenset({"lock", "state.json"})


class WorkRuns(HostlerError):
    """Another command does the same work."""

    code = "work_runs"


class WorkState(msgspec.Struct):
    """What state.json holds."""

    version: int
    request: dict[str, Any]
    """What was asked for, and of which files, with which tools: another request begins anew."""
    done: dict[str, dict[str, Any]] = {}
    """Step -> its result; `"folder": true` in it says that the step counts as long as its folder is there."""


class WorkFolder:
    """One work's folder; a context manager that holds its lock."""

    def __init__(self, works: Path, name: str, *, doing: str = "worked on", runs: type[WorkRuns] = WorkRuns) -> None:
        """Nothing is made yet.

        Args:
            works: The folder of all works of this kind, in the home.
            name: What tells this work from others.
            doing: What another command does with it, for the error: "tuned".
            runs: The error when one does.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        self.folder = works / f"{quote(name, safe='')[:80].strip('.')}-{digest}"
        self.name = name
        self.state = WorkState(VERSION, {})
        self._doing = doing
        self._runs = runs
        self._lock: int | None = None
        self._part: Path | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise self._runs(f"{self.name} is being {self._doing} by another command; wait for it, or end that one")
        self._lock = descriptor
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)  # which gives the lock back
            self._lock = None

    # -- what is done -------------------------------------------------------------------------------------------------

    def resume(self, request: dict[str, Any], *, is_again: bool = False) -> list[str]:
        """Read what an earlier command finished of the same request; what belongs to another, or is half done, is removed.

        Args:
            request: JSON; what the results depend on.
            is_again: Nothing counts as finished; files stay.

        Returns:
            The steps that are finished.
        """
        request = msgspec.json.decode(msgspec.json.encode(request))
        state = self.read()
        if state is None or state.request != request:
            self.clear()
            state = WorkState(VERSION, request)
        # A step counts when its folder is there, too: each has its name before it stands in the state.
        state.done = {
            step: result
            for step, result in state.done.items()
            if not is_again and (result.get("folder") is not True or self.path(step).is_dir())
        }
        for path in self.folder.iterdir():
            if path.suffix == ".part" or (path.is_dir() and path.name not in state.done):
                _remove(path)
        self.state = state
        self._save()
        return list(state.done)

    def read(self) -> WorkState | None:
        """What an earlier command has left; None: nothing that can be read."""
        try:
            state = msgspec.json.decode((self.folder / "state.json").read_bytes(), type=WorkState)
        except (OSError, msgspec.MsgspecError):
            return None
        return state if state.version == VERSION else None

    def once(self, step: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A step's result, made unless it is known."""
        if step not in self.state.done:
            self.note(step, make())
        return self.state.done[step]

    def note(self, step: str, result: dict[str, Any]) -> None:
        """Keep a step's result."""
        self.state.done[step] = msgspec.json.decode(msgspec.json.encode(result))
        self._save()

    # -- files and folders --------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """A file of this folder, or a finished step's folder."""
        return self.folder / name

    def log(self, step: str) -> Path:
        """Where a step's process writes what it has to say."""
        return self.folder / f"{step}.log"

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

    def part(self, step: str) -> Path:
        """An empty folder for a step to work in; of a name that no process of an earlier command knows."""
        self._part = self.folder / f"{step}.{secrets.token_hex(4)}.part"
        self._part.mkdir()
        return self._part

    def finish(self, step: str, result: dict[str, Any]) -> None:
        """Keep a step's result; the folder it worked in, if it had one, gets its name first."""
        has_folder = self._part is not None
        if self._part is not None:
            os.replace(self._part, self.path(step))
            self._part = None
        self.note(step, {**result, "folder": has_folder})

    def drop(self) -> None:
        """Remove what a step that failed has left."""
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            self._part = None

    def used_bytes(self) -> int:
        """What lies here in finished steps' folders."""
        files = [path for step in self.state.done for path in self.path(step).rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)

    def clear(self) -> None:
        """Take away all but the results and the logs."""
        for path in self.folder.iterdir():
            if path.name not in KEPT and path.suffix != ".log":
                _remove(path)

    def remove(self) -> None:
        """Take the folder away; the work is over, and the lock given back."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self) -> None:
        part = self.folder / "state.part"
        with part.open("wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(self.state), indent=2))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, self.folder / "state.json")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
