"""What a run of a GGUF model will take, from its header alone.

Host process: imports neither llama.cpp nor numpy, opens nothing but the header. It must not come out below what the
worker really takes; README.md has the comparison. Source of the formulas: llama.cpp's llama-hparams.cpp and
llama-kv-cache.cpp for the KV cache; for compute buffers a fit over what llama.cpp itself allocates for eight models from
135M to 27B parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hostler import EngineSettings, GgufHeader, MemoryEstimate, read_gguf_header, read_gguf_tensors
from hostler_llamacpp import kernels

MIB = 1024 * 1024
PROCESS_BYTES = 64 * MIB
"""A worker before it loads anything: Python, numpy, llama.cpp's libraries, hostler's own modules."""
MAX_ROOM_BYTES = 32 * MIB
VOCABULARY_FACTOR = 12
"""Bytes in memory for each byte of tokenizer in the header: hash maps of tokens and merges, and our pieces."""
CONTEXT_PAD = 256
MAX_UBATCH = 512
STANDARD_TOKENS = 512
"""Inputs to embed up to this length are in the estimate; the memory for longer ones is looked for when they come."""
MAX_ROWS = 128
"""Tokens that a model which sees backwards only embeds at once. PERF: 32 and 512 take the same time a token (SmolLM2, Q4_1:
2.3 and 2.2 ms), so more would only take memory: llama.cpp keeps a row of logits for each, which nobody reads."""
MIN_ROWS = 32
LOGIT_BYTES = 64 * MIB
"""What these rows may take: with a vocabulary of 262,144 tokens 32 of them."""
SCORE_BYTES = 128 * MIB
"""What attention scores may take: with 32 heads 128 rows up to 8,192 tokens, fewer beyond."""
MAX_DRAFT_ROWS = 63
"""Guesses in one step over all sequences; with more, a step takes so long that its other answers stutter."""
NGRAM_BYTES = 160
"""What prompt lookup keeps for a token of context (measured: 130 to 150)."""
DRAFT_BYTES = 64 * MIB
"""What the rows of logits for guesses may take: with a vocabulary of 262,144 tokens 32 of them."""
MAX_WHOLE_ROWS = 512
"""Tokens of several short inputs at once in a model that only embeds."""
_ENCODERS = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed", "modern-bert", "neo-bert",
    "nomic-bert", "nomic-bert-moe", "t5encoder",
})  # fmt: skip
"""Architectures that only embed, whatever the header says besides."""
_BLOCK_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""cache_type -> bytes of one value."""
PARTIAL_BYTES = 16 * MIB
"""As kMostPartialBytes of cpp/attention.cpp."""
_REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL"})
"""Tensor types of which llama.cpp keeps a second copy in an order that suits the CPU."""
_WINDOW_PATTERNS = {
    "afmoe": 4, "cohere2": 4, "cohere2moe": 4, "exaone-moe": 4, "exaone4": 4, "gemma-embedding": 6, "gemma2": 2,
    "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "laguna": 4, "llama4": 4, "mellum": 4, "olmo2": 4, "plamo3": 8,
    "smallthinker": 4,
}  # fmt: skip
"""Architecture -> every how many layers one attends to everything; where the header does not say. One that is missing here
counts as if all layers did, which is never too little."""
_PART = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def estimate(path: Path, settings: EngineSettings) -> MemoryEstimate:
    """Bytes that a run will take, the worker process included.

    Raises:
        InvalidModelFile: The file is no model.
        OSError: It cannot be read.
    """
    header = read_gguf_header(path)
    headers = [header, *(read_gguf_header(part) for part in other_parts(path))]
    weights = sum(part.file_bytes for part in headers)
    repacked = _bytes_of(headers, _REPACKED) + _copy_bytes(path, headers, settings)
    vocabulary = VOCABULARY_FACTOR * header.header_bytes
    if only_embeds(header):
        kv, compute = 0, embedding_bytes(header, settings)
    else:
        kv = _kv_bytes(header, settings)
        compute = _compute_bytes(header, settings) + (embedding_bytes(header, settings) if settings.embedding else 0)
        compute += _aside_bytes(header, settings) + room_bytes(kv, settings.n_parallel)
    own = MemoryEstimate(weights_bytes=weights + repacked, kv_bytes=kv, compute_bytes=compute + vocabulary + PROCESS_BYTES)
    if not settings.draft_path or settings.speculation == "off":
        return own
    # The draft model has streams as long and as many, and lives in the same process; nothing is guessed for it, or kept of it.
    alone = msgspec.structs.replace(settings, draft_path="", speculation="off", embedding=False, extra={"swa_full": True})
    other = estimate(Path(settings.draft_path), alone)
    shared = PROCESS_BYTES + room_bytes(other.kv_bytes, settings.n_parallel)
    return MemoryEstimate(
        weights_bytes=own.weights_bytes + other.weights_bytes,
        kv_bytes=own.kv_bytes + other.kv_bytes,
        compute_bytes=own.compute_bytes + other.compute_bytes - shared,
    )


