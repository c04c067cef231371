"""Whether the server lives, whether it takes work, and where to look next. Floor 5; never blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon

from hostler import __version__
from hostler.api.schema.server_answers import Health as HealthAnswer
from hostler.api.schema.server_answers import Index
from hostler.errors import EngineUnavailable

if TYPE_CHECKING:
    from hostler.runtime import Runtime

DOCUMENTATION = "https://github.com/hostler/hostler/tree/main/docs"


class Health:
    """The routes that tell of the server itself."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def alive(self, req: falcon.Request, resp: falcon.Response) -> None:
        """200 as long as the process answers at all; open without a key."""
        del req
        resp.media = HealthAnswer("ok", __version__)

    def ready(self, req: falcon.Request, resp: falcon.Response) -> None:
        """200 while requests are accepted, models loaded or not; 503 while draining."""
        del req
        if not self._runtime.is_ready:
            raise EngineUnavailable("hostler is stopping and takes no new requests", retry_after_s=1.0)
        resp.media = HealthAnswer("ready", __version__)

    def index(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Where to look: JSON for programs; a browser is sent on to the page that shows the whole API, if it is there."""
        resp.vary = ["Accept"]
        if _is_browser(req) and "/docs" in self._runtime.plugins.routes:
            resp.status = falcon.HTTP_302
            resp.location = "/docs"
            return
        resp.media = Index(
            name="hostler",
            version=__version__,
            documentation=DOCUMENTATION,
            api="/v1",
            openapi="/openapi.json",
            docs="/docs",
            try_=["GET /v1/models", "POST /v1/chat/completions", "GET /v1/requests", "GET /healthz", "GET /readyz"],
        )


def _is_browser(req: falcon.Request) -> bool:
    """Browsers name HTML when they open an address; programs ask for JSON or for anything."""
    return "text/html" in req.accept.lower()
