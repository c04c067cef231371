"""Closed-loop HTTP clients for OpenAI servers: many of them in one thread, cheap enough to share the server's cores.

Each client sends its next request when its last answer has ended. While the clock runs this thread only reads sockets and
notes (time, bytes); HTTP framing, SSE and JSON are taken apart afterwards, so that parsing costs the server nothing. Every
request has a connection of its own (`Connection: close`): the end of an answer is the end of the stream, on any server.
Knows nothing of hostler; times are this process's monotonic clock.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

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


@dataclass
class Reply:
    """One answer as the client saw it. Times are in seconds of the monotonic clock."""

    sent_s: float
    """Before the connection was opened."""
    ended_s: float = 0.0
    """When the last byte had come."""
    status: int = 0
    arrival_s: list[float] = field(default_factory=list)
    """Reads that brought new text: one entry a read, however many SSE chunks it held."""
    n_chunks: int = 0
    """SSE chunks with text in them."""
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    is_counted: bool = False
    """The server counted the tokens (`usage`); else `completion_tokens` is the number of chunks."""
    timings: dict[str, float] | None = None
    """The server's own clock, where it tells it."""
    error: str | None = None


# -- while the clock runs --------------------------------------------------------------------------------------------


@dataclass
class _Exchange:
    client: int
    sent_s: float
    sock: socket.socket = field(init=False)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended_s: float = 0.0
    failure: str | None = None


