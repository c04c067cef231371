"""Routes of plugins: requests below a plugin's prefix are handed to its WSGI application, and its answer to the client.

Floor 5; on the waitress thread of the request. Before the plugin hears of a request it has passed the gate like any other:
Host, Origin, key, request id; after it there is a line in the log. Which plugins there are is asked at each request, for they
can change while the server runs. What a plugin raises becomes an error in the API's form that names the plugin.

`_lock` protects the table; each Mount's own lock its application, which is made by the first request.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import falcon

from hostler.errors import HostlerError, PluginError
from hostler.mounts import RoutesContext, RoutesSpec, WsgiApp, is_below

if TYPE_CHECKING:
    from pathlib import Path

    from hostler.plugins import Plugins
    from hostler.runtime import Runtime

log = logging.getLogger("hostler.api")

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "x-request-id"}
)
"""Headers that are this server's to say."""
BODILESS = (204, 304)
UNKNOWN = "application/octet-stream"


class Mounts:
    """All routes of plugins."""

    def __init__(self, runtime: Runtime, home: Path) -> None:
        self._runtime = runtime
        self._home = home
        self._lock = threading.Lock()
        self._plugins: Plugins | None = None
        """Those that the table was made of."""
        self._mounts: dict[str, Mount] = {}
        self.api: WsgiApp | None = None
        """The whole application; set once, before the first request."""

    def open_prefixes(self) -> Iterable[str]:
        """Where no key is needed."""
        return [prefix for prefix, mount in self._table().items() if mount.spec.is_open]

    def serve(self, req: falcon.Request, resp: falcon.Response, **groups: Any) -> None:
        """Answer a request that hostler's own routes do not know.

        Raises:
            falcon.HTTPRouteNotFound: No plugin's do either.
            QueueFull: Everything that may hold a thread does.
        """
        del groups  # the sink's pattern has none
        mount = next((mount for prefix, mount in self._table().items() if is_below(req.path, prefix)), None)
        if mount is None:
            raise falcon.HTTPRouteNotFound
        with contextlib.ExitStack() as held:
            if not mount.is_builtin:
                # A stranger's code may take as long as it likes: it must not take the threads that answer health.
                held.enter_context(self._runtime.hold(f"plugin {mount.plugin}"))
            Answer(mount, req).give(resp, held.pop_all())

    def _table(self) -> dict[str, Mount]:
        plugins = self._runtime.plugins
        with self._lock:
            if plugins is not self._plugins:
                assert self.api is not None
                before, self._mounts = self._mounts, {}
                for prefix, (plugin, spec) in plugins.routes.items():
                    old = before.get(prefix)
                    is_same = old is not None and old.spec == spec and old.origin is plugins.manager.get_plugin(plugin)
                    context = RoutesContext(prefix, self._home, self.api)
                    self._mounts[prefix] = old if old is not None and is_same else Mount(plugins, plugin, spec, context)
                self._plugins = plugins
            return self._mounts


class Mount:
    """One plugin's application."""

    def __init__(self, plugins: Plugins, plugin: str, spec: RoutesSpec, context: RoutesContext) -> None:
        self.plugin = plugin
        self.spec = spec
        self.origin: object = plugins.manager.get_plugin(plugin)
        """The plugin itself; another one means that it was loaded anew."""
        self.is_builtin = any(info.name == plugin and info.is_builtin for info in plugins.infos)
        self._context = context
        self._lock = threading.Lock()
        self._app: WsgiApp | None = None

    @property
    def app(self) -> WsgiApp:
        """The application, made once."""
        with self._lock:
            if self._app is None:
                module, _, name = self.spec.app.partition(":")
                self._app = getattr(importlib.import_module(module), name)(self._context)
            return self._app


class Answer:
    """One request to a plugin, and what it says. Source: PEP 3333 for who calls what in which order."""

    def __init__(self, mount: Mount, req: falcon.Request) -> None:
        self._mount = mount
        self._req = req
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._written: list[bytes] = []

    def give(self, resp: falcon.Response, held: contextlib.ExitStack) -> None:
        """Ask the plugin, and make its answer the response. `held` is given back when the answer has been sent.

        Raises:
            HostlerError: The plugin raised it, or a PluginError: something else went wrong in it.
        """
        try:
            with self._explained():
                chunks = self._mount.app(self._environ(), self._start_response)
                close: Callable[[], None] | None = getattr(chunks, "close", None)
                if close is not None:
                    held.callback(close)
                iterator = iter(chunks)
                # The first piece belongs to the head: an application may begin its answer as late as that.
                first = next(iterator, b"")
                if not self._status:
                    raise RuntimeError("the application did not call start_response")
                self._written.append(first)
                self._take_head(resp)
        except BaseException:
            held.close()
            raise
        if self._req.method == "HEAD" or falcon.http_status_to_code(resp.status) in BODILESS:
            held.close()
            return
        resp.stream = Body(self._written, iterator, held, self._mount.plugin, self._req.context.request_id)

    def _environ(self) -> dict[str, Any]:
        prefix = self._mount.spec.prefix
        environ = dict(self._req.env)
        environ["SCRIPT_NAME"] = f"{environ.get('SCRIPT_NAME', '')}{prefix}"
        environ["PATH_INFO"] = self._req.path[len(prefix) :].encode().decode("latin-1")  # as PEP 3333 wants it
        return environ

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable[[bytes], None]:
        if self._status and exc_info is None:
            raise RuntimeError("start_response was called twice")
        self._status, self._headers = status, list(headers)
        return self._written.append

    def _take_head(self, resp: falcon.Response) -> None:
        resp.status = self._status
        if falcon.http_status_to_code(self._status) not in BODILESS:
            resp.content_type = UNKNOWN  # for want of a better word; falcon would say JSON
        for name, value in self._headers:
            lower = name.lower()
            if lower == "content-type":
                resp.content_type = value
            elif lower not in HOP_BY_HOP:
                resp.append_header(lower, value)
        if self._mount.spec.is_open and not resp.get_header("content-security-policy"):
            resp.set_header("x-frame-options", "DENY")  # other sites may lead here, so they must not put it into a frame

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except HostlerError:
            raise
        except Exception as error:
            request_id, plugin = self._req.context.request_id, self._mount.plugin
            log.error(
                "plugin %r failed on %s %s (%s)", plugin, self._req.method, self._req.path, request_id,
                exc_info=error, extra={"request_id": request_id},
            )  # fmt: skip
            raise PluginError(
                f"The plugin {plugin} failed on this request; the server's log has the reason under {request_id}"
            ) from error


class Body:
    """The body as the plugin gives it; the server closes it."""

    def __init__(
        self, begun: list[bytes], rest: Iterator[bytes], held: contextlib.ExitStack, plugin: str, request_id: str
    ) -> None:
        self._begun = [piece for piece in begun if piece]
        self._rest = rest
        self._held = held
        self._plugin = plugin
        self._request_id = request_id

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._begun:
            return self._begun.pop(0)
        try:
            return next(self._rest)
        except StopIteration:
            raise
        except Exception:
            # Its status has gone out: all that is left is to end the connection, as the server does when this is raised.
            log.error("plugin %r broke off the answer to %s", self._plugin, self._request_id)
            raise

    def close(self) -> None:
        """Tell the plugin that it is over, and give the place back."""
        self._held.close()
