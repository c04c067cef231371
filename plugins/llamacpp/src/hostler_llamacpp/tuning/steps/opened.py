"""A model opened for measuring: one context, one sequence, every token's logits if they are wanted.

A step's process, its one thread. The engine's context is made for many slots and few logits, this one for the opposite;
but it loads the file in the same way, so that llama.cpp repacks the same tensors for the same kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp as llama
import numpy as np

from hostler import EngineSettings, HostlerError
from hostler_llamacpp import kernels, loading
from hostler_llamacpp.binding import Batch, log, short
from hostler_llamacpp.estimate import is_mostly_packed
from hostler_llamacpp.vocabulary import Vocabulary

ROWS = 128
"""Tokens evaluated at once where all logits are wanted: 25 MB of them with a vocabulary of 49k, 134 MB with 262k."""


class NotMeasurable(Exception):
    """The model cannot be measured; the text is for the user."""

    is_told = True


class Opened:
    """A loaded model with a context for one sequence; a context manager."""

    def __init__(
        self,
        path: str,
        *,
        n_ctx: int,
        n_threads: int,
        n_batch: int = ROWS,
        n_ubatch: int = ROWS,
        has_logits: bool = True,
        flash_attn: bool = True,
        cache_type: str = "f16",
        use_mmap: bool = True,
        repack: bool = True,
        on_node: Any = None,
    ) -> None:
        """Load it.

        Args:
            path: The GGUF file, of a split model the first part.
            n_ctx: Tokens of the sequence.
            n_threads: Of llama.cpp.
            n_batch, n_ubatch: Tokens a call, and through the graph at once.
            has_logits: Every token may have some; else one token of a batch.
            flash_attn, cache_type, use_mmap, repack: As the settings of the same name.
            on_node: A `ggml_backend_sched_eval_callback`, or None.
        """
        if repack:
            kernels.attach()
        log.reset()
        params = llama.llama_model_default_params()
        settings = EngineSettings(ctx_len=n_ctx, flash_attn=flash_attn, cache_type=cache_type, extra={"repack": repack})
        params.load_mode = 1 if use_mmap and not _is_copied(Path(path), settings) else 0
        params.check_tensors = True
        params.use_extra_bufts = repack
        params.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise NotMeasurable(f"llama.cpp cannot load {path}: {log.reason() or 'it gave no reason'}")
        self._on_node = on_node  # INVARIANT: llama.cpp holds it as long as the context lives
        wanted = loading.context_params(settings, loading.CACHE_TYPES[cache_type], n_threads)
        wanted.n_ctx = loading.padded(n_ctx)
        wanted.n_seq_max = 1
        wanted.n_batch, wanted.n_ubatch = n_batch, n_ubatch
        wanted.n_outputs_max = n_batch if has_logits else 1
        if on_node is not None:
            wanted.cb_eval = on_node
        self.context = llama.llama_init_from_model(self.model, wanted) if _writes_text(self.model) else None
        if self.context and loading.only_embeds(self.model, self.context):
            llama.llama_free(self.context)
            self.context = None
        if not self.context:
            reason = log.reason() or "it only gives embeddings"
            self.close()
            raise NotMeasurable(f"{path} cannot be evaluated: {reason}")
        self.vocabulary = Vocabulary(self.model)
        self.n_vocab = self.vocabulary.n_tokens
        self.memory = llama.llama_get_memory(self.context)
        self.n_batch = n_batch
        self._batch = Batch(n_batch)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free it."""
        if self.context:
            llama.llama_free(self.context)
        if self.model:
            llama.llama_model_free(self.model)
        self.context = self.model = None

    def clear(self) -> None:
        """Forget the sequence."""
        llama.llama_memory_clear(self.memory, False)

    def evaluate(self, position: int, tokens: np.ndarray, *, has_logits: bool = False) -> None:
        """One decode call; at most `n_batch` tokens, whose logits are computed for all or for the last of them.

        Raises:
            NotMeasurable: llama.cpp could not.
        """
        self._batch.clear()
        self._batch.add(0, position, tokens, wants_output=True)
        if has_logits:
            self._batch.outputs[: len(tokens)] = 1
        code = self._batch.decode(self.context or 0)
        if code:
            raise NotMeasurable(f"llama.cpp could not evaluate {len(tokens)} tokens (code {code}). {log.reason()}".rstrip())

    def chunk_logits(self, tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Evaluate a fresh sequence.

        Yields:
            Position of the first row, logits (float32, (n_rows, n_vocab)), valid until the next.
        """
        self.clear()
        for start in range(0, len(tokens), self.n_batch):
            part = tokens[start : start + self.n_batch]
            self.evaluate(start, part, has_logits=True)
            address = short.llama_get_logits(self.context)
            flat = (ctypes.c_float * (len(part) * self.n_vocab)).from_address(address)
            yield start, np.ctypeslib.as_array(flat).reshape(len(part), self.n_vocab)

    def chunks(self, text: str, n_chunk: int, n_tokens: int) -> list[np.ndarray]:
        """A text's tokens in chunks, each of which begins as the model wants a text to begin.

        Args:
            n_chunk: Tokens a chunk has at most.
            n_tokens: All of them at most; 0: no limit.
        """
        tokens = self.vocabulary.tokenize(text, add_special=False, parse_special=False)
        if n_tokens:
            tokens = tokens[:n_tokens]
        first = [int(llama.llama_vocab_bos(llama.llama_model_get_vocab(self.model)))] if self.vocabulary.adds_bos else []
        size = n_chunk - len(first)
        parts: list[Sequence[int]] = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        return [np.array([*first, *part], np.int32) for part in parts if len(part) > 1]


def _is_copied(path: Path, settings: EngineSettings) -> bool:
    try:
        return is_mostly_packed(path, settings)
    except (HostlerError, OSError):
        return False  # llama.cpp says what is wrong with it


def _writes_text(model: int) -> bool:
    """Whether there is a decoder; that every token sees every other is known when there is a context."""
    return bool(llama.llama_model_has_decoder(model)) and loading.pooling_of(model) != llama.LLAMA_POOLING_TYPE_RANK
