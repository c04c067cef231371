"""The folder in which one model's prefixes lie: whose it is, what is whole in it, what lies there beside.

Floor 2, in the worker. One worker has the folder at a time:

    FOLDER/lock                     locked while a worker uses the folder
    FOLDER/<hash>/identity          what the files beside it belong to, in clear; its age is how long ago it was opened last
    FOLDER/<hash>/<id>.prefix       one prefix; layout and checksums in prefixlayout.py

Used by one thread at a time: the engine's until it is open, then prefixfiles.py's.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from hostler import prefixlayout
from hostler.filelock import try_lock
from hostler.library.disk import is_disk_full, write_atomically
from hostler.prefixlayout import DamagedFile, StoredPrefix

LOCK_FILE = "lock"
IDENTITY_FILE = "identity"
STALE_S = 30 * 24 * 3600.0
"""Files of an identity that nobody opened for so long are removed; until then, and while there is room, going back to an
earlier setting finds its prefixes again."""
_HASH = re.compile(r"[0-9a-f]{32}")


class FolderRefused(Exception):
    """The folder cannot be used: what is wrong with it, and what to do."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice


class PrefixFolder:
    """One model's folder."""

    def __init__(self, path: Path, identity: str) -> None:
        """Nothing is made or read yet."""
        self.path = path
        self.hash = prefixlayout.identity_hash(identity)
        self._identity = identity
        self._own = path / self.hash.hex()[:32]
        self._lock: int | None = None
        self._others: list[tuple[float, Path, int]] = []
        """Folders of other identities: when they were opened last, and their bytes; the oldest last."""

    def take(self) -> None:
        """Make the folder if need be, and lock it.

        Raises:
            FolderRefused: It is another user's, or another worker has it.
            OSError: It cannot be made, written or locked.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.path.stat()
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise FolderRefused(
                f"belongs to another user (uid {status.st_uid})",
                "who can write there could change what models say: remove it, or choose another with cache_folder",
            )
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not try_lock(descriptor):
                raise FolderRefused("is in use by another worker", "only one at a time can keep prefixes there")
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def let_go(self) -> None:
        """Unlock it. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, now: float) -> list[StoredPrefix]:
        """What is whole and has its parents, parents first. All else of this identity is removed, and what other identities
        left too long ago.

        Raises:
            OSError: The folder cannot be read or written.
        """
        self._own.mkdir(mode=0o700, exist_ok=True)
        name = self._own / IDENTITY_FILE
        text = self._identity.encode()
        if not name.is_file() or name.read_bytes() != text:
            write_atomically(name, text)
        os.utime(name, (now, now))
        for other in self.path.iterdir():
            if other != self._own and _HASH.fullmatch(other.name) and other.is_dir() and not other.is_symlink():
                opened = _modified(other / IDENTITY_FILE)
                if now - opened > STALE_S:
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    self._others.append((opened, other, _bytes_in(other)))
        self._others.sort(reverse=True)
        return list(self._whole())

    @property
    def others_bytes(self) -> int:
        """What the files of other identities take."""
        return sum(size for _, _, size in self._others)

    def remove_other(self) -> int:
        """Remove the files of the identity that was opened longest ago; gives their bytes, 0: there is none."""
        if not self._others:
            return 0
        _, folder, size = self._others.pop()
        shutil.rmtree(folder, ignore_errors=True)
        return size

    def file(self, id: str) -> Path:
        """Where a prefix lies."""
        return self._own / f"{id}{prefixlayout.SUFFIX}"

    def _whole(self) -> Iterator[StoredPrefix]:
        waiting: dict[str, list[StoredPrefix]] = {}
        for path in self._own.iterdir():
            if path.suffix == prefixlayout.TEMPORARY_SUFFIX:
                prefixlayout.remove(path)
            elif path.suffix == prefixlayout.SUFFIX:
                try:
                    prefix = prefixlayout.read_prefix(path, self.hash)
                except (DamagedFile, OSError):
                    prefixlayout.remove(path)
                else:
                    waiting.setdefault(prefix.parent, []).append(prefix)
        ready = [(prefix, 0) for prefix in waiting.pop("", [])]
        lost: list[StoredPrefix] = []
        while ready:
            prefix, n_expected = ready.pop()
            if prefix.n_before == n_expected:
                yield prefix
                ready += [(child, prefix.n_after) for child in waiting.pop(prefix.id, [])]
            else:
                lost.append(prefix)
        for prefix in (*lost, *(orphan for orphans in waiting.values() for orphan in orphans)):
            prefixlayout.remove(self.file(prefix.id))


def explained(error: OSError) -> FolderRefused:
    """What an error of the system means for the folder."""
    if is_disk_full(error):
        return FolderRefused(
            "is on a full disk, or over a quota", "free some room, or lower cache_disk_mib, then start the model again"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return FolderRefused("may not be written by this user", "give the right, or choose another with cache_folder")
    if error.errno == errno.EROFS:
        return FolderRefused("is on a disk that is mounted read-only", "choose another with cache_folder")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return FolderRefused("is no folder", "move away the file that stands there")
    return FolderRefused(f"cannot be used: {error.strerror or error}", "mend that, or choose another with cache_folder")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