def run_clients(address: Address, clients: Sequence[Sequence[Request]], timeout_s: float = 600.0) -> list[list[Reply]]:
    """Run all clients at once, each through its own list of requests.

    Args:
        timeout_s: For the whole call; what is still open then comes back with an error.

    Returns:
        For each client the replies to its requests, in order; requests never sent because of the timeout are missing.
    """
    encoded = [
        deque(address.encode("POST", request.route, json.dumps(request.body).encode()) for request in requests)
        for requests in clients
    ]
    exchanges: list[list[_Exchange]] = [[] for _ in clients]
    deadline = time.perf_counter() + timeout_s
    with selectors.DefaultSelector() as selector:

        def send_next(client: int) -> None:
            while encoded[client]:
                sent_s = time.perf_counter()
                exchange = _Exchange(client, sent_s)
                exchanges[client].append(exchange)
                message = encoded[client].popleft()
                try:
                    exchange.sock = socket.create_connection((address.host, address.port), timeout=10)
                except OSError as error:
                    exchange.failure, exchange.ended_s = f"cannot connect: {error}", time.perf_counter()
                    continue
                try:
                    exchange.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    exchange.sock.sendall(message)
                except OSError as error:
                    exchange.failure = f"cannot send: {error}"  # an answer (413, say) may still be there to read
                exchange.sock.setblocking(False)
                selector.register(exchange.sock, selectors.EVENT_READ, exchange)
                return

        for client in range(len(clients)):
            send_next(client)
        while selector.get_map() and (left_s := deadline - time.perf_counter()) > 0:
            for key, _ in selector.select(left_s):
                exchange = key.data
                try:
                    data = exchange.sock.recv(READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    data, exchange.failure = b"", f"connection lost: {error}"
                now_s = time.perf_counter()
                if data:
                    exchange.pieces.append((now_s, data))
                    continue
                exchange.ended_s = now_s
                selector.unregister(exchange.sock)
                exchange.sock.close()
                send_next(exchange.client)
        for key in list(selector.get_map().values()):
            key.data.failure, key.data.ended_s = f"no end after {timeout_s:g} s", time.perf_counter()
            key.data.sock.close()
    return [[_read_reply(exchange) for exchange in client] for client in exchanges]


def fetch(
    address: Address, method: str, route: str, body: dict[str, Any] | None = None, timeout_s: float = 300.0
) -> tuple[int, Any]:
    """One plain exchange: status and decoded JSON (or text). Raises OSError when nobody answers."""
    with socket.create_connection((address.host, address.port), timeout=timeout_s) as sock:
        sock.sendall(address.encode(method, route, b"" if body is None else json.dumps(body).encode()))
        pieces = []
        while data := sock.recv(READ_BYTES):
            pieces.append((0.0, data))
    status, _, payload = parse_http(pieces)
    content = b"".join(data for _, data in payload)
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode("utf-8", "replace")


# -- afterwards ------------------------------------------------------------------------------------------------------

Pieces = list[tuple[float, bytes]]


def parse_http(pieces: Pieces) -> tuple[int, dict[str, str], Pieces]:
    """Split an answer that ended with its connection into status, headers (names lowered) and the timed body.

    Raises:
        ValueError: What came is no HTTP answer, or its body stops short of what its framing promised.
    """
    head, end, n_read = b"", -1, 0
    while end < 0:
        if n_read == len(pieces):
            raise ValueError(f"the answer has no complete head: {head[:80]!r}")
        head += pieces[n_read][1]
        end = head.find(b"\r\n\r\n")
        n_read += 1
    lines = head[:end].decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ValueError(f"the answer begins with {lines[0][:80]!r}, not with an HTTP status line")
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = [(pieces[n_read - 1][0], head[end + 4 :]), *pieces[n_read:]]
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = list(_dechunk(body))
    elif "content-length" in headers:
        n_bytes = sum(len(data) for _, data in body)
        if n_bytes < int(headers["content-length"]):
            raise ValueError(f"the body ended after {n_bytes} of {headers['content-length']} bytes")
    return int(words[1]), headers, [(time_s, data) for time_s, data in body if data]


def _dechunk(pieces: Pieces) -> Iterator[tuple[float, bytes]]:
    """Remove chunked framing (RFC 9112 section 7.1); trailers are ignored."""
    buffer, n_left = b"", -1  # n_left: bytes of the current chunk still to come; -1: a size line comes next
    for time_s, data in pieces:
        buffer += data
        content = []
        while buffer:
            if n_left < 0:
                line, newline, rest = buffer.partition(b"\r\n")
                if not newline:
                    break
                if line:  # empty: the line end behind the last chunk
                    n_left = int(line.split(b";")[0], 16)
                    if n_left == 0:
                        yield time_s, b"".join(content)
                        return
                buffer = rest
            else:
                content.append(buffer[:n_left])
                n_left -= len(content[-1])
                buffer = buffer[len(content[-1]) :]
                if n_left == 0:
                    n_left = -1
        if content:
            yield time_s, b"".join(content)
    raise ValueError("the chunked body was cut before its last chunk")


def parse_sse(body: Pieces) -> Iterator[tuple[float, bytes]]:
    """Yield each event's data with the arrival time of the event's last byte; comments and other fields are skipped."""
    buffer = b""
    data: list[bytes] = []
    for time_s, piece in body:
        lines = (buffer + piece).split(b"\n")
        buffer = lines.pop()
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield time_s, b"\n".join(data)
                data = []


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    """The part of a completion, or of a chunk of one, that is looked at."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: dict[str, Any] | None = None
    error: Any = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def _read_reply(exchange: _Exchange) -> Reply:
    reply = Reply(sent_s=exchange.sent_s, ended_s=exchange.ended_s, error=exchange.failure)
    try:
        reply.status, headers, body = parse_http(exchange.pieces)
        if "text/event-stream" in headers.get("content-type", ""):
            _read_stream(reply, body)
        else:
            content = b"".join(data for _, data in body)
            if reply.status != 200:
                raise ValueError(f"status {reply.status}: {content[:300].decode('utf-8', 'replace')}")
            _take(reply, _decode_answer(content))
    except (ValueError, msgspec.MsgspecError) as error:
        reply.error = reply.error or str(error)
    if not reply.is_counted:
        reply.completion_tokens = reply.n_chunks
    return reply


def _read_stream(reply: Reply, body: Pieces) -> None:
    texts, is_done = [], False
    for time_s, data in parse_sse(body):
        if data == b"[DONE]":
            is_done = True
            continue
        if text := _take(reply, _decode_answer(data)):
            texts.append(text)
            reply.n_chunks += 1
            if not reply.arrival_s or reply.arrival_s[-1] != time_s:
                reply.arrival_s.append(time_s)
    reply.text = "".join(texts)
    if not is_done and not reply.error:
        reply.error = "the stream ended without [DONE]"


def _take(reply: Reply, answer: _Answer) -> str:
    """Note what an answer or chunk says; return its text."""
    if answer.error:
        reply.error = f"error event: {json.dumps(answer.error)[:300]}"
    if answer.usage:
        reply.prompt_tokens, reply.completion_tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
        if answer.usage.prompt_tokens_details:
            reply.cached_tokens = answer.usage.prompt_tokens_details.cached_tokens or 0
        reply.is_counted = True
    if answer.timings:
        reply.timings = {k: v for k, v in answer.timings.items() if isinstance(v, int | float)}
    text = ""
    for choice in answer.choices:
        reply.finish_reason = choice.finish_reason or reply.finish_reason
        part = choice.delta or choice.message
        text += choice.text or ((part.content or part.reasoning_content or "") if part else "")
    reply.text = text or reply.text
    return text
