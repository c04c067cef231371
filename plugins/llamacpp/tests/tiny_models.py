"""Writes GGUF models of a few hundred kB with random weights: whatever needs an architecture, not a good answer.

They know a small SentencePiece vocabulary and answer with letters. Weights are float32, so that batches of different
shapes round almost alike.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hostler_llamacpp.tuning.steps import quantize

ALIGNMENT = 32
_U16, _U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
WORDS = [f"{first}{second}" for first in "abcdefghijklmnop" for second in "aeiou "]
TOKENS = ["<unk>", "<s>", "</s>", "<|turn|>", *(f"<0x{value:02X}>" for value in range(256)), "▁", *"abcdefghijklmnop", *WORDS]
TYPES = [_UNKNOWN, _CONTROL, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * (len(TOKENS) - 260)]
N_LAYERS, WIDTH, INNER, N_HEADS, N_HEADS_KV, HEAD = 7, 64, 128, 4, 2, 32
N_CTX = 2048


def write_llama(
    path: Path,
    *,
    spread: float = 1.0,
    n_layers: int = N_LAYERS,
    deep: float = 1.0,
    has_output: bool = True,
    **changes: object,
) -> Path:
    """A llama: full attention everywhere.

    Args:
        deep: How much the layers behind the first have to say; with little of it a model of one layer thinks alike.
        has_output: False: the embedding is the output, too.
    """
    tensors = {**_ends(spread), **_attention_layers((), n_layers)}
    if not has_output:
        del tensors["output.weight"]
    for name, values in tensors.items():
        if name.endswith(("attn_output.weight", "ffn_down.weight")) and not name.startswith("blk.0."):
            tensors[name] = values * deep
    return _write(path, {**_metadata("llama"), "llama.block_count": (_U32, n_layers), **changes}, tensors)


def write_gemma3(path: Path, *, window: int, **changes: object) -> Path:
    """A gemma3: five of six layers see a sliding window."""
    extra = ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")
    metadata = {**_metadata("gemma3"), "gemma3.attention.sliding_window": (_U32, window)}
    return _write(path, {**metadata, **changes}, {**_ends(1.0), **_attention_layers(extra)})


def write_mamba(path: Path, **changes: object) -> Path:
    """A mamba: recurrent, its state cannot go back."""
    inner, state, kernel, rank = 2 * WIDTH, 8, 4, 4
    metadata = {
        **_metadata("mamba"),
        "mamba.ssm.conv_kernel": (_U32, kernel),
        "mamba.ssm.inner_size": (_U32, inner),
        "mamba.ssm.state_size": (_U32, state),
        "mamba.ssm.time_step_rank": (_U32, rank),
    }
    random = np.random.default_rng(7)
    tensors = _ends(1.0)
    for layer in range(N_LAYERS):
        name = f"blk.{layer}"
        tensors |= {
            f"{name}.attn_norm.weight": np.ones(WIDTH),
            f"{name}.ssm_in.weight": _matrix(random, 2 * inner, WIDTH),
            f"{name}.ssm_conv1d.weight": random.normal(0, 0.5, (inner, kernel)),
            f"{name}.ssm_conv1d.bias": random.normal(0, 0.1, inner),
            f"{name}.ssm_x.weight": _matrix(random, rank + 2 * state, inner),
            f"{name}.ssm_dt.weight": _matrix(random, inner, rank),
            f"{name}.ssm_dt.bias": random.normal(-2, 0.5, inner),
            f"{name}.ssm_a": -np.exp(random.normal(0, 0.5, (inner, state))),
            f"{name}.ssm_d": np.ones(inner),
            f"{name}.ssm_out.weight": _matrix(random, WIDTH, inner),
        }
    return _write(path, {**metadata, **changes}, tensors)


BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({f"\u2581{word.strip()}" for word in WORDS})]
BERT_CTX = 128
BERT_LAYERS = 2


def write_bert(path: Path, *, pooling: int | None = 1) -> Path:
    """A bert: only embeds, every token sees every other.

    Args:
        pooling: enum llama_pooling_type: 1 mean, 2 CLS, 4 rank; None: not in the file.
    """
    metadata: dict[str, object] = {
        "general.architecture": (_STRING, "bert"),
        "general.name": (_STRING, "tiny bert"),
        "bert.context_length": (_U32, BERT_CTX),
        "bert.embedding_length": (_U32, WIDTH),
        "bert.block_count": (_U32, BERT_LAYERS),
        "bert.feed_forward_length": (_U32, INNER),
        "bert.attention.head_count": (_U32, N_HEADS),
        "bert.attention.layer_norm_epsilon": (_F32, 1e-12),
        "bert.attention.causal": (_BOOL, False),
        "tokenizer.ggml.model": (_STRING, "bert"),
        "tokenizer.ggml.token_type_count": (_U32, 2),
        "tokenizer.ggml.tokens": (_ARRAY, (_STRING, BERT_TOKENS)),
        "tokenizer.ggml.token_type": (_ARRAY, (_I32, [_CONTROL] * 5 + [_NORMAL] * (len(BERT_TOKENS) - 5))),
        "tokenizer.ggml.padding_token_id": (_U32, 0),
        "tokenizer.ggml.unknown_token_id": (_U32, 1),
        "tokenizer.ggml.cls_token_id": (_U32, 2),
        "tokenizer.ggml.bos_token_id": (_U32, 2),
        "tokenizer.ggml.seperator_token_id": (_U32, 3),
        "tokenizer.ggml.eos_token_id": (_U32, 3),
        "tokenizer.ggml.mask_token_id": (_U32, 4),
    }
    if pooling is not None:
        metadata["bert.pooling_type"] = (_U32, pooling)
    return _write(path, metadata, bert_tensors())


def bert_tensors() -> dict[str, np.ndarray]:
    """The weights of `write_bert`, by name."""
    random = np.random.default_rng(11)
    tensors = {
        "token_embd.weight": random.normal(0, 1, (len(BERT_TOKENS), WIDTH)),
        "token_types.weight": random.normal(0, 0.3, (2, WIDTH)),
        "position_embd.weight": random.normal(0, 0.3, (BERT_CTX, WIDTH)),
        "token_embd_norm.weight": 1 + random.normal(0, 0.1, WIDTH),
        "token_embd_norm.bias": random.normal(0, 0.1, WIDTH),
    }
    for layer in range(BERT_LAYERS):
        name = f"blk.{layer}"
        for part, n_out, n_in in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH, WIDTH), ("attn_v", WIDTH, WIDTH), ("attn_output", WIDTH, WIDTH),
            ("ffn_up", INNER, WIDTH), ("ffn_down", WIDTH, INNER),
        ):  # fmt: skip
            tensors[f"{name}.{part}.weight"] = _matrix(random, n_out, n_in) * 2
            tensors[f"{name}.{part}.bias"] = random.normal(0, 0.1, n_out)
        for norm in ("attn_output_norm", "layer_output_norm"):
            tensors[f"{name}.{norm}.weight"] = 1 + random.normal(0, 0.1, WIDTH)
            tensors[f"{name}.{norm}.bias"] = random.normal(0, 0.1, WIDTH)
    return tensors


def write_t5encoder(path: Path) -> Path:
    """A t5 without its decoder: only embeds, with an encoder by llama.cpp's own word."""
    metadata = {**_metadata("t5encoder"), "t5encoder.attention.relative_buckets_count": (_U32, 8)}
    metadata["t5encoder.attention.head_count_kv"] = (_U32, N_HEADS)
    random = np.random.default_rng(13)
    tensors = {"token_embd.weight": _ends(1.0)["token_embd.weight"], "enc.output_norm.weight": np.ones(WIDTH)}
    for layer in range(N_LAYERS):
        name = f"enc.blk.{layer}"
        tensors |= {
            f"{name}.attn_norm.weight": np.ones(WIDTH),
            f"{name}.attn_rel_b.weight": random.normal(0, 1, (8, N_HEADS)),
            f"{name}.attn_q.weight": _matrix(random, N_HEADS * HEAD, WIDTH),
            f"{name}.attn_k.weight": _matrix(random, N_HEADS * HEAD, WIDTH),
            f"{name}.attn_v.weight": _matrix(random, N_HEADS * HEAD, WIDTH),
            f"{name}.attn_o.weight": _matrix(random, WIDTH, N_HEADS * HEAD),
            f"{name}.ffn_norm.weight": np.ones(WIDTH),
            f"{name}.ffn_gate.weight": _matrix(random, INNER, WIDTH),
            f"{name}.ffn_down.weight": _matrix(random, WIDTH, INNER),
            f"{name}.ffn_up.weight": _matrix(random, INNER, WIDTH),
        }
    return _write(path, metadata, tensors)


