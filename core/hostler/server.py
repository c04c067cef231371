"""`hostler serve`: wires settings, plugins, runtime, API and waitress together, and takes them apart in order.

Floor 6; the host process. The main thread wires, then waits for a signal; waitress's loop runs on the thread
`hostler-http`, its handlers on `waitress-N`. Knows no route and no engine.

Start: home lock, sockets, runtime, a look at the database, app, loop, address file, URL on stdout, then records are opened,
and the models named by `--model`.
Stop: readiness goes down and new work is refused; what runs may finish for `drain_timeout_s` (second signal: at once);
the workers stop; waitress flushes and closes; the address file and the lock go last.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import hostler.logs
from hostler.config import EXTRA_THREADS, Settings
from hostler.errors import ConfigError, HostlerError
from hostler.home import HomeLock, ServerAddress, remove_address, write_address

if TYPE_CHECKING:
    from hostler.runtime import Runtime

log = logging.getLogger("hostler.server")

SEND_BUFFER_BYTES = 64 * 1024
"""What may wait for a slow client in waitress, and again in the kernel. waitress's own default is 16 MiB: a whole
answer would vanish in there before anybody noticed that nobody reads it."""

RECEIVE_BYTES = 64 * 1024
"""Read at once. PERF: with waitress's 8 KiB a file of 500 MB kept the loop, which also sends every token, busy for 1.0 s of
processor time; with this, for 0.35 s."""

IDLE_CONNECTIONS = 4
"""Connections per place in `max_requests`: keep-alive connections count for waitress, most of them idle."""

FLUSH_TIMEOUT_S = 2.0
"""For the last bytes of answers that have ended."""

POLL_S = 0.05
"""How soon the end of a shutdown is noticed."""

PORT_ATTEMPTS = 20
"""Tries to find one port that is free on 127.0.0.1 and ::1."""


def serve(settings: Settings, *, announce: Callable[[str], None] = print) -> int:
    """Serve until a signal says stop.

    Args:
        settings: All of them.
        announce: Takes the lines that tell the user where the server is.

    Returns:
        The process's exit code.

    Raises:
        HostlerError: It could not start: home in use, port taken, a bad setting. Nothing is left behind.
    """
    _refuse_open_bind(settings)
    stop = _StopSignals()
    with HomeLock(settings.home, "serve"), stop:
        hostler.logs.set_up(settings)
        sockets = open_sockets(settings.host, settings.port)
        try:
            return _serve(settings, sockets, stop, announce)
        finally:
            for listener in sockets:
                listener.close()
            remove_address(settings.home)


def _serve(settings: Settings, sockets: list[socket.socket], stop: _StopSignals, announce: Callable[[str], None]) -> int:
    from hostler.api.app import create_app
    from hostler.plugins import get_plugins
    from hostler.runtime import Runtime

    token = secrets.token_urlsafe(24)
    plugins = get_plugins(settings.home)
    runtime = Runtime(settings, plugins)
    log.debug("engines: %s", ", ".join(plugins.engines) or "none")  # asks every plugin, so that problems come out here
    for problem in plugins.problems:
        log.warning("%s", problem.message)
    http: HttpServer | None = None
    drain_timeout_s = 0.0
    try:
        runtime.records.check()
        runtime.webhooks.start()
        runtime.listeners.start(plugins.listeners)
        runtime.reloading.start()
        http = HttpServer(create_app(runtime, settings, cli_token=token), sockets, settings)
        http.start()
        url, port = url_of(sockets), sockets[0].getsockname()[1]
        write_address(settings.home, _address(url, port, token))
        announce(_welcome(settings, runtime, url))
        threading.Thread(target=_open_records, args=(runtime,), name="records", daemon=True).start()
        for name in settings.model:
            threading.Thread(target=_start_model, args=(runtime, name), name=f"start {name}", daemon=True).start()
        while not stop.wait(None):
            pass
        drain_timeout_s = settings.drain_timeout_s
        log.info("stopping: running requests have %g s to finish; a second signal ends them", drain_timeout_s)
    finally:
        _close_runtime(runtime, drain_timeout_s, stop)
        if http is not None:
            http.close()
    log.info("stopped")
    return 0


def _address(url: str, port: int, token: str) -> ServerAddress:
    from hostler import __version__

    return ServerAddress(os.getpid(), url, port, int(time.time()), token, __version__)


def _close_runtime(runtime: Runtime, drain_timeout_s: float, stop: _StopSignals) -> None:
    # On a thread of its own, so that this one can hear a second signal.
    closing = threading.Thread(target=runtime.close, args=(drain_timeout_s,), name="close")
    closing.start()
    while closing.is_alive():
        if stop.wait(POLL_S):
            runtime.hurry()
    closing.join()


def _open_records(runtime: Runtime) -> None:
    # After the announcement: loading SQLAlchemy takes longer than all the rest. A request that is faster opens them itself.
    try:
        runtime.records.open()
    except HostlerError as error:
        if runtime.is_ready:  # else it was stopped before it had begun
            log.error("records cannot be used: %s", error)


def _start_model(runtime: Runtime, name: str) -> None:
    try:
        runtime.start_model(name)
    except HostlerError as error:
        log.error("%s could not be started: %s", name, error)


class _StopSignals:
    """Hears SIGINT, SIGTERM and SIGHUP; what handled them before comes back on exit. Main thread only.

    The handlers do nothing: Python writes each signal's number into a socket, and `wait` reads it there. A handler that set
    an Event could meet the main thread inside that Event's lock and wait for itself for ever.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the next signal. False: none of ours came in time."""
        select.select([self._reader], [], [], timeout_s)
        try:
            number = self._reader.recv(1)
        except BlockingIOError:
            return False
        return bool(number) and number[0] in self._before

    def __enter__(self) -> _StopSignals:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._descriptor_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP: so do we
                self._before[number] = signal.signal(number, _ignore)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor_before)
        self._reader.close()
        self._writer.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Take a signal and leave it to the wake-up socket."""


# -- sockets ----------------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _refuse_open_bind(settings: Settings) -> None:
    if is_loopback(settings.host) or settings.api_key or settings.allow_open_bind:
        return
    raise ConfigError(
        f"host {settings.host} can be reached from other machines and no API key is set; set one with --api-key, or "
        f"say --allow-open-bind if everybody who reaches it may use it",
        param="host",
    )


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind, but do not listen yet. On loopback both 127.0.0.1 and ::1, on one port, because some clients take
    `localhost` for ::1 only; a machine without IPv6 is no error.

    Raises:
        ConfigError: The port is taken or not allowed, or the host is no address of this machine.
    """
    if host in {"localhost", "127.0.0.1", "::1", "[::1]"}:
        for _ in range(PORT_ATTEMPTS):
            first = _bind(socket.AF_INET, "127.0.0.1", port)
            try:
                second = _bind_ipv6_loopback(first.getsockname()[1])
            except ConfigError:
                first.close()
                if port == 0:
                    continue  # the free port of 127.0.0.1 is taken on ::1: take another
                raise
            return [first] if second is None else [first, second]
        raise ConfigError(f"no port is free on both 127.0.0.1 and ::1 after {PORT_ATTEMPTS} tries", param="port")
    bare = host.strip("[]")
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"host {host!r} cannot be resolved: {error.strerror}", param="host") from error
    family, _, _, _, address = found[0]
    return [_bind(family, str(address[0]), port)]


