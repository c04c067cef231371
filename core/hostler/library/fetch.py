"""Fetching one file over HTTP: resumed with Range, retried with back-off, redirects followed by hand, SHA-256 checked.

Floor 2; runs in a pull's own thread. It knows nothing of models: it fills a PartFile, or says why it could not.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from hostler.errors import DownloadFailed, InsufficientStorage
from hostler.library import names
from hostler.library.disk import FreeBytes, free_bytes, storage_error
from hostler.library.partfile import Identity, PartFile
from hostler.sources.contract import RemoteFile, SourceContext

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 10
MAX_RESTARTS = 5
"""How often one pull begins a file again because the server would not go on with it."""
CONNECT_TIMEOUT_S = 15.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_COPY_BYTES = 1024 * 1024


class Stopped(Exception):
    """The pull was cancelled or interrupted."""


class StopSignal:
    """Asks a pull's thread to stop, and wakes it from whatever it waits for.

    `_lock` guards `_sockets`: those the thread may be blocked on.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    @property
    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask; returns at once."""
        self._event.set()
        with self._lock:
            for connection in self._sockets:
                try:
                    # Not SSLSocket.shutdown, which drops the TLS state that the other thread is using.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    pass  # Already closed.

    def check(self) -> None:
        """Raise Stopped if somebody asked."""
        if self._event.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait, unless somebody asks.

        Raises:
            Stopped
        """
        if self._event.wait(seconds):
            raise Stopped

    def add(self, connection: socket.socket) -> None:
        """One more connection to shut down when somebody asks; only within `connections`."""
        with self._lock:
            self._sockets.add(connection)
        if self._event.is_set():
            self.set()

    @contextmanager
    def connections(self) -> Iterator[None]:
        """While this lasts connections may be added; they are forgotten at its end."""
        try:
            yield
        finally:
            with self._lock:
                self._sockets.clear()


@dataclass(frozen=True)
class RetryPolicy:
    """How often a lost connection is tried again. Attempts count from the last byte that arrived."""

    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0

    def wait_s(self, failures: int, asked_s: float | None) -> float:
        """How long to wait after so many failures; a server's Retry-After counts, within limits."""
        wait = min(self.first_wait_s * 2.0 ** (failures - 1), self.longest_wait_s)
        return min(max(wait, asked_s or 0.0), 2 * self.longest_wait_s)


