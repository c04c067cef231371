"""HTTP clients for OpenAI servers: many of them in one thread, cheap enough to share the server's cores.

Each client is a script: a generator that yields its next request (or a pause) and is sent the finished exchange. While the
clock runs this thread only reads sockets and notes (time, bytes); HTTP framing, SSE and JSON are taken apart afterwards
(answers.py), or when a script looks at its reply. Every request has a connection of its own (`Connection: close`): the end
of an answer is the end of the stream, on any server. Knows nothing of hostler; times are this process's monotonic clock.
"""

from __future__ import annotations

import heapq
import json
import selectors
import socket
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from answers import Pieces, Reply, parse_http, read_reply

READ_BYTES = 1 << 18


@dataclass(frozen=True)
class Address:
    """Where an OpenAI server listens: `http://127.0.0.1:8080/v1`."""

    host: str
    port: int
    path: str
    """Prefix of every route, without a trailing slash."""
    api_key: str = ""

    @staticmethod
    def parse(url: str, api_key: str = "") -> Address:
        """Read a base URL; plain http only, since TLS would be measured, too."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is no base URL such as http://127.0.0.1:1337/v1")
        return Address(parts.hostname, parts.port or 80, parts.path.rstrip("/"), api_key)

    def encode(self, method: str, route: str, body: bytes = b"") -> bytes:
        """A whole HTTP request."""
        head = [
            f"{method} {self.path}{route} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if self.api_key:
            head.append(f"Authorization: Bearer {self.api_key}")
        return ("\r\n".join(head) + "\r\n\r\n").encode() + body


@dataclass(frozen=True)
class Request:
    """One request of a client."""

    route: str
    """Behind the base URL: `/chat/completions`."""
    body: dict[str, Any]
    cut_after_s: float | None = None
    """Leave without waiting for the end, so long after sending."""


@dataclass(frozen=True)
class Pause:
    """What a script yields to do nothing for a while; it is sent None then."""

    seconds: float


@dataclass
class Exchange:
    """One request under way or done."""

    client: int
    sent_s: float
    pieces: Pieces = field(default_factory=list)
    """What each read brought."""
    ended_s: float = 0.0
    failure: str | None = None
    is_cut: bool = False
    sock: socket.socket | None = None
    _reply: Reply | None = None

    def reply(self) -> Reply:
        """The answer taken apart; once, and only when it has ended."""
        if self._reply is None:
            self._reply = read_reply(self.pieces, self.sent_s, self.ended_s, self.failure, self.is_cut)
        return self._reply


Script = Generator[Request | Pause, Exchange | None, None]


def one_after_the_other(requests: Sequence[Request]) -> Script:
    """A client that sends its next request when its last answer has ended."""
    for request in requests:  # noqa: UP028 - `yield from` would hand what is sent to the list's iterator
        yield request


def run_clients(address: Address, clients: Sequence[Sequence[Request]], timeout_s: float = 600.0) -> list[list[Reply]]:
    """Run all clients at once, each through its own list of requests; see run_scripts."""
    return run_scripts(address, [one_after_the_other(requests) for requests in clients], timeout_s=timeout_s)


def run_scripts(
    address: Address, scripts: Sequence[Script], n_background: int = 0, timeout_s: float = 600.0
) -> list[list[Reply]]:
    """Run all scripts at once until they end.

    Args:
        n_background: So many at the end of `scripts` are cut when all before them have ended.
        timeout_s: For the whole call; what is still open then comes back with an error.

    Returns:
        For each script the replies to its requests, in order; requests never sent because of the timeout are missing.
    """
    with _Loop(address, scripts) as loop:
        loop.run(len(scripts) - n_background, time.perf_counter() + timeout_s, f"no end after {timeout_s:g} s")
        return [[exchange.reply() for exchange in client] for client in loop.exchanges]


# -- while the clock runs --------------------------------------------------------------------------------------------


class _Loop:
    """One selector over all connections, and a heap of what is due later."""

    def __init__(self, address: Address, scripts: Sequence[Script]) -> None:
        self._address = address
        self._scripts = list(scripts)
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, int | Exchange]] = []
        """(when, a tie-breaker, the client whose pause ends or the exchange to cut)."""
        self._n_due = 0
        self._running: set[int] = set()
        self.exchanges: list[list[Exchange]] = [[] for _ in scripts]

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def run(self, n_foreground: int, deadline: float, said: str) -> None:
        """Until every foreground script has ended, or the deadline with `said` as the error of what is still open."""
        self._running = set(range(len(self._scripts)))
        for client in range(len(self._scripts)):
            self._advance(client, None)
        while (now_s := time.perf_counter()) < deadline and any(client < n_foreground for client in self._running):
            until_s = min(deadline, self._due[0][0]) if self._due else deadline
            for key, _ in self._selector.select(max(0.0, until_s - now_s)):
                self._read(key.data)
            while self._due and self._due[0][0] <= time.perf_counter():
                what = heapq.heappop(self._due)[2]
                if isinstance(what, int):
                    self._advance(what, None)
                elif what.sock is not None:
                    what.is_cut = True
                    self._end(what)
                    self._advance(what.client, what)
        is_late = any(client < n_foreground for client in self._running)
        for key in list(self._selector.get_map().values()):
            exchange: Exchange = key.data
            if is_late:
                exchange.failure = said
            else:
                exchange.is_cut = True
            self._end(exchange)
        for script in self._scripts:
            script.close()

    def _advance(self, client: int, last: Exchange | None) -> None:
        """Let a script go on until it waits for something."""
        script = self._scripts[client]
        while True:
            try:
                step = script.send(last)
            except StopIteration:
                self._running.discard(client)
                return
            if isinstance(step, Pause):
                self._later(time.perf_counter() + step.seconds, client)
                return
            last = self._send(client, step)
            if last.sock is not None:
                if step.cut_after_s is not None:
                    self._later(last.sent_s + step.cut_after_s, last)
                return

    def _later(self, due_s: float, what: int | Exchange) -> None:
        self._n_due += 1
        heapq.heappush(self._due, (due_s, self._n_due, what))

    def _send(self, client: int, request: Request) -> Exchange:
        """Send a request; without a socket in the exchange it has failed already."""
        message = self._address.encode("POST", request.route, json.dumps(request.body).encode())
        exchange = Exchange(client, time.perf_counter())
        self.exchanges[client].append(exchange)
        try:
            exchange.sock = socket.create_connection((self._address.host, self._address.port), timeout=10)
        except OSError as error:
            exchange.failure, exchange.ended_s = f"cannot connect: {error}", time.perf_counter()
            return exchange
        try:
            exchange.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            exchange.sock.sendall(message)
        except OSError as error:
            exchange.failure = f"cannot send: {error}"  # an answer (413, say) may still be there to read
        exchange.sock.setblocking(False)
        self._selector.register(exchange.sock, selectors.EVENT_READ, exchange)
        return exchange

    def _read(self, exchange: Exchange) -> None:
        if exchange.sock is None:
            return  # cut in this very round of the selector
        try:
            data = exchange.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            data, exchange.failure = b"", f"connection lost: {error}"
        if data:
            exchange.pieces.append((time.perf_counter(), data))
            return
        self._end(exchange)
        self._advance(exchange.client, exchange)

    def _end(self, exchange: Exchange) -> None:
        assert exchange.sock is not None
        exchange.ended_s = time.perf_counter()
        self._selector.unregister(exchange.sock)
        exchange.sock.close()
        exchange.sock = None


# -- one at a time ---------------------------------------------------------------------------------------------------


def fetch(
    address: Address, method: str, route: str, body: dict[str, Any] | None = None, timeout_s: float = 300.0
) -> tuple[int, Any]:
    """One plain exchange: status and decoded JSON (or text). Raises OSError when nobody answers."""
    with socket.create_connection((address.host, address.port), timeout=timeout_s) as sock:
        sock.sendall(address.encode(method, route, b"" if body is None else json.dumps(body).encode()))
        pieces: Pieces = []
        while data := sock.recv(READ_BYTES):
            pieces.append((0.0, data))
    status, _, payload = parse_http(pieces)
    content = b"".join(data for _, data in payload)
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode("utf-8", "replace")
