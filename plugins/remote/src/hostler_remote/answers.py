"""What an upstream says, read chunk by chunk: text, log probabilities, the end, the count of tokens, errors.

On the event loop's thread; one Reading an answer. Source: OpenAI's API reference, "chat completion chunk" and "completion".
Tolerant where servers differ without harm (a whole answer instead of a stream, `reasoning` or `reasoning_content`, flat
errors), strict where an answer would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hostler import (
    EngineFailed,
    FinishReason,
    HostlerError,
    TokenLogprob,
    TopLogprob,
    UnsupportedParameter,
    Usage,
)
from hostler_remote.dialect import Call

DONE = b"[DONE]"
NULL = msgspec.Raw(b"null")
THINK, END_THINK = b"<think>\n", b"\n</think>\n\n"
"""Around what an upstream gives as reasoning: as models write it that hostler runs itself."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = NULL


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Entry(msgspec.Struct):
    """One token of a chat's `logprobs.content`."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[_Entry] | None = None


class _ChatLogprobs(msgspec.Struct):
    content: list[_Entry] | None = None


class _LegacyLogprobs(msgspec.Struct):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Piece(msgspec.Struct, frozen=True):
    """Text with the log probability of its token."""

    text: bytes
    logprob: TokenLogprob


class Ending(msgspec.Struct, frozen=True):
    """The answer is complete."""

    reason: FinishReason
    usage: Usage | None


Item = bytes | Piece | Ending | HostlerError
"""What goes from here to the engine thread; an Ending or an error is the last."""

_decoder = msgspec.json.Decoder(_Chunk)
_chat_decoder = msgspec.json.Decoder(_ChatLogprobs)
_legacy_decoder = msgspec.json.Decoder(_LegacyLogprobs)


class UpstreamError(Exception):
    """The upstream said in its stream that it failed."""

    def __init__(self, error: Any) -> None:
        super().__init__("the upstream failed")
        self.error = error


class Reading:
    """One answer."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._usage: Usage | None = None
        self._is_thinking = False
        self.reason: FinishReason | None = None
        """Why it ended; None: it has not."""
        self.is_done = False
        """`[DONE]` has come: there is nothing more."""
        self.has_begun = False
        """There was text."""

    def take(self, payload: bytes) -> Iterator[bytes | Piece]:
        """Read one chunk.

        Raises:
            UpstreamError: It is an error.
            UnsupportedParameter: There is text without the log probabilities that were asked for.
            EngineFailed: The answer ended as no answer should.
            msgspec.DecodeError: It is no chunk.
        """
        if payload == DONE:
            self.is_done = True
            return
        chunk = _decoder.decode(payload)
        if chunk.error:
            raise UpstreamError(chunk.error)
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        for choice in (chunk.choices or ())[:1]:
            yield from self._pieces(choice)
            if choice.finish_reason:  # some say "" as long as there is none
                if self._is_thinking:
                    yield END_THINK
                self.reason = _reason(choice.finish_reason)

    def ending(self) -> Ending:
        """The end; `reason` must be set."""
        assert self.reason is not None
        return Ending(self.reason, self._usage)

    def _pieces(self, choice: _Choice) -> Iterator[bytes | Piece]:
        delta = choice.delta or choice.message
        if delta is None:
            text = (choice.text or "").encode()
        else:
            thought = delta.reasoning_content or delta.reasoning
            if thought:
                self.has_begun = True
                yield thought.encode() if self._is_thinking else THINK + thought.encode()
                self._is_thinking = True
            text = (delta.content or delta.refusal or "").encode()
            if text and self._is_thinking:
                yield END_THINK
                self._is_thinking = False
        if not self._call.wants_logprobs:
            if text:
                self.has_begun = True
                yield text
            return
        entries = self._logprobs(choice)
        if text and not entries:
            raise UnsupportedParameter("The upstream of this model gives no log probabilities", param="logprobs")
        if entries:
            self.has_begun = True
            yield from _joined(text, entries)

    def _logprobs(self, choice: _Choice) -> list[TokenLogprob]:
        if choice.logprobs == NULL:
            return []
        if self._call.is_chat:
            content = _chat_decoder.decode(choice.logprobs).content or []
            return [_entry(entry) for entry in content]
        return list(_legacy(_legacy_decoder.decode(choice.logprobs)))


def _joined(text: bytes, entries: list[TokenLogprob]) -> Iterator[Piece]:
    """Text and its tokens; where the tokens are not the text (a stop string's beginning is held back, or a character is split
    over chunks) all of it goes with the last one."""
    if b"".join(entry.token for entry in entries) == text:
        for entry in entries:
            yield Piece(entry.token, entry)
        return
    for entry in entries[:-1]:
        yield Piece(b"", entry)
    yield Piece(text, entries[-1])


def _entry(entry: _Entry) -> TokenLogprob:
    top = tuple(TopLogprob(-1, _bytes(one), one.logprob or 0.0) for one in entry.top_logprobs or ())
    return TokenLogprob(-1, _bytes(entry), entry.logprob or 0.0, top)


def _bytes(entry: _Entry) -> bytes:
    if entry.bytes is not None and all(0 <= byte < 256 for byte in entry.bytes):
        return bytes(entry.bytes)
    return entry.token.encode()


def _legacy(logprobs: _LegacyLogprobs) -> Iterator[TokenLogprob]:
    tokens, chosen = logprobs.tokens or [], logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or [None] * len(tokens)
    for token, logprob, top in zip(tokens, chosen, tops, strict=False):
        best = sorted((top or {}).items(), key=lambda item: -item[1])
        yield TokenLogprob(
            -1,
            _legacy_bytes(token),
            0.0 if logprob is None else logprob,
            tuple(TopLogprob(-1, _legacy_bytes(name), value) for name, value in best),
        )


def _legacy_bytes(name: str) -> bytes:
    r"""A token's bytes; OpenAI writes `bytes:\xe2\x80` where they are not whole UTF-8."""
    if name.startswith("bytes:\\x"):
        try:
            return bytes(int(part, 16) for part in name.removeprefix("bytes:").split("\\x")[1:])
        except ValueError:
            pass
    return name.encode()


def _usage(usage: _Usage) -> Usage | None:
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    cached = (usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details is not None else None) or 0
    prompt = max(0, usage.prompt_tokens)
    return Usage(prompt, max(0, usage.completion_tokens), min(max(0, cached), prompt))


def _reason(reason: str) -> FinishReason:
    if reason == "length":
        return FinishReason.LENGTH
    if reason in ("content_filter", "abort", "error", "cancelled", "timeout"):
        raise EngineFailed(f"The upstream broke the answer off: finish_reason is {reason}")
    return FinishReason.STOP  # stop, eos_token, stop_sequence, end_turn, ...: the model's own end
