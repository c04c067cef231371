"""One request inside the worker: what an engine holds of it, and the only writer of its ring.

Floor 3, in the worker, loop thread only. It counts tokens, assembles text, keeps the clock, and writes frames; a frame
that does not fit waits here, the sequence is paused, and nobody else is. It must not know the engine.

    preparing ──prepared──▶ waiting ──admitted──▶ active ──finish/fail/cancel──▶ over ──all frames written──▶ closed
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

from hostler.domain import FinishReason, Priority, SamplingParams, Timings, TokenLogprob, Usage
from hostler.engine import RawPrompt
from hostler.errors import EngineFailed, HostlerError
from hostler.guidance import TokenConstraint, broken
from hostler.ring import RingWriter
from hostler.text import Release, StopStrings, TextAssembler
from hostler.worker.wire import (
    ENDED,
    FAILED,
    PREFILL,
    PREFILL_STRUCT,
    TEXT,
    TEXT_HEADER,
    TEXT_LOGPROBS,
    EndedFrame,
    FailedFrame,
    TextFrame,
    encode_payload,
)

_ONE_TOKEN = TEXT_HEADER.pack(1)
_LOGPROBS_A_FRAME = 8
"""At 20 candidates of 81 bytes an entry takes about 2 KiB, so a frame stays far below the smallest ring in use."""


class RingSequence:
    """A SequenceSink over a token ring."""

    def __init__(
        self,
        sequence_id: int,
        writer: RingWriter,
        ring_bytes: int,
        priority: Priority,
        *,
        on_over: Callable[[RingSequence], None],
        on_pause: Callable[[RingSequence], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a request in; it is not prepared yet.

        Args:
            ring_bytes: What its ring holds; longer texts are cut into several frames.
            on_over: Called once, when nothing more may come from the engine.
            on_pause: Called when a frame had to wait.
        """
        self.id = sequence_id
        self.tokens: Sequence[int] = ()
        self.params = SamplingParams()
        self.cache_prompt = True
        self.n_pinned = 0
        self.raw: RawPrompt | None = None
        self.constraint: TokenConstraint | None = None
        self.is_paused = False
        self.is_over = False
        self.is_prepared = False
        self.stalled_since = 0.0
        """When its ring last took a frame; meaningful while frames wait."""
        self.priority = priority.rank
        self._writer = writer
        self._generation = sequence_id & 0xFFFF_FFFF
        # A quarter of the ring at UTF-8's worst: frames that can never fit are never made.
        self._max_text_length = ring_bytes // 16
        self._on_over = on_over
        self._on_pause = on_pause
        self._clock = clock
        self._assembler = TextAssembler()
        self._has_logprobs = False
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._limit = 0
        self._n_output = 0
        self._n_cached = 0
        self._usage: Usage | None = None
        self._n_drafted = 0
        self._n_accepted = 0
        self._begun_at: float | None = None
        self._first_token_at = 0.0
        self._last_token_at = 0.0

    # -- called by the loop -------------------------------------------------------------------------------------------

    def prepared(
        self,
        tokens: Sequence[int],
        params: SamplingParams,
        stops: StopStrings,
        cache_prompt: bool,
        n_ctx: int,
        raw: RawPrompt | None = None,
        constraint: TokenConstraint | None = None,
        n_pinned: int = 0,
    ) -> None:
        """Its prompt is tokenized, or is `raw`; it may wait for a slot now."""
        self.tokens = tokens
        self.params = params
        self.cache_prompt = cache_prompt
        self.n_pinned = n_pinned
        self.is_prepared = True
        self._assembler = TextAssembler(stops)
        self._has_logprobs = params.logprobs is not None
        self.raw = raw
        self.constraint = constraint
        # Pieces of an engine that takes messages are no tokens: it counts them itself.
        self._limit = min(params.max_tokens, n_ctx - len(tokens)) if raw is None else sys.maxsize

    def admitted(self) -> None:
        """It has a slot."""
        self._emit(PREFILL, PREFILL_STRUCT.pack(0, len(self.tokens)))

    def cancel(self) -> None:
        """End it because nobody wants it any more; what its ring does not take now is dropped."""
        self._waiting.clear()
        if not self.is_over:
            self._writer.push(ENDED, self._generation, self._ended(FinishReason.CANCELLED, None))
            self._set_over()

    def abandon(self) -> None:
        """End it because its reader takes nothing: there is no room to say so."""
        self._waiting.clear()
        if not self.is_over:
            self._set_over()

    @property
    def is_flushed(self) -> bool:
        """Every frame is in the ring."""
        return not self._waiting

    def flush(self, now: float) -> bool:
        """Write what waited; True when the ring took something."""
        has_written = False
        while self._waiting:
            kind, payload = self._waiting[0]
            if not self._writer.push(kind, self._generation, payload):
                return has_written
            self._waiting.popleft()
            self.stalled_since = now
            has_written = True
        self.is_paused = False
        return has_written

    # -- called by the engine (SequenceSink) ------------------------------------------------------------------------

    def begin(self, n_cached: int) -> None:
        """See SequenceSink."""
        self._begun_at = self._clock()
        self._n_cached = n_cached

    def prefilled(self, n_done: int) -> None:
        """See SequenceSink."""
        if not self._waiting and not self.is_over:
            # News only: where there is no room for it, the next one will do.
            self._writer.push(PREFILL, self._generation, PREFILL_STRUCT.pack(n_done, len(self.tokens)))

    def push(self, token_id: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
        """See SequenceSink."""
        if self.is_over:
            return False
        constraint = self.constraint
        if constraint is not None and not constraint.accept(token_id):
            self.fail(constraint.error())
            return False
        self._last_token_at = self._clock()
        self._n_output += 1
        if self._n_output == 1:
            self._first_token_at = self._last_token_at
        assembler = self._assembler
        is_plain = assembler.is_idle and not self._waiting and not self._has_logprobs and piece.isascii()
        if is_plain and assembler.first_bytes.isdisjoint(piece):
            # PERF: nearly every token of nearly every request; 2 us.
            payload = _ONE_TOKEN + piece
            if not self._writer.push(TEXT, self._generation, payload):
                self._hold(TEXT, payload)
        else:
            self._emit_release(assembler.feed(piece, logprob if self._has_logprobs else None))
            if assembler.stop_string is not None:
                self._finish(FinishReason.STOP)
                return False
        if constraint is not None and constraint.must_end:
            self._finish(FinishReason.STOP)
            return False
        if self._n_output >= self._limit:
            self._finish(FinishReason.LENGTH)
            return False
        return True

    def end(self, reason: FinishReason, message: str = "") -> None:
        """See SequenceSink."""
        if self.is_over:
            return
        if reason is FinishReason.ERROR:
            self.fail(EngineFailed(message or "The engine gave up on this answer and did not say why"))
        elif reason is FinishReason.STOP and self.constraint is not None and not self.constraint.may_end:
            self.fail(broken(self.constraint.param))
        else:
            self._finish(reason)

    def fail(self, error: HostlerError) -> None:
        """See SequenceSink; the loop calls it, too."""
        if self.is_over:
            return
        self._emit_release(self._assembler.finish())
        text = error.message
        if len(text) > self._max_text_length:
            text = text[: self._max_text_length] + "..."
        self._emit(FAILED, encode_payload(FailedFrame(error.code, text, error.param, error.retry_after_s)))
        self._set_over()

    def counted(self, usage: Usage) -> None:
        """See SequenceSink."""
        self._usage = usage

    def drafted(self, n_drafted: int, n_accepted: int) -> None:
        """See SequenceSink."""
        self._n_drafted += n_drafted
        self._n_accepted += n_accepted

    # -- inside -----------------------------------------------------------------------------------------------------

    def _finish(self, reason: FinishReason) -> None:
        self._emit_release(self._assembler.finish())
        self._emit(ENDED, self._ended(reason, self._assembler.stop_string))
        self._set_over()

    def _set_over(self) -> None:
        self.is_over = True
        self._on_over(self)

    def _ended(self, reason: FinishReason, stop_string: str | None) -> bytes:
        usage = self._usage or Usage(len(self.tokens), self._n_output, self._n_cached)
        until = self._first_token_at if self._n_output else self._clock()
        prompt_s = 0.0 if self._begun_at is None else until - self._begun_at
        timings = Timings(
            prompt_n=0 if self._begun_at is None else usage.prompt_tokens - usage.cached_tokens,
            prompt_ms=prompt_s * 1000,
            cached_n=usage.cached_tokens,
            predicted_n=usage.completion_tokens,
            predicted_ms=(self._last_token_at - self._first_token_at) * 1000,
            draft_n=self._n_drafted,
            draft_accepted_n=self._n_accepted,
        )
        shown = None if stop_string is None else stop_string[: self._max_text_length]
        return encode_payload(EndedFrame(reason, usage, timings, shown))

    def _emit_release(self, release: Release) -> None:
        text, n_tokens, logprobs = release
        if not text and not n_tokens:
            return
        if logprobs:
            for start in range(0, len(logprobs), _LOGPROBS_A_FRAME):
                chunk = logprobs[start : start + _LOGPROBS_A_FRAME]
                is_first = start == 0
                n_chunk = len(chunk) + (n_tokens - len(logprobs) if is_first else 0)
                self._emit_text_frame(text if is_first else "", n_chunk, chunk)
        else:
            self._emit_text_frame(text, n_tokens, ())

    def _emit_text_frame(self, text: str, n_tokens: int, logprobs: tuple[TokenLogprob, ...]) -> None:
        while len(text) > self._max_text_length:
            self._emit(TEXT, TEXT_HEADER.pack(0) + text[: self._max_text_length].encode())
            text = text[self._max_text_length :]
        if logprobs:
            self._emit(TEXT_LOGPROBS, encode_payload(TextFrame(text, n_tokens, logprobs)))
        else:
            self._emit(TEXT, TEXT_HEADER.pack(n_tokens) + text.encode())

    def _emit(self, kind: int, payload: bytes) -> None:
        if self._waiting or not self._writer.push(kind, self._generation, payload):
            self._hold(kind, payload)

    def _hold(self, kind: int, payload: bytes) -> None:
        if not self._waiting:
            self.stalled_since = self._clock()
            self.is_paused = True
            self._on_pause(self)
        self._waiting.append((kind, payload))
