"""Uploaded files: their rows in the database, their bytes under HOME/files by SHA-256, one copy of equal ones.

Floor 1; any thread. Imports SQLAlchemy.

    HOME/files/ab/cdef...           bytes whose SHA-256 is abcdef...; written once, never changed
    HOME/files/incoming/*.part      bytes still arriving; *.tmp: a mark being written
    HOME/files/incoming/abcdef...   a mark: the blob of that name may have no row; its text names the database

INVARIANT: a row is committed after its blob is on the disk, a blob goes after its last row is. Between the two steps stands
the mark, so after a crash `sweep` looks at the marked blobs only. It asks for the database, too, because a home may be
started with another one for a while: what that does not know is not rubbish.

`_lock` is held from a blob's appearing to its row's, and from a row's going to its blob's, so that a deletion never takes
the bytes that a new upload of the same content counts on.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection, delete, insert, select

from hostler.errors import InvalidRequest, RequestTooLarge, StorageUnavailable, UploadNotFound
from hostler.library.disk import is_disk_full, sync_folder, write_atomically
from hostler.records.database import Database
from hostler.records.ids import new_id
from hostler.records.objects import OCTETS, Deleted, File, Page, PageRequest
from hostler.records.paging import fetch_page, page_of
from hostler.records.rows import now, object_of
from hostler.records.tables import files

BLOCK_BYTES = 256 * 1024
"""Read and hashed at once."""


class FileStore:
    """All uploaded files."""

    def __init__(self, database: Database, home: Path) -> None:
        self._database = database
        self._folder = home / "files"
        self._incoming = self._folder / "incoming"
        self._lock = threading.Lock()

    def create(
        self,
        stream: BinaryIO,
        *,
        filename: str,
        purpose: str,
        max_bytes: int,
        content_type: str = OCTETS,
    ) -> File:
        """Keep what a stream gives; when this returns, bytes and row survive a power cut.

        Args:
            stream: Read to its end, in blocks.
            filename, purpose, content_type: Kept as given; none becomes a path.
            max_bytes: Of the stream.

        Raises:
            RequestTooLarge: Nothing is kept.
            InvalidRequest: The stream broke; nothing is kept.
            StorageUnavailable: The disk is full or read-only; nothing is kept.
        """
        part = self._incoming / f"{secrets.token_hex(8)}.part"
        try:
            self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
            sha256, n_bytes = _receive(stream, part, max_bytes)
            time = now()
            made = File(new_id("file"), n_bytes, time, time, filename, purpose, content_type)
            with self._lock:
                self._keep(part, sha256)
                try:
                    with self._database.write() as connection:
                        row = {"id": made.id, "created_at": time, "purpose": purpose, "sha256": sha256, "body": made}
                        connection.execute(insert(files).values(row))
                except BaseException:
                    self._settle(sha256)  # should that fail, too, the mark stays for `sweep`
                    raise
                self._unmark(sha256)
        except OSError as error:
            raise self._unavailable(error) from error
        finally:
            _remove(part)
        return made

    def get(self, file_id: str) -> File:
        """One file's row.

        Raises:
            UploadNotFound
        """
        with self._database.read() as connection:
            return _file(_find(connection, file_id))

    def list(self, page: PageRequest, purpose: str | None = None) -> Page[File]:
        """A page of all files, by the time they were created.

        Raises:
            InvalidRequest
        """
        scope = [files.c.purpose == purpose] if purpose is not None else []
        order = (files.c.created_at, files.c.seq)
        with self._database.read() as connection:
            rows, has_more = fetch_page(connection, files, [files.c.body], page, *scope, order=order, what="file")
        return page_of([_file(row) for row in rows], has_more=has_more)

    def delete(self, file_id: str) -> Deleted:
        """Delete a file; its bytes go with the last file that has them. Messages that name it keep its id.

        Raises:
            UploadNotFound
        """
        try:
            with self._lock:
                with self._database.read() as connection:
                    sha256 = _find(connection, file_id).sha256
                self._mark(sha256)
                with self._database.write() as connection:
                    n_gone = connection.execute(delete(files).where(files.c.id == file_id)).rowcount
                self._settle(sha256)
        except OSError as error:
            raise self._unavailable(error) from error
        if not n_gone:
            raise _not_found(file_id)
        return Deleted(file_id, "file")

    def path(self, file_id: str) -> Path:
        """Where a file's bytes lie.

        Raises:
            UploadNotFound
            StorageUnavailable: The row is there and the bytes are not.
        """
        with self._database.read() as connection:
            path = self._blob(_find(connection, file_id).sha256)
        if not path.is_file():
            raise StorageUnavailable(
                f"The bytes of {file_id} are not at {path}: they were taken away, or another home that shares this database "
                f"has them; put the folder back as it was, or delete the file and upload it again"
            )
        return path

    def sweep(self) -> None:
        """Remove what a crash left: half-received files, and blobs that got or kept no row. Before the first upload."""
        if not self._incoming.is_dir():
            return
        try:
            for left in list(self._incoming.iterdir()):
                if left.suffix in {".part", ".tmp"}:
                    _remove(left)
                elif left.read_bytes() == os.fsencode(self._database.location.where):
                    self._settle(left.name)
        except OSError as error:
            raise self._unavailable(error) from error

    # -- inside -----------------------------------------------------------------------------------------------------

    def _blob(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256[2:]

    def _keep(self, part: Path, sha256: str) -> None:
        """Give received bytes their name, unless they are here already."""
        blob = self._blob(sha256)
        self._mark(sha256)
        if not blob.exists():
            is_new = not blob.parent.exists()
            blob.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(part, blob)
            sync_folder(blob.parent)
            if is_new:
                sync_folder(self._folder)

    def _mark(self, sha256: str) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._incoming / sha256, os.fsencode(self._database.location.where))

    def _unmark(self, sha256: str) -> None:
        _remove(self._incoming / sha256)

    def _settle(self, sha256: str) -> None:
        """Remove a marked blob if no row has it; then the mark."""
        with self._database.read() as connection:
            is_used = connection.execute(select(files.c.seq).where(files.c.sha256 == sha256).limit(1)).first()
        if is_used is None:
            _remove(self._blob(sha256))
        self._unmark(sha256)

    def _unavailable(self, error: OSError) -> StorageUnavailable:
        reason = error.strerror or str(error)
        if is_disk_full(error):
            return StorageUnavailable(f"{self._folder} cannot take this file: {reason}; free some room and try again")
        return StorageUnavailable(
            f"{error.filename or self._folder} cannot be used: {reason}; give this user the right to write there, or choose "
            f"another folder with --home"
        )


def _receive(stream: BinaryIO, part: Path, max_bytes: int) -> tuple[str, int]:
    """Write a stream to the disk for good. Returns its SHA-256 and its length."""
    digest, n_bytes = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)  # Windows would write two bytes for a newline
    with open(os.open(part, flags, 0o600), "wb", buffering=0) as sink:
        while block := _next_block(stream):
            n_bytes += len(block)
            if n_bytes > max_bytes:
                raise RequestTooLarge(
                    f"The file is larger than {max_bytes} bytes, the most that one may have here (max_file_bytes)",
                    param="file",
                )
            digest.update(block)
            view = memoryview(block)
            while view:
                view = view[sink.write(view) :]
        os.fsync(sink.fileno())
    return digest.hexdigest(), n_bytes


def _next_block(stream: BinaryIO) -> bytes:
    try:
        return stream.read(BLOCK_BYTES)
    except OSError as error:
        raise InvalidRequest(f"The file could not be read to its end: {error}", param="file") from error


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _not_found(file_id: str) -> UploadNotFound:
    return UploadNotFound(f"The file {file_id} does not exist")


def _find(connection: Connection, file_id: str) -> Any:
    row = connection.execute(select(files.c.sha256, files.c.body).where(files.c.id == file_id)).one_or_none()
    if row is None:
        raise _not_found(file_id)
    return row


def _file(row: Any) -> File:
    return object_of(row, File)
