"""What is being generated now, and how to end it: `/v1/requests`. Floor 5; on the waitress thread of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon

from hostler.api import shapes
from hostler.api.schema.server_answers import RequestCancelled

if TYPE_CHECKING:
    from hostler.runtime import Runtime


class Requests:
    """Generations that are queued, in prefill or in decode."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def list_all(self, req: falcon.Request, resp: falcon.Response) -> None:
        """All of them, the oldest first."""
        del req
        resp.media = shapes.whole([shapes.request_item(view) for view in self._runtime.requests()])

    def cancel(self, req: falcon.Request, resp: falcon.Response, request_id: str) -> None:
        """Cancel one: it ends before the engine's next step, and its client gets an error."""
        del req
        self._runtime.cancel_request(request_id)
        resp.media = RequestCancelled(request_id)
