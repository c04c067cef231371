"""What happened to a model on disk, as the library tells whoever listens. Floor 1; pure values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from hostler.domain import Lifecycle
from hostler.library.manifest import Manifest

Kind = Literal["registered", "downloading", "downloaded", "download_failed", "updated", "deleted"]


class Change(msgspec.Struct, frozen=True):
    """One change, told once, when it is so."""

    kind: Kind
    manifest: Manifest
    previous: Lifecycle
    lifecycle: Lifecycle
    error: str | None = None
    """Why a download ended without the model; a cancelled or interrupted one says so."""


Tell = Callable[[Change], None]
"""Called by the thread that made the change, under the library's lock or in a download's thread: it must not wait."""


def tell_nobody(change: Change) -> None:
    """For a library that nobody listens to."""
    del change
