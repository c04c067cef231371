"""A decoded JSON object -> a typed struct, with errors that name the field and its value.

Floor 5; pure functions. Numbers and booleans are accepted as strings, null means absent, unknown fields are ignored
(spec/API.md section 2). Ranges of settings and parameters stand in `library/fields.py`, once for files and requests. What
msgspec says of a value is turned into words for people who do not write Python, and completed with the values allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from hostler.errors import InvalidRequest, MissingParameter

T = TypeVar("T")

_PLACE = re.compile(r"(?s)(?P<reason>.*) - at `(?:key in )?\$\.?(?P<path>.*)`")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_EXPECTED = re.compile(
    r"Expected `(?P<kinds>[^`]*)`"
    r"(?: matching regex '(?P<pattern>.*)'|(?P<length> of length)? (?P<sign>[<>]=) (?P<number>[-0-9.e+]+))?"
)
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
#: msgspec's words -> words for people who do not write Python.
_WORDS = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false"}
_WORDS |= {"object": "an object", "array": "an array"}
_UNITS = {"str": "characters", "array": "items", "object": "fields"}
"""What a length counts."""
_LONGEST_VALUE = 60


def convert(raw: dict[str, Any], kind: type[T]) -> T:
    """Check an object against a struct.

    Raises:
        InvalidRequest: With the path of the field, such as `messages[2].role`, its value and what would be accepted.
        MissingParameter: A field that the struct requires is absent or null.
    """
    try:
        return msgspec.convert(raw, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(raw, str(error), kind) from error


def _explained(raw: dict[str, Any], text: str, kind: Any) -> InvalidRequest:
    match = _PLACE.fullmatch(text)
    path, reason = (match["path"], match["reason"]) if match else ("", text)
    missing = _MISSING.fullmatch(reason)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return MissingParameter(f"{path} is missing{_allowed(kind, path)}", param=path)
    if not path:
        return InvalidRequest(f"The request body is not valid: {text}")
    value = _value_at(raw, path)
    if value is None and not path.endswith("]"):
        return MissingParameter(f"{path} is missing{_allowed(kind, path)}", param=path)
    return InvalidRequest(f"{path} is {shown(value)}{_allowed(kind, path) or f'; {_in_words(reason)}'}", param=path)


def _in_words(reason: str) -> str:
    match = _EXPECTED.match(reason)
    if match is None:
        return reason
    names = [name for name in match["kinds"].split(" | ") if name != "null"]
    kinds = " or ".join(_WORDS.get(name, name) for name in names)
    if match["pattern"]:
        return f"expected {kinds} that matches {match['pattern']}"
    if match["sign"] is None:
        return f"expected {kinds}"
    bound = "at least" if match["sign"] == ">=" else "at most"
    number = match["number"].removesuffix(".0")
    unit = _UNITS.get(names[0], "").removesuffix("s" if number == "1" else "") if match["length"] else ""
    return f"expected {kinds} of {bound} {number} {unit}".rstrip()


def _allowed(kind: Any, path: str) -> str:
    words = sorted({str(word) for word in _choices(kind, path)})
    return f"; allowed: {', '.join(words)}" if words else ""


def _choices(kind: Any, path: str) -> Iterator[Any]:
    """The only values that a place takes, if it is one of that sort: a Literal, or the tag of a union."""
    import msgspec.inspect as inspect  # late: only a bad request needs it

    types = list(_plain(inspect.type_info(kind)))
    for index, name in _STEP.findall(path):
        inner: list[Any] = []
        for one in types:
            if index and isinstance(one, inspect.ListType):
                inner.append(one.item_type)
            elif name and isinstance(one, inspect.StructType):
                if name == one.tag_field:
                    yield one.tag
                inner += [field.type for field in one.fields if field.encode_name == name]
        types = [plain for one in inner for plain in _plain(one)]
    for one in types:
        if isinstance(one, inspect.LiteralType):
            yield from one.values


def _plain(one: Any) -> Iterator[Any]:
    """A type without its metadata, the members of a union each."""
    import msgspec.inspect as inspect

    if isinstance(one, inspect.Metadata):
        yield from _plain(one.type)
    elif isinstance(one, inspect.UnionType):
        for member in one.types:
            yield from _plain(member)
    else:
        yield one


def _value_at(raw: Any, path: str) -> Any:
    value = raw
    for index, name in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return "not acceptable"
    return value


def shown(value: Any) -> str:
    """A client's value in an error: as JSON, short."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def required(value: T | None, path: str, why: str = "") -> T:
    """The value, which must be there.

    Raises:
        MissingParameter: It is absent or null.
    """
    if value is None:
        raise MissingParameter(f"{path} is missing{f'; {why}' if why else ''}", param=path)
    return value