def is_mostly_packed(path: Path, settings: EngineSettings) -> bool:
    """Whether most of a model's weights are packed by kernels.py: then they are read, not mapped, and there is one copy."""
    return _is_most([read_gguf_header(part) for part in (path, *other_parts(path))], settings)


def _is_most(headers: Sequence[GgufHeader], settings: EngineSettings) -> bool:
    return 2 * _packed_bytes(headers, settings) > sum(header.file_bytes for header in headers)


def _copy_bytes(path: Path, headers: Sequence[GgufHeader], settings: EngineSettings) -> int:
    """What kernels.py packs beside what stays as it is in the file."""
    if not _is_most(headers, settings):
        return _packed_bytes(headers, settings)
    # An embedding that is the output, too, is needed as it is, and packed.
    tensors = {tensor.name: tensor for part in (path, *other_parts(path)) for tensor in read_gguf_tensors(part)}
    embedding = tensors.get("token_embd.weight")
    is_both = embedding is not None and embedding.type in kernels.packed_types() and "output.weight" not in tensors
    return embedding.n_bytes if embedding is not None and is_both else 0


def _packed_bytes(headers: Sequence[GgufHeader], settings: EngineSettings) -> int:
    return _bytes_of(headers, kernels.packed_types()) if kernels.are_wanted(settings) else 0


def _bytes_of(headers: Sequence[GgufHeader], types: frozenset[str]) -> int:
    return sum(use.n_bytes for part in headers for use in part.tensor_types if use.type in types)


