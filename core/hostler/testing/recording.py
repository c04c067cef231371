"""RecordingSequence: a request as an engine sees it, which keeps everything the engine does with it.

Floor 2, for tests only: in-process, one thread, no ring. It ends a sequence for the same reasons as a worker does
(stop string, `max_tokens`, context full), and collects every breach of the SequenceSink contract in `violations`: an
exception raised inside `push` could be caught by the engine that caused it.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Sequence

import msgspec

from hostler.domain import SEED_RANDOM, FinishReason, Priority, SamplingParams, TokenLogprob, Usage
from hostler.engine import RawPrompt
from hostler.errors import EngineFailed, HostlerError
from hostler.guidance import TokenConstraint
from hostler.text import StopStrings, TextAssembler

_next_id = itertools.count(1)

FIXED_SEED = 20_240_607
"""What a request without a seed gets, so that a failing check fails again."""


class RecordingSequence:
    """A SequenceSink that remembers. All fields are written by the engine's calls and read by the test."""

    def __init__(
        self,
        tokens: Sequence[int] = (),
        params: SamplingParams | None = None,
        *,
        raw: RawPrompt | None = None,
        n_ctx: int | None = None,
        cache_prompt: bool = True,
        priority: Priority = Priority.NORMAL,
        n_pinned: int = 0,
        stop_after: int | None = None,
        sequence_id: int | None = None,
        constraint: TokenConstraint | None = None,
    ) -> None:
        """Make a request.

        Args:
            tokens: The prompt's token ids, at least one; none for an engine that takes messages.
            params: None: greedy, up to 16 tokens.
            raw: What an engine that takes messages gets.
            n_ctx: The engine's `EngineInfo.n_ctx`; prompt and answer together never exceed it. None: no limit.
            cache_prompt: As in SequenceSink.
            priority: The request's.
            n_pinned: As in SequenceSink.
            stop_after: `push` gives False at this many tokens, as if the reader had had enough. None: never.
            sequence_id: None: the next free one.
            constraint: What `push` holds the answer to.
        """
        params = SamplingParams(temperature=0.0, max_tokens=16) if params is None else params
        if params.seed == SEED_RANDOM and raw is None:
            params = msgspec.structs.replace(params, seed=FIXED_SEED)
        self.id: int = next(_next_id) if sequence_id is None else sequence_id
        self.tokens: Sequence[int] = tuple(tokens)
        self.params: SamplingParams = params
        self.cache_prompt: bool = cache_prompt
        self.priority: int = priority.rank
        self.n_pinned: int = n_pinned
        self.raw: RawPrompt | None = raw
        self.constraint: TokenConstraint | None = constraint

        self.n_cached: int | None = None
        """What `begin` said; None before it."""
        self.prefilled_counts: list[int] = []
        self.token_ids: list[int] = []
        self.pieces: list[bytes] = []
        self.logprobs: list[TokenLogprob | None] = []
        self.reason: FinishReason | None = None
        """Why it is over; None while it is not."""
        self.message: str = ""
        """What the engine said when it ended the sequence with an error."""
        self.error: HostlerError | None = None
        """That error."""
        self.usage: Usage | None = None
        """What `counted` said."""
        self.n_drafted: int = 0
        """What the calls of `drafted` add up to."""
        self.n_accepted: int = 0
        self.text: str = ""
        """The answer as a client would have it by now: whole characters, nothing of a stop string."""
        self.stop_string: str | None = None
        self.is_ended_by_engine: bool = False
        self.violations: list[str] = []

        self._is_paused = False
        limits = [stop_after]
        if raw is None:  # else a push is no token
            limits += [params.max_tokens, None if n_ctx is None else n_ctx - len(self.tokens)]
        self._max_tokens = min((limit for limit in limits if limit is not None), default=sys.maxsize)
        self._assembler = TextAssembler(StopStrings(params.stop))
        self._thread = threading.get_ident()

    # -- what the test does ---------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Nothing more may come."""
        return self.reason is not None

    @property
    def said(self) -> object:
        """What two equal answers have in common: their tokens, or their text where nothing is known of tokens."""
        return tuple(self.token_ids) if self.raw is None else self.text

    @property
    def n_prefilled(self) -> int:
        """Prompt tokens in the KV cache so far."""
        return self.prefilled_counts[-1] if self.prefilled_counts else 0

    def pause(self) -> None:
        """Behave like a reader that is too slow."""
        self._is_paused = True

    def resume(self) -> None:
        """Read again."""
        self._is_paused = False

    def mark_cancelled(self) -> None:
        """Note that the test has called `engine.cancel`; whatever the engine does with it now is a violation."""
        self.reason = FinishReason.CANCELLED

    # -- SequenceSink: what the engine does -----------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        """See SequenceSink."""
        return self._is_paused

    def begin(self, n_cached: int) -> None:
        """See SequenceSink."""
        self._check_call("begin")
        if self.n_cached is not None:
            self._violate("begin() was called twice")
        if not 0 <= n_cached <= len(self.tokens):
            self._violate(f"begin({n_cached}) of a prompt of {len(self.tokens)} tokens")
        self.n_cached = n_cached

    def prefilled(self, n_done: int) -> None:
        """See SequenceSink."""
        self._check_call("prefilled")
        if self.n_cached is None:
            self._violate(f"prefilled({n_done}) came before begin()")
        if self.token_ids:
            self._violate(f"prefilled({n_done}) came after the first push()")
        if not max(self.n_prefilled, self.n_cached or 0) <= n_done <= len(self.tokens):
            self._violate(
                f"prefilled({n_done}) after prefilled({self.n_prefilled}), {self.n_cached} cached, "
                f"of a prompt of {len(self.tokens)} tokens"
            )
        self.prefilled_counts.append(n_done)

    def push(self, token_id: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
        """See SequenceSink."""
        self._check_call("push")
        if self.n_prefilled != len(self.tokens):
            self._violate(f"push() came when {self.n_prefilled} of {len(self.tokens)} prompt tokens were prefilled")
        if not isinstance(piece, bytes):
            self._violate(f"push() got a piece of type {type(piece).__name__}; it must be bytes")
            piece = str(piece).encode()
        if self.params.logprobs is not None and logprob is None:
            self._violate("push() came without logprob although params.logprobs is set")
        if self.reason is not None:
            return False
        self.token_ids.append(token_id)
        self.pieces.append(piece)
        self.logprobs.append(logprob)
        self.text += self._assembler.feed(piece, logprob).text
        self.stop_string = self._assembler.stop_string
        if self.stop_string is not None:
            self.reason = FinishReason.STOP
        elif self.constraint is not None and not self.constraint.accept(token_id):
            self._violate(f"push() got token {token_id} ({piece!r}), which its constraint does not allow")
            self.reason = FinishReason.ERROR
        elif self.constraint is not None and self.constraint.must_end:
            self.reason = FinishReason.STOP
        elif len(self.token_ids) >= self._max_tokens:
            self.reason = FinishReason.LENGTH
        if self.reason is not None:
            self.text += self._assembler.finish().text
        return self.reason is None

    def end(self, reason: FinishReason, message: str = "") -> None:
        """See SequenceSink."""
        self._check_call("end")
        if reason not in (FinishReason.STOP, FinishReason.ERROR) and (self.raw is None or reason is not FinishReason.LENGTH):
            self._violate(f"end({reason.value!r}): an engine ends a sequence with 'stop' or 'error' only")
        if reason is FinishReason.ERROR and not message:
            self._violate("end('error') came without a message")
        if reason is FinishReason.STOP and self.constraint is not None and not self.constraint.may_end:
            self._violate("end('stop') came where its constraint allows no end")
        if self.n_cached is None and reason is FinishReason.STOP:
            self._violate("end('stop') came before begin()")
        if reason is FinishReason.ERROR:
            self._end(reason, EngineFailed(message))
        else:
            self._end(reason, None)

    def fail(self, error: HostlerError) -> None:
        """See SequenceSink."""
        self._check_call("fail")
        self._end(FinishReason.ERROR, error)

    def counted(self, usage: Usage) -> None:
        """See SequenceSink."""
        self._check_call("counted")
        self.usage = usage

    def drafted(self, n_drafted: int, n_accepted: int) -> None:
        """See SequenceSink."""
        self._check_call("drafted")
        if not 0 <= n_accepted <= n_drafted:
            self._violate(f"drafted({n_drafted}, {n_accepted}): more accepted than drafted")
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted

    # -- inside ---------------------------------------------------------------------------------------------------

    def _end(self, reason: FinishReason, error: HostlerError | None) -> None:
        if self.reason is None:
            self.text += self._assembler.finish().text
            self.reason, self.is_ended_by_engine, self.error = reason, True, error
            self.message = "" if error is None else error.message

    def _check_call(self, name: str) -> None:
        if self.reason is not None:
            self._violate(f"{name}() was called after the sequence was over ({self.reason.value})")
        if threading.get_ident() != self._thread:
            self._violate(f"{name}() was called from another thread than the engine's")

    def _violate(self, message: str) -> None:
        self.violations.append(f"sequence {self.id}: {message}")

    def __repr__(self) -> str:
        state = "open" if self.reason is None else self.reason.value
        return f"<RecordingSequence {self.id}: {len(self.tokens)} + {len(self.token_ids)} tokens, {state}>"