class _LostError(Exception):
    """The connection broke or the server is busy; trying again may help."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass
class Fetch:
    """One file on its way. Made and used in one thread; `stop` may be set by any."""

    remote: RemoteFile
    part: PartFile
    context: SourceContext
    stop: StopSignal
    report: Callable[[int, int | None], None]
    """Takes bytes here and bytes in all (None: unknown), often."""
    policy: RetryPolicy = RetryPolicy()
    free_bytes: FreeBytes = free_bytes
    on_body: Callable[[], None] = lambda: None
    """Called when bytes begin to arrive."""
    _best: int = 0
    """Most bytes since the last beginning from nothing: only more than these count as progress."""
    _restarts: int = 0

    def run(self) -> None:
        """Fill the part until it is complete and verified.

        Raises:
            DownloadFailed: With the reason; what arrived is kept, save when it was found corrupt.
            InsufficientStorage, StorageUnavailable: The disk refused; what arrived is kept.
            Stopped
        """
        self.part.open(self.remote.sha256, self.remote.size_bytes, self._proven)
        self._report()
        for is_last in (False, True):
            had_bytes = self.part.size > 0
            self._fill()
            problem = self._mismatch()
            if problem is None:
                return
            # Bytes of an earlier pull may be the bad ones: those get one more chance from nothing. Fresh ones do not.
            self.part.discard()
            if is_last or not had_bytes:
                raise DownloadFailed(problem)
            self.part.start(Identity(total=self.remote.size_bytes, sha256=self.remote.sha256))

    def _proven(self, n_bytes: int) -> None:
        self.stop.check()
        self.report(n_bytes, self.part.identity.total)

    def _report(self) -> None:
        self.report(self.part.size, self.part.identity.total)

    def _mismatch(self) -> str | None:
        shown = names.shown_url(self.remote.url)
        expected = self.remote.size_bytes if self.remote.size_bytes is not None else self.part.identity.total
        if expected is not None and self.part.size != expected:
            return f"{shown} gave {self.part.size} bytes where {expected} were announced; the file was removed"
        if self.remote.sha256 is not None and self.part.sha256 != self.remote.sha256.lower():
            return (
                f"{shown} is not the file it should be: its SHA-256 is {self.part.sha256}, expected {self.remote.sha256}; "
                "it was removed, pull again or ask where the file comes from"
            )
        return None

    def _fill(self) -> None:
        total = self.part.identity.total
        if total is not None and self.part.size == total:
            return
        if urlsplit(self.remote.url).scheme == "file":
            self._copy()
            return
        import httpx  # late: an import of 0.2 s that only pulls need

        failures, self._best = 0, self.part.size
        with open_client(self.context, self.remote) as client, self.stop.connections():
            while True:
                try:
                    self._attempt(client)
                    return
                except _LostError as error:
                    lost = error
                except httpx.InvalidURL as error:
                    raise DownloadFailed(f"{names.shown_url(self.remote.url)} is no URL: {error}") from error
                except httpx.TransportError as error:
                    self.stop.check()
                    lost = _as_lost(error, self.remote.url)
                self.stop.check()
                if self.part.size > self._best:
                    failures, self._best = 0, self.part.size
                failures += 1
                if failures >= self.policy.attempts:
                    raise DownloadFailed(
                        f"{names.shown_url(self.remote.url)} could not be fetched: {lost}, {failures} times in a row; "
                        f"{self.part.size} bytes are kept, pull again to go on"
                    ) from lost
                self.stop.sleep(self.policy.wait_s(failures, lost.retry_after_s))

    def _attempt(self, client: httpx.Client) -> None:
        """One request; returns when the body is complete."""
        headers = {"Accept-Encoding": "identity", **self._range_headers()}
        with self._following(client, headers) as response:
            if response.status_code == 416:
                self._restart()
                raise _LostError("it refused to go on where the last pull ended")
            if response.status_code not in {200, 206}:
                raise _refusal(response, self.remote.url)
            self._begin_body(response)
            self._check_room()
            self.on_body()
            total = self.part.identity.total
            self._report()
            for block in response.iter_raw():
                self.stop.check()
                if total is not None and self.part.size + len(block) > total:
                    self.part.discard()
                    raise DownloadFailed(
                        f"{names.shown_url(self.remote.url)} sends more than the {total} bytes it announced; "
                        "the file was removed"
                    )
                self._write(block)
            if total is not None and self.part.size < total:
                raise _LostError(f"the connection ended after {self.part.size} of {total} bytes")

    def _range_headers(self) -> dict[str, str]:
        if self.part.size == 0:
            return {}
        if self.remote.sha256 is not None:
            # The hash decides at the end; a validator would only throw bytes away where mirrors disagree on ETags.
            return {"Range": f"bytes={self.part.size}-"}
        if self.part.identity.validator is not None:
            return {"Range": f"bytes={self.part.size}-", "If-Range": self.part.identity.validator}
        # Nothing would tell whether the rest belongs to what is here.
        self._restart()
        return {}

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise DownloadFailed(
                f"{names.shown_url(self.remote.url)} neither goes on where it was cut off nor arrives in one piece; "
                "try another time or another source"
            )
        self._best = 0
        self.part.start(Identity(total=self.remote.size_bytes, sha256=self.remote.sha256))

    def _begin_body(self, response: httpx.Response) -> None:
        shown = names.shown_url(self.remote.url)
        if response.headers.get("Content-Encoding", "identity").lower() not in {"", "identity"}:
            raise DownloadFailed(f"{shown} sends {response.headers['Content-Encoding']} although identity was asked for")
        length = response.headers.get("Content-Length")
        total = int(length) if length is not None and length.isascii() and length.isdigit() else None
        if response.status_code == 206:
            match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if match is None or int(match.group(1)) != self.part.size:
                self._restart()
                raise _LostError("it sent another part of the file than it was asked for")
            total = None if match.group(3) == "*" else int(match.group(3))
        elif self.part.size:
            self._restart()
        known = self.part.identity.total
        if total is not None and known is not None and total != known:
            if response.status_code == 206:
                self._restart()
                raise _LostError("the file has changed since the last pull")
            raise DownloadFailed(f"{shown} offers {total} bytes where {known} were expected; ask where the file comes from")
        self.part.identify(
            Identity(
                etag=response.headers.get("ETag"),
                last_modified=response.headers.get("Last-Modified"),
                total=total if total is not None else known,
                sha256=self.remote.sha256,
            )
        )

    def _check_room(self) -> None:
        """Refuse what cannot fit as soon as the size is known; an archive must fit twice, packed and unpacked."""
        total = self.part.identity.total
        if total is None:
            return
        needed = total - self.part.size + (total if self.remote.archive_suffix else 0)
        folder = self.part.path.parent
        available = self.free_bytes(folder)
        if needed > available:
            raise InsufficientStorage(
                f"{names.shown_url(self.remote.url)} needs {needed} bytes more, {available} are free in {folder}; "
                "free some, or set HOSTLER_HOME to a folder on a larger disk",
                needed_bytes=needed,
                available_bytes=available,
            )

    def _write(self, block: bytes) -> None:
        try:
            self.part.write(block)
        except OSError as error:
            total = self.part.identity.total
            needed = total - self.part.size if total is not None else len(block)
            raise storage_error(error, self.part.path, needed, self.free_bytes(self.part.path.parent)) from error
        self._report()

    @contextmanager
    def _following(self, client: httpx.Client, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Send the request, following redirects; every hop is checked before it is asked."""
        url, origin = self.remote.url, _origin(self.remote.url)
        for _ in range(MAX_REDIRECTS + 1):
            self.stop.check()
            # APPSEC: a token goes to the host it was made for, and to no other that it redirects to.
            own = self.remote.headers if _origin(url) == origin else {}
            request = client.build_request("GET", url, headers={**headers, **own}, extensions={"trace": self._trace})
            response = client.send(request, stream=True)
            try:
                if response.status_code not in {301, 302, 303, 307, 308}:
                    yield response
                    return
                url = _next_hop(url, response.headers.get("Location"))
            finally:
                response.close()
        raise DownloadFailed(f"{names.shown_url(self.remote.url)} redirects more than {MAX_REDIRECTS} times")

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn the connection's socket as soon as there is one, so that stopping can wake this thread."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            connection = info["return_value"].get_extra_info("socket")
            if connection is not None:
                self.stop.add(connection)

    def _copy(self) -> None:
        """A file: URL: the same part file, filled from a local one."""
        source = Path(names.path_of_file_url(self.remote.url))
        try:
            with source.open("rb") as stream:
                state = source.stat()
                identity = Identity(
                    etag=f'"{state.st_size:x}-{state.st_mtime_ns:x}"', total=state.st_size, sha256=self.remote.sha256
                )
                if self.part.size and self.remote.sha256 is None and self.part.identity.etag != identity.etag:
                    self.part.start(identity)
                self.part.identify(identity)
                stream.seek(self.part.size)
                while block := stream.read(_COPY_BYTES):
                    self.stop.check()
                    self._write(block)
        except OSError as error:
            raise DownloadFailed(f"{source} cannot be read: {error.strerror or error}") from error


