"""`/openapi.json`: the whole API as a document. `/docs`, the page that shows it, is a plugin: docspage.py.

Floor 5; on the waitress thread of the request. The document is made when somebody asks for it first, and encoded once.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

import falcon
import msgspec

if TYPE_CHECKING:
    from hostler.api.routes import Route


class Docs:
    """The document."""

    def __init__(self, needs_key: bool) -> None:
        """Make nothing yet.

        Args:
            needs_key: Whether the server has keys; the document says so.
        """
        self._needs_key = needs_key
        self._routes: Iterable[Route] = ()
        self._lock = threading.Lock()  # protects the two below
        self._document = b""
        self._etag = ""

    def describe(self, routes: Iterable[Route]) -> None:
        """Take the table that the document is made of, which has the route of this class in it."""
        self._routes = routes

    def document(self, req: falcon.Request, resp: falcon.Response) -> None:
        """/openapi.json."""
        document, etag = self._made()
        resp.etag = etag
        resp.set_header("cache-control", "no-cache")
        resp.set_header("x-content-type-options", "nosniff")
        if etag in (req.if_none_match or ()):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = falcon.MEDIA_JSON
        resp.data = document

    def _made(self) -> tuple[bytes, str]:
        with self._lock:
            if not self._document:
                from hostler.api.openapi import make_document  # late: most servers are never asked

                self._document = msgspec.json.encode(make_document(self._routes, needs_key=self._needs_key))
                self._etag = hashlib.sha256(self._document).hexdigest()[:32]
            return self._document, self._etag
