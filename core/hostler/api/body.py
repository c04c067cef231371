"""Request bodies: read within the limit, parse JSON whatever the content type says.

Floor 5; runs on the waitress thread of its request. Source: spec/API.md section 2, "Bodies".
"""

from __future__ import annotations

from typing import Any

import falcon
import msgspec

from hostler.errors import InvalidJson, InvalidRequest, RequestTooLarge

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 128
"""Nesting of a body: far more than any request means, far less than what makes Python's own recursion fail later on."""


def read_object(req: falcon.Request, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The body's JSON object; an empty body is an empty object.

    Args:
        max_depth: More for a body that wraps what came in bodies of MAX_DEPTH.

    Raises:
        RequestTooLarge: Over max_body_bytes.
        InvalidJson: Not JSON.
        InvalidRequest: JSON, but no object.
    """
    data = read_body(req)
    if not data.strip():
        return {}
    content_type = req.content_type or ""
    if content_type.startswith("multipart/"):
        raise InvalidJson(f"{req.path} takes JSON, not {content_type.partition(';')[0]}")
    return decode_object(data, max_depth)


def read_body(req: falcon.Request) -> bytes:
    """The whole body; waitress has received it already, chunked ones included."""
    limit: int = req.context.max_body_bytes
    if (req.content_length or 0) > limit:
        raise RequestTooLarge(f"The request body has {req.content_length} bytes; max_body_bytes allows {limit}")
    data: bytes = req.bounded_stream.read(limit + 1)
    if len(data) > limit:
        raise RequestTooLarge(f"The request body is over {limit} bytes; the server's max_body_bytes allows no more")
    return data


def decode_object(data: bytes, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """JSON -> dict.

    Raises:
        InvalidJson, InvalidRequest: As `read_object`.
    """
    try:
        value = msgspec.json.decode(data.removeprefix(BYTE_ORDER_MARK))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"The request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidJson(f"The request body is nested more than {max_depth} levels deep") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"The request body must be a JSON object, not {_kind(value)}")
    # PERF: most bodies have too few brackets to be deep.
    if data.count(b"[") + data.count(b"{") > max_depth and _depth_exceeds(value, max_depth):
        raise InvalidJson(f"The request body is nested more than {max_depth} levels deep")
    return value


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, list):
        return "an array"
    return "a string" if isinstance(value, str) else "a number"


def query_bool(req: falcon.Request, name: str, default: bool) -> bool:
    """A flag of the query string; `?all` alone means true.

    Raises:
        InvalidRequest: Neither true nor false.
    """
    value = req.get_param(name)
    if value is None:
        return default
    word = value.strip().lower()
    if word in {"", "true", "1", "yes", "on"}:
        return True
    if word in {"false", "0", "no", "off"}:
        return False
    raise InvalidRequest(f"{name} is {value!r}; allowed: true or false", param=name)


def query_choice(req: falcon.Request, name: str, choices: tuple[str, ...]) -> str:
    """A word of the query string; the first choice is the default.

    Raises:
        InvalidRequest: Another word.
    """
    value = req.get_param(name)
    if value is None:
        return choices[0]
    if value not in choices:
        raise InvalidRequest(f"{name} is {value!r}; allowed: {', '.join(choices)}", param=name)
    return value
