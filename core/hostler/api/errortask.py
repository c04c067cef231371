"""What waitress answers by itself (a body over the limit, a broken request line, a bug before the first byte), in hostler's
error form.

Floor 5; a waitress thread runs it, in place of waitress's own plain-text task. It sees a parsed request at most, never the
app. Used by `server.py` as `error_task_class` of its channels.
"""

from __future__ import annotations

import http
import secrets
from typing import Any

import msgspec
from waitress.task import ErrorTask

from hostler.api.bodylimits import BodyLimit
from hostler.api.errors import error_body, error_headers, row_of
from hostler.errors import HostlerError, InternalError, InvalidRequest, NotImplementedHere, RequestTooLarge

BODY_TOO_LARGE = 413
HEADERS_TOO_LARGE = 431
NOT_IMPLEMENTED = 501


class JsonErrorTask(ErrorTask):  # type: ignore[misc]  # waitress ships no types
    """Answers a request that the app never sees."""

    def execute(self) -> None:
        """Write the whole answer and close: what is left of the request is not read."""
        refusal = self.request.error
        error = _translated(refusal, self.request.body_limit)
        body = msgspec.json.encode(error_body(error))
        # Too large a header keeps its own status: 413 speaks of bodies.
        status = HEADERS_TOO_LARGE if refusal.code == HEADERS_TOO_LARGE else row_of(error).status
        self.status = f"{status} {http.HTTPStatus(status).phrase}"
        self.response_headers.extend(
            [("Content-Type", "application/json"), ("x-request-id", f"req_{secrets.token_hex(12)}"), *error_headers(error)]
        )
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


def _translated(refusal: Any, limit: BodyLimit | None) -> HostlerError:
    if refusal.code == BODY_TOO_LARGE and limit is not None:
        return limit.refusal
    if refusal.code == HEADERS_TOO_LARGE:
        return RequestTooLarge("The request's headers are too large; shorten the URL or send fewer headers")
    if refusal.code == NOT_IMPLEMENTED:
        return NotImplementedHere(f"The request cannot be read: {refusal.body}")
    if refusal.code >= 500:
        return InternalError("hostler failed on this request; the server's log has the reason")
    return InvalidRequest(f"The request is not valid HTTP: {refusal.body}")