def _bind_ipv6_loopback(port: int) -> socket.socket | None:
    try:
        return _bind(socket.AF_INET6, "::1", port)
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in {
            errno.EADDRNOTAVAIL,
            errno.EAFNOSUPPORT,
            errno.EPROTONOSUPPORT,
        }:
            return None
        raise


def _bind(family: int, host: str, port: int) -> socket.socket:
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"this machine has no sockets for {host}: {error.strerror}", param="host") from error
    try:
        if sys.platform != "win32":
            # Without it a restart waits for the last connections' TIME_WAIT; on Windows two servers could share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` means every address of the machine, IPv4 too; any other IPv6 address means itself.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(_explain_bind(host, port, error), param="port") from error
    return listener


def _explain_bind(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program; choose another with --port, or --port 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights than this user has; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; choose another with --host"
    return f"port {port} on {host} cannot be used: {error.strerror}"


def url_of(sockets: list[socket.socket]) -> str:
    """The URL to tell people: of the first socket, with loopback in place of a wildcard."""
    host, port = sockets[0].getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# -- waitress ---------------------------------------------------------------------------------------------------------


class HttpServer:
    """waitress over sockets that are already bound, with its loop on a thread of its own."""

    def __init__(self, app: Any, sockets: list[socket.socket], settings: Settings) -> None:
        import waitress.channel
        import waitress.server

        from hostler.api.bodylimits import BodyLimits
        from hostler.api.errortask import JsonErrorTask
        from hostler.api.parser import LimitedParser

        class Parser(LimitedParser):
            limits = BodyLimits(settings)

        class Channel(waitress.channel.HTTPChannel):  # type: ignore[misc]  # waitress ships no types
            error_task_class = JsonErrorTask
            parser_class = Parser

        # waitress warns for each request that waits for a thread; ours are bounded by max_requests before that matters.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        connection_limit = IDLE_CONNECTIONS * settings.max_requests + 64
        _allow_descriptors(connection_limit + 256)
        self._map: dict[int, Any] = {}
        self._server = waitress.server.create_server(
            app,
            map=self._map,
            sockets=sockets,
            threads=settings.max_requests + EXTRA_THREADS,
            connection_limit=connection_limit,
            # Reads on while a request runs, so that a client who leaves is noticed.
            channel_request_lookahead=1,
            outbuf_high_watermark=SEND_BUFFER_BYTES,
            recv_bytes=RECEIVE_BYTES,
            # waitress refuses a body of exactly its limit. Uploads have their own, which the parser knows.
            max_request_body_size=Parser.limits.json.n_bytes + 1,
            clear_untrusted_proxy_headers=True,
            ident="hostler",
            # select() cannot watch descriptors above 1023.
            asyncore_use_poll=True,
            expose_tracebacks=False,
            # A client that resets its connection is everyday life and not worth a traceback.
            log_socket_errors=False,
        )
        self._listeners = [item for item in self._map.values() if isinstance(item, waitress.server.BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = Channel
        self._server.adj.socket_options = _socket_options(settings.stall_timeout_s)
        self._dispatcher = self._server.task_dispatcher
        self._is_over = False
        self._thread = threading.Thread(target=self._loop, name="hostler-http", daemon=True)

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop accepting, send what answers still hold for at most FLUSH_TIMEOUT_S, close every connection."""
        if not self._thread.is_alive():
            return
        self._listeners[0].trigger.pull_trigger(self._stop_accepting)
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(0.01)  # a poll with a deadline: waitress has no event for this
        self._dispatcher.shutdown(timeout=max(0.0, deadline - time.monotonic()))
        # On the loop's thread: set here, the loop could see it and close the trigger before it is pulled.
        try:
            self._listeners[0].trigger.pull_trigger(self._end_loop)
        except OSError:
            pass  # the loop was awake, found what it shall do before it was pulled, and has closed the trigger
        self._thread.join(FLUSH_TIMEOUT_S)

    def _channels(self) -> list[Any]:
        return [channel for listener in self._listeners for channel in list(listener.active_channels.values())]

    def _is_busy(self) -> bool:
        return any(channel.requests or channel.total_outbufs_len for channel in self._channels())

    def _stop_accepting(self) -> None:
        # On the loop's thread. The listener objects stay in the map for their triggers; only their sockets go.
        for listener in self._listeners:
            listener.accepting = False

    def _end_loop(self) -> None:
        self._is_over = True

    def _loop(self) -> None:
        from waitress import wasyncore

        while not self._is_over:
            try:
                wasyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
            except Exception:
                log.exception("waitress's loop raised; it goes on")
        wasyncore.close_all(self._map, ignore_all=True)


def _socket_options(stall_timeout_s: float) -> list[tuple[int, int, int]]:
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES),
    ]
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Linux: gives up on a peer that acknowledges nothing or keeps its window shut, which frees the thread that
        # waits for room in the send buffer. Elsewhere such a thread waits for as long as the client stays.
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout_s * 1000)))
    return options


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit on open files, as far as this user may."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        if ceiling < wanted:
            log.warning("only %d open files are allowed (ulimit -n), %d are wanted for max_requests", ceiling, wanted)


# -- what the user sees -----------------------------------------------------------------------------------------------


def _welcome(settings: Settings, runtime: Runtime, url: str) -> str:
    from hostler import __version__
    from hostler.domain import Lifecycle

    here = [view.manifest.id for view in runtime.models() if view.lifecycle is not Lifecycle.NOT_DOWNLOADED]
    lines = [f"hostler {__version__} serves {url}/v1 (home {settings.home}, pid {os.getpid()})"]
    wanted = [*settings.model, settings.default_model]
    name = _first_known(runtime, wanted, here)
    if name is None:
        lines.append(f"No model is here yet. Get one with: hostler pull {settings.default_model}")
        name = settings.default_model
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_key else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    lines += ["Try:", f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"]
    return "\n".join(lines)


def _first_known(runtime: Runtime, wanted: list[str], here: list[str]) -> str | None:
    for name in wanted:
        if not name:
            continue
        try:
            if runtime.model(name).manifest.id in here:
                return name
        except HostlerError:
            continue
    return here[0] if here else None
