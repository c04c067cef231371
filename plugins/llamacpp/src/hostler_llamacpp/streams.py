"""KV streams: which tokens lie in which, which one a new sequence takes, and how running ones are kept side by side.

Worker process, engine thread only. It knows llama.cpp's memory calls and token ids, nothing of requests or sampling.

The KV cache has one stream for each slot (`kv_unified` false). Two measured facts shape this module:

- llama.cpp evaluates streams together only in runs of consecutive ids: a hole in the running ids costs every step one
  more pass over the weights. So running sequences are kept side by side, by swapping streams through host memory.
- A stream's state goes to host memory and back in 2 us a token where the prefill takes 2 ms. So a prefix that lies in
  another stream, even a running one, is copied instead of evaluated.

What a finished sequence leaves in its stream is the prefix cache of this release: the next prompt takes over the stream
with the longest common beginning. A cache shared by all slots that outlives them takes its place here: it would answer
`place` and receive what `release` lets go.
"""

from __future__ import annotations

import ctypes

import llama_cpp as llama
import numpy as np

from hostler import Cache, choose_cache, common_prefix
from hostler_llamacpp.binding import short

_COPY_RATIO = 100
"""Evaluating a token costs at least so many times what copying one does (measured: over 1000)."""


class Stream(Cache):
    """One of llama.cpp's KV streams and the tokens that lie in it; its number is llama.cpp's sequence id."""

    def __init__(self, number: int, n_ctx: int) -> None:
        super().__init__(number, np.empty(n_ctx, np.int32))


def may_keep(n_keep: int, position_min: int, position_max: int, n_swa: int) -> bool:
    """Whether a stream may go on behind its first `n_keep` tokens, judged after the rest was removed.

    With sliding windows llama.cpp forgets old positions and says nothing when it goes on without them: the text would be
    wrong. Legal is only what still has the whole window before `n_keep`.

    Args:
        n_keep: Tokens to keep, at least 1.
        position_min: The smallest position the cache still has for all layers; -1: empty.
        position_max: The largest.
        n_swa: The window; 0: none.
    """
    if position_max != n_keep - 1 or position_min < 0:
        return False
    return position_min <= (max(0, n_keep - n_swa) if n_swa else 0)


