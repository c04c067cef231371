"""An upstream that answers by script: a real HTTP server on a free port of this machine, with bad manners on demand."""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0
MODEL = "far-model"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4}}

Manner = Callable[["Exchange"], None]
"""Answers one request."""


class Exchange:
    """One request and the way to answer it. Its server thread only."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes, go_on: threading.Event) -> None:
        self.method = handler.command
        self.path = handler.path
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body: dict[str, Any] = json.loads(body) if body else {}
        self.go_on = go_on
        """Set at the end of the test, so that nothing hangs beyond it."""
        self.has_hung_up = threading.Event()
        """The client closed the connection while it was watched."""
        self._handler = handler

    def answer(self, status: int, body: Any, **headers: str) -> None:
        """A whole answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._handler.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.send_header("content-length", str(len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def begin(self, *, length: int | None = None) -> None:
        """The head of a stream, whose end is the connection's; with a length that it does not reach, it broke off."""
        self._handler.send_response(200)
        self._handler.send_header("content-type", "text/event-stream")
        if length is not None:
            self._handler.send_header("content-length", str(length))
        self._handler.send_header("connection", "close")
        self._handler.end_headers()
        self._handler.close_connection = True

    def write(self, data: bytes) -> None:
        """Bytes of a body, at once."""
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def event(self, data: Any) -> None:
        """One event of a stream."""
        self.write(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n")

    def text(self, text: str, **more: Any) -> None:
        """A chunk with text, of a chat or a completion."""
        what = {"delta": {"content": text}} if self.path.endswith("/chat/completions") else {"text": text}
        self.event({"choices": [{"index": 0, **what, "finish_reason": None, **more}]})

    def finish(self, reason: str = "stop", usage: dict[str, Any] | None = USAGE, *, is_done: bool = True) -> None:
        """The end of a stream."""
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if usage is not None:
            self.event({"choices": [], "usage": usage})
        if is_done:
            self.event(b"[DONE]")

    def reset(self) -> None:
        """Break the connection off, as a dying process does."""
        connection = self._handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        self._handler.close_connection = True

    def wait_for_hang_up(self) -> bool:
        """Say nothing until the client leaves; False: it stayed to the end of the test."""
        while not self.go_on.is_set():
            ready, _, _ = select.select([self._handler.connection], [], [], 0.02)
            if ready and self._handler.connection.recv(1, socket.MSG_PEEK) == b"":
                self.has_hung_up.set()
                self._handler.close_connection = True
                return True
        self._handler.close_connection = True
        return False


def say(*texts: str, reason: str = "stop", usage: dict[str, Any] | None = USAGE) -> Manner:
    """Answer well, one chunk a text."""

    def manner(exchange: Exchange) -> None:
        exchange.begin()
        for text in texts:
            exchange.text(text)
        exchange.finish(reason, usage)

    return manner


def refuse(status: int, message: str = "no", code: Any = None, **headers: str) -> Manner:
    """Answer with an error in OpenAI's form."""
    return lambda exchange: exchange.answer(
        status, {"error": {"message": message, "type": "some_error", "param": None, "code": code}}, **headers
    )


class ScriptedUpstream:
    """Use it in a `with` block."""

    def __init__(self, *, host: str = "127.0.0.1", tls: Path | None = None) -> None:
        """Nothing is answered yet.

        Args:
            tls: Key and certificate to speak TLS with.
        """
        self.script: deque[Manner] = deque()
        """How the next POSTs are answered; then `manner`."""
        self.manner: Manner = say("Hello", " there", ".")
        self.on_get: Manner | None = None
        """How GETs are answered; None: with a list of one model."""
        self.models: list[dict[str, Any]] = [{"id": MODEL, "object": "model"}]
        self.got: list[Exchange] = []
        """POSTs in the order they came."""
        self.go_on = threading.Event()
        self._changed = threading.Condition()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                exchange = Exchange(self, b"", upstream.go_on)
                if upstream.on_get is not None:
                    upstream.on_get(exchange)
                elif self.path.endswith("/models"):
                    exchange.answer(200, {"object": "list", "data": upstream.models})
                else:
                    exchange.answer(404, {"error": {"message": "no such thing", "code": None}})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                exchange = Exchange(self, body, upstream.go_on)
                with upstream._changed:
                    upstream.got.append(exchange)
                    manner = upstream.script.popleft() if upstream.script else upstream.manner
                    upstream._changed.notify_all()
                manner(exchange)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], OSError):  # a client that has left is what tests are about
                    super().handle_error(request, client_address)

        self._server = Server((host, 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"http{'' if tls is None else 's'}://{host}:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def wait_for(self, n: int) -> Exchange:
        """The n-th POST, from 1, as soon as it has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.got) >= n, DEADLINE_S), f"{len(self.got)} of {n} requests came"
            return self.got[n - 1]

    def __enter__(self) -> ScriptedUpstream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)
