"""Protobuf's wire format: fields read with every length checked, and written. Standard library only; any process.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

Field = tuple[int, int, "int | memoryview", int, int]
"""Number, wire type, value (an integer, or the bytes), where it begins and ends in the message."""


class BrokenError(Exception):
    """The bytes are no message; the text completes "is broken:"."""


def fields(view: memoryview) -> Iterator[Field]:
    """The fields of one message, in order.

    Raises:
        BrokenError: They do not fill it exactly.
    """
    position, size = 0, len(view)
    while position < size:
        start = position
        head, position = _read_varint(view, position)
        number, wire = head >> 3, head & 7
        value: int | memoryview
        if wire == BYTES:
            length, position = _read_varint(view, position)
            if length > size - position:
                raise BrokenError(f"a field of {length} bytes where {size - position} are left; it was cut off")
            value = view[position : position + length]
            position += length
        elif wire == VARINT:
            value, position = _read_varint(view, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
            if length > size - position:
                raise BrokenError("it ends within a number; it was cut off")
            value = view[position : position + length]
            position += length
        else:
            raise BrokenError(f"wire type {wire} does not exist")
        if number == 0:
            raise BrokenError("a field has the number 0")
        yield number, wire, value, start, position


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(view) or shift > 63:
            raise BrokenError("it ends within a number; it was cut off")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def read_varint(view: memoryview) -> int:
    """The number that bytes begin with.

    Raises:
        BrokenError: They begin with none.
    """
    return _read_varint(view, 0)[0]


def varint(value: int) -> bytes:
    """A number of 0 or more."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def key(number: int, wire: int) -> bytes:
    """What stands before a field's value."""
    return varint(number << 3 | wire)


def tagged(number: int, content: bytes) -> bytes:
    """A field of bytes: a text, or a message within."""
    return key(number, BYTES) + varint(len(content)) + content


def as_bytes(value: int | memoryview) -> memoryview:
    """A field's value where bytes are due."""
    if isinstance(value, int):
        raise BrokenError("a number stands where bytes should")
    return value


def as_text(value: int | memoryview) -> str:
    """A field's value where a text is due; raises UnicodeDecodeError where it is none."""
    return str(as_bytes(value), "utf-8")
