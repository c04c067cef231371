"""`/openapi.json`, and `/docs`: a page that shows it and can try it out, without asking any other server.

Floor 5; on the waitress thread of the request. The page is Swagger UI, out of the files of the installed package
swagger-ui-py; only those that the page needs are served. The document is made when somebody asks for it first, and encoded
once. `/docs` itself is the same for everybody and open without a key; the document is not, so the page asks for the key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import falcon
import msgspec

from hostler.errors import InternalError, RouteNotFound

if TYPE_CHECKING:
    from hostler.api.routes import Route

HTML, SCRIPT, STYLE, PNG = "text/html; charset=utf-8", "text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/png"
FILES = {
    "swagger-ui-bundle.js": SCRIPT,
    "swagger-ui-standalone-preset.js": SCRIPT,
    "swagger-ui.css": STYLE,
    "favicon-16x16.png": PNG,
    "favicon-32x32.png": PNG,
}
"""Of Swagger UI's folder: file -> content type."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy. Nothing comes from elsewhere, nothing goes elsewhere, no page may frame this one and have its
visitor press a button. Swagger UI writes `style` attributes, so these are allowed; scripts inside the page are not."""
MAX_AGE_S = 3600

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hostler API</title>
<link rel="icon" type="image/png" sizes="32x32" href="/docs/favicon-32x32.png">
<link rel="icon" type="image/png" sizes="16x16" href="/docs/favicon-16x16.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<noscript><p>This page needs JavaScript. The document itself is at <a href="/openapi.json">/openapi.json</a>.</p></noscript>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/swagger-ui-standalone-preset.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
START = """\
"use strict";
// With a key set, the server wants it for the document and for every request that is tried out.
let key = "";
const withKey = (headers) => (key ? { ...headers, Authorization: "Bearer " + key } : headers);
const load = async () => {
  let answer = await fetch("/openapi.json");
  while (answer.status === 401) {
    key = window.prompt("This server wants an API key") || "";
    if (!key) break;
    answer = await fetch("/openapi.json", { headers: withKey({}) });
  }
  const spec = await answer.json();
  if (!answer.ok) throw new Error(spec.message);
  window.ui = SwaggerUIBundle({
    spec,
    dom_id: "#swagger-ui",
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    persistAuthorization: false,
    validatorUrl: null,
    layout: "BaseLayout",
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    requestInterceptor: (request) => ({ ...request, headers: withKey(request.headers) }),
  });
};
load().catch((error) => {
  document.getElementById("swagger-ui").textContent = "The document could not be loaded: " + error.message;
});
"""


class Content(NamedTuple):
    """Something that is served as it is."""

    data: bytes
    content_type: str
    etag: str


def _content(data: bytes, content_type: str) -> Content:
    return Content(data, content_type, hashlib.sha256(data).hexdigest()[:32])


class Docs:
    """The document and the page."""

    def __init__(self, needs_key: bool) -> None:
        """Make nothing yet.

        Args:
            needs_key: Whether the server has keys; the document says so.
        """
        self._needs_key = needs_key
        self._routes: Iterable[Route] = ()
        self._lock = threading.Lock()  # protects _made
        self._made: dict[str, Content] = {}

    def describe(self, routes: Iterable[Route]) -> None:
        """Take the table that the document is made of, which has the routes of this class in it."""
        self._routes = routes

    def document(self, req: falcon.Request, resp: falcon.Response) -> None:
        """/openapi.json."""
        _send(req, resp, self._once("openapi.json", self._make_document), max_age_s=0)

    def page(self, req: falcon.Request, resp: falcon.Response) -> None:
        """/docs."""
        resp.set_header("content-security-policy", POLICY)
        resp.set_header("referrer-policy", "no-referrer")
        _send(req, resp, self._once("page", lambda: _content(PAGE.encode(), HTML)), max_age_s=0)

    def file(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """/docs/{name}."""
        if name == "start.js":
            content = self._once(name, lambda: _content(START.encode(), SCRIPT))
        elif name in FILES:
            # Not kept: a browser asks once an hour at most, and 1.5 MB would stay in memory for ever.
            content = _content(_swagger_file(name).read_bytes(), FILES[name])
        else:
            raise RouteNotFound(f"/docs has no file {name}")
        _send(req, resp, content, max_age_s=MAX_AGE_S)

    def _once(self, name: str, make: Callable[[], Content]) -> Content:
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    def _make_document(self) -> Content:
        from hostler.api.openapi import make_document  # late: most servers are never asked

        document: dict[str, Any] = make_document(self._routes, needs_key=self._needs_key)
        return _content(msgspec.json.encode(document), falcon.MEDIA_JSON)


def _send(req: falcon.Request, resp: falcon.Response, content: Content, max_age_s: int) -> None:
    resp.etag = content.etag
    resp.set_header("cache-control", f"max-age={max_age_s}" if max_age_s else "no-cache")
    resp.set_header("x-content-type-options", "nosniff")
    if content.etag in (req.if_none_match or ()):
        resp.status = falcon.HTTP_304
        return
    resp.content_type = content.content_type
    resp.data = content.data


def _swagger_file(name: str) -> Path:
    """A file of the installed package, found without importing it: its code is for other web frameworks."""
    found = importlib.util.find_spec("swagger_ui")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder, "static", name)
        if path.is_file():
            return path
    raise InternalError("The page's files are missing: install swagger-ui-py, which hostler depends on")
