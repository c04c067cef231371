"""The WSGI app: the route table on falcon, what happens before and after each request, and the error form.

Floor 5; one app a process, called by every waitress thread at once, immutable after `create_app`. It knows no engine; all it
asks goes to the runtime.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import falcon
import falcon.media
import msgspec

from hostler import typeinfo
from hostler.api import errors
from hostler.api.access import Access, cors_headers, is_preflight, preflight_headers
from hostler.api.answers import KEEP_ALIVE_S
from hostler.api.log import log_request
from hostler.api.mounts import Mounts
from hostler.api.paths import normalised_path, split_action
from hostler.api.routes import Responder, Route, make_routes
from hostler.config import Settings
from hostler.errors import HostlerError, NotImplementedHere
from hostler.library.names import ACTION_SEGMENTS

if TYPE_CHECKING:
    from hostler.runtime import Runtime

GREEDY = "{model_id}"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

App = falcon.App[falcon.Request, falcon.Response]


def create_app(
    runtime: Runtime, settings: Settings, *, cli_token: str | None = None, keep_alive_s: float = KEEP_ALIVE_S
) -> App:
    """Build the app.

    Args:
        runtime: What it asks.
        settings: Of the server: access, limits, default model.
        cli_token: What the CLI of this home sends as its key; it may also use file: sources.
        keep_alive_s: Silence after which a stream gets a comment; shortened in tests.
    """
    mounts = Mounts(runtime, settings.home)
    gate = Gate(Access(settings, cli_token, mounts.open_prefixes), settings)
    app: App = falcon.App(middleware=[gate], independent_middleware=True)
    mounts.api = app
    json_handler = falcon.media.JSONHandler(dumps=msgspec.json.encode)
    app.resp_options.media_handlers[falcon.MEDIA_JSON] = json_handler
    app.add_error_handler(Exception, errors.handle_bug)
    app.add_error_handler(falcon.HTTPError, errors.handle_http_error)
    app.add_error_handler(HostlerError, errors.handle_hostler_error)
    for template, resource in make_resources(make_routes(runtime, settings, keep_alive_s)):
        app.add_route(template, resource)
    app.add_sink(mounts.serve)  # whatever none of these takes
    typeinfo.build()  # before waitress's threads decode bodies
    return app


class Gate:
    """Before each request: its id, its path, who asks and from where. After it: the log line."""

    def __init__(self, access: Access, settings: Settings) -> None:
        self._access = access
        self._max_body_bytes: int = settings.max_body_bytes

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Let the request in, or raise."""
        context = req.context
        context.request_id = f"req_{secrets.token_hex(12)}"
        context.accepted_at = time.monotonic()
        context.max_body_bytes = self._max_body_bytes
        context.is_from_cli = False
        context.is_inference = False
        context.has_own_line = False
        context.error_code = None
        resp.set_header("x-request-id", context.request_id)
        req.path = normalised_path(req.path)
        self._access.check_host(req.env)
        origin = self._access.check_origin(req.env, req.path)
        if origin is not None:
            _set_headers(resp, cors_headers(origin))
            if is_preflight(req.env):
                _set_headers(resp, preflight_headers(req.env))
                resp.complete = True
                return
        context.is_from_cli = self._access.check_key(req.env, req.path)

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: object, is_good: bool) -> None:
        """Write the line of a request that generated nothing; generations write their own at their end."""
        del resource, is_good
        context = req.context
        if not context.has_own_line:
            log_request(context.request_id, req.method, req.path, str(resp.status), context.accepted_at, context.error_code)


def _set_headers(resp: falcon.Response, headers: Iterable[tuple[str, str]]) -> None:
    for name, value in headers:
        resp.set_header(name, value)


# -- from the table to falcon -----------------------------------------------------------------------------------------


class Resource:
    """The rows of one path, as falcon wants them: one attribute `on_METHOD` each."""

    def __init__(self, responders: dict[str, Responder]) -> None:
        for method, responder in responders.items():
            setattr(self, f"on_{method.lower()}", responder)


def make_resources(routes: Iterable[Route]) -> list[tuple[str, Resource]]:
    """Group the rows by path; actions behind a model id go to the resource of the id, which splits them off."""
    plain: dict[str, dict[str, Responder]] = {}
    greedy: dict[str, dict[str, dict[str, Responder]]] = {}
    for route in routes:
        responder = route.responder or partial(_not_implemented, route)
        base, is_greedy, action = route.path.partition(GREEDY)
        table = plain.setdefault(route.path, {})
        if is_greedy:
            del plain[route.path]
            table = greedy.setdefault(base, {}).setdefault(action.lstrip("/"), {})
        table[route.method] = responder
        if route.method == "GET":
            table.setdefault("HEAD", responder)  # falcon drops the body
    made = [(path, Resource(table)) for path, table in plain.items()]
    for base, actions in greedy.items():
        responder = partial(_dispatch, actions)
        has_actions = actions.keys() != {""}
        methods = METHODS if has_actions else tuple(actions[""])
        made.append((f"{base}{{model_id:path}}", Resource(dict.fromkeys((*methods, "OPTIONS"), responder))))
    return made


def _dispatch(actions: dict[str, dict[str, Responder]], req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
    """The one place where a path's tail becomes a model id and an action."""
    action = ""
    if not ACTION_SEGMENTS.isdisjoint(actions):
        model_id, action = split_action(model_id)
    table = actions[action]
    responder = table.get(req.method)
    if responder is not None:
        responder(req, resp, model_id)
    elif req.method == "OPTIONS":
        resp.set_header("allow", ", ".join(sorted({*table, "OPTIONS"})))
    else:
        raise falcon.HTTPMethodNotAllowed(sorted({*table, "OPTIONS"}))


def _not_implemented(route: Route, req: falcon.Request, resp: falcon.Response, *args: Any, **params: Any) -> None:
    del req, resp, args, params
    raise NotImplementedHere(f"{route.method} {route.path} is documented, but this release of hostler does not have it yet")