class Streams:
    """All streams of a context. Idle ones keep what their last sequence left."""

    def __init__(self, context: int, n_streams: int, n_ctx: int, *, n_swa: int, can_roll_back: bool) -> None:
        """Start with empty streams.

        Args:
            context: llama.cpp's.
            n_streams: As many as slots.
            n_ctx: Tokens each can hold.
            n_swa: Sliding window; 0: none.
            can_roll_back: False for recurrent models, whose state cannot go back to an earlier token.
        """
        self._context = context
        self._memory: int = llama.llama_get_memory(context)
        self._n_swa = n_swa
        self._can_roll_back = can_roll_back
        self._clock = 0
        self.all = [Stream(number, n_ctx) for number in range(n_streams)]
        self.n_moved_tokens = 0
        """Tokens copied between streams so far."""

    # -- taking and giving back -------------------------------------------------------------------------------------

    def place(self, prompt: np.ndarray, *, may_reuse: bool) -> tuple[Stream, int]:
        """Take a stream for a prompt and keep what of it is known.

        Args:
            prompt: Token ids, at least one.
            may_reuse: False: start empty.

        Returns:
            The stream, and how many tokens of the prompt lie in it: at most all but one, which must be evaluated for
            its logits.
        """
        limit = len(prompt) - 1

        def n_common(stream: Stream) -> int:
            return min(common_prefix(stream.tokens, prompt), limit) if may_reuse else 0

        stream, source, n_keep = choose_cache(self.all, n_common, self._victim_rank, self._may_copy)
        stream.is_active = True
        if not n_keep:
            self._clear(stream)
        elif source is None or self._copy(source, stream):
            return stream, self._keep(stream, n_keep)
        return stream, 0

    def release(self, stream: Stream, *, keeps: bool) -> None:
        """Give a stream back; what lies in it stays until its place is needed, or goes at once."""
        stream.is_active = False
        self._clock += 1
        stream.last_used = self._clock
        if not keeps:
            self._clear(stream)

    @property
    def can_truncate(self) -> bool:
        """Whether `truncate` works: every layer keeps every position."""
        return self._can_roll_back and not self._n_swa

    def truncate(self, stream: Stream, n_tokens: int) -> None:
        """Take a stream's last tokens back, such as drafts that were not accepted; only where `can_truncate`.

        Args:
            n_tokens: How many stay; the stream has at least so many.

        Raises:
            RuntimeError: llama.cpp refused.
        """
        if n_tokens == stream.n_tokens:
            return
        if not short.llama_memory_seq_rm(self._memory, stream.number, n_tokens, -1):
            raise RuntimeError(f"llama.cpp would not take back the tokens after {n_tokens} of stream {stream.number}")
        stream.n_tokens = n_tokens

    def _victim_rank(self, stream: Stream) -> tuple[int, int]:
        # Empty ones first, those next to running ones before others (no hole); then the one unused for longest.
        if stream.n_tokens:
            return (1, stream.last_used)
        distances = (abs(stream.number - other.number) for other in self.all if other.is_active)
        return (0, min(distances, default=stream.number))

    def _may_copy(self, stream: Stream, n_keep: int) -> bool:
        # A whole stream is copied, and then cut.
        return n_keep * _COPY_RATIO >= stream.n_tokens and self._may_cut(n_keep, stream)

    def _may_cut(self, n_keep: int, stream: Stream) -> bool:
        """Whether a copy of the stream could be cut to `n_keep`: a saved state holds one window of old positions."""
        if n_keep == stream.n_tokens:
            return True
        return self._can_roll_back and (not self._n_swa or stream.n_tokens <= self._n_swa)

    def _keep(self, stream: Stream, n_keep: int) -> int:
        """Cut a stream back to its first tokens, or empty it where that would not be exact."""
        if n_keep < stream.n_tokens and not (
            self._can_roll_back and short.llama_memory_seq_rm(self._memory, stream.number, n_keep, -1)
        ):
            self._clear(stream)
            return 0
        position_min = short.llama_memory_seq_pos_min(self._memory, stream.number)
        position_max = short.llama_memory_seq_pos_max(self._memory, stream.number)
        if self._can_roll_back:
            is_exact = may_keep(n_keep, position_min, position_max, self._n_swa)
        else:
            is_exact = position_max == n_keep - 1  # the state of the last token is all there is
        if not is_exact:
            self._clear(stream)
            return 0
        stream.n_tokens = n_keep
        return n_keep

    def _clear(self, stream: Stream) -> None:
        short.llama_memory_seq_rm(self._memory, stream.number, -1, -1)
        stream.n_tokens = 0

    # -- moving -----------------------------------------------------------------------------------------------------

    def _save(self, stream: Stream) -> np.ndarray:
        size: int = llama.llama_state_seq_get_size(self._context, stream.number)
        data = np.empty(size, np.uint8)
        written: int = llama.llama_state_seq_get_data(self._context, _bytes_at(data), size, stream.number)
        if written == 0:
            raise RuntimeError(f"llama.cpp could not save the state of stream {stream.number}")
        return data[:written]

    def _restore(self, data: np.ndarray, number: int) -> bool:
        short.llama_memory_seq_rm(self._memory, number, -1, -1)
        read: int = llama.llama_state_seq_set_data(self._context, _bytes_at(data), len(data), number)
        return read > 0

    def _copy(self, source: Stream, target: Stream) -> bool:
        """Copy a whole stream; False leaves the target empty."""
        if not self._restore(self._save(source), target.number):
            target.n_tokens = 0
            return False
        target.take_over(source, source.n_tokens)
        self.n_moved_tokens += source.n_tokens
        return True

    def swap(self, one: Stream, other: Stream) -> None:
        """Exchange the places of two streams, contents and all.

        Raises:
            RuntimeError: llama.cpp refused its own state; what lay in the streams is lost.
        """
        saved = [(stream, self._save(stream) if stream.n_tokens else None) for stream in (one, other)]
        one.number, other.number = other.number, one.number
        self.all[one.number], self.all[other.number] = one, other
        for stream, data in saved:
            if data is None:
                short.llama_memory_seq_rm(self._memory, stream.number, -1, -1)
            elif not self._restore(data, stream.number):
                raise RuntimeError(f"llama.cpp refused the state it gave itself, for stream {stream.number}")
            self.n_moved_tokens += stream.n_tokens


def _bytes_at(data: np.ndarray) -> object:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
