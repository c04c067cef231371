"""A file that is still arriving: `<name>.part`, and beside it `<name>.part.log`, which makes it safe to go on with.

Floor 1; one thread at a time. After kill -9, a crash of the machine or a full disk the next process opens the pair again,
re-reads the part, drops what is not proven and appends. Layout of the log, one JSON object a line, a torn last line is
ignored:

    {"version": 1, "etag": .., "last_modified": .., "total": .., "sha256": ..}    what is being fetched
    {"end": 8388608, "blake2b": "..."}                                             bytes from the line before to `end`
    ...

INVARIANT: a line about bytes is written after those bytes have been fsynced. Bytes behind the last line are kept only when
the whole file's SHA-256 is known, which then decides at the end.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from hostler.library.disk import sync_folder, write_atomically

CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes between two lines of the log: what a power cut can cost, and how often the disk is asked to sync."""
_READ_BYTES = 1024 * 1024


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """What tells one version of a remote file from another."""

    version: int = 1
    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None
    sha256: str | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a strong ETag, else the date."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


class _Line(msgspec.Struct, frozen=True):
    end: int
    blake2b: str


class PartFile:
    """One partial file, open for appending. Use it in a `with` block, which leaves it resumable however it ends."""

    def __init__(self, target: Path, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Nothing is read yet.

        Args:
            target: The name the file gets when it is complete; `.part` is appended.
            chunk_bytes: See CHUNK_BYTES.
        """
        self.path = target.with_name(target.name + ".part")
        self.log_path = target.with_name(target.name + ".part.log")
        self.identity = Identity()
        self.size = 0
        """Bytes here, all of them hashed."""
        self._chunk_bytes = chunk_bytes
        self._hash = hashlib.sha256()
        self._chunk_hash = hashlib.blake2b(digest_size=16)
        self._logged = 0
        self._data: BinaryIO | None = None
        self._log: BinaryIO | None = None

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, sha256: str | None, total: int | None, check: Callable[[int], None]) -> None:
        """Open what an earlier pull left, if it is the same file, and prove it chunk by chunk.

        Args:
            sha256, total: What is known of the whole file now; a part of something else is thrown away.
            check: Called with the bytes proven so far; may raise to stop.
        """
        identity, lines = _read_log(self.log_path)
        is_other = identity is None or _differ(identity.sha256, sha256) or _differ(identity.total, total)
        if is_other or identity is None or not self.path.exists():
            self.start(Identity(total=total, sha256=sha256))
            return
        self.identity = msgspec.structs.replace(identity, sha256=sha256, total=total if total is not None else identity.total)
        self._data = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - closed by close()
        proven = self._prove(lines, keeps_tail=sha256 is not None, check=check)
        self._data.truncate(self.size)
        self._data.seek(self.size)
        # Rewritten whole: torn or disproved lines go, and the new lines have one place to be appended to.
        self._write_log([line for line in lines if line.end <= proven])
        self._logged = proven
        if self.size - self._logged >= self._chunk_bytes:
            self.record()  # killed between a chunk's last byte and its line: `write` counts on room in the chunk

    def start(self, identity: Identity) -> None:
        """Begin from nothing; what was here is another version, or was found bad."""
        self.close(is_recording=False)
        self.identity = identity
        self._reset_hashes()
        self._data = open(self.path, "w+b", buffering=0)  # noqa: SIM115 - closed by close()
        self._write_log([])

    def identify(self, identity: Identity) -> None:
        """Note what the server says it is sending; the bytes so far are kept."""
        if identity != self.identity:
            self.identity = identity
            _, lines = _read_log(self.log_path)
            self._write_log(lines)

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            OSError: What could be written before counts and is kept.
        """
        assert self._data is not None, "open or start comes first"
        view = memoryview(data)
        while view:
            room = self._chunk_bytes - (self.size - self._logged)
            written = self._data.write(view[:room])
            if not written:
                raise OSError(0, "the system wrote nothing")
            self._hash.update(view[:written])
            self._chunk_hash.update(view[:written])
            self.size += written
            view = view[written:]
            if self.size - self._logged >= self._chunk_bytes:
                self.record()

    def record(self) -> None:
        """Make all bytes so far durable and proven."""
        if self._data is None or self._log is None or self.size == self._logged:
            return
        os.fsync(self._data.fileno())
        line = _Line(self.size, self._chunk_hash.hexdigest())
        self._log.write(msgspec.json.encode(line) + b"\n")
        self._logged = self.size
        self._chunk_hash = hashlib.blake2b(digest_size=16)

    @property
    def sha256(self) -> str:
        """Of all bytes so far, lower-case hex."""
        return self._hash.hexdigest()

    def close(self, *, is_recording: bool = True) -> None:
        """Leave it for a later pull. Never raises: it runs on a full disk, too."""
        try:
            if is_recording:
                self.record()
        except OSError:
            pass  # The bytes behind the last line are simply not proven.
        for stream in (self._data, self._log):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # Unbuffered: nothing is lost that was counted.
        self._data = self._log = None

    def discard(self) -> None:
        """Remove the part and its log."""
        self.close(is_recording=False)
        self.path.unlink(missing_ok=True)
        self.log_path.unlink(missing_ok=True)
        self._reset_hashes()

    def finish(self, target: Path) -> None:
        """Give the complete file its name, durably; the log goes."""
        self.record()
        self.close(is_recording=False)
        os.replace(self.path, target)
        sync_folder(target.parent)
        self.log_path.unlink(missing_ok=True)

    def _reset_hashes(self) -> None:
        self.size = self._logged = 0
        self._hash = hashlib.sha256()
        self._chunk_hash = hashlib.blake2b(digest_size=16)

    def _prove(self, lines: list[_Line], *, keeps_tail: bool, check: Callable[[int], None]) -> int:
        """Hash what is here; stop before the first chunk that is not what was written. Returns the end of the proven."""
        assert self._data is not None
        self._reset_hashes()
        for line in lines:
            whole = self._hash.copy()
            start = self.size
            found = hashlib.blake2b(digest_size=16)
            while self.size < line.end:
                block = self._data.read(min(_READ_BYTES, line.end - self.size))
                if not block:
                    break
                found.update(block)
                self._hash.update(block)
                self.size += len(block)
                check(self.size)
            if self.size != line.end or found.hexdigest() != line.blake2b:
                self._hash, self.size = whole, start
                return start
        proven = self.size
        while keeps_tail and (block := self._data.read(_READ_BYTES)):
            self._hash.update(block)
            self._chunk_hash.update(block)
            self.size += len(block)
            check(self.size)
        return proven

    def _write_log(self, lines: list[_Line]) -> None:
        if self._log is not None:
            self._log.close()
        records: list[Any] = [self.identity, *lines]
        # Never half a log: without its first line everything that arrived would be thrown away.
        write_atomically(self.log_path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))
        self._log = open(self.log_path, "ab", buffering=0)  # noqa: SIM115 - closed by close()


def _read_log(path: Path) -> tuple[Identity | None, list[_Line]]:
    try:
        raw = path.read_bytes().split(b"\n")
        identity = msgspec.json.decode(raw[0], type=Identity)
    except (OSError, msgspec.DecodeError):
        return None, []
    lines: list[_Line] = []
    for text in raw[1:-1]:
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError:
            break
        if line.end <= (lines[-1].end if lines else 0):
            break
        lines.append(line)
    return (identity if identity.version == 1 else None), lines


def _differ(one: object | None, other: object | None) -> bool:
    return one is not None and other is not None and one != other
