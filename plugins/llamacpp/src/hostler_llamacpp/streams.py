"""KV streams: which tokens lie in which, which one a new sequence takes, and how running ones are kept side by side.

Worker process, engine thread only. It knows which stream is taken, lost or moved and token ids, nothing of requests or
sampling; what outlives the streams is prefixes.py's.

The KV cache has one stream for each slot (`kv_unified` false). Two measured facts shape this module:

- llama.cpp evaluates streams together only in runs of consecutive ids: a hole in the running ids costs every step one
  more pass over the weights. So running sequences are kept side by side, by swapping streams through host memory.
- A stream's state goes to host memory and back in 2 us a token where the prefill takes 2 ms. So a prefix that lies in
  another stream, even a running one, is copied instead of evaluated, and what would be lost is saved before.

A prompt's beginning is looked for in idle streams (taken over, or copied), in running ones (copied) and among what is
saved (restored); the longest wins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hostler import Cache, EngineFailed, PrefixNode, choose_cache
from hostler_llamacpp import salvage
from hostler_llamacpp.prefixes import Prefixes
from hostler_llamacpp.salvage import Salvage
from hostler_llamacpp.states import Memory, TakenRows

_COPY_RATIO = 100
"""Evaluating a token costs at least so many times what copying one does (measured: over 1000)."""
MIN_RESTORED_TOKENS = 4
"""A restored prefix has at least so many tokens more than what is there: 2,000 are restored in the time that these take."""
CHECKPOINT_TOKENS = 1024
"""A long prompt of a model that cannot go back gets a checkpoint every so many tokens."""
MIN_CHECKPOINT_TOKENS = 32
"""No checkpoint nearer to the one before."""


class Stream(Cache):
    """One of llama.cpp's KV streams and the tokens that lie in it; its number is llama.cpp's sequence id."""

    def __init__(self, number: int, n_ctx: int) -> None:
        super().__init__(number, np.empty(n_ctx, np.int32))
        self.stops: list[int] = []
        """Where checkpoints are taken while its prompt is evaluated, in order; a chunk ends there."""


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

    def __init__(
        self,
        memory: Memory,
        n_streams: int,
        n_ctx: int,
        *,
        n_swa: int,
        can_roll_back: bool,
        prefixes: Prefixes,
        room_bytes: int = 0,
        min_salvaged_bytes: int = salvage.MIN_BYTES,
    ) -> None:
        """Start with empty streams.

        Args:
            memory: llama.cpp's.
            n_streams: As many as slots.
            n_ctx: Tokens each can hold.
            n_swa: Sliding window; 0: none.
            can_roll_back: False for recurrent models, whose state cannot go back to an earlier token.
            prefixes: What outlives them; may be replaced as long as nothing lies in the streams.
            room_bytes: Memory that is kept for states on their way; a larger one gets its own each time.
            min_salvaged_bytes: Replaced in tests.
        """
        self.memory = memory
        self.prefixes = prefixes
        # PERF: the system finds the pages of what lies here for a moment once, now: to find them takes longer than to fill
        # them, and would hold up answers; and a worker does not grow with the longest sequence that it has seen.
        self.room = np.full(room_bytes, 0, np.uint8)
        """For a state that is used up before the next one comes."""
        self._salvage = Salvage(memory)
        self._min_salvaged_bytes = min_salvaged_bytes
        self._n_swa = n_swa
        self._can_roll_back = can_roll_back
        self._clock = 0
        self.all = [Stream(number, n_ctx) for number in range(n_streams)]
        self.n_moved_tokens = 0
        """Tokens copied between streams so far."""

    # -- taking and giving back -------------------------------------------------------------------------------------

    def place(self, prompt: np.ndarray, *, may_reuse: bool, n_pinned: int = 0) -> tuple[Stream, int]:
        """Take a stream for a prompt and keep what of it is known.

        Args:
            prompt: Token ids, at least one.
            may_reuse: False: start empty, and keep nothing of it: no other prompt finds what is evaluated in the stream, and
                when it is given back it is emptied.
            n_pinned: So many first tokens are to be evicted last.

        Returns:
            The stream, and how many tokens of the prompt lie in it: at most all but one, which must be evaluated for
            its logits.
        """
        tree = self.prefixes.tree
        path, n_matched = tree.find(prompt)
        n_known = min(n_matched, len(prompt) - 1) if may_reuse else 0
        held = tree.holders(path, n_known) if n_known else {}
        common = {id(stream): self._n_usable(stream, n) for stream, n in held.items()}
        nodes, n_saved = self.prefixes.restorable(path, n_known) if n_known else ([], 0)
        stream, source, n_keep = choose_cache(
            self.all, lambda stream: common.get(id(stream), 0), self._victim_rank, self._may_copy
        )
        # Of equals the saved one: it is restored without what lies behind it, where a stream is copied whole.
        is_cheaper = source is not None and n_saved >= n_keep and self.prefixes.is_in_memory(nodes)
        is_restored = n_saved >= MIN_RESTORED_TOKENS and (is_cheaper or n_saved >= n_keep + MIN_RESTORED_TOKENS)
        if is_restored:
            stream = min((stream for stream in self.all if not stream.is_active), key=self._victim_rank)
        stream.is_active, stream.is_shared = True, may_reuse
        self._salvage.forget(stream)
        if is_restored:
            n_keep = self._restore(stream, prompt, n_known, nodes)
        elif n_keep and source is None:
            self._save_lost(stream, n_keep)
            n_keep = self._keep(stream, n_keep)
        else:
            self._empty(stream)
            if n_keep:
                n_keep = self._keep(stream, n_keep) if source is not None and self._copy(source, stream) else 0
        if may_reuse:
            self._note(stream, prompt, n_keep, n_matched, n_pinned)
        return stream, n_keep

    def _note(self, stream: Stream, prompt: np.ndarray, n_keep: int, n_matched: int, n_pinned: int) -> None:
        """Have the tree know what the stream will hold, and plan its checkpoints."""
        prefixes = self.prefixes
        leaf = prefixes.tree.hold(stream, prompt)
        if n_pinned > 0 and prefixes.has_room:
            n_pinned = min(n_pinned, len(prompt))
            prefixes.tree.pin(prefixes.tree.reach(prompt[:n_pinned]).path())
        path = leaf.path()
        prefixes.note_use(path, n_matched)
        prefixes.store_kept(leaf)
        stream.stops = []
        if prefixes.has_room and not prefixes.is_exact_anywhere:
            # The last but one, so that the same prompt again finds it; and where it parts from what is known.
            wanted = {len(prompt) - 1, n_matched, n_pinned, *range(n_keep + CHECKPOINT_TOKENS, len(prompt), CHECKPOINT_TOKENS)}
            last = n_keep
            for place in sorted(wanted):
                if last + MIN_CHECKPOINT_TOKENS <= place < len(prompt):
                    stream.stops.append(place)
                    last = place

    def release(self, stream: Stream) -> None:
        """Give a stream back; what lies in it stays until its place is needed, or goes at once where it is not shared. What is
        worth a file is written: at once when no other runs, else beside them, so that they are not held up."""
        stream.is_active = False
        stream.stops = []
        self._clock += 1
        stream.last_used = self._clock
        if stream.is_shared:
            leaf = self.prefixes.tree.hold(stream, stream.tokens)
            if self.prefixes.is_worth_storing(leaf.path()):
                self._salvage.add(stream)
                if stream.n_tokens * self.prefixes.layout.token_bytes < self._min_salvaged_bytes:
                    self._save_owed(stream)
        else:
            self._clear(stream)
        if not any(other.is_active for other in self.all):
            self.settle()

    def advance(self) -> None:
        """Between two steps: go on saving what streams were given back with beside running ones."""
        if self._salvage.is_at_work:
            self._keep_saved(self._salvage.advance(self.prefixes.layout, self._n_saved))

    def settle(self) -> None:
        """Save all of that now: nobody is held up by it."""
        if self._salvage.is_at_work:
            self._keep_saved(self._salvage.finish())
            for stream in self._salvage.give_up():
                self._save_owed(stream)

    def _save_owed(self, stream: Cache) -> None:
        self._salvage.forget(stream)
        leaf = self.prefixes.tree.hold(stream, stream.tokens)
        if self.prefixes.is_worth_storing(leaf.path()):
            self._save(stream, leaf, stores=True)

    def _n_saved(self, tokens: np.ndarray) -> int:
        # Without host memory what is saved lies in files, which are not read for it.
        return self.prefixes.n_saved(self.prefixes.tree.find(tokens)[0]) if self.prefixes.has_ram else 0

    def _keep_saved(self, saved: tuple[np.ndarray, TakenRows] | None, stays: Sequence[PrefixNode] = ()) -> None:
        if saved is not None:
            tokens, rows = saved
            leaf = self.prefixes.tree.reach(tokens)
            self.prefixes.save(rows, leaf, stores=self.prefixes.is_worth_storing(leaf.path()), stays=stays)

    def coming(self, prompt: np.ndarray) -> dict[Stream, int]:
        """How many tokens of a prompt each stream will hold once its own prompt is evaluated; those that will hold none are
        left out."""
        path, n_matched = self.prefixes.tree.find(prompt)
        found: dict[Stream, int] = {}
        for node in reversed(path):
            for stream in node.holders:
                found.setdefault(stream, min(node.end, n_matched))
        return found

    def may_wait_for(self, stream: Stream, n_tokens: int) -> bool:
        """Whether so many tokens of what a stream is about to hold can be had from it, and have it stop there if need be."""
        if self.prefixes.is_exact_anywhere or (self._can_roll_back and not self._n_swa):
            return True
        if not self.prefixes.has_ram:
            return False
        if n_tokens not in stream.stops:
            stream.stops = sorted([*stream.stops, n_tokens])
        return True

    def clip(self, stream: Stream, n_tokens: int) -> int:
        """Of so many tokens that are to be evaluated, those up to the next checkpoint."""
        return min(n_tokens, stream.stops[0] - stream.n_tokens) if stream.stops else n_tokens

    def take_checkpoint(self, stream: Stream) -> None:
        """After an evaluation: save a stream's state where one is due."""
        if not stream.stops or stream.n_tokens < stream.stops[0]:
            return
        while stream.stops and stream.stops[0] <= stream.n_tokens:
            stream.stops.pop(0)
        leaf = self.prefixes.tree.reach(stream.tokens)
        if self.prefixes.n_saved(leaf.path()) < stream.n_tokens:
            self._save(stream, leaf, stores=self.prefixes.is_worth_storing(leaf.path()))

    @property
    def can_truncate(self) -> bool:
        """Whether `truncate` works for any number of tokens: every layer keeps every position."""
        return self._can_roll_back and not self._n_swa

    @property
    def can_take_back(self) -> bool:
        """Whether `truncate` works for the tokens of the last evaluation but its first, if all streams had equally many
        then. A sliding window's layers reuse only cells that the position behind those at hand no longer sees, and such an
        evaluation goes in two parts at most: the first tokens, then the rest. So what the second token sees is still there."""
        return self._can_roll_back

    def truncate(self, stream: Stream, n_tokens: int) -> None:
        """Take a stream's last tokens back, such as drafts that were not accepted; see `can_truncate`, `can_take_back`.

        Args:
            n_tokens: How many stay; the stream has at least so many.

        Raises:
            EngineFailed: llama.cpp refused, or no longer has what the next token must see.
        """
        if n_tokens == stream.n_tokens:
            return
        if not self.memory.cut(stream.number, n_tokens, -1):
            raise EngineFailed(f"llama.cpp would not take back the tokens after {n_tokens} of stream {stream.number}")
        if self._n_swa and n_tokens:
            first, last = self.memory.positions(stream.number)
            # The next token sees itself and n_swa - 1 before it.
            if last != n_tokens - 1 or not 0 <= first <= max(0, n_tokens - self._n_swa + 1):
                raise EngineFailed(f"llama.cpp has lost the window before token {n_tokens} of stream {stream.number}")
        stream.n_tokens = n_tokens

    def close(self, timeout_s: float) -> None:
        """Write to disk what is worth it and lies only in host memory or in streams."""
        until = time.monotonic() + timeout_s
        prefixes = self.prefixes
        self._keep_saved(self._salvage.finish())
        if not prefixes.has_files:
            return
        prefixes.store_all(until)
        for stream in sorted(self.all, key=lambda stream: -stream.last_used):
            if stream.n_tokens and stream.is_shared and time.monotonic() < until:
                leaf = prefixes.tree.hold(stream, stream.tokens)
                state = prefixes.layout.take_apart(self.memory.save(stream.number, self.room))
                if state is not None and prefixes.is_worth_storing(leaf.path(), at_end=True):
                    prefixes.store(leaf, state)

    # -- what can be kept -------------------------------------------------------------------------------------------

    def _victim_rank(self, stream: Stream) -> tuple[int, int]:
        # Empty ones first, those next to running ones before others (no hole); then the one unused for longest.
        if stream.n_tokens:
            return (1, stream.last_used)
        distances = (abs(stream.number - other.number) for other in self.all if other.is_active)
        return (0, min(distances, default=stream.number))

    def _n_usable(self, stream: Stream, n_keep: int) -> int:
        """`n_keep`, or 0 where the stream cannot go back so far; a running one is copied before it is cut."""
        if n_keep == stream.n_tokens or self.can_truncate or not n_keep:
            return n_keep
        if stream.is_active or not self._can_roll_back:
            return n_keep if self._may_cut(n_keep, stream) else 0
        return n_keep if may_keep(n_keep, self.memory.positions(stream.number)[0], n_keep - 1, self._n_swa) else 0

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
        if n_keep < stream.n_tokens and not (self._can_roll_back and self.memory.cut(stream.number, n_keep, -1)):
            self._clear(stream)
            return 0
        position_min, position_max = self.memory.positions(stream.number)
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
        self.memory.cut(stream.number, -1, -1)
        stream.n_tokens = 0
        self.prefixes.tree.let_go(stream)

    # -- saving and restoring ---------------------------------------------------------------------------------------

    def _empty(self, stream: Stream, stays: Sequence[PrefixNode] = ()) -> None:
        """Save what would be lost, then clear."""
        self._save_lost(stream, 0, stays)
        self._clear(stream)

    def _save_lost(self, stream: Stream, n_keep: int, stays: Sequence[PrefixNode] = ()) -> None:
        """Save what lies behind a stream's first tokens as far as it is not saved and worth the copy.

        Args:
            n_keep: What stays in the stream; 0: it is cleared next.
            stays: Saved nodes that are needed right now.
        """
        prefixes = self.prefixes
        if not prefixes.has_room or stream.n_tokens - n_keep < prefixes.min_lost_tokens:
            return
        if self._salvage.holds(stream.tokens):
            self._keep_saved(self._salvage.finish(), stays)
        leaf = prefixes.tree.hold(stream, stream.tokens)
        path = leaf.path()
        n_saved = prefixes.n_saved(path)
        n_fresh = stream.n_tokens - n_saved
        if n_fresh < prefixes.min_lost_tokens:
            return
        stores = prefixes.is_worth_storing(path, at_end=not prefixes.has_ram)
        if not (prefixes.has_ram or stores):
            return
        if prefixes.is_exact_anywhere and n_saved and not n_keep:
            self.memory.cut(stream.number, 0, n_saved)  # PERF: what is saved need not be copied again
        self._save(stream, leaf, stores=stores, stays=stays)

    def _save(self, stream: Cache, leaf: PrefixNode, *, stores: bool, stays: Sequence[PrefixNode] = ()) -> None:
        state = self.prefixes.layout.take_apart(self.memory.save(stream.number, self.room))
        if state is not None:
            self.prefixes.save(state, leaf, stores=stores, stays=stays)

    def _restore(self, stream: Stream, prompt: np.ndarray, n_known: int, stays: Sequence[PrefixNode]) -> int:
        """Put what is saved of a prompt's first tokens into a stream; how many came."""
        self._empty(stream, stays)
        prefixes = self.prefixes
        path, _ = prefixes.tree.find(prompt[:n_known])  # once more: saving may have cut nodes in two
        nodes, n_tokens = prefixes.restorable(path, n_known)
        blob = prefixes.blob(nodes, n_tokens, self.room) if n_tokens else None
        if blob is None or not self.memory.restore(stream.number, blob):
            return 0
        stream.extend(prompt[:n_tokens])
        return self._keep(stream, n_tokens)

    # -- moving -----------------------------------------------------------------------------------------------------

    def _copy(self, source: Stream, target: Stream) -> bool:
        """Copy a whole stream into an empty one; False leaves it empty."""
        if not self.memory.restore(target.number, self.memory.save(source.number, self.room)):
            return False
        target.take_over(source, source.n_tokens)
        self.n_moved_tokens += source.n_tokens
        return True

    def swap(self, one: Stream, other: Stream) -> None:
        """Exchange the places of two streams, contents and all.

        Raises:
            EngineFailed: llama.cpp refused its own state; what lay in the streams is lost.
        """
        saved = [
            (stream, self.memory.save(stream.number, room) if stream.n_tokens else None)
            for stream, room in ((one, self.room), (other, None))
        ]
        one.number, other.number = other.number, one.number
        self.all[one.number], self.all[other.number] = one, other
        for stream, data in saved:
            if data is None:
                self.memory.cut(stream.number, -1, -1)
            elif not self.memory.restore(stream.number, data):
                raise EngineFailed(f"llama.cpp refused the state it gave itself, for stream {stream.number}")
            self.n_moved_tokens += stream.n_tokens
