"""One POST of an event to a webhook's URL: signed, bounded in time, without redirects; and what came of it.

Floor 4; an attempt runs on the thread that calls `run`, any other may `abort` it. It knows no queue and no retries. Source of
headers and signature: the Standard Webhooks specification, by its own library; spec/API.md section 10.

Each attempt has a connection of its own: events are rare, and a kept connection that the receiver has closed meanwhile would
look like a failure.
"""

from __future__ import annotations

import contextlib
import http
import ipaddress
import logging
import socket
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from hostler import __version__
from hostler.subscription import secret_key, site_of

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("hostler.webhooks")

TIMEOUT_S = 10.0
"""From the first byte of the connection to the status line; spec/API.md section 10."""
MAX_ANSWER_BYTES = 64 * 1024
"""Read of the receiver's body, so that it can end its answer in peace; nothing of it counts."""
EXCERPT_BYTES = 2000
"""Kept of it, for `hostler webhooks test`."""


class Outcome(msgspec.Struct, frozen=True):
    """What the receiver said."""

    status: int | None
    """None: there was no answer."""
    error: str | None
    """In words, when it does not count as delivered."""
    elapsed_s: float
    excerpt: str = ""
    """The beginning of the answer's body."""

    @property
    def is_delivered(self) -> bool:
        """Any 2xx within the time."""
        return self.error is None


class Post(msgspec.Struct, frozen=True):
    """What is sent where."""

    url: str
    secret: str
    message_id: str
    """`webhook-id`: the same for every attempt, so that the receiver can tell a repetition."""
    event: str
    """Its name; the body of a thread's or a message's event is the object and does not tell."""
    body: bytes


def headers_of(post: Post, now_s: float) -> dict[str, str]:
    """The headers of one attempt; the signature covers id, time and body.

    Args:
        now_s: Unix seconds; each attempt has its own, so that the receiver's tolerance is kept.
    """
    headers = {
        "content-type": "application/json",
        "user-agent": f"hostler/{__version__}",
        "connection": "close",
        "webhook-id": post.message_id,
        "webhook-timestamp": str(int(now_s)),
        "x-hostler-event": post.event,
    }
    if post.secret:
        from standardwebhooks import Webhook

        timestamp = datetime.fromtimestamp(int(now_s), tz=UTC)
        signer = Webhook(secret_key(post.secret))
        headers["webhook-signature"] = signer.sign(post.message_id, timestamp, post.body.decode())
    return headers


class Poster:
    """Makes attempts. Its two HTTP clients are made when they are needed, and may be used by any number of threads."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()  # protects _clients
        self._clients: dict[bool, httpx.Client] = {}

    def attempt(self, post: Post) -> Attempt:
        """An attempt that has not begun."""
        return Attempt(post, self._client(is_direct=is_loopback(post.url)), self.timeout_s)

    def close(self) -> None:
        """Close the clients; attempts that still run fail."""
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    def _client(self, *, is_direct: bool) -> httpx.Client:
        import httpx

        with self._lock:
            client = self._clients.get(is_direct)
            if client is None:
                client = self._clients[is_direct] = httpx.Client(
                    trust_env=not is_direct,  # a proxy must not see what stays on this machine
                    follow_redirects=False,
                    timeout=self.timeout_s,
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
                )
            return client


class Attempt:
    """One POST.

    `_lock` protects `_socket` and the two reasons to end it early.
    """

    def __init__(self, post: Post, client: httpx.Client, timeout_s: float) -> None:
        self._post = post
        self._client = client
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_overdue = False
        self._is_cut_short = False

    @property
    def is_cut_short(self) -> bool:
        """Whether somebody called `abort`: what came of it says nothing of the receiver."""
        return self._is_cut_short

    def run(self) -> Outcome:
        """Send it and wait for the answer; returns within the timeout, whatever the receiver does, save where the name
        service takes longer. Raises nothing."""
        started = time.monotonic()
        # httpx bounds each read and write, not the whole: a receiver that sends a byte now and then would go on for ever.
        watch = threading.Timer(self._timeout_s, self._expire)
        watch.daemon = True
        watch.start()
        try:
            status, excerpt = self._send()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong on the way is an attempt that failed
            return Outcome(None, self._explain(error), time.monotonic() - started)
        finally:
            watch.cancel()
        return Outcome(status, _complaint(status), time.monotonic() - started, excerpt)

    def abort(self) -> None:
        """Cut it short; `run` returns at once. From any thread."""
        with self._lock:
            self._is_cut_short = True
            self._shut()

    def _expire(self) -> None:
        with self._lock:
            self._is_overdue = True
            self._shut()

    def _send(self) -> tuple[int, str]:
        with self._client.stream(
            "POST",
            self._post.url,
            content=self._post.body,
            headers=headers_of(self._post, time.time()),
            extensions={"trace": self._trace},
        ) as response:
            body = b""
            # The status is what counts; a body that breaks off or never ends does not change it.
            with contextlib.suppress(Exception):
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) >= MAX_ANSWER_BYTES:
                        break
            return response.status_code, body[:EXCERPT_BYTES].decode(errors="replace")

    def _trace(self, name: str, info: dict[str, Any]) -> None:
        """Keep the socket that the attempt runs on: only its end wakes a thread that waits on it."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                if self._is_overdue or self._is_cut_short:
                    self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Of the plain class: a TLS socket's own would first forget its session under the reader's hands.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _explain(self, error: Exception) -> str:
        import httpx

        with self._lock:
            is_overdue, is_cut_short = self._is_overdue, self._is_cut_short
        if is_overdue or isinstance(error, httpx.TimeoutException):
            return f"no answer within {self._timeout_s:g} s"
        if is_cut_short:
            return "cut short: the server is stopping"
        if not isinstance(error, httpx.HTTPError | httpx.InvalidURL | OSError):
            log.warning("a webhook could not be sent to %s", site_of(self._post.url), exc_info=error)
        return f"{_words(error)}: {error}" if str(error) else _words(error)


def _words(error: Exception) -> str:
    import httpx

    if isinstance(error, httpx.ConnectError):
        return "no connection"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        return "the connection broke off"
    return type(error).__name__


def _complaint(status: int) -> str | None:
    """Why an answer does not count; None for any 2xx."""
    if 200 <= status < 300:
        return None
    try:
        phrase = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    return f"the receiver answered {phrase}{', and redirects are not followed' if 300 <= status < 400 else ''}"


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
