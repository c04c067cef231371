"""Who may ask, and from where: Host, Origin, API key. Source: spec/API.md section 2, "Auth" and "Browser safety".

Floor 5; runs on every request before anything is routed, on its waitress thread. Immutable after start. It matters because a
server on loopback is reachable from every web page its user opens: by name (DNS rebinding, which the Host check stops) and
across origins (which the Origin check stops).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from hostler.config import Settings
from hostler.errors import HostNotAllowed, InvalidApiKey, OriginNotAllowed
from hostler.mounts import is_below

LOCALHOST_NAMES = frozenset({"localhost", "localhost.localdomain", "localhost6", "ip6-localhost", "ip6-loopback"})
OPEN_PATHS = frozenset({"/healthz"})
"""Answered without a key."""
READING = frozenset({"GET", "HEAD"})
ALLOWED_METHODS = "GET, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS = ("authorization", "content-type", "x-api-key", "api-key", "openai-beta")
ALLOWED_HEADER_PREFIX = "x-stainless-"
EXPOSED_HEADERS = "x-request-id, x-hostler-model, x-should-retry, retry-after"
PREFLIGHT_MAX_AGE_S = 600
ANY = "*"


class Access:
    """The rules, made from the settings once."""

    def __init__(
        self, settings: Settings, cli_token: str | None = None, open_prefixes: Callable[[], Iterable[str]] = tuple
    ) -> None:
        """Read the rules.

        Args:
            cli_token: What the CLI of this home sends in place of a key; it may do what its user may.
            open_prefixes: Gives the paths of pages, `/docs` and the like, which may be read without a key, with all below
                them: they are the same for everybody, and a browser cannot send a key for them. What a page shows is not
                open; it asks for the key. Another web site may lead to a page, and only there: nothing happens where
                something is read, and no page may frame it.
        """
        self._open_prefixes = open_prefixes
        self._hosts = {name.lower().rstrip(".") for name in (*settings.allowed_hosts, settings.host)}
        self._origins = {origin.lower().rstrip("/") for origin in settings.allowed_origins}
        self._keys = tuple(key.encode() for key in settings.api_key)
        self._cli_token = cli_token.encode() if cli_token else None

    def check_host(self, environ: Mapping[str, str]) -> None:
        """Let localhost names, IP literals and configured names pass.

        Raises:
            HostNotAllowed: A web page whose name was made to point here would send its own name.
        """
        host = environ.get("HTTP_HOST")
        if not host or ANY in self._hosts:
            return  # a client of HTTP/1.0 sends none; browsers always do
        name = _host_name(host)
        if _is_localhost(name) or _is_ip(name) or name in self._hosts:
            return
        raise HostNotAllowed(f"The Host header names {host!r}; add it to allowed_hosts if this server should answer to it")

    def check_origin(self, environ: Mapping[str, str], path: str) -> str | None:
        """Let pages of localhost, of this server itself and of configured origins pass.

        Returns:
            The origin to allow in the answer; None when no web page asks.

        Raises:
            OriginNotAllowed: Some other web page asks.
        """
        origin = environ.get("HTTP_ORIGIN")
        if origin is None:
            # An <img> or a link of a foreign page sends no Origin, but today's browsers say where they come from.
            if environ.get("HTTP_SEC_FETCH_SITE") == "cross-site" and ANY not in self._origins and not self._is_landing(path):
                raise OriginNotAllowed("Another web site asks for this; open / first, or add its origin to allowed_origins")
            return None
        if ANY in self._origins or origin.lower().rstrip("/") in self._origins or self._is_own(origin, environ):
            return origin
        raise OriginNotAllowed(f"The web origin {origin!r} may not ask; add it to allowed_origins if it should")

    def _is_own(self, origin: str, environ: Mapping[str, str]) -> bool:
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        if _is_localhost(name) or (_is_ip(name) and ipaddress.ip_address(name).is_loopback):
            return True
        return bool(parts.netloc) and parts.netloc.lower() == environ.get("HTTP_HOST", "").lower()

    def _is_landing(self, path: str) -> bool:
        return path == "/" or path in self._open_prefixes()

    def _is_open(self, environ: Mapping[str, str], path: str) -> bool:
        if path in OPEN_PATHS:
            return True
        return environ["REQUEST_METHOD"] in READING and any(is_below(path, prefix) for prefix in self._open_prefixes())

    def check_key(self, environ: Mapping[str, str], path: str) -> bool:
        """Demand a key where keys are set; without any, whatever `Authorization` says is ignored.

        Returns:
            Whether the CLI of this home asks.

        Raises:
            InvalidApiKey: No key, or a wrong one.
        """
        offered = list(_offered_keys(environ))
        if self._cli_token is not None and _is_among(offered, (self._cli_token,)):
            return True
        if not self._keys or _is_among(offered, self._keys) or self._is_open(environ, path):
            return False
        if not offered:
            raise InvalidApiKey("This server wants an API key; send it as `Authorization: Bearer KEY`")
        raise InvalidApiKey("The API key is not one of this server's; check the key that the client sends")


def is_preflight(environ: Mapping[str, str]) -> bool:
    """Whether a browser asks for permission before the real request."""
    return (
        environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ORIGIN" in environ and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
    )


def cors_headers(origin: str) -> Iterable[tuple[str, str]]:
    """Headers that let a page of an allowed origin read the answer, errors included."""
    yield "access-control-allow-origin", origin
    yield "access-control-expose-headers", EXPOSED_HEADERS
    yield "vary", "Origin"


def preflight_headers(environ: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """What a browser may send."""
    wanted = [name.strip().lower() for name in environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "").split(",")]
    further = [name for name in wanted if name.startswith(ALLOWED_HEADER_PREFIX) and name.isascii()]
    yield "access-control-allow-methods", ALLOWED_METHODS
    yield "access-control-allow-headers", ", ".join((*ALLOWED_HEADERS, *further))
    yield "access-control-max-age", str(PREFLIGHT_MAX_AGE_S)
    if environ.get("HTTP_ACCESS_CONTROL_REQUEST_PRIVATE_NETWORK") == "true":
        yield "access-control-allow-private-network", "true"


def _offered_keys(environ: Mapping[str, str]) -> Iterable[bytes]:
    scheme, _, key = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        yield key.strip().encode("latin-1")  # WSGI carries bytes as latin-1
    for name in ("HTTP_X_API_KEY", "HTTP_API_KEY"):
        if environ.get(name):
            yield environ[name].encode("latin-1")


def _is_among(offered: Iterable[bytes], known: tuple[bytes, ...]) -> bool:
    is_found = False
    for candidate in offered:
        for key in known:
            # Every pair is compared, in constant time, so that the time tells nothing.
            is_found |= hmac.compare_digest(candidate, key)
    return is_found


def _host_name(host: str) -> str:
    """`[::1]:1337` -> `::1`, `Name.:80` -> `name`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_localhost(name: str) -> bool:
    # RFC 6761 section 6.3: every name below .localhost means loopback.
    return name in LOCALHOST_NAMES or name.endswith(".localhost")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
