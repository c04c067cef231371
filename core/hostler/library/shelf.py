"""The folders below HOME/models: one a model, each with its model.json, read once and again only when it has changed.

Floor 1; any thread. The disk is the truth: what another process writes is seen at the next question. `_lock` guards the
cache; files are written outside of it, one writer at a time per id being the caller's business.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import msgspec

from hostler.errors import HostlerError, StorageUnavailable
from hostler.library import names
from hostler.library.disk import move_folder, remove_folder, sweep_deleted, sync_folder
from hostler.library.manifest import FILE_NAME, Manifest, read_manifest, write_manifest

_Signature = tuple[int, int, int, int]
# Of model.json: time, size, inode; and the folder's time, as the files beside a manifest of Jan's are part of what it says.


class LibraryProblem(msgspec.Struct, frozen=True):
    """A folder below HOME/models that is no model; it is named by `hostler doctor` and otherwise left alone."""

    path: str
    message: str


class Contents(msgspec.Struct, frozen=True):
    """What stood there at one moment. The same object is given again while nothing has changed."""

    manifests: tuple[Manifest, ...]
    """By id."""
    folders: dict[str, Path]
    """Model id -> its folder."""
    problems: tuple[LibraryProblem, ...]


class Shelf:
    """Reads, writes and removes model folders."""

    def __init__(self, models: Path) -> None:
        """Nothing is read or made yet.

        Args:
            models: HOME/models.
        """
        self.models = models
        self._lock = threading.Lock()
        self._cache: dict[str, tuple[_Signature | None, Manifest | LibraryProblem]] = {}
        self._contents = Contents((), {}, ())
        self._seen: dict[str, _Signature | None] | None = None

    def contents(self) -> Contents:
        """All models there are, from the cache where model.json is unchanged.

        Raises:
            StorageUnavailable: The folder exists and cannot be read.
        """
        seen = self._look()
        with self._lock:
            if seen != self._seen:
                self._cache = {
                    name: self._cache[name]
                    if name in self._cache and self._cache[name][0] == signature
                    else (signature, self._read(name))
                    for name, signature in seen.items()
                }
                self._contents = self._sorted_out()
                self._seen = seen
            return self._contents

    def get(self, model_id: str) -> Manifest | None:
        """The model of exactly this id."""
        contents = self.contents()
        return next((manifest for manifest in contents.manifests if manifest.id == model_id), None)

    def folder(self, model_id: str) -> Path:
        """Where a model lies, or would."""
        known = self.contents().folders.get(model_id)
        if known is not None:
            return known
        folder = self.models / names.folder_name(model_id)
        try:
            is_taken = read_manifest(folder).id != model_id
        except (OSError, HostlerError):
            is_taken = False
        if is_taken:
            # Two ids that only differ in case, on a system that does not tell them apart.
            folder = folder.with_name(f"{folder.name[:160]}%~{hashlib.sha256(model_id.encode()).hexdigest()[:16]}")
        return folder

    def save(self, manifest: Manifest) -> Path:
        """Write a model's manifest, making its folder if need be.

        Returns:
            The folder.

        Raises:
            OSError: Nothing has changed then.
        """
        folder = self.folder(manifest.id)
        if not folder.is_dir():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
            sweep_deleted(self.models)
        write_manifest(folder, manifest)
        return folder

    def take(self, source: Path, manifest: Manifest) -> Path:
        """Make a folder that lies elsewhere the folder of a model; whoever looks sees all of it or nothing.

        Args:
            source: Gone afterwards. Its files are on the disk already.
            manifest: Written into it first.

        Returns:
            The folder.

        Raises:
            FileExistsError: Something lies where the model would.
            OSError: Nothing has changed then but for the manifest in `source`.
        """
        target = self.folder(manifest.id)
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(source, manifest)
        sync_folder(source)
        move_folder(source, target)
        return target

    def remove(self, model_id: str) -> None:
        """Take a model's folder away with everything that lies in it; links in it are removed, not what they lead to.

        Raises:
            OSError
        """
        folder = self.folder(model_id)
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            remove_folder(folder)

    def _look(self) -> dict[str, _Signature | None]:
        try:
            with os.scandir(self.models) as entries:
                found: dict[str, _Signature | None] = {}
                for entry in entries:
                    if entry.name.startswith(".") or not entry.is_dir():
                        continue
                    try:
                        state = os.stat(os.path.join(entry.path, FILE_NAME))
                        place = entry.stat().st_mtime_ns
                        found[entry.name] = (state.st_mtime_ns, state.st_size, state.st_ino, place)
                    except OSError:
                        found[entry.name] = None
                return found
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageUnavailable(f"{self.models} cannot be read: {error.strerror or error}") from error

    def _read(self, name: str) -> Manifest | LibraryProblem:
        folder = self.models / name
        try:
            return read_manifest(folder)
        except FileNotFoundError:
            return LibraryProblem(str(folder), f"{folder} has no {FILE_NAME}; import the model in it, or remove it")
        except HostlerError as error:
            return LibraryProblem(str(folder), error.message)
        except OSError as error:
            return LibraryProblem(str(folder), f"{folder / FILE_NAME} cannot be read: {error.strerror or error}")

    def _sorted_out(self) -> Contents:
        manifests: dict[str, Manifest] = {}
        folders: dict[str, Path] = {}
        problems = []
        # The folder that an id's name leads to goes first, so that a copy of it elsewhere cannot take its place.
        for name, (_, found) in sorted(self._cache.items(), key=lambda item: (not _is_home(*item), item[0])):
            if isinstance(found, LibraryProblem):
                problems.append(found)
            elif found.id in manifests:
                text = f"{self.models / name} holds a second model with the id {found.id!r}; give one of them another id"
                problems.append(LibraryProblem(str(self.models / name), text))
            else:
                manifests[found.id] = found
                folders[found.id] = self.models / name
        return Contents(tuple(manifests[key] for key in sorted(manifests)), folders, tuple(problems))


def _is_home(name: str, cached: tuple[_Signature | None, Manifest | LibraryProblem]) -> bool:
    return isinstance(cached[1], Manifest) and names.folder_name(cached[1].id) == name