def room_bytes(kv_bytes: int, n_slots: int) -> int:
    """Kept for one stream's state on its way to host memory and back; a larger one gets its own memory for a moment."""
    return min(MAX_ROOM_BYTES, kv_bytes // n_slots + kv_bytes // n_slots // 32 + 65_536)


def context_length(path: Path) -> int:
    """The context the model was trained for; 0 when the header does not say."""
    return read_gguf_header(path).context_length or 0


def n_layers(path: Path) -> int:
    """Layers of the model; 0 when the header does not say."""
    return read_gguf_header(path).n_layers or 0


def other_parts(path: Path) -> list[Path]:
    """The later files of a split model, as llama.cpp will look for them; those that exist."""
    match = _PART.match(path.name)
    if match is None:
        return []
    stem, count = match["stem"], int(match["count"])
    parts = (path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
    return [part for part in parts if part != path and part.exists()]


def only_embeds(header: GgufHeader) -> bool:
    """Whether the model cannot write text; what llama.cpp finds in loading.only_embeds."""
    is_causal = header.metadata.get(header.architecture_key("attention.causal"))
    return is_causal is False or header.architecture in _ENCODERS


def embedding_bytes(header: GgufHeader, settings: EngineSettings) -> int:
    """What giving vectors takes, for inputs of up to STANDARD_TOKENS: the context that embedding.py makes for a while."""
    n_cells = min(STANDARD_TOKENS, _n_ctx(header, settings))
    width, n_heads, n_vocab = header.n_embd or 0, header.n_head or 1, header.n_vocab or 1
    if only_embeds(header):
        kv, n_rows, n_logits = 0, max(n_cells, whole_rows(n_vocab)), 1
        n_cells = n_rows
    else:
        one = msgspec.structs.replace(settings, ctx_len=n_cells, n_parallel=1, cache_type="f16")
        kv, n_rows, n_logits = _kv_bytes(header, one), chunk_rows(n_vocab, n_heads * n_cells), 2
    inner = max(header.per_layer(header.architecture_key("feed_forward_length")), default=0)
    activations = 4 * n_rows * (4 * width + 3 * inner + n_heads * (header.key_length or 0) + 2 * n_heads * n_cells)
    return kv + activations + 4 * n_rows * (n_logits * n_vocab + width)


def chunk_rows(n_vocab: int, n_scores: int) -> int:
    """Tokens that a model which sees backwards only embeds at once.

    Args:
        n_scores: Attention scores of one token: heads times cells.
    """
    return max(MIN_ROWS, min(MAX_ROWS, LOGIT_BYTES // (8 * n_vocab), SCORE_BYTES // (4 * n_scores)))


def whole_rows(n_vocab: int) -> int:
    """Tokens of short inputs together in a model that only embeds."""
    return max(MIN_ROWS, min(MAX_WHOLE_ROWS, LOGIT_BYTES // (4 * n_vocab)))


def draft_rows(settings: EngineSettings, n_vocab: int) -> int:
    """Guesses that a step has room for, over all sequences; each is a row of logits. 0: nothing is guessed."""
    if settings.speculation == "off":
        return 0
    return max(0, min(settings.n_draft_max * settings.n_parallel, MAX_DRAFT_ROWS, DRAFT_BYTES // (8 * n_vocab)))


def _n_ctx(header: GgufHeader, settings: EngineSettings) -> int:
    trained = header.context_length or settings.ctx_len
    n_ctx = min(settings.ctx_len, trained)
    return -(-n_ctx // CONTEXT_PAD) * CONTEXT_PAD


def _n_ubatch(settings: EngineSettings) -> int:
    wanted = settings.extra.get("n_ubatch")
    return wanted if isinstance(wanted, int) and wanted > 0 else min(settings.n_batch, MAX_UBATCH)


def _windowed_layers(header: GgufHeader) -> list[bool]:
    """Which layers attend to a sliding window only."""
    layers = header.n_layers or 0
    if not header.sliding_window:
        return [False] * layers
    pattern = header.metadata.get(header.architecture_key("attention.sliding_window_pattern"))
    if isinstance(pattern, tuple):
        return [bool(flag) for flag in pattern[:layers]] + [False] * max(0, layers - len(pattern))
    if not isinstance(pattern, int) or isinstance(pattern, bool) or pattern < 1:
        pattern = _WINDOW_PATTERNS.get(header.architecture, 1)
    return [layer % pattern < pattern - 1 for layer in range(layers)]


def _window_cells(header: GgufHeader, settings: EngineSettings, n_cells: int) -> int:
    """Cells that a windowed layer keeps for one sequence."""
    if settings.extra.get("swa_full"):
        return n_cells
    wanted = min(n_cells, (header.sliding_window or 0) + _n_ubatch(settings))
    return -(-wanted // CONTEXT_PAD) * CONTEXT_PAD


def _kv_bytes(header: GgufHeader, settings: EngineSettings) -> int:
    n_cells = _n_ctx(header, settings)
    n_window_cells = _window_cells(header, settings, n_cells)
    windowed = _windowed_layers(header)
    heads = header.n_head_kv_per_layer
    key, value = header.key_length or 0, header.value_length or 0
    key_windowed = header.integer(header.architecture_key("attention.key_length_swa")) or key
    value_windowed = header.integer(header.architecture_key("attention.value_length_swa")) or value
    values = 0
    for layer, is_windowed in enumerate(windowed):
        n_heads = heads[layer] if layer < len(heads) else max(heads, default=0)
        if is_windowed:
            values += n_window_cells * n_heads * (key_windowed + value_windowed)
        else:
            values += n_cells * n_heads * (key + value)
    attention = values * _BLOCK_BYTES.get(settings.cache_type, 2.0)
    return int((attention + _recurrent_bytes(header)) * settings.n_parallel)


def _recurrent_bytes(header: GgufHeader) -> int:
    """The state of one sequence in recurrent layers (Mamba and hybrids), float32."""

    def ssm(name: str) -> int:
        return header.integer(header.architecture_key(f"ssm.{name}")) or 0

    state, inner, kernel, groups = ssm("state_size"), ssm("inner_size"), ssm("conv_kernel"), ssm("group_count")
    per_layer = state * inner + max(0, kernel - 1) * (inner + 2 * groups * state)
    return 4 * per_layer * (header.n_layers or 0)


def _aside_bytes(header: GgufHeader, settings: EngineSettings) -> int:
    """The second context of aside.py, at its largest: a stream, and what evaluates a chunk."""
    has_one = settings.extra.get("prefill_aside", True) and settings.n_parallel > 1
    if not has_one or header.sliding_window or _recurrent_bytes(header):
        return 0
    one = msgspec.structs.replace(settings, n_parallel=1, speculation="off")
    return _kv_bytes(header, one) + _compute_bytes(header, one)


def _compute_bytes(header: GgufHeader, settings: EngineSettings) -> int:
    n_ubatch, n_cells, n_slots = _n_ubatch(settings), _n_ctx(header, settings), settings.n_parallel
    width, n_heads, n_vocab = header.n_embd or 0, header.n_head or 0, header.n_vocab or 0
    inner = max(header.per_layer(header.architecture_key("feed_forward_length")), default=0)
    if header.n_experts:
        used = header.integer(header.architecture_key("expert_used_count")) or 1
        shared = header.integer(header.architecture_key("expert_shared_count")) or 0
        expert = header.integer(header.architecture_key("expert_feed_forward_length")) or inner
        inner = max(inner, (used + shared) * expert)
    # Residuals and the feed-forward's three products; queries for models whose heads are wider than their residual.
    activations = 4 * n_ubatch * (4 * width + 3 * inner + n_heads * (header.key_length or 0))
    # Quantized copies of a product's input, made by the CPU, and what attention leaves to be merged.
    work = 2 * n_ubatch * max(inner, width) + (PARTIAL_BYTES if settings.flash_attn else 0)
    mask = 2 * n_ubatch * n_cells * (2 if header.sliding_window else 1)
    if not settings.flash_attn:
        mask = 4 * n_ubatch * n_cells * (n_heads + 2)  # every score of every head
    # Logits of a row a slot, twice (graph and output), and what samplers sort; and rows of guesses, twice.
    logits = (4 + 4 + 12) * n_slots * n_vocab + 20 * n_vocab + 8 * draft_rows(settings, n_vocab or 1) * n_vocab
    # Where each run of tokens stood: an entry of a dictionary and a token of a list.
    ngrams = NGRAM_BYTES * n_cells * n_slots if settings.speculation != "off" else 0
    return activations + work + mask + logits + ngrams
