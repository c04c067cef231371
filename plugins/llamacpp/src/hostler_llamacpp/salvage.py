"""What ended sequences left in their streams, saved while others run.

Worker process; called by the engine thread, with a thread of its own for what takes long. It knows streams and their states;
what is worth saving, and where it goes, it does not.

Why: 7,500 tokens of SmolLM2 are 172 MB. llama.cpp writes them out in 10 ms, but in 390 ms into memory that the system must
find first, and to copy rows out of them takes another 70 ms. Here the engine thread does the first alone, between two steps:

    engine thread       advance ─┐               ┌─ advance: llama.cpp writes ─┐               ┌─ advance gives the rows
    salvage's thread             └─ finds memory ┘                             └─ copies rows ─┘
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from hostler import Cache
from hostler_llamacpp.states import CHUNK_TOKENS, Chunk, Layout, Memory, Rows, State, TakenRows

MIN_BYTES = 16 * 1024 * 1024
"""Less is saved at once: it takes about as long as a step."""
_PAGE_BYTES = 4096
_PIECE_BYTES = 2 * 1024 * 1024
"""Found at once: a huge page."""


class Salvage:
    """One stream at a time; others wait."""

    def __init__(self, memory: Memory) -> None:
        """Nothing is to be saved."""
        self._memory = memory
        self._waiting: list[Cache] = []
        self._stream: Cache | None = None
        """For which memory was found, or is being found."""
        self._tokens: np.ndarray | None = None
        """Of what was written out; None: nothing is."""
        self._room = np.empty(0, np.uint8)
        self._taken: TakenRows | None = None
        self._thread: threading.Thread | None = None
        self._is_awaited = threading.Event()
        """The engine thread does nothing but wait for the other."""

    def add(self, stream: Cache) -> None:
        """Save an idle stream in time; it stays as it is until `forget`."""
        if stream not in self._waiting:
            self._waiting.append(stream)

    def forget(self, stream: Cache) -> None:
        """A stream is no longer idle. What was written out of it is copied on."""
        if stream in self._waiting:
            self._waiting.remove(stream)
        if stream is self._stream:
            self._stream, self._room = None, np.empty(0, np.uint8)

    @property
    def is_at_work(self) -> bool:
        """Something is being saved, or is to be."""
        return bool(self._waiting or self._stream or self._tokens is not None)

    def holds(self, tokens: np.ndarray) -> bool:
        """Whether the state of these tokens, or of a beginning of them, was written out and is being copied."""
        return self._tokens is not None and np.array_equal(self._tokens, tokens[: len(self._tokens)])

    def advance(self, layout: Layout, n_saved: Callable[[np.ndarray], int]) -> tuple[np.ndarray, TakenRows] | None:
        """Go on, without waiting.

        Args:
            n_saved: Of these tokens, how many need no saving.

        Returns:
            The tokens and rows of a stream that are complete now; None: none are.
        """
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread = None
        if self._tokens is not None:
            return self.finish()
        stream = self._stream
        if stream is not None:
            self._stream = None
            state = layout.take_apart(self._memory.save(stream.number, self._room))
            self._room = np.empty(0, np.uint8)
            if state is not None:
                self._tokens = stream.tokens.copy()
                start = max(state.start, n_saved(self._tokens))
                self._start(lambda: self._copy(state, start))
        elif self._waiting:
            self._stream = self._waiting.pop(0)
            self._room = np.empty(self._memory.size(self._stream.number), np.uint8)
            room = self._room
            self._start(lambda: self._touch(room))
        return None

    def finish(self) -> tuple[np.ndarray, TakenRows] | None:
        """Wait for what was written out; its tokens and rows, or None where nothing was."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            return None
        self.wait()
        taken, self._taken = self._taken, None
        return None if taken is None else (tokens, taken)

    def wait(self) -> None:
        """Wait for the thread, so that the next call goes on."""
        if self._thread is not None:
            self._is_awaited.set()
            self._thread.join()
            self._is_awaited.clear()
            self._thread = None

    def give_up(self) -> list[Cache]:
        """Leave what was not written out yet; those streams are the caller's to save."""
        left = [*([self._stream] if self._stream is not None else []), *self._waiting]
        self._waiting, self._stream, self._room = [], None, np.empty(0, np.uint8)
        return left

    # -- the thread -------------------------------------------------------------------------------------------------

    def _start(self, work: Callable[[], None]) -> None:
        # PERF: as urgent as the engine thread, but resting half of the time. With a lower priority it hardly got a core beside
        # llama.cpp's spinning threads; without rests one of those waited for 200 ms behind it.
        self._thread = threading.Thread(target=work, name="salvage", daemon=True)
        self._thread.start()

    def _touch(self, room: np.ndarray) -> None:
        began_s = time.monotonic()
        for place in range(0, len(room), _PIECE_BYTES):
            room[place : place + _PIECE_BYTES : _PAGE_BYTES].fill(0)
            began_s = self._rest(began_s)

    def _copy(self, state: State, start: int) -> None:
        end = state.start + state.n_rows
        chunks: list[Chunk] = []
        began_s = time.monotonic()
        for place in range(start, end, CHUNK_TOKENS):
            chunks += Rows.taken_from(state, place, min(end, place + CHUNK_TOKENS)).chunks
            began_s = self._rest(began_s)
        self._taken = TakenRows(start, end - start, state.checkpoint.copy(), Rows(chunks))

    def _rest(self, began_s: float) -> float:
        self._is_awaited.wait(time.monotonic() - began_s)
        return time.monotonic()
