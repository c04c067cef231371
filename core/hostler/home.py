"""Who owns a home folder: the lock that only one process holds, and the address under which its server answers.

Floor 0; used by `hostler serve` and by every CLI command, from the main thread. It knows files, not HTTP.

    HOME/server.lock   locked by the owner as long as it lives; the system releases it on kill -9, too. Its text says
                       who the last owner was: for messages only, never for decisions.
    HOME/server.json   where the server answers; written whole (temp file + rename) once it does, removed on exit. One
                       that a kill -9 left behind is told by the lock being free.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from hostler.errors import HomeInUse, StorageUnavailable
from hostler.filelock import try_lock, unlock

_T = TypeVar("_T")

LOCK_FILE = "server.lock"
ADDRESS_FILE = "server.json"

LOCK_PATIENCE_S = 1.0
"""`find_server` takes the lock for an instant to see if it is free; an owner-to-be that meets it tries for so long."""


class ServerAddress(msgspec.Struct, frozen=True):
    """What server.json holds."""

    pid: int
    url: str
    """Without a path: `http://127.0.0.1:1337`."""
    port: int
    started: int
    """Unix seconds."""
    token: str
    """Made anew by each server; whoever can read this file is the user, and may what the CLI may."""
    version: str = ""


class Owner(msgspec.Struct, frozen=True):
    """What server.lock says of its last owner."""

    pid: int
    purpose: str
    """The command: `serve`, `pull`, ..."""


class HomeLock:
    """The lock of one home folder; a context manager, or `acquire` and `release`."""

    def __init__(self, home: Path, purpose: str) -> None:
        self.home = home
        self.purpose = purpose
        self._descriptor: int | None = None

    def acquire(self, patience_s: float = LOCK_PATIENCE_S) -> None:
        """Take the lock; makes the folder if it is missing.

        Raises:
            HomeInUse: Another process has it; the text names the process and, if it serves, its URL.
            StorageUnavailable: The folder cannot be made or written.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.home / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageUnavailable(
                f"{self.home} cannot be used as hostler's home: {error.strerror}; choose another with --home or HOSTLER_HOME"
            ) from error
        try:
            self._wait_for(descriptor, patience_s)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, msgspec.json.encode(Owner(os.getpid(), self.purpose)))
        except OSError as error:
            os.close(descriptor)
            raise StorageUnavailable(f"{self.home / LOCK_FILE} cannot be locked: {error.strerror}") from error
        except HomeInUse:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _wait_for(self, descriptor: int, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise HomeInUse(self._explain())
            time.sleep(0.02)  # a poll with a deadline: flock has no timeout of its own

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            unlock(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _explain(self) -> str:
        owner = _read(self.home / LOCK_FILE, Owner)
        address = _read(self.home / ADDRESS_FILE, ServerAddress)
        if owner is None:
            return f"another hostler process uses {self.home}; wait for it, or choose another home with --home"
        if owner.purpose != "serve":
            return (
                f"`hostler {owner.purpose}` (pid {owner.pid}) works on {self.home}; wait until it is done, or choose "
                f"another home with --home"
            )
        where = f"serves {self.home} at {address.url}" if address and address.pid == owner.pid else f"starts on {self.home}"
        return f"a hostler server (pid {owner.pid}) already {where}; stop it first, or choose another home with --home"

    def __enter__(self) -> HomeLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def write_address(home: Path, address: ServerAddress) -> None:
    """Publish where the server answers, readable by this user only; the file appears whole.

    Raises:
        StorageUnavailable: It cannot be written: the disk is full.
    """
    target = home / ADDRESS_FILE
    part = home / f"{ADDRESS_FILE}.{address.pid}.part"
    try:
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, msgspec.json.encode(address) + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(part, target)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageUnavailable(
            f"{target} cannot be written: {error.strerror}; free some room, give this user the right to write there, or "
            f"choose another home with --home"
        ) from error


def remove_address(home: Path) -> None:
    """Take the address back; called by the owner of the lock only."""
    (home / ADDRESS_FILE).unlink(missing_ok=True)


def find_server(home: Path) -> ServerAddress | None:
    """The address of the server that owns this home, or None: there is none, or it is still starting."""
    address = _read(home / ADDRESS_FILE, ServerAddress)
    if address is None:
        return None
    try:
        descriptor = os.open(home / LOCK_FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        if try_lock(descriptor):
            unlock(descriptor)
            return None  # left behind by a server that was killed
        return address
    finally:
        os.close(descriptor)


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None
