"""`/docs`: a page that shows `/openapi.json` and can try it out, without asking any other server.

Floor 5; a plugin as any other, the first user of `register_routes`. The page is Swagger UI, out of the files of the installed
package swagger-ui-py; only those that the page needs are served. It is the same for everybody and open without a key; the
document is not, so the page asks for the key.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hostler.errors import InternalError, RouteNotFound
from hostler.hookspecs import hookimpl
from hostler.mounts import RoutesContext, RoutesSpec

PREFIX = "/docs"
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


@hookimpl
def register_routes() -> Iterable[RoutesSpec]:
    """One prefix."""
    return (RoutesSpec(PREFIX, "hostler.api.docspage:make_app", is_open=True),)


def make_app(context: RoutesContext) -> Callable[..., Iterable[bytes]]:
    """The application; it needs nothing of the host."""
    del context
    return answer


def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The page and its files.

    Raises:
        RouteNotFound: There is no such file.
    """
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        return _refuse(environ, start_response)
    name = environ["PATH_INFO"].strip("/")
    data, content_type, max_age_s = _content(name)
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = [
        ("etag", etag),
        ("cache-control", f"max-age={max_age_s}" if max_age_s else "no-cache"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", POLICY),
        ("referrer-policy", "no-referrer"),
    ]
    known = [tag.strip().removeprefix("W/") for tag in environ.get("HTTP_IF_NONE_MATCH", "").split(",")]
    if etag in known or "*" in known:
        start_response("304 Not Modified", headers)
        return []
    start_response("200 OK", [*headers, ("content-type", content_type), ("content-length", str(len(data)))])
    return [data]


def _refuse(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    import msgspec

    from hostler.api.errors import error_body
    from hostler.errors import MethodNotAllowed

    allow = ("allow", "GET, HEAD, OPTIONS")
    if environ["REQUEST_METHOD"] == "OPTIONS":
        start_response("200 OK", [allow, ("content-length", "0")])
        return []
    error = MethodNotAllowed(f"{PREFIX} does not take {environ['REQUEST_METHOD']}; the Allow header lists what it takes")
    start_response("405 Method Not Allowed", [allow, ("content-type", "application/json")])
    return [msgspec.json.encode(error_body(error))]


def _content(name: str) -> tuple[bytes, str, int]:
    """Bytes, content type, and for how many seconds a browser may keep them."""
    if name == "":
        return PAGE.encode(), HTML, 0
    if name == "start.js":
        return START.encode(), SCRIPT, MAX_AGE_S
    if name in FILES:
        # Not kept: a browser asks once an hour at most, and 1.5 MB would stay in memory for ever.
        return _swagger_file(name).read_bytes(), FILES[name], MAX_AGE_S
    raise RouteNotFound(f"{PREFIX} has no file {name}")


def _swagger_file(name: str) -> Path:
    """A file of the installed package, found without importing it: its code is for other web frameworks."""
    found = importlib.util.find_spec("swagger_ui")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder, "static", name)
        if path.is_file():
            return path
    raise InternalError("The page's files are missing: install swagger-ui-py, which hostler depends on")
