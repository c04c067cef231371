"""Token ids to vectors, in a llama.cpp context of their own that lives as long as somebody waits for vectors.

Worker process, engine thread only. It knows models, batches and pooling, nothing of sequences or requests.

Two kinds of models, told apart by what they say of themselves (loading.only_embeds):

- Models that write text see only what came before, so a long input is evaluated chunk by chunk, like a prompt, and pooled
  here, over all its chunks. (llama.cpp would pool the last chunk alone, and say nothing.)
- Models that only embed let every token see every other: an input goes through the graph in one piece, and llama.cpp pools.

In either kind llama.cpp keeps a row of logits for each token, so rows are few where that is possible. estimate.py, which
tells the host what a run takes, has the sizes for inputs of STANDARD_TOKENS; for longer ones memory is looked for first.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llama_cpp as llama
import numpy as np

from hostler import EngineFailed, EngineSettings, InsufficientMemory
from hostler_llamacpp import loading
from hostler_llamacpp.binding import Batch, log
from hostler_llamacpp.estimate import MAX_WHOLE_ROWS, STANDARD_TOKENS, chunk_rows, whole_rows
from hostler_llamacpp.loading import Loaded
from hostler_llamacpp.machine import available_bytes

MIB = 1024 * 1024
MAX_SCORE_BYTES = 512 * MIB
"""What attention scores may take in a model that only embeds, whose rows are given; past it flash attention does without."""
MAX_SEQUENCES = 16
"""Inputs in one piece: 10 % less time than one by one with Q4_1, more with other quantizations."""
MIN_PIECE_TOKENS = 8
"""The least beside running answers. PERF: a token costs a third more than in large pieces, with 16 an answer that runs alone
waits twice as long (SmolLM2)."""
_LEARNING_RATE = 0.25

Vector = list[float]


class Context:
    """One llama.cpp context that gives vectors."""

    def __init__(
        self, loaded: Loaded, settings: EngineSettings, n_cells: int, n_rows: int, pooling: int, *, is_exact: bool
    ) -> None:
        """Make it.

        Args:
            n_cells: Tokens of the longest input.
            n_rows: Tokens that one evaluation takes.
            pooling: enum llama_pooling_type.
            is_exact: Without flash attention, whose 16-bit sums show in the vectors of short inputs (SmolLM2, 7 tokens:
                cosine 0.9990 to those without it; 700 tokens: 0.999998).

        Raises:
            EngineFailed: llama.cpp could not.
        """
        params = loading.context_params(settings, loaded.cache_type, loaded.n_threads)
        params.n_ctx = loading.padded(max(n_cells, n_rows))
        params.n_batch = params.n_ubatch = n_rows
        params.n_seq_max = min(MAX_SEQUENCES, n_rows) if not _has_states(loaded.model) else 1
        params.embeddings = True
        params.pooling_type = pooling
        if is_exact:
            params.flash_attn_type = 0
            if settings.cache_type in loading.QUANTIZED_CACHES:  # which need it
                params.type_k = params.type_v = loading.CACHE_TYPES["f16"]
        # Short inputs side by side, or a long one alone: the cells are anyone's.
        params.kv_unified = True
        params.swa_full = bool(settings.extra.get("swa_full", False))
        before = dict(log.buffer_bytes)
        log.last_errors.clear()
        pointer = llama.llama_init_from_model(loaded.model, params)
        if not pointer:
            raise EngineFailed(
                f"llama.cpp could not make a context for inputs of {n_cells} tokens: {log.reason() or 'it gave no reason'}"
            )
        self.buffer_bytes = {kind: n_bytes - before.get(kind, 0) for kind, n_bytes in log.buffer_bytes.items()}
        log.buffer_bytes = before
        self.pointer = int(pointer)
        self.n_cells = n_cells
        self.n_rows = n_rows
        self.n_sequences = int(params.n_seq_max)
        self.memory = llama.llama_get_memory(pointer)
        self._is_encoded = not self.memory or not llama.llama_model_has_decoder(loaded.model)
        self._n_embd = int(llama.llama_model_n_embd_out(loaded.model))
        self.batch = Batch(n_rows)

    def free(self) -> None:
        """Give it back."""
        llama.llama_free(self.pointer)

    def clear(self) -> None:
        """Forget what was evaluated."""
        if self.memory:
            llama.llama_memory_clear(self.memory, False)

    def evaluate(self) -> None:
        """Evaluate the batch.

        Raises:
            EngineFailed: llama.cpp could not.
        """
        batch = self.batch
        batch.outputs[: batch.n_tokens] = 1  # every token is one, or llama.cpp says so in a line of the log
        code = batch.encode(self.pointer) if self._is_encoded else batch.decode(self.pointer)
        if code:
            raise EngineFailed(
                f"llama.cpp could not embed {batch.n_tokens} tokens (code {code}). {log.reason()}".rstrip()
            )

    def token_vectors(self) -> np.ndarray:
        """The vectors of the batch's tokens: float32, (n_tokens, n_embd); valid until the next evaluation."""
        return self._read(llama.llama_get_embeddings(self.pointer), self.batch.n_tokens)

    def pooled_vector(self, sequence: int) -> np.ndarray:
        """The vector that llama.cpp made of a sequence: float32, (1, n_embd)."""
        return self._read(llama.llama_get_embeddings_seq(self.pointer, sequence), 1)

    def _read(self, pointer: Any, n_rows: int) -> np.ndarray:
        if not pointer:
            raise EngineFailed("llama.cpp computed no vectors; this is a bug")
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (n_rows, self._n_embd))


