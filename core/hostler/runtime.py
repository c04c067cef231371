"""What the API and the CLI see of hostler: models, generations, requests. (Being written by the lead; the signatures hold.)"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol

import msgspec

from hostler.domain import GenerateRequest, GenerationEvent, Lifecycle
from hostler.engine import EngineInfo
from hostler.library.manifest import Manifest


class ModelView(msgspec.Struct, frozen=True):
    """A snapshot of one model."""

    manifest: Manifest
    lifecycle: Lifecycle
    resting: Lifecycle
    """`downloaded`, `stopped` or `not_downloaded`: what it was before starting, and will be after stopping."""
    engine: str
    """Name of the engine that runs it or would."""
    ctx_len: int
    """Tokens per slot: granted while running, else what `auto` would ask for or what was set. Never 0."""
    n_parallel: int
    last_error: str | None = None
    pid: int | None = None
    info: EngineInfo | None = None
    memory_bytes: int = 0
    n_active: int = 0
    n_queued: int = 0
    idle_s: float | None = None
    is_catalogue: bool = False
    """It stands in the shipped catalogue."""
    started_at: int | None = None


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
    """source reference, URL, catalogue name or registered id."""
    id: str | None = None
    name: str | None = None
    description: str | None = None
    format: str | None = None
    settings: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    is_from_cli: bool = False
    """Allows file: sources."""


class RequestView(msgspec.Struct, frozen=True):
    """A snapshot of one generation that is queued or running."""

    id: str
    model: str
    state: str
    """queued, prefill, decode."""
    prompt_tokens: int
    completion_tokens: int
    age_s: float


class Generation(Protocol):
    """One request's answers; used by one thread. Leaving the `with` block before the end cancels it."""

    id: str
    model: ModelView
    created: int

    def events(self, poll_s: float) -> Iterator[GenerationEvent | None]:
        """Yield events until every answer is finished; None after each `poll_s` seconds of silence.

        Raises:
            HostlerError: What went wrong; before the first TextEvent it can still become an HTTP status.
        """

    def cancel(self) -> None:
        """Cancel from any thread; `events` then ends with FinishEvent(CANCELLED) for what was still running."""

    def __enter__(self) -> Generation: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class RuntimeApi(Protocol):
    """The signatures of Runtime."""

    def models(self, *, include_catalogue: bool = False) -> list[ModelView]: ...
    def model(self, reference: str) -> ModelView:
        """Raises ModelNotFound. Also catalogue entries that are not downloaded."""

    def start_model(
        self, reference: str, overrides: dict[str, Any] | None = None, *, is_waiting: bool = True
    ) -> ModelView: ...
    def stop_model(self, reference: str) -> ModelView: ...
    def delete_model(self, reference: str) -> str: ...
    def pull_model(self, request: PullRequest, *, is_waiting: bool = False) -> PullView: ...
    def pull(self, model_id: str) -> PullView | None: ...
    def cancel_pull(self, model_id: str) -> bool: ...
    def import_model(self, path: str, model_id: str | None = None, name: str | None = None) -> ModelView: ...
    def generate(self, request: GenerateRequest) -> Generation:
        """Admit a request: resolves and, if need be, starts the model only when `events` is iterated, so that the caller
        can send keep-alives meanwhile. Raises ModelNotFound, QueueFull, ... at once where that can be known at once."""

    def requests(self) -> list[RequestView]: ...
    def cancel_request(self, request_id: str) -> None:
        """Raises RequestNotFound."""

    @property
    def is_ready(self) -> bool: ...
    def close(self, drain_timeout_s: float) -> None: ...
