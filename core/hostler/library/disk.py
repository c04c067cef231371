"""Writing to disk so that a crash at any moment leaves the old thing or the new one, never half of it.

Floor 1; any thread. Durable order: data is on the disk before the name points to it, the name before we say "done".
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from hostler.errors import HostlerError, InsufficientStorage, StorageUnavailable

FreeBytes = Callable[[Path], int]
"""Takes a folder, gives the bytes that may still be written there; an argument, so that tests can fill a disk."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG}) if hasattr(errno, "EDQUOT") else frozenset({errno.ENOSPC})


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written below a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def is_disk_full(error: OSError) -> bool:
    """Whether the system refused because there is no room: disk, quota or file size limit."""
    return error.errno in _FULL


def storage_error(error: OSError, path: Path, needed_bytes: int, available_bytes: int) -> HostlerError:
    """The error of ours that tells what the system's means."""
    if is_disk_full(error):
        return InsufficientStorage(
            f"No room left while writing {path}: {needed_bytes} bytes more are needed, {available_bytes} are free "
            f"({error.strerror}); free some and pull again, what arrived is kept",
            needed_bytes=needed_bytes,
            available_bytes=available_bytes,
        )
    return StorageUnavailable(f"{path} cannot be written: {error.strerror or error}")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a small file: temporary neighbour, fsync, rename, fsync of the folder.

    Raises:
        OSError: Nothing has changed then.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; Windows does so itself and cannot open folders."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Take a folder away as one step for everybody who looks, then free its bytes."""
    doomed = folder.with_name(f".deleted-{secrets.token_hex(6)}")
    os.replace(folder, doomed)
    sync_folder(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Move a folder as one step for everybody who looks at the target, from another disk, too.

    Raises:
        OSError: The target is not there then, and the source is whole.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".deleted-{secrets.token_hex(6)}")  # swept away if this process dies here
        try:
            shutil.copytree(source, copy)
            for path in copy.rglob("*"):
                if path.is_file():
                    sync_file(path)
            os.replace(copy, target)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        sync_folder(target.parent)
        shutil.rmtree(source, ignore_errors=True)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Make what was written into a file durable."""
    with open(path, "r+b") as stream:  # Windows flushes only what is open for writing
        os.fsync(stream.fileno())


def sweep_deleted(parent: Path) -> None:
    """Finish removals that a crash cut short."""
    for doomed in parent.glob(".deleted-*"):
        shutil.rmtree(doomed, ignore_errors=True)
