"""What is installed: the entry points of the group `hostler` with the packages that bring them, and which of them this home
leaves out.

Floor 1; any thread. It finds plugins and knows where their modules are; it does not import them (plugins.py does) and knows
no hook. The choices of a home stand in HOME/plugins.json, a file of its own that only `hostler plugins disable` and `enable`
write: config.toml belongs to the user, comments and all.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import site
import sys
import time
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

from hostler.errors import ConfigError, StorageUnavailable

ENTRY_POINT_GROUP = "hostler"
CHOICES_FILE = "plugins.json"
_STARTED = time.time()
_CLOCK_LAG_S = 0.05
"""File systems stamp with a clock that may be a few milliseconds late."""
_DECLARATION = re.compile(r"^HOSTLER_API\s*(?::\s*\w+\s*)?=\s*(\d+)\s*(?:#.*)?$", re.MULTILINE)


class Stamp(NamedTuple):
    """How a plugin lay on the disk."""

    target: str
    distribution: str
    version: str
    record: str
    at: float
    """Unix seconds; what is newer has changed since."""


class InstalledPlugin:
    """One entry point. What stands in its package's metadata is read when somebody asks: most commands do not."""

    def __init__(self, entry: importlib.metadata.EntryPoint) -> None:
        self.name = entry.name
        self.target = entry.value
        """`package.module` or `package.module:object`."""
        self._entry = entry

    @cached_property
    def distribution(self) -> str:
        """The package's name; empty when nothing tells."""
        return self._entry.dist.name if self._entry.dist is not None else ""

    @cached_property
    def version(self) -> str:
        """The package's version."""
        return self._entry.dist.version if self._entry.dist is not None else ""

    @property
    def origin(self) -> str:
        """For messages: what is imported, and whose it is."""
        return f"{self.target}, of {self.distribution} {self.version}" if self.distribution else self.target

    def load(self) -> Any:
        """Import what the entry point names; whatever a stranger's module does on import happens here."""
        return self._entry.load()

    def declared_api(self) -> int | None:
        """The version of the plugin API that the module's source says it was written for, found without running it.

        For plugins whose import fails, perhaps for just that reason; one that is imported is asked itself.
        """
        import importlib.util

        try:
            found = importlib.util.find_spec(self._entry.module)
            source = Path(found.origin).read_text(encoding="utf-8") if found is not None and found.origin else ""
        except Exception:  # noqa: BLE001 - looking for a module may run its parents, and those are a stranger's
            return None
        match = _DECLARATION.search(source)
        return int(match[1]) if match else None

    def stamp(self) -> Stamp:
        """How it lies on the disk now; also reads what is asked for later, when its package may be gone."""
        return Stamp(self.target, self.distribution, self.version, self._record(), time.time() - _CLOCK_LAG_S)

    def has_changed(self, since: Stamp) -> bool:
        """Whether its package was installed anew, or one of its modules that were imported here was edited."""
        if self.stamp()._replace(at=since.at) != since:
            return True
        for module in self._modules():
            try:
                status = os.stat(module.__file__ or "")
            except (OSError, AttributeError):
                return True
            if max(status.st_mtime, status.st_ctime) > since.at:
                return True
        return False

    def _record(self) -> str:
        from hashlib import sha256  # late: no command but a server needs it

        record = self._entry.dist.read_text("RECORD") if self._entry.dist is not None else ""
        return sha256((record or "").encode()).hexdigest()  # of a wheel: with the hash of every file

    def forget(self) -> None:
        """Take its modules out of this process, so that the next import reads them from the disk."""
        for module in list(self._modules()):
            sys.modules.pop(module.__name__, None)

    def _modules(self) -> Iterator[ModuleType]:
        root = self._root
        for name, module in sorted(sys.modules.items()):
            if root and (name == root or name.startswith(f"{root}.")) and isinstance(module, ModuleType):
                yield module

    @property
    def _root(self) -> str:
        """The outermost package that is the plugin's own: a namespace has no file and may hold others', too."""
        parts = self._entry.module.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            if getattr(sys.modules.get(name), "__file__", None):
                return "" if name == "hostler" else name
        return self._entry.module


def find_installed() -> list[InstalledPlugin]:
    """All of them, by name."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return sorted((InstalledPlugin(entry) for entry in entries), key=lambda plugin: plugin.name)


def look_again() -> None:
    """See what was installed since this process started: folders are read anew, and so are the path files that an editable
    install leaves beside them, which Python reads at its start only."""
    importlib.invalidate_caches()
    folders = [*(site.getsitepackages() if hasattr(site, "getsitepackages") else ()), site.getusersitepackages()]
    for folder in map(Path, folders):
        for path in sorted(folder.glob("*.pth")) if folder.is_dir() else ():
            status = path.stat()
            # ctime, too: an installer may link a file out of its cache, with the mtime that it has there.
            if max(status.st_mtime, status.st_ctime) >= _STARTED:
                site.addpackage(str(folder), path.name, None)


# -- what a home leaves out -------------------------------------------------------------------------------------------


class Choices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What plugins.json holds."""

    disabled: list[str] = []
    """Names of entry points, or of hostler's own plugins."""


def read_disabled(home: Path) -> frozenset[str]:
    """The plugins that this home leaves out.

    Raises:
        ConfigError: The file is there and cannot be read.
    """
    path = home / CHOICES_FILE
    try:
        return frozenset(msgspec.json.decode(path.read_bytes(), type=Choices).disabled)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not what `hostler plugins disable` writes ({error}); remove it or repair it") from error


def write_disabled(home: Path, names: Collection[str]) -> None:
    """Keep which plugins this home leaves out.

    Raises:
        StorageUnavailable: The folder cannot be written.
    """
    from hostler.library.disk import write_atomically

    path = home / CHOICES_FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(Choices(sorted(names)))) + b"\n")
    except OSError as error:
        raise StorageUnavailable(f"{path} cannot be written: {error.strerror}") from error