def open_client(context: SourceContext, remote: RemoteFile) -> httpx.Client:
    """An HTTP client with this pull's proxy and certificates; it follows no redirects by itself."""
    import httpx

    verify: ssl.SSLContext | bool = tls_context(remote.ca_file) if context.verify_tls else False
    timeout = httpx.Timeout(context.timeout_s, connect=min(CONNECT_TIMEOUT_S, context.timeout_s))
    return httpx.Client(
        verify=verify,
        proxy=context.proxy or remote.proxy or None,
        timeout=timeout,
        follow_redirects=False,
        headers={"User-Agent": "hostler"},
    )


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Trust what this machine trusts, the well-known authorities, and the user's own certificate file.

    httpx alone trusts only the second, so it fails behind a company's proxy where pip and curl work.
    """
    context = ssl.create_default_context()
    try:
        import certifi

        context.load_verify_locations(certifi.where())
    except (ImportError, OSError):
        pass  # The machine's own authorities are enough.
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise DownloadFailed(f"The certificate file {ca_file} cannot be read: {error}") from error
    return context


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def _next_hop(url: str, location: str | None) -> str:
    """Where a redirect leads, if one may go there.

    Raises:
        DownloadFailed: It leaves HTTP, drops TLS, or leads from elsewhere to this machine or its network.
    """
    shown = names.shown_url(url)
    if not location:
        raise DownloadFailed(f"{shown} redirects without saying where to")
    try:
        target = urljoin(url, location)
        here, there = urlsplit(url), urlsplit(target)
        _origin(target)
    except ValueError as error:
        raise DownloadFailed(f"{shown} redirects to what is no URL: {error}") from error
    if there.scheme not in {"http", "https"} or not there.hostname:
        raise DownloadFailed(f"{shown} redirects to {names.shown_url(target)!r}, which is no http(s) address")
    if here.scheme == "https" and there.scheme == "http":
        raise DownloadFailed(f"{shown} redirects to {names.shown_url(target)!r}, which drops encryption")
    if there.hostname != here.hostname and _is_inside(there.hostname) and not _is_inside(here.hostname or ""):
        raise DownloadFailed(f"{shown} redirects to {there.hostname}, an address of this machine or its network")
    return target


def _is_inside(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local or address.is_private or address.is_unspecified


def _refusal(response: httpx.Response, url: str) -> Exception:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code in _TRANSIENT:
        return _LostError(f"it answered {status}", _retry_after_s(response.headers.get("Retry-After")))
    shown = names.shown_url(url)
    reason = response.headers.get("X-Error-Message")
    text = f"{shown} answered {status}" + (f" ({reason[:200]})" if reason else "")
    if response.status_code in {401, 403}:
        text += (
            "; it may need a login: for a gated model accept its terms on the hub, then set huggingface_token "
            "(HOSTLER_HUGGINGFACE_TOKEN)"
        )
    elif response.status_code in {404, 410}:
        text += "; check the name"
    return DownloadFailed(text)


def _retry_after_s(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdigit() else None


def _as_lost(error: Exception, url: str) -> _LostError:
    """What a transport error means for the user; a certificate nobody trusts does not get better by waiting."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DownloadFailed(
                f"{names.shown_url(url)} shows a certificate that is not trusted here: {cause.verify_message}"
            ) from error
        cause = cause.__cause__ or cause.__context__
    import httpx

    if isinstance(error, httpx.UnsupportedProtocol):
        raise DownloadFailed(f"{names.shown_url(url)} cannot be fetched: {error}") from error
    if isinstance(error, httpx.TimeoutException):
        return _LostError("nothing arrived for too long")
    return _LostError(str(error).strip() or type(error).__name__)