class Embedder:
    """What makes vectors of one loaded model's inputs."""

    def __init__(self, loaded: Loaded, settings: EngineSettings, n_vocab: int, token_bytes: int) -> None:
        """Make nothing yet.

        Args:
            token_bytes: KV of one token.
        """
        self._loaded = loaded
        self._settings = settings
        self._n_vocab = n_vocab
        self._token_bytes = token_bytes
        self._pooling = loading.pooling_of(loaded.model)
        self._sees_backwards_only = bool(loaded.context)
        self._n_heads = max(1, int(llama.llama_model_n_head(loaded.model)))
        self.n_embd = int(llama.llama_model_n_embd_out(loaded.model))
        self._context: Context | None = None
        """None while nobody waits for vectors."""
        self._token_s = 0.0
        """Seconds a token of a piece costs; 0: unknown."""
        self._n_begun = 0
        """How often the context was emptied for new inputs."""
        self.n_open = 0
        """Iterators that are under way."""

    @property
    def can_embed(self) -> bool:
        """The model has vectors for texts; a reranker has not."""
        return self._pooling != int(llama.LLAMA_POOLING_TYPE_RANK)

    @property
    def buffer_bytes(self) -> dict[str, int]:
        """By kind, what its context holds now."""
        return {} if self._context is None else self._context.buffer_bytes

    def pieces(self, inputs: Sequence[np.ndarray], budget_s: Callable[[], float]) -> Iterator[list[Vector]]:
        """Embed inputs; see Engine.embed.

        Args:
            inputs: int32, each of 1 to n_ctx tokens.
            budget_s: Seconds that the next piece may take.
        """
        self.n_open += 1
        try:
            yield from self._chunked(inputs, budget_s) if self._sees_backwards_only else self._whole(inputs)
        finally:
            self.n_open -= 1
            if not self.n_open:
                self.free()

    def free(self) -> None:
        """Give the context back; the next input makes a new one, in 5 ms."""
        if self._context is not None:
            self._context.free()
            self._context = None

    # -- memory -------------------------------------------------------------------------------------------------------

    def _ready(self, n_tokens: int) -> Context:
        """An empty context for inputs of this length. Whoever shares it is between two inputs."""
        if self._context is None or n_tokens > self._context.n_cells:
            self._context = self._make_context(n_tokens)
        self._context.clear()
        self._context.batch.clear()
        self._n_begun += 1
        return self._context

    def _make_context(self, n_tokens: int) -> Context:
        if self._sees_backwards_only:
            n_cells = max(n_tokens, min(STANDARD_TOKENS, self._loaded.n_ctx))
            n_rows = chunk_rows(self._n_vocab, self._n_heads * n_cells)
        else:
            n_rows = n_cells = max(n_tokens, whole_rows(self._n_vocab))
        score_bytes = 4 * self._n_heads * n_cells * n_rows
        is_exact = self._sees_backwards_only or score_bytes <= MAX_SCORE_BYTES
        if n_cells > STANDARD_TOKENS:
            self._look_for_memory(n_cells, n_rows, score_bytes if is_exact else 0)
        self.free()
        if not self._sees_backwards_only:
            pooling = self._pooling
        elif loading.metadata(self._loaded.model, "pooling_type"):
            pooling = llama.LLAMA_POOLING_TYPE_NONE
        else:
            pooling = llama.LLAMA_POOLING_TYPE_UNSPECIFIED  # none, too, but without a warning in the log
        return Context(self._loaded, self._settings, n_cells, n_rows, pooling, is_exact=is_exact)

    def _look_for_memory(self, n_cells: int, n_rows: int, score_bytes: int) -> None:
        available = available_bytes()
        # Logits in the graph and in its result, where a model has them; a dozen vectors a token on the way.
        per_row = (8 if self._sees_backwards_only else 4) * self._n_vocab + 64 * self.n_embd
        needed = n_cells * self._token_bytes + n_rows * per_row + score_bytes
        if available is not None and needed > available:
            raise InsufficientMemory(
                f"an input of {n_cells} tokens needs {needed / MIB:,.0f} MiB beside the running model, and "
                f"{available / MIB:,.0f} MiB are available; send shorter inputs or stop another model",
                needed_bytes=needed,
                available_bytes=available,
            )

    # -- models that see backwards ------------------------------------------------------------------------------------

    def _chunked(self, inputs: Sequence[np.ndarray], budget_s: Callable[[], float]) -> Iterator[list[Vector]]:
        n_longest = max(len(tokens) for tokens in inputs)
        position = 0
        while position < len(inputs):
            context = self._ready(n_longest)
            n_max = self._piece_tokens(context, budget_s())
            if len(inputs[position]) > n_max:
                yield from self._long(context, inputs[position], n_max, budget_s)
                position += 1
                continue
            ends: list[int] = []
            for tokens in inputs[position : position + context.n_sequences]:
                if context.batch.n_tokens + len(tokens) > n_max:
                    break
                ends.append(context.batch.add(len(ends), 0, tokens, wants_output=True) + 1)
            self._evaluate(context)
            rows = context.token_vectors()
            yield [self._pooled(rows[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
            position += len(ends)

    def _long(
        self, context: Context, tokens: np.ndarray, n_max: int, budget_s: Callable[[], float]
    ) -> Iterator[list[Vector]]:
        """One input over several pieces; nothing but its last one gives a vector."""
        pool = Pool(self._pooling)
        n_begun = self._n_begun
        done = 0
        while True:
            chunk = tokens[done : done + n_max]
            context.batch.clear()
            context.batch.add(0, done, chunk, wants_output=True)
            self._evaluate(context)
            pool.add(context.token_vectors())
            done += len(chunk)
            if done == len(tokens):
                yield [pool.vector()]
                return
            yield []
            if self._n_begun != n_begun:
                raise EngineFailed("another input was embedded in the middle of this one; this is a bug of the caller")
            n_max = self._piece_tokens(context, budget_s())

    def _piece_tokens(self, context: Context, budget_s: float) -> int:
        n_tokens = int(budget_s / self._token_s) if self._token_s else MIN_PIECE_TOKENS
        return min(context.n_rows, max(MIN_PIECE_TOKENS, n_tokens))

    def _evaluate(self, context: Context) -> None:
        started = time.monotonic()
        context.evaluate()
        token_s = (time.monotonic() - started) / context.batch.n_tokens
        if context.batch.n_tokens >= MIN_PIECE_TOKENS:  # fewer cost a pass over the weights each
            self._token_s += _LEARNING_RATE * (token_s - self._token_s) if self._token_s else token_s

    def _pooled(self, rows: np.ndarray) -> Vector:
        pool = Pool(self._pooling)
        pool.add(rows)
        return pool.vector()

    # -- models that only embed ---------------------------------------------------------------------------------------

    def _whole(self, inputs: Sequence[np.ndarray]) -> Iterator[list[Vector]]:
        n_longest = max(len(tokens) for tokens in inputs)
        position = 0
        while position < len(inputs):
            context = self._ready(n_longest)
            n_room = max(min(MAX_WHOLE_ROWS, context.n_rows), len(inputs[position]))
            n = 0
            for tokens in inputs[position : position + context.n_sequences]:
                if context.batch.n_tokens + len(tokens) > n_room:
                    break
                context.batch.add(n, 0, tokens, wants_output=True)
                n += 1
            context.evaluate()
            yield [context.pooled_vector(sequence)[0].tolist() for sequence in range(n)]
            position += n


class Pool:
    """Makes one vector of an input's tokens, as they come."""

    def __init__(self, pooling: int) -> None:
        self._pooling = pooling
        self._vector: np.ndarray | None = None
        self._n_tokens = 0

    def add(self, rows: np.ndarray) -> None:
        """The next tokens' vectors: float32, (n, n_embd)."""
        if self._pooling == llama.LLAMA_POOLING_TYPE_LAST:
            self._vector = rows[-1].copy()
        elif self._pooling == llama.LLAMA_POOLING_TYPE_CLS:
            self._vector = rows[0].copy() if self._vector is None else self._vector
        else:
            total = rows.sum(axis=0, dtype=np.float64)
            self._vector = total if self._vector is None else self._vector + total
            self._n_tokens += len(rows)

    def vector(self) -> Vector:
        """The vector of all tokens so far, of which there must be one."""
        assert self._vector is not None
        vector: Vector = (self._vector / max(1, self._n_tokens)).tolist()
        return vector


def _has_states(model: int) -> bool:
    """A recurrent model keeps a whole state for each sequence, used or not."""
    return bool(llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))
