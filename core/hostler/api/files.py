"""`/v1/files`: uploads, and their bytes again. Source: spec/API.md section 8.

Floor 5; on the waitress thread of the request. A file is served as nothing but bytes to save: whatever it holds, no browser
shows or runs it. waitress sends it straight from the disk, so that a slow reader holds no thread.
"""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING

import falcon
import msgspec

from hostler.api.bodylimits import BodyLimits
from hostler.api.errors import respond
from hostler.api.filenames import attachment
from hostler.api.schema.paging import read_page
from hostler.api.upload import read_upload
from hostler.config import Settings
from hostler.errors import InvalidRequest, StorageUnavailable
from hostler.records.objects import OCTETS

if TYPE_CHECKING:
    from hostler.records.store import Records
    from hostler.runtime import Runtime

_RANGE = re.compile(r"bytes=\s*([0-9]{0,19})-([0-9]{0,19})\s*")
_NOT_SATISFIABLE = "416 Range Not Satisfiable"


class Files:
    """Uploaded files."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._limit = BodyLimits(settings).upload
        self._max_file_bytes: int = settings.max_file_bytes

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Keep a file."""
        with read_upload(req, self._limit) as upload:
            made = self._records.files.create(
                upload.stream,
                filename=upload.filename,
                purpose=upload.purpose,
                max_bytes=self._max_file_bytes,
                content_type=upload.content_type,
            )
        resp.data = msgspec.json.encode(made)

    def list_all(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A page of them, of one purpose if the query says so."""
        page = self._records.files.list(read_page(req.get_param), purpose=req.get_param("purpose") or None)
        resp.data = msgspec.json.encode(page)

    def get(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """What is known of one."""
        del req
        resp.data = msgspec.json.encode(self._records.files.get(file_id))

    def delete(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """Forget one; messages that name it go on naming it."""
        del req
        resp.data = msgspec.json.encode(self._records.files.delete(file_id))

    def content(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """Its bytes, or a range of them."""
        file = self._records.files.get(file_id)
        wanted = _range_of(req.get_header("range"), file.bytes) if req.method == "GET" else None
        if wanted is not None and not wanted:
            respond(req, resp, InvalidRequest(f"{file_id} has {file.bytes} bytes; none of them is in the range asked for"))
            resp.status = _NOT_SATISFIABLE
            resp.set_header("content-range", f"bytes */{file.bytes}")
            return
        resp.content_type = OCTETS
        resp.set_header("content-disposition", attachment(file.filename))
        resp.set_header("x-content-type-options", "nosniff")
        resp.set_header("accept-ranges", "bytes")
        resp.content_length = file.bytes if wanted is None else len(wanted)
        if req.method == "HEAD":
            return
        stream = self._opened(file_id)
        if wanted is None:
            resp.stream = stream
            return
        stream.seek(wanted.start)
        resp.status = falcon.HTTP_206
        resp.set_header("content-range", f"bytes {wanted.start}-{wanted.stop - 1}/{file.bytes}")
        resp.stream = Slice(stream, len(wanted))

    def _opened(self, file_id: str) -> IO[bytes]:
        path = self._records.files.path(file_id)
        try:
            return path.open("rb")
        except OSError as error:
            self._records.files.get(file_id)  # deleted a moment ago: 404
            raise StorageUnavailable(f"The bytes of {file_id} cannot be read from {path}: {error.strerror}") from error

    @property
    def _records(self) -> Records:
        return self._runtime.records


class Slice:
    """The next bytes of an open file and no more; closing it closes the file."""

    def __init__(self, stream: IO[bytes], n_bytes: int) -> None:
        self._stream = stream
        self._n_left = n_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes; empty at the end."""
        data = self._stream.read(self._n_left if size is None or size < 0 else min(size, self._n_left))
        self._n_left -= len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _range_of(header: str | None, n_bytes: int) -> range | None:
    """The bytes that a Range header asks for; None: all of them; empty: none that are there.

    Several ranges, other units and what is no range at all are ignored, as RFC 9110 section 14.2 allows.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return range(max(0, n_bytes - int(match[2])), n_bytes)
    first = int(match[1])
    last = int(match[2]) if match[2] else n_bytes - 1
    if match[2] and last < first:
        return None
    return range(first, min(last + 1, n_bytes)) if first < n_bytes else range(0)
