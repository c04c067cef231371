"""Snapshots of what the host holds: models, downloads, requests. Floor 4; pure values, safe to keep and to pass around."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.domain import Lifecycle
from hostler.engine import EngineInfo
from hostler.library.manifest import Manifest


class ModelView(msgspec.Struct, frozen=True):
    """A snapshot of one model."""

    manifest: Manifest
    lifecycle: Lifecycle
    resting: Lifecycle
    """`downloaded`, `stopped` or `not_downloaded`: what it was before starting, and will be after stopping."""
    engine: str
    """Name of the engine that runs it or would; empty when no plugin takes its format."""
    ctx_len: int
    """Tokens per slot: granted while running, else what `auto` would ask for or what was set. 0: an engine that takes messages
    does not know it."""
    n_parallel: int
    next_ctx_len: int = 0
    """Tokens per slot that the next start would ask for; 0: the same as `ctx_len`."""
    run: dict[str, Any] | None = None
    """All settings of the run, while there is one; those of the manifest may have been changed since."""
    last_error: str | None = None
    pid: int | None = None
    info: EngineInfo | None = None
    memory_bytes: int = 0
    """What the ledger granted while it runs."""
    n_active: int = 0
    n_queued: int = 0
    idle_s: float | None = None
    """Seconds since its last request ended; None while it works or does not run."""
    is_catalogue: bool = False
    """It stands in the shipped catalogue."""
    started_at: int | None = None
    """Unix seconds."""


class ModelChanges(msgspec.Struct, frozen=True):
    """What is to be changed of a model. Groups are merged key by key; a null value takes its key back to the default."""

    name: str | None = None
    """None: unchanged; empty: the id."""
    description: str | None = None
    settings: dict[str, Any] = {}
    """Native types, under their own names."""
    parameters: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class PullView(msgspec.Struct, frozen=True):
    """A snapshot of one download job."""

    id: str
    """The model's id."""
    lifecycle: Lifecycle
    files: tuple[tuple[str, str, int | None, int], ...]
    """(filename, url, total bytes or None, bytes here)."""
    total_bytes: int | None
    done_bytes: int
    speed: float
    """Bytes per second, recent."""
    elapsed_s: float
    error: str | None = None


class PullRequest(msgspec.Struct, frozen=True):
    """What to download and how to register it."""

    reference: str
    """Source reference, URL, catalogue name or registered id."""
    id: str | None = None
    name: str | None = None
    description: str | None = None
    format: str | None = None
    settings: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    is_from_cli: bool = False
    """Allows file: sources."""
    proxy: str | None = None
    """HTTP proxy for this download; None: the server's setting."""
    verify_tls: bool = True


class RequestView(msgspec.Struct, frozen=True):
    """A snapshot of one generation that is queued or running."""

    id: str
    model: str
    state: str
    """queued, prefill, decode; embed for a request for embeddings."""
    prompt_tokens: int
    completion_tokens: int
    age_s: float
    evaluated_tokens: int = 0
    """Of the prompt, those from the prefix cache included: how far its prefill is."""
