"""A webhook's receiver: a real HTTP server on a free port of 127.0.0.1 that remembers what it got and has bad manners on
demand."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

DEADLINE_S = 30.0


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """Its webhook-id."""
        return self.headers["webhook-id"]

    @property
    def event(self) -> str:
        """Its name."""
        return self.headers["x-hostler-event"]

    @property
    def json(self) -> dict[str, Any]:
        """Its body."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    def verify(self, secret: str | bytes) -> Any:
        """The body, if the signature is good."""
        return Webhook(secret).verify(self.body, self.headers)


class Receiver:
    """Use it in a `with` block; `manners` says how each request is answered."""

    def __init__(self) -> None:
        self.got: list[Received] = []
        """What arrived, in that order."""
        self.manners: Callable[[Received], int | str] = lambda request: 204
        """A status; or `hang`, `drip` (a byte of the head now and then, for ever), `endless` (a 200 whose body does not
        end), `cut` (no answer), `redirect`."""
        self.go_on = threading.Event()
        """Ends what hangs."""
        self.arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if len(body) < int(self.headers["content-length"]):
                    self.close_connection = True  # the sender died
                    return
                request = Received(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
                with receiver.arrived:
                    receiver.got.append(request)
                    receiver.arrived.notify_all()
                try:
                    receiver.answer(self, receiver.manners(request))
                except ConnectionError:
                    self.close_connection = True

            def do_GET(self) -> None:
                raise AssertionError("a redirect was followed")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    super().handle_error(request, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def answer(self, handler: BaseHTTPRequestHandler, manner: int | str) -> None:
        if manner == "hang":
            assert self.go_on.wait(DEADLINE_S)
            manner = 204
        if manner == "cut":
            handler.close_connection = True
            return
        if manner == "drip":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.go_on.wait(0.02):
                handler.wfile.write(b"x")
            handler.close_connection = True
            return
        if manner == "endless":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            while not self.go_on.wait(0.02):
                handler.wfile.write(b"x")
            handler.close_connection = True
            return
        text = b"" if manner == 204 else b"thank you"
        handler.send_response(307 if manner == "redirect" else int(manner))
        if manner == "redirect":
            handler.send_header("location", f"{self.url}elsewhere")
        handler.send_header("content-length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def events(self) -> list[str]:
        """Names of what arrived."""
        return [request.event for request in list(self.got)]

    def wait_for(self, count: int) -> list[Received]:
        """Wait until so many requests have arrived, and give them."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, DEADLINE_S), f"only {self.events} arrived"
            return list(self.got)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)
