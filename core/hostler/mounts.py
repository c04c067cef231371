"""What a plugin's routes are: a WSGI application below a path of its own. Floor 2 (a leaf of it).

`hostler.api.mounts` serves them. WSGI and no framework's types, so that a plugin may use any of them, or none.
Source: PEP 3333.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

PREFIX = re.compile(r"(?:/[A-Za-z0-9][A-Za-z0-9._~-]*)+")
RESERVED = frozenset({"v1", "healthz", "readyz", "openapi.json", "events", "download", "processManager"})
"""First segments of paths that are hostler's own, or will be: OpenAI's clients know what stands below /v1."""


class RoutesSpec(msgspec.Struct, frozen=True):
    """What a plugin registers."""

    prefix: str
    """`/toy`: the path itself and everything below it."""
    app: str
    """`package.module:function`, imported when the first request comes; takes a RoutesContext, gives the WSGI application."""
    is_open: bool = False
    """GET and HEAD need no key, and other web sites may lead here: for pages that are the same for everybody."""


class RoutesContext(msgspec.Struct, frozen=True):
    """What the application may use."""

    prefix: str
    home: Path
    """The data folder."""
    api: WsgiApp
    """hostler's own application: a request that is handed to it is answered as if its client had sent it there."""


def complaint(spec: RoutesSpec) -> str | None:
    """Why a prefix cannot be served; None: it can."""
    if not PREFIX.fullmatch(spec.prefix):
        return f"its prefix is {spec.prefix!r}; it must look like '/toy', without a slash at the end"
    if spec.prefix.split("/")[1] in RESERVED:
        return f"{spec.prefix} is hostler's own"
    return None


def is_below(path: str, prefix: str) -> bool:
    """Whether a path is the prefix or stands below it."""
    return path == prefix or path.startswith(f"{prefix}/")