def _metadata(architecture: str) -> dict[str, object]:
    own = {
        "context_length": (_U32, N_CTX),
        "embedding_length": (_U32, WIDTH),
        "block_count": (_U32, N_LAYERS),
        "feed_forward_length": (_U32, INNER if architecture != "mamba" else 0),
        "attention.head_count": (_U32, N_HEADS if architecture != "mamba" else 0),
        "attention.head_count_kv": (_U32, N_HEADS_KV),
        "attention.key_length": (_U32, HEAD),
        "attention.value_length": (_U32, HEAD),
        "rope.dimension_count": (_U32, HEAD),
        "attention.layer_norm_rms_epsilon": (_F32, 1e-5),
    }
    return {
        "general.architecture": (_STRING, architecture),
        "general.name": (_STRING, f"tiny {architecture}"),
        **{f"{architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": (_STRING, "llama"),
        "tokenizer.ggml.tokens": (_ARRAY, (_STRING, TOKENS)),
        "tokenizer.ggml.scores": (_ARRAY, (_F32, [-float(index) / 100 for index in range(len(TOKENS))])),
        "tokenizer.ggml.token_type": (_ARRAY, (_I32, TYPES)),
        "tokenizer.ggml.bos_token_id": (_U32, 1),
        "tokenizer.ggml.eos_token_id": (_U32, 2),
        "tokenizer.ggml.add_bos_token": (_BOOL, True),
        "tokenizer.chat_template": (_STRING, "{{ messages[0].content }}"),
    }


def _ends(spread: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    output = random.normal(0, spread * 3 / np.sqrt(WIDTH), (len(TOKENS), WIDTH))
    output[4:260] = 0  # bytes hardly ever come
    return {
        "token_embd.weight": random.normal(0, 1, (len(TOKENS), WIDTH)),
        "output_norm.weight": np.ones(WIDTH),
        "output.weight": output,
    }


def _attention_layers(extra_norms: Iterable[str], n_layers: int = N_LAYERS) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    tensors = {}
    for layer in range(n_layers):
        name = f"blk.{layer}"
        tensors |= {
            f"{name}.attn_norm.weight": np.ones(WIDTH),
            f"{name}.ffn_norm.weight": np.ones(WIDTH),
            f"{name}.attn_q.weight": _matrix(random, N_HEADS * HEAD, WIDTH) * 2,
            f"{name}.attn_k.weight": _matrix(random, N_HEADS_KV * HEAD, WIDTH) * 2,
            f"{name}.attn_v.weight": _matrix(random, N_HEADS_KV * HEAD, WIDTH) * 2,
            f"{name}.attn_output.weight": _matrix(random, WIDTH, N_HEADS * HEAD) * 4,
            f"{name}.ffn_gate.weight": _matrix(random, INNER, WIDTH),
            f"{name}.ffn_up.weight": _matrix(random, INNER, WIDTH),
            f"{name}.ffn_down.weight": _matrix(random, WIDTH, INNER),
        }
        for norm in extra_norms:
            tensors[f"{name}.{norm}.weight"] = np.ones(HEAD if norm.endswith(("q_norm", "k_norm")) else WIDTH)
    return tensors


def _matrix(random: np.random.Generator, n_out: int, n_in: int) -> np.ndarray:
    return random.normal(0, 1 / np.sqrt(n_in), (n_out, n_in))


def requantized(source: Path, path: Path, kind: str) -> Path:
    """A model in another type, every weight of it.

    Args:
        kind: A key of quantize.FILE_TYPES.
    """
    arguments = {
        "source": str(source), "out": str(path), "type": kind, "n_threads": 1, "is_pure": True,
        "overrides": [], "output_type": "", "embedding_type": "", "importance": "",
    }  # fmt: skip
    quantize.run(arguments, lambda *_: None)
    return path


def _write(path: Path, metadata: dict[str, object], tensors: dict[str, np.ndarray]) -> Path:
    pairs = b"".join(_string(key) + _value(*value) for key, value in metadata.items())  # type: ignore[misc]
    infos, data = b"", b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values, np.float32).tobytes()
        dims = values.shape[::-1]
        infos += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, len(data))
        data += raw + b"\0" * (-len(raw) % ALIGNMENT)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + pairs + infos
    path.write_bytes(header + b"\0" * (-len(header) % ALIGNMENT) + data)
    return path


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: object) -> bytes:
    return struct.pack("<I", kind) + _plain(kind, value)


def _plain(kind: int, value: object) -> bytes:
    if kind == _STRING:
        return _string(str(value))
    if kind == _ARRAY:
        item_kind, items = value  # type: ignore[misc]
        return struct.pack("<IQ", item_kind, len(items)) + b"".join(_plain(item_kind, item) for item in items)
    return struct.pack({_U16: "<H", _U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}[kind], value)
