"""What workers have kept on disk of their models' prompts, seen from outside: how much, of which model, and away with it.

Floor 2; in the host and in commands, any thread. `_lock` protects the grants. A worker alone knows what a file in its folder
is worth (prefixfiles.py) and is told how many bytes it may take; here is what holds over all models. A file may be taken from
under a worker that runs: it finds that out, and goes on without.

INVARIANT: what was granted to running models and what the others left lie within the total, so that all may take what they
were granted.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import msgspec

from hostler import prefixlayout
from hostler.config import Settings
from hostler.filelock import try_lock
from hostler.library.names import folder_name
from hostler.prefixfolder import LOCK_FILE

FOLDER = Path("cache") / "prefixes"
"""Below the home, unless the setting cache_folder says otherwise."""
MODEL_FILE = "model"
"""Holds the id of the model that the folder belongs to."""


class KeptModel(msgspec.Struct, frozen=True):
    """What is kept of one model."""

    model: str
    n_prefixes: int
    n_bytes: int
    last_used: float
    """When a worker wrote there last, Unix seconds."""
    is_in_use: bool
    """A worker has the folder."""


class KeptPrefixes:
    """The folders of all models."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        """Nothing is read or made yet.

        Args:
            folder: One folder a model lies in it.
            total_bytes: What all of them may take; 0: nothing is kept.
        """
        self.folder = folder
        self._total_bytes = total_bytes
        self._lock = threading.Lock()
        self._granted: dict[str, int] = {}

    def folder_of(self, model_id: str) -> Path:
        """Where a model's worker keeps them."""
        return self.folder / folder_name(model_id)

    def grant(self, model_id: str, wanted_bytes: int) -> int:
        """Let a model's worker keep so many bytes, or as many as the others leave. What models left that do not run makes
        room, the longest unused first. A second grant to a model replaces the first."""
        with self._lock:
            self._granted.pop(model_id, None)
            free = self._total_bytes - sum(self._granted.values())
            granted = max(0, min(wanted_bytes, free))
            if granted:
                self._granted[model_id] = granted
                self._trim(free - granted)
            return granted

    def release(self, model_id: str) -> None:
        """Its worker is gone. Idempotent."""
        with self._lock:
            self._granted.pop(model_id, None)

    def models(self) -> list[KeptModel]:
        """What is kept, the largest first."""
        found = []
        for folder in self._folders():
            files = list(_files(folder))
            if files:
                last_used = max(status.st_mtime for _, status in files)
                with _held(folder) as is_held:
                    n_bytes = sum(status.st_size for _, status in files)
                    found.append(KeptModel(_model_of(folder), len(files), n_bytes, last_used, not is_held))
        return sorted(found, key=lambda kept: (-kept.n_bytes, kept.model))

    def clear(self, model_id: str) -> int:
        """Remove what is kept of a model; gives the bytes."""
        return _clear(self.folder_of(model_id))

    def clear_all(self) -> int:
        """Remove what is kept of all models; gives the bytes."""
        return sum(_clear(folder) for folder in self._folders())

    def _trim(self, limit_bytes: int) -> None:
        running = {folder_name(id) for id in self._granted}
        idle = [(folder, list(_files(folder))) for folder in self._folders() if folder.name not in running]
        used = {folder: max((status.st_mtime for _, status in files), default=0.0) for folder, files in idle}
        sizes = {folder: sum(status.st_size for _, status in files) for folder, files in idle}
        taken = sum(sizes.values())
        for folder in sorted(used, key=used.__getitem__):
            if taken <= limit_bytes:
                break
            taken -= _clear(folder)

    def _folders(self) -> list[Path]:
        try:
            return sorted(folder for folder in self.folder.iterdir() if folder.is_dir())
        except OSError:
            return []  # nothing was kept yet, or it cannot be read: then nothing is there for us


def kept_prefixes(settings: Settings) -> KeptPrefixes:
    """Those of a home, where its settings say."""
    folder = Path(settings.cache_folder).expanduser() if settings.cache_folder else settings.home / FOLDER
    return KeptPrefixes(folder, settings.cache_disk_bytes)


def write_model_id(folder: Path, model_id: str) -> None:
    """Note whose folder it is, for who looks at it from outside. Never fails: then the folder's name must do."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_text(model_id, encoding="utf-8")
    except OSError:
        pass


def _model_of(folder: Path) -> str:
    try:
        return (folder / MODEL_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return unquote(folder.name)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(f"*/*{prefixlayout.SUFFIX}"):
        try:
            yield path, path.stat()
        except OSError:
            continue  # its worker has just removed it


def _clear(folder: Path) -> int:
    """Remove what a model's folder holds; gives the bytes. A worker that has it keeps its lock and what names it."""
    n_bytes = 0
    with _held(folder) as is_held:
        for path, status in list(_files(folder)):
            if prefixlayout.remove(path):
                n_bytes += status.st_size
        if is_held:
            shutil.rmtree(folder, ignore_errors=True)
    return n_bytes


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, so that no worker takes it meanwhile; False: one has it, or it cannot be locked."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        yield folder.is_dir()
        return
    except OSError:
        yield False
        return
    try:
        try:
            is_mine = try_lock(descriptor)
        except OSError:
            is_mine = False
        yield is_mine
    finally:
        os.close(descriptor)
