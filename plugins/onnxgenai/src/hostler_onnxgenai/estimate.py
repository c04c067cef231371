"""What a run of a model folder will take, from its files' headers alone.

Host process: imports neither onnxruntime nor numpy, reads no weights. It must not come out below what the worker really
takes; README.md has the comparison. KV rows are exact: they are made before the first token. The rest is a fit over what
workers took.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hostler import EngineSettings, MemoryEstimate
from hostler_onnxgenai.folder import CONFIG, TOKENIZER, ModelFolder, read_context_length, read_folder

MIB = 1024 * 1024
PROCESS_BYTES = 64 * MIB
"""A worker before it loads anything: Python, numpy, onnxruntime, tokenizers, hostler's own modules."""
LOADED_BYTES = 40 * MIB
"""Whatever is loaded: the graph's nodes, and what onnxruntime keeps of having read them."""
VOCABULARY_FACTOR = 10
"""Bytes in memory for each byte of tokenizer.json: hash maps of tokens and merges, and our pieces."""
PACKED_FACTOR = 1.25
"""onnxruntime packs matrices of 4 or 8 bits anew, with the sums of their blocks."""
WITHIN_FACTOR = 0.25
"""More than that, where weights lie in the graph's own file: they are read before they are packed."""
MAX_CHUNK_TOKENS = 512
GENERATOR_CHUNK_TOKENS = 64
"""Generators compute logits for every token of a chunk, and hold the GIL meanwhile; half as many tokens lose 8 % of speed."""
_ACTIVATIONS = 16
"""Values of the model's width that one token of a chunk has at once: residuals, queries, the feed-forward's products."""


def estimate(path: Path, settings: EngineSettings) -> MemoryEstimate:
    """Bytes of main memory that a run will take, the worker process included.

    Raises:
        InvalidModelFile, ModelLoadFailed: The folder holds no model that runs here.
        OSError: It cannot be read.
    """
    folder = _folder(path)
    device = folder.provider if settings.device == "auto" else settings.device
    n_ctx = min(settings.ctx_len, folder.context_length)
    factor = PACKED_FACTOR if "MatMulNBits" in folder.graph.operators else 1.05
    if not folder.graph.external:
        factor += WITHIN_FACTOR
    # A graphics card's memory is not the ledger's; one that shares main memory (DirectML) takes its KV cache from it.
    kv_bytes = 0 if device == "cuda" else settings.n_parallel * n_ctx * folder.kv_token_bytes
    return MemoryEstimate(
        weights_bytes=int(factor * folder.weights_bytes),
        kv_bytes=kv_bytes,
        compute_bytes=PROCESS_BYTES + LOADED_BYTES + _vocabulary_bytes(path) + _compute_bytes(folder, settings, device),
        # Measured (SmolLM2-135M int4): onnxruntime maps the data file and packs it into memory of its own; what stays mapped
        # is the table of embeddings, whose rows are read where they lie, 18 of 82 MB. So most of it is a copy.
        is_mapped=False,
    )


def context_length(path: Path) -> int:
    """The context the model was made for; 0 when its configuration does not say."""
    return read_context_length(path)


def runs_in_generators(folder: ModelFolder, settings: EngineSettings, device: str) -> bool:
    """Whether the library's Generators will run it, and not a plain session."""
    return device != "cpu" or bool(folder.objection) or settings.extra.get("backend") == "generators"


def _compute_bytes(folder: ModelFolder, settings: EngineSettings, device: str) -> int:
    is_slow = runs_in_generators(folder, settings, device)
    n_chunk = min(settings.n_batch, GENERATOR_CHUNK_TOKENS if is_slow else MAX_CHUNK_TOKENS)
    activations = 4 * n_chunk * _ACTIVATIONS * folder.hidden_size
    n_rows = n_chunk if is_slow else settings.n_parallel
    # Rows of logits, and what a sampler makes of one: weights, their sums, an order.
    logits = 4 * n_rows * folder.n_vocab + 40 * folder.n_vocab
    return activations + logits


def _vocabulary_bytes(path: Path) -> int:
    return VOCABULARY_FACTOR * (path / TOKENIZER).stat().st_size


def _folder(path: Path) -> ModelFolder:
    stamp = (path / CONFIG).stat().st_mtime_ns if (path / CONFIG).is_file() else 0
    return _read(str(path), stamp)


@lru_cache(maxsize=16)
def _read(path: str, _stamp: int) -> ModelFolder:
    # The ledger asks ten times while it looks for a context that fits; a graph takes 20 ms to read.
    return read_folder(Path(path))
