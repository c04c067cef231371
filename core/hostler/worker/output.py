"""What a worker writes to its standard output and error: the last of it in memory, all of it in a log file.

Floor 3, in the host, the worker's output thread; `text` from any thread. It must not know what the lines mean.
"""

from __future__ import annotations

import threading
from pathlib import Path

TAIL_BYTES = 8 * 1024
TAIL_LINES = 40
LOG_BYTES = 4 * 1024 * 1024
N_OLD_LOGS = 2


class OutputTail:
    """The last lines, at most TAIL_LINES and TAIL_BYTES."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _kept
        self._kept = b""

    def add(self, data: bytes) -> None:
        """Take what came."""
        with self._lock:
            self._kept = (self._kept + data)[-TAIL_BYTES:]

    def text(self) -> str:
        """The lines; a first one that was cut is left out."""
        with self._lock:
            kept = self._kept
        lines = kept.decode("utf-8", "replace").splitlines()
        if len(kept) == TAIL_BYTES and len(lines) > 1:
            lines = lines[1:]
        return "\n".join(lines[-TAIL_LINES:]).strip()


class OutputLog:
    """A log file that is moved to `.1`, `.2` when it has grown. One thread at a time."""

    def __init__(self, path: Path, max_bytes: int = LOG_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def write(self, data: bytes) -> None:
        """Append; a full or missing disk costs log lines, never the worker."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size + len(data) > self._max_bytes:
                self._rotate()
            with self._path.open("ab") as stream:
                stream.write(data)
        except OSError:
            pass  # the last lines are still in memory, and there is nobody to tell from here

    def _rotate(self) -> None:
        for number in range(N_OLD_LOGS, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
