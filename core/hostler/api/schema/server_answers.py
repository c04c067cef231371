"""What the routes of the server itself answer, and the one form of an error. Floor 5; pure values."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field


class ErrorDetail(Struct, frozen=True):
    """What went wrong."""

    message: str
    """For people."""
    type: str
    """OpenAI's class of errors."""
    param: str | None
    """Path of the request's field to blame, such as `messages[2].role`."""
    code: str
    """For programs."""


class ErrorResponse(Struct, frozen=True):
    """Every error, whatever its status."""

    error: ErrorDetail
    message: str
    """The same again, for Cortex's and early Jan's clients."""


class Health(Struct, frozen=True):
    """The server answers."""

    status: Literal["ok", "ready"]
    version: str


class Index(Struct, frozen=True):
    """Where to look next."""

    name: str
    version: str
    documentation: str
    api: str
    openapi: str
    docs: str
    try_: list[str] = field(name="try")
    """Some requests to begin with."""


class RequestItem(Struct, frozen=True, kw_only=True):
    """A generation that is queued or running."""

    id: str
    """What the answer calls it, and what cancels it."""
    object: Literal["request"] = "request"
    model: str
    state: str
    """`queued`, `prefill` or `decode`."""
    prompt_tokens: int
    evaluated_tokens: int
    """Of the prompt, up to now; with those that are cached. Of `n` answers, the one that went on last."""
    completion_tokens: int
    age_s: float


class RequestCancelled(Struct, frozen=True):
    """It ends before the engine's next step; its own client gets an error."""

    id: str
    object: Literal["request"] = "request"
    cancelled: bool = True
    deleted: bool = True


class EngineAnswer(Struct, frozen=True, kw_only=True):
    """An installed engine, in Cortex's words and hostler's."""

    id: str
    object: Literal["engine"] = "engine"
    name: str
    engine: str
    version: str
    """Of the plugin."""
    status: Literal["loaded", "installed"]
    """loaded: a model runs in it."""
    formats: list[str]
    """Of the models that it takes."""
    models: list[str]
    """Those that run in it now."""
