"""`POST /v1/files`: one file and its purpose out of a multipart form, in any order. Source: spec/API.md section 8, RFC 7578.

Floor 5; on the waitress thread of the request. waitress has received the whole form already, large ones in a temporary file;
here it is read piece by piece, and what lies beside the file is small or refused. Nothing is stored before the form was read
to its end.
"""

from __future__ import annotations

import mimetypes
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, BinaryIO, NamedTuple, cast

import falcon
from falcon.media import MultipartFormHandler
from falcon.media.multipart import BodyPart
from msgspec import Meta, Struct

from hostler.api.bodylimits import UPLOADS, BodyLimit
from hostler.api.filenames import clean_filename
from hostler.api.schema.convert import shown
from hostler.errors import InvalidRequest, MissingParameter
from hostler.records.objects import OCTETS

DEFAULT_PURPOSE = "assistants"
MAX_PARTS = 32
IN_MEMORY_BYTES = 1024 * 1024
"""A larger file waits on the disk for the end of its form."""
PIECE_BYTES = 256 * 1024
_PURPOSE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}")
_HOW = "for example: curl -F purpose=assistants -F file=@PATH"


class UploadForm(Struct):
    """The form, for /openapi.json."""

    file: Annotated[str, Meta(description="The file itself, with its name.", extra_json_schema={"format": "binary"})]
    purpose: Annotated[str, Meta(pattern=f"^({_PURPOSE.pattern})?$")] = DEFAULT_PURPOSE


class Upload(NamedTuple):
    """A file that has arrived whole."""

    stream: BinaryIO
    """At its beginning."""
    filename: str
    purpose: str
    content_type: str
    """What its name says it is, else what its sender says."""


@contextmanager
def read_upload(req: falcon.Request, limit: BodyLimit) -> Iterator[Upload]:
    """Read the form; the file lives as long as the block.

    Raises:
        InvalidRequest, MissingParameter: No form, a broken one, or one without a file.
        RequestTooLarge: Over the limit.
    """
    length = req.content_length or 0
    limit.check(length)
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        sent = f"not {kind or 'a body without a content type'}"
        raise InvalidRequest(f"{UPLOADS} takes multipart/form-data with the fields file and purpose, {sent}; {_HOW}")
    if not length:
        raise MissingParameter(f"file is missing: the body is empty; {_HOW}", param="file")
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as spooled:
        stream = cast("BinaryIO", spooled)  # it is one in all but name
        try:
            filename, purpose, content_type = _read_form(req, stream)
        except (falcon.HTTPError, UnicodeError) as error:
            reason = getattr(error, "description", None) or getattr(error, "title", None) or error
            raise InvalidRequest(f"The multipart form cannot be read: {reason}") from error
        stream.seek(0)
        yield Upload(stream, filename, purpose, content_type)


def _read_form(req: falcon.Request, stream: BinaryIO) -> tuple[str, str, str]:
    handler = MultipartFormHandler()
    handler.parse_options.max_body_part_count = MAX_PARTS
    filename: str | None = None
    purpose = content_type = ""
    for part in handler.deserialize(req.bounded_stream, req.content_type, req.content_length):
        if part.name == "file":
            if filename is not None:
                raise InvalidRequest("file is there twice; send one file a request", param="file")
            filename = _filename_of(part)
            content_type = _content_type_of(part, filename)
            while piece := part.stream.read(PIECE_BYTES):
                stream.write(piece)
        elif part.name == "purpose":
            purpose = _purpose_of(part)
    if filename is None:
        raise MissingParameter(f"file is missing: the form has no such field; {_HOW}", param="file")
    return filename, purpose or DEFAULT_PURPOSE, content_type


def _filename_of(part: BodyPart) -> str:
    if part.filename is None:
        # `curl -F file=PATH`, the @ forgotten, would store the path as if it were the file.
        raise InvalidRequest(f"file is a field of text, not a file with a name; {_HOW}", param="file")
    return clean_filename(part.filename)


def _content_type_of(part: BodyPart, filename: str) -> str:
    sent = (part.content_type or "").partition(";")[0].strip()
    guessed, encoding = mimetypes.guess_type(filename)
    if guessed is not None and encoding is None:
        return guessed
    return sent.lower() if _MEDIA_TYPE.fullmatch(sent) else OCTETS


def _purpose_of(part: BodyPart) -> str:
    sent = part.stream.read(PIECE_BYTES).decode().strip()
    if sent and not _PURPOSE.fullmatch(sent):
        raise InvalidRequest(
            f"purpose is {shown(sent)}; allowed: a word such as assistants, of at most 64 letters, digits, _, - and .",
            param="purpose",
        )
    return sent
