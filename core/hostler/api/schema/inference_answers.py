"""What chats and completions answer, whole and in chunks: for /openapi.json and for the tests, which hold real answers to it.

Floor 5; pure values. The bytes of a stream are made in `api/sse.py`, which is the hot path and knows none of these.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from hostler.domain import Timings

Finish = Literal["stop", "length"]


class PromptDetails(Struct, frozen=True, forbid_unknown_fields=True):
    """Of the prompt's tokens."""

    cached_tokens: int
    """Were in the KV cache already."""


class TokenUsage(Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens of all choices; a prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatTopToken(Struct, frozen=True, forbid_unknown_fields=True):
    """One candidate."""

    token: str
    logprob: float
    bytes: list[int]
    """Exact, where the token is not whole UTF-8."""


class ChatToken(ChatTopToken, frozen=True, forbid_unknown_fields=True):
    """A token that was chosen, with its most likely rivals."""

    top_logprobs: list[ChatTopToken]


class ChatLogprobs(Struct, frozen=True, forbid_unknown_fields=True):
    """Log probabilities, before any truncation."""

    content: list[ChatToken]
    refusal: None


class ChatMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None


class ChatChoice(Struct, frozen=True, forbid_unknown_fields=True):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: TokenUsage
    timings: Timings
    """hostler's own, by the worker's clock."""


class ChatDelta(Struct, frozen=True, forbid_unknown_fields=True):
    """What a chunk adds to its choice: the role first, text later, nothing at the end."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True, forbid_unknown_fields=True):
    """One choice goes on, or ends."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatCompletionChunk(Struct, frozen=True, forbid_unknown_fields=True):
    """One event of a streamed answer; `[DONE]` follows the last."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    """Empty in the one with the usage."""
    usage: TokenUsage | UnsetType | None = UNSET
    """Only with `stream_options.include_usage`; null in all but the last."""
    timings: Timings | UnsetType = UNSET
    """In the last."""


class LegacyLogprobLists(Struct, frozen=True, forbid_unknown_fields=True):
    """Log probabilities of a completion: four lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True, forbid_unknown_fields=True):
    """One answer to one prompt; streamed, a piece of it."""

    index: int
    text: str
    logprobs: LegacyLogprobLists | None
    finish_reason: Finish | None


class Completion(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole answer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: TokenUsage
    timings: Timings
    """hostler's own, by the worker's clock."""


class CompletionChunk(Struct, frozen=True, forbid_unknown_fields=True):
    """One event of a streamed answer; `[DONE]` follows the last."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: TokenUsage | UnsetType | None = UNSET
    timings: Timings | UnsetType = UNSET
