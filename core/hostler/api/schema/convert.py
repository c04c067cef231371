"""A decoded JSON object -> a typed struct, with errors that name the field and its value.

Floor 5; pure functions. Numbers and booleans are accepted as strings, null means absent, unknown fields are ignored
(spec/API.md section 2). Ranges of settings and parameters stand in `library/fields.py`, once for files and requests.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from hostler.errors import InvalidRequest, MissingParameter

T = TypeVar("T")

_PLACE = re.compile(r"(?s)(?P<reason>.*) - at `(?:key in )?\$\.?(?P<path>.*)`")
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
#: msgspec's words -> words for people who do not write Python.
_WORDS = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false"}
_WORDS |= {"object": "an object", "array": "an array"}
_LONGEST_VALUE = 60


def convert(raw: dict[str, Any], kind: type[T]) -> T:
    """Check an object against a struct whose fields are all optional.

    Raises:
        InvalidRequest: With the path of the field, such as `messages[2].role`, its value and what would be accepted.
    """
    try:
        return msgspec.convert(raw, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(raw, str(error)) from error


def _explained(raw: dict[str, Any], text: str) -> InvalidRequest:
    match = _PLACE.fullmatch(text)
    if match is None:
        return InvalidRequest(f"The request body is not valid: {text}")
    path, reason = match["path"], match["reason"]
    return InvalidRequest(f"{path} is {shown(_value_at(raw, path))}; {_in_words(reason)}", param=path)


def _in_words(reason: str) -> str:
    match = re.match(r"Expected `([^`]*)`( [<>]=? [-0-9.e+]+)?", reason)
    if match is None:
        return reason
    kinds = [_WORDS.get(kind, kind) for kind in match[1].split(" | ") if kind != "null"]
    limit = (match[2] or "").replace(" >= ", " of at least ").replace(" <= ", " of at most ").replace(".0", "")
    return f"expected {' or '.join(kinds)}{limit}"


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
