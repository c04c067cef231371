"""A long prompt evaluated aside, a few layers at a time between the steps of running answers.

Worker process; the engine thread, and a thread of its own that never runs while the engine thread does. It knows a context
of its own and rows of KV, nothing of requests or of who waits for whom.

Why: a step must not hold up running answers for long, so beside them a prompt goes in chunks of a few tokens. That is where
llama.cpp is slow on a CPU: at position 1,500 a prompt token costs 4.6 ms in chunks of 16 and 2.8 ms in chunks of 256, at
position 700 it costs 4.4 ms in chunks of 8 and 2.5 ms in one of 72. So the chunk stays large and its evaluation is
interrupted instead: llama.cpp calls back behind each piece of a layer (attention, feed-forward), and the thread that evaluates
waits there until the engine gives it more time.

A context cannot evaluate two things at once, hence a second one, of one stream, made when the first long prompt comes. What
a prompt begins with is copied into it, and what was evaluated is copied back: 2 us a token, where evaluating one takes 2 ms.
The last token is left to the engine, which wants its logits. What is copied back is packed beside running answers, since
that takes as long as some steps.

    engine thread     advance ──go──▶                     ──came back──▶ next step ...   (one of the two at a time)
    aside's thread                   llama_decode ... piece's end ─┘ waits for go
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import llama_cpp as llama
import numpy as np

from hostler import EngineFailed, EngineSettings
from hostler_llamacpp import loading
from hostler_llamacpp.binding import Batch, can_name_tensors, log, tensor_name_offset
from hostler_llamacpp.loading import Loaded
from hostler_llamacpp.states import Layout, State, StreamMemory

MIN_LONG = 65_536
"""Missing tokens times their mean position, from which on a prompt is so long that room is made for it at once."""
MIN_CHUNK_TOKENS = 128
PACKING_S = 0.01
"""How long to wait for the packing before the running answers go on."""
MIN_CELLS = 2048
"""Room of the second context at least; it is made anew, twice as large, for a longer prompt."""
PIECES_A_TIME = 1
"""A chunk is so large that the longest piece of a layer takes about this part of the time given. It ends near that time, the
nearer the more pieces there are; but small chunks cost more (3,000 tokens beside 4 answers: 4.5 s with 3 pieces, 3.7 s with 1,
and the answers' p99 was 28 ms both times)."""
_PIECE_ENDS = (b"l_out-", b"kqv_out-", b"ffn_inp-", b"ffn_out-")
"""What llama.cpp calls a layer's result, whatever the architecture, and in most of them the results on the way to it."""
_END_BYTES = 8


class Aside:
    """One prompt at a time; see the module."""

    def __init__(self, loaded: Loaded, settings: EngineSettings, layout: Layout) -> None:
        """Nothing is allocated yet.

        Args:
            layout: Of the engine's own context.
        """
        self._loaded = loaded
        self._settings = settings
        self._layout = layout
        self._own_layout = layout.of_one_stream()
        self._n_batch = min(settings.n_batch, loading.n_ubatch(settings))
        self._context = 0
        self._n_cells = 0
        """Tokens that it has room for."""
        self._thread: threading.Thread | None = None
        self._opener: threading.Thread | None = None
        """Makes a larger context; until it has ended nobody else touches the context's fields."""
        self.buffer_bytes: dict[str, int] = {}
        """As llama.cpp says, by kind; empty until there is a context."""
        self.is_usable = True
        """False: this model cannot be interrupted after all."""
        self._tokens = np.empty(0, np.int32)
        self.n_done = 0
        """Tokens of the prompt that are evaluated here or were copied here."""
        self._n_chunk = 0
        """Tokens of the chunk under way; 0: none is."""
        self._token_s = 0.0
        self._piece_token_s = 0.0
        """Seconds of the last chunk's longest piece, by tokens; 0: unknown."""
        self._spent_s = 0.0
        """On the chunk under way."""
        # One of the two threads waits at any time; what follows is written by the one that runs.
        self._go = threading.Semaphore(0)
        self._came_back = threading.Semaphore(0)
        self._is_called_off = False
        self._is_closing = False
        self._until_s = 0.0
        self._piece_began_s = 0.0
        self._last_end = b""
        self._next_s: dict[bytes, float] = {}
        """What the piece took that came last behind each of _PIECE_ENDS."""
        self._longest_s = 0.0
        """Of the pieces of the chunk under way."""
        self._n_pauses = 0
        self._is_last = False
        """The chunk under way is the prompt's last."""
        self._packed: np.ndarray | None = None
        self._is_packed = threading.Event()
        self._code = 0
        self._failure: BaseException | None = None
        self._name_offset = 0

    @staticmethod
    def is_long(n_missing: int, n_done: int) -> bool:
        """Whether a prompt of which so much is missing behind so much will surely be evaluated aside, should answers run."""
        return n_missing * (n_done + n_missing // 2) >= MIN_LONG

    def begin(self, tokens: np.ndarray, n_done: int, blob: np.ndarray | None, token_s: float) -> bool:
        """Take a prompt.

        Args:
            tokens: To be evaluated, and before them those that are known.
            n_done: How many are known.
            blob: Their state in the engine's context; None: nothing is known.
            token_s: About what a token takes.

        Returns:
            False: it cannot be done here, or not yet.
        """
        if not self.has_room(len(tokens)):
            return False
        self._memory.cut(0, -1, -1)
        if blob is not None:
            state = self._layout.take_apart(blob)
            if state is None or state.n_rows < n_done:
                return False
            if not self._memory.restore(0, self._own_layout.put_together(_beginning(state, n_done), n_done, None)):
                return False
        self._tokens, self.n_done = tokens, n_done
        self._token_s = self._token_s or token_s
        self._packed = None
        self._is_packed.clear()
        return True

    def has_room(self, n_tokens: int) -> bool:
        """Whether so many tokens fit; if not, room is being made beside running answers, whom it would hold up otherwise."""
        if self._opener is not None:
            if self._opener.is_alive():
                return False
            self._opener = None
        if n_tokens > self._n_cells and self.is_usable:
            self._opener = threading.Thread(target=self._open, args=(n_tokens,), name="prefill-aside-room", daemon=True)
            self._opener.start()
            return False
        return n_tokens <= self._n_cells

    def wait_for_room(self) -> None:
        """Wait until what `has_room` has begun is done."""
        if self._opener is not None:
            self._opener.join()

    @property
    def is_complete(self) -> bool:
        """Nothing is left to be evaluated, and `take` need not wait."""
        return self._is_evaluated and self._is_packed.is_set()

    @property
    def _is_evaluated(self) -> bool:
        return self.n_done == len(self._tokens)

    def advance(self, seconds: float) -> int:
        """Evaluate for about so long.

        Returns:
            Tokens that are complete by now and were not before: those of a chunk, or none.

        Raises:
            EngineFailed: llama.cpp refused.
        """
        if self._is_evaluated:  # what was evaluated is being packed, beside running answers
            self._is_packed.wait(min(seconds, PACKING_S))
            return 0
        began_s = time.monotonic()
        if not self._n_chunk:
            # Unknown: half a layer.
            piece_s = self._piece_token_s or self._token_s / self._n_layers / 2
            n_wanted = int(seconds / PIECES_A_TIME / piece_s) if piece_s else MIN_CHUNK_TOKENS
            n = min(len(self._tokens) - self.n_done, self._n_batch, max(MIN_CHUNK_TOKENS, n_wanted))
            self._n_chunk, self._spent_s, self._longest_s, self._last_end = n, 0.0, 0.0, b""
            self._is_last = self.n_done + n == len(self._tokens)
            self._batch.clear()
            self._batch.add(0, self.n_done, self._tokens[self.n_done : self.n_done + n], wants_output=False)
            self._n_pauses = 0
        self._until_s = began_s + seconds
        self._piece_began_s = began_s
        n_chunk = self._n_chunk
        self._switch()
        self._spent_s += time.monotonic() - began_s
        if self._n_chunk:
            return 0
        self._token_s, self._piece_token_s = self._spent_s / n_chunk, self._longest_s / n_chunk
        if not self._n_pauses and self._spent_s > 2 * seconds:
            self.is_usable = False
        self.n_done += n_chunk
        return n_chunk

    def take(self) -> np.ndarray:
        """What was evaluated, known beginning included: a state for the engine's context."""
        if not self._is_evaluated:
            return self._pack(self.n_done)
        self._is_packed.wait()
        packed, self._packed = self._packed, None
        if packed is None:
            raise self._failure or EngineFailed("a prompt that was evaluated aside was taken twice; this is a bug")
        return packed

    def call_off(self) -> None:
        """Leave the chunk under way; what is complete stays to be taken."""
        if self._is_evaluated and len(self._tokens):
            self._is_packed.wait()
        if self._n_chunk:
            self._is_called_off = True
            self._switch()
            self._is_called_off = False
            self._memory.cut(0, self.n_done, -1)

    def close(self) -> None:
        """Free everything; the engine's model must still be there."""
        self.wait_for_room()
        if self._thread is not None:
            self.call_off()
            self._is_closing = True
            self._go.release()
            self._thread.join()
            self._thread = None
        self._free()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _pack(self, n_tokens: int) -> np.ndarray:
        state = self._own_layout.take_apart(self._memory.save(0))
        if state is None or state.n_rows < n_tokens:
            raise EngineFailed("llama.cpp could not say what it has evaluated; this is a bug")
        return self._layout.put_together(_beginning(state, n_tokens), n_tokens, None)

    def _open(self, n_tokens: int) -> None:
        """Make a context with room for so many tokens, and for some more, in place of a smaller one; the opener's thread."""
        loaded = self._loaded
        self._free()
        n_cells = min(loading.padded(loaded.n_ctx), max(MIN_CELLS, 1 << n_tokens.bit_length()))
        params = loading.context_params(self._settings, loaded.cache_type, loaded.n_threads)
        params.n_ctx = n_cells
        params.n_seq_max = 1
        params.n_batch = params.n_ubatch = self._n_batch
        params.n_outputs_max = 1
        params.kv_unified = False
        # INVARIANT: llama.cpp holds this pointer for the life of the context.
        self._callback = llama.ggml_backend_sched_eval_callback(self._piece_ended)
        params.cb_eval = self._callback
        log.reset()
        context: Any = llama.llama_init_from_model(loaded.model, params)
        if not context:
            self.is_usable = False
            return
        self.buffer_bytes = dict(log.buffer_bytes)
        self._context, self._n_cells = int(context), n_cells
        self._n_layers = max(1, int(llama.llama_model_n_layer(loaded.model)))
        self._memory = StreamMemory(self._context)
        if self._thread is None:
            self._batch = Batch(self._n_batch)
            self._thread = threading.Thread(target=self._run, name="prefill-aside", daemon=True)
            self._thread.start()

    def _free(self) -> None:
        if self._context:
            llama.llama_free(self._context)
        self._context, self._n_cells = 0, 0
        self.buffer_bytes = {}

    def _switch(self) -> None:
        """Let the other thread go on, until it comes back."""
        self._go.release()
        self._came_back.acquire()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if not self._n_chunk and self._code and not self._is_called_off:
            raise EngineFailed(
                f"llama.cpp could not evaluate a prompt's {self._batch.n_tokens} tokens aside (code {self._code}). "
                f"{log.reason()}".rstrip()
            )

    # -- the other thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._go.acquire()
            if self._is_closing:
                return
            try:
                self._code = self._batch.decode(self._context)
            except BaseException as error:  # noqa: BLE001 - the engine thread raises it
                self._failure = error
            is_last = self._is_last and not (self._is_called_off or self._code or self._failure)
            n_tokens, self._n_chunk = len(self._tokens), 0
            self._came_back.release()
            if is_last:  # the one thing that is done beside the engine thread
                try:
                    self._packed = self._pack(n_tokens)
                except BaseException as error:  # noqa: BLE001 - as above
                    self._failure = error
                self._is_packed.set()

    def _piece_ended(self, tensor: int, is_asked: bool, _user_data: object) -> bool:
        # Called by C for every node of the graph (1 us), and again after each that was wanted.
        try:
            if is_asked:
                if not self._name_offset:
                    self._name_offset = tensor_name_offset(tensor)
                return ctypes.string_at(tensor + self._name_offset, _END_BYTES).startswith(_PIECE_ENDS)
            now_s = time.monotonic()
            end = ctypes.string_at(tensor + self._name_offset, _END_BYTES).partition(b"-")[0]
            took_s, self._piece_began_s = now_s - self._piece_began_s, now_s
            if self._last_end:  # what comes before the first layer is no piece
                self._next_s[self._last_end] = took_s
                self._longest_s = max(self._longest_s, took_s)
            self._last_end = end
            if now_s + self._next_s.get(end, took_s) / 2 < self._until_s and not self._is_called_off:
                return True
            self._n_pauses += 1
            self._came_back.release()
            self._go.acquire()
            return not self._is_called_off
        except BaseException as error:  # noqa: BLE001 - C must not see it; the engine thread raises it
            self._failure = error
            return False


def _beginning(state: State, n_tokens: int) -> list[list[np.ndarray]]:
    return [[band[:, :n_tokens, :] for band in state.bands]]


def is_possible(loaded: Loaded, settings: EngineSettings, layout: Layout) -> bool:
    """Whether prompts of this model can go aside: others decode beside them, every token's rows can be moved, and it runs
    on a CPU, which alone has large chunks so much cheaper and can be interrupted for nothing."""
    is_wanted = bool(settings.extra.get("prefill_aside", True)) and can_name_tensors
    has_rows = layout.is_exact_anywhere and layout.token_bytes > 0
    return is_wanted and has_rows and loaded.n_slots > 1 and loaded.device == "cpu"
