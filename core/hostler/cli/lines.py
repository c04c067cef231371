"""JSON Lines: one object a line, each telling by `object` what it is; read with the place of each, written whole.

Floor 6; the process of one command. A thread's line stands before the lines of its messages, in their order, so that one
file is enough for both.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import click

THREAD, MESSAGE, ASSISTANT = "thread", "thread.message", "assistant"
BATCH_BYTES = 1024 * 1024
"""A request of an import is closed between two threads at this size: large enough that requests cost little."""
PART_BYTES = 16 * 1024 * 1024
"""A thread longer than this is imported in several requests, so in several transactions: half of `max_body_bytes`' default."""


MAX_LINE_BYTES = 64 * 1024 * 1024
"""Of one object: more than any server takes unless its `max_body_bytes` was raised."""


class BrokenLine(Exception):
    """A line that is no JSON object."""


class Item(NamedTuple):
    """One object to import, and where it came from."""

    place: str
    """`threads.jsonl:12`."""
    value: dict[str, Any]
    n_bytes: int


def read_lines(stream: BinaryIO, name: str, report: Callable[[str, str], None]) -> Iterator[Item]:
    """The objects of a file; empty lines count, and are nothing.

    Args:
        stream: Open for reading, at its beginning.
        name: As messages call the file.
        report: Takes place and reason of a line that is no object; may raise.
    """
    for number, line in enumerate(_lines(stream), 1):
        if line is None:
            report(f"{name}:{number}", f"this line has more than {MAX_LINE_BYTES // 2**20} MB")
            continue
        text = line.removeprefix(b"\xef\xbb\xbf").strip()
        if not text:
            continue
        place = f"{name}:{number}"
        try:
            yield Item(place, decode(text), len(text))
        except BrokenLine as broken:
            report(place, str(broken))


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long, which is not kept in memory."""
    while line := stream.readline(MAX_LINE_BYTES):
        is_whole = len(line) < MAX_LINE_BYTES or line.endswith(b"\n")
        yield line if is_whole else None
        while not is_whole:
            rest = stream.readline(MAX_LINE_BYTES)
            is_whole = len(rest) < MAX_LINE_BYTES or rest.endswith(b"\n")


def decode(text: bytes) -> dict[str, Any]:
    """One line's object.

    Raises:
        BrokenLine: With the reason.
    """
    import msgspec

    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BrokenLine(f"this is not valid JSON: {error}") from error
    except RecursionError as error:
        raise BrokenLine("this is nested too deeply") from error
    if not isinstance(value, dict):
        raise BrokenLine("this is no JSON object")
    return value


def batches(items: Iterable[Item], part_bytes: int = PART_BYTES) -> Iterator[list[Item]]:
    """Cut what is to be imported into requests: between threads where possible, inside one only when it is too long."""
    batch: list[Item] = []
    n_bytes = 0
    for item in items:
        is_opening = item.value.get("object") != MESSAGE
        limit = min(BATCH_BYTES, part_bytes) if is_opening else part_bytes
        if batch and n_bytes + item.n_bytes > limit:
            yield batch
            batch, n_bytes = [], 0
        batch.append(item)
        n_bytes += item.n_bytes
    if batch:
        yield batch


@contextmanager
def writing(path: Path | None) -> Iterator[Callable[[Any], None]]:
    """Write objects to a file, which appears whole at the end or not at all; without a path, to stdout. What is there and no
    file, such as /dev/stdout or a pipe, is written into as it goes.

    Yields:
        A function that writes one object.

    Raises:
        click.ClickException: The file cannot be written.
    """
    import msgspec

    if path is None:
        stream = sys.stdout.buffer
        yield lambda value: _write(stream, msgspec.json.encode(value))
        stream.flush()
        return
    from hostler.library.disk import sync_folder

    is_special = path.exists() and not path.is_file()
    path = path if is_special else path.resolve()  # a link stays one
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        if is_special:
            with open(path, "wb") as special:
                yield lambda value: _write(special, msgspec.json.encode(value))
            return
        try:
            with open(temporary, "xb") as file:
                yield lambda value: _write(file, msgspec.json.encode(value))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror or error}") from error


def _write(stream: BinaryIO, line: bytes) -> None:
    stream.write(line + b"\n")
