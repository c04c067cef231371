"""One table from hostler's errors to HTTP, and the one form in which every error leaves the server.

Floor 5; used by the waitress thread that answers. Source: spec/API.md section 3. Nothing here knows a route; what differs
by route (a model without files is 409 for a start, 404 for inference) is a second column of the table.
"""

from __future__ import annotations

import http
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import falcon
import msgspec

from hostler import errors
from hostler.api.schema.server_answers import ErrorDetail, ErrorResponse
from hostler.errors import HostlerError

log = logging.getLogger("hostler.api")

INVALID_REQUEST = "invalid_request_error"
PERMISSION = "permission_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"

REASONS = {499: "Client Closed Request"}
"""Reason phrases that the standard library does not have."""


class Row(NamedTuple):
    """What becomes of one class of errors."""

    status: int
    type: str
    is_final: bool = False
    """The same request would fail again: the answer carries `x-should-retry: false`, which OpenAI's clients obey."""
    inference_status: int | None = None
    """Status where a model answers, when it differs."""
    default_retry_after_s: float | None = None
    """Sent as Retry-After when the error names no time itself."""


TABLE: dict[type[HostlerError], Row] = {
    errors.InvalidRequest: Row(400, INVALID_REQUEST),
    errors.InvalidJson: Row(400, INVALID_REQUEST),
    errors.MissingParameter: Row(400, INVALID_REQUEST),
    errors.UnsupportedParameter: Row(400, INVALID_REQUEST),
    errors.ContextLengthExceeded: Row(400, INVALID_REQUEST),
    errors.EmbeddingsDisabled: Row(400, INVALID_REQUEST),
    errors.RequestTooLarge: Row(413, INVALID_REQUEST),
    errors.AccessDenied: Row(403, PERMISSION),
    errors.InvalidApiKey: Row(401, INVALID_REQUEST),
    errors.HostNotAllowed: Row(403, PERMISSION),
    errors.OriginNotAllowed: Row(403, PERMISSION),
    errors.CommandLineOnly: Row(403, PERMISSION),
    errors.NotFound: Row(404, INVALID_REQUEST),
    errors.ModelNotFound: Row(404, INVALID_REQUEST),
    errors.EngineNotFound: Row(404, INVALID_REQUEST),
    errors.RequestNotFound: Row(404, INVALID_REQUEST),
    errors.RouteNotFound: Row(404, INVALID_REQUEST),
    errors.ThreadNotFound: Row(404, INVALID_REQUEST),
    errors.MessageNotFound: Row(404, INVALID_REQUEST),
    errors.AssistantNotFound: Row(404, INVALID_REQUEST),
    errors.UploadNotFound: Row(404, INVALID_REQUEST),
    errors.RunNotFound: Row(404, INVALID_REQUEST),
    errors.StepNotFound: Row(404, INVALID_REQUEST),
    errors.WebhookNotFound: Row(404, INVALID_REQUEST),
    errors.MethodNotAllowed: Row(405, INVALID_REQUEST),
    # OpenAI's clients retry a 409 unless told not to; none of ours goes away by itself.
    errors.Conflict: Row(409, INVALID_REQUEST, is_final=True),
    errors.ModelExists: Row(409, INVALID_REQUEST, is_final=True),
    errors.ModelNotDownloaded: Row(409, INVALID_REQUEST, is_final=True, inference_status=404),
    errors.HomeInUse: Row(409, INVALID_REQUEST, is_final=True),
    errors.RecordExists: Row(409, INVALID_REQUEST, is_final=True),
    errors.DefaultAssistant: Row(409, INVALID_REQUEST, is_final=True),
    errors.RunInProgress: Row(409, INVALID_REQUEST, is_final=True),
    errors.ConfiguredWebhook: Row(409, INVALID_REQUEST, is_final=True),
    errors.StartCancelled: Row(409, INVALID_REQUEST, is_final=True),
    errors.QueueFull: Row(429, RATE_LIMIT, default_retry_after_s=1.0),
    # No standard status says "somebody cancelled it"; nginx's 499 is the field's habit, and no client retries it.
    errors.RequestCancelled: Row(499, INVALID_REQUEST, is_final=True),
    errors.InvalidModelFile: Row(500, SERVER, is_final=True),
    errors.ModelLoadFailed: Row(500, SERVER, is_final=True),
    errors.EngineFailed: Row(500, SERVER),
    errors.PluginError: Row(500, SERVER, is_final=True),
    errors.ConfigError: Row(500, SERVER, is_final=True),
    errors.InternalError: Row(500, SERVER),
    errors.NotImplementedHere: Row(501, SERVER, is_final=True),
    errors.DownloadFailed: Row(502, SERVER),
    errors.EngineUnavailable: Row(503, SERVER, default_retry_after_s=1.0),
    errors.StorageUnavailable: Row(503, SERVER),
    errors.StartTimeout: Row(504, SERVER),
    errors.InsufficientMemory: Row(507, SERVER, is_final=True),
    errors.InsufficientStorage: Row(507, SERVER, is_final=True),
    HostlerError: Row(500, SERVER),
}


