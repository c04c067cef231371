"""What an upstream refuses, as hostler's errors: who is to blame, what to do, and when to come again.

Pure. A client gets a 400 for its own faults only; a key that is wrong is the fault of whoever runs this server.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from hostler import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    HostlerError,
    InvalidRequest,
    QueueFull,
    RequestCancelled,
    RequestTooLarge,
    UnsupportedParameter,
)
from hostler_remote.description import Description
from hostler_remote.keys import Key

RETRIED = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may go well."""
FAILURES = frozenset({500, 502, 503, 504})
"""Statuses that say that the upstream is not well."""
MAX_TEXT = 600
DEFAULT_RETRY_S = 1.0
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|maximum context|exceed_context|too many tokens", re.IGNORECASE
)


class Said(msgspec.Struct, frozen=True):
    """An error's fields, as far as the upstream gave them."""

    message: str = ""
    code: str = ""
    type: str = ""
    param: str | None = None
    status: int | None = None
    """Where `code` is one."""


def said_of(error: Any, key: Key) -> Said:
    """Read an error object: OpenAI's, or one of the shapes that other servers have."""
    if isinstance(error, Mapping):
        inner = error.get("error")
        if inner is not None:
            return said_of(inner, key)
        code = error.get("code")
        message = error.get("message") or error.get("detail") or error.get("msg") or ""
        message = message if isinstance(message, str) else msgspec.json.encode(message).decode()
        param = error.get("param")
        return Said(
            _shown(message, key),
            code if isinstance(code, str) else "",
            error["type"] if isinstance(error.get("type"), str) else "",
            param if isinstance(param, str) and param else None,
            code if isinstance(code, int) and 400 <= code < 600 else None,
        )
    return Said(_shown(str(error), key))


def said_in(body: bytes, key: Key) -> Said:
    """Read the body of a refusal; a page of a proxy's says nothing to anybody."""
    try:
        return said_of(msgspec.json.decode(body), key)
    except (msgspec.DecodeError, RecursionError):
        text = body.decode("utf-8", "replace").strip()
        return Said("" if text.startswith("<") else _shown(text, key))


def refusal(
    status: int | None, said: Said, description: Description, *, retry_after_s: float | None = None, location: str = ""
) -> HostlerError:
    """The error for whoever asked.

    Args:
        status: Of the response; None: it came in a stream that had begun.
        location: Where a redirect leads.
    """
    status = said.status if status is None else status
    where = f"The upstream of this model, {description.place},"
    text = f": {said.message}" if said.message else ""
    shown = f"{status} {_phrase(status)}" if status is not None else "an error"
    if is_too_long(said) and status in (None, 400, 413, 422, 500):
        return ContextLengthExceeded(said.message, param=said.param)
    if status in (401, 403, 407) or said.code == "invalid_api_key":
        source = description.key_source
        fix = f"check the key in {source} and start the model again" if source else "give the model a key with key_env"
        return ConfigError(f"{where} does not let this server in ({shown}){text}; {fix}")
    if status is not None and 300 <= status < 400:
        target = f" to {location}" if location else ""
        return ConfigError(f"{where} redirects{target} ({shown}), which is not followed; correct its url")
    if status == 429 or (status is None and said.code in ("queue_full", "rate_limit_exceeded")):
        return QueueFull(f"{where} is busy ({shown}){text}", retry_after_s=retry_after_s or DEFAULT_RETRY_S)
    if status == 499 or said.code == "request_cancelled":
        return RequestCancelled(f"{where} says that the request was cancelled{text}")
    if status == 404:
        return EngineFailed(f"{where} does not have {description.model} any more ({shown}){text}")
    if status == 413:
        return RequestTooLarge(said.message or f"{where} takes no request of this size")
    if status in (400, 422) or (status is None and said.type == "invalid_request_error"):
        message = said.message or f"{where} refuses this request without a reason"
        kind = UnsupportedParameter if said.code == "unsupported_parameter" else InvalidRequest
        return kind(message, param=said.param)
    if (status is not None and status >= 500) or said.code == "engine_unavailable":
        return EngineUnavailable(
            f"{where} failed ({shown}){text}", retry_after_s=retry_after_s or DEFAULT_RETRY_S
        )
    return EngineFailed(f"{where} answered with {shown}{text}")


def is_too_long(said: Said) -> bool:
    """The prompt, or prompt and `max_tokens` together, are over the upstream's context."""
    return said.code == "context_length_exceeded" or bool(_TOO_LONG.search(said.message) or _TOO_LONG.search(said.type))


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After, a number or a date; None: there is none."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "an unknown status"


def _shown(text: str, key: Key) -> str:
    text = key.hide(" ".join(text.split()))
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