def row_of(error: HostlerError) -> Row:
    """The row of the error's class, or of its nearest ancestor that has one."""
    for kind in type(error).__mro__:
        row = TABLE.get(kind)
        if row is not None:
            return row
    return TABLE[HostlerError]


def error_body(error: HostlerError) -> ErrorResponse:
    """What every error looks like; `message` is there twice, for OpenAI's clients and for Cortex's."""
    return ErrorResponse(ErrorDetail(error.message, row_of(error).type, error.param, error.code), error.message)


def status_line(status: int) -> str:
    """`404 Not Found`."""
    return f"{status} {REASONS.get(status) or http.HTTPStatus(status).phrase}"


def error_headers(error: HostlerError) -> Iterator[tuple[str, str]]:
    """Headers beside the body."""
    row = row_of(error)
    seconds = error.retry_after_s if error.retry_after_s is not None else row.default_retry_after_s
    if seconds is not None:
        yield "retry-after", str(max(1, math.ceil(seconds)))
    if row.is_final:
        yield "x-should-retry", "false"
    if isinstance(error, errors.InvalidApiKey):
        yield "www-authenticate", "Bearer"


def respond(req: falcon.Request, resp: falcon.Response, error: HostlerError) -> None:
    """Make the error the answer."""
    row = row_of(error)
    is_inference = getattr(req.context, "is_inference", False)
    status = row.inference_status if is_inference and row.inference_status is not None else row.status
    resp.status = status_line(status)
    resp.content_type = falcon.MEDIA_JSON
    resp.data = msgspec.json.encode(error_body(error))
    for name, value in error_headers(error):
        resp.set_header(name, value)
    req.context.error_code = error.code


def error_frame(error: Exception, request_id: str) -> bytes:
    """The error as a frame of a stream that has begun; nothing may follow it, `[DONE]` least of all."""
    return b"data: " + msgspec.json.encode(error_body(as_hostler_error(error, request_id))) + b"\n\n"


def as_hostler_error(error: Exception, request_id: str) -> HostlerError:
    """Errors raised on purpose pass; anything else is a bug: its traceback goes to the log, its text to nobody."""
    if isinstance(error, HostlerError):
        return error
    log.error("request %s failed with a bug of hostler", request_id, exc_info=error, extra={"request_id": request_id})
    return errors.InternalError(f"hostler failed on this request; the server's log has the reason under {request_id}")


# -- handlers for falcon ------------------------------------------------------------------------------------------------


def handle_hostler_error(req: falcon.Request, resp: falcon.Response, error: HostlerError, params: dict[str, Any]) -> None:
    """Errors raised on purpose."""
    del params
    respond(req, resp, error)


def handle_http_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, params: dict[str, Any]) -> None:
    """What falcon itself refuses: no such path, no such method, a broken header."""
    del params
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    respond(req, resp, _translated(req, error))


def _translated(req: falcon.Request, error: falcon.HTTPError) -> HostlerError:
    status = falcon.http_status_to_code(error.status)
    if status == 404:
        return errors.RouteNotFound(f"There is nothing at {req.method} {req.path}; GET / lists where to look")
    if status == 405:
        return errors.MethodNotAllowed(f"{req.path} does not take {req.method}; the Allow header lists what it takes")
    if status >= 500:
        return errors.InternalError(error.description or error.title or "hostler failed on this request")
    return errors.InvalidRequest(error.description or error.title or "The request is not valid HTTP")


def handle_bug(req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    """Everything nobody expected."""
    del params
    respond(req, resp, as_hostler_error(error, req.context.request_id))
