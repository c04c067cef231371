"""Writes model folders of a few hundred kB with random weights, as the library's builder would lay them out: a llama with
grouped attention, float32, so that batches of different shapes round almost alike.

For checks and tests only: `hostler plugins check onnxgenai` needs no download. Engine processes do not import it.

Source of the graph: what onnxruntime_genai.models.builder 0.18 makes of a LlamaForCausalLM for the CPU.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from hostler_onnxgenai.onnxfile import FLOAT, INT64
from hostler_onnxgenai.wire import VARINT, key, tagged, varint

WORDS = [f"{first}{second}" for first in "abcdefghijklmnop" for second in "aeiou"]
SPECIALS = ["<|end|>", "<|turn|>"]
N_BYTES = 256
N_VOCAB = N_BYTES + len(WORDS) + len(SPECIALS)
END, TURN = N_VOCAB - 2, N_VOCAB - 1
N_LAYERS, WIDTH, INNER, N_HEADS, N_HEADS_KV, HEAD = 3, 64, 128, 4, 2, 16
N_CTX = 2048
TEMPLATE = "{% for message in messages %}<|turn|>{{ message.content }}{% endfor %}<|turn|>"
_FLOAT_ATTRIBUTE, _INT_ATTRIBUTE, _INT32 = 1, 2, 6


def write_llama(
    folder: Path,
    *,
    n_layers: int = N_LAYERS,
    width: int = WIDTH,
    inner: int = INNER,
    n_vocab: int = N_VOCAB,
    n_ctx: int = N_CTX,
    bits: int = 32,
    is_external: bool = True,
    opset: int = 21,
) -> Path:
    """Write a folder.

    Args:
        n_vocab: Rows of the projection; more than the tokenizer has are padding.
        bits: 32, or 4 for matrices of four bits in blocks of 32.
        is_external: Weights in model.onnx.data, as the builder writes them; False: within the graph.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = _Graph(folder if is_external else None, bits)
    random = np.random.default_rng(11)
    n_heads, n_heads_kv, head = (N_HEADS, N_HEADS_KV, HEAD) if width == WIDTH else (width // 64, width // 128, 64)

    def matrix(n_in: int, n_out: int, spread: float = 1.0) -> np.ndarray:
        values: np.ndarray = random.standard_normal((n_in, n_out)) * (spread / np.sqrt(n_in))
        return values.astype(np.float32)

    graph.tensor("one", np.array([1], np.int64))
    graph.tensor("axis", np.array(1, np.int64))
    graph.node("ReduceSum", ["attention_mask", "one"], ["mask_sum"], keepdims=0)
    graph.node("Sub", ["mask_sum", "one"], ["last_position"])
    graph.node("Cast", ["last_position"], ["seqlens_k"], to=_INT32)
    graph.node("Shape", ["attention_mask"], ["mask_shape"])
    graph.node("Gather", ["mask_shape", "axis"], ["total_64"], axis=0)
    graph.node("Cast", ["total_64"], ["total"], to=_INT32)
    angles = np.arange(n_ctx)[:, None] / 10000.0 ** (np.arange(0, head, 2) / head)
    graph.tensor("cos", np.cos(angles).astype(np.float32))
    graph.tensor("sin", np.sin(angles).astype(np.float32))
    graph.tensor("embedding", random.standard_normal((n_vocab, width)).astype(np.float32))
    graph.tensor("unit", np.ones(width, np.float32))
    graph.node("Gather", ["embedding", "input_ids"], ["x0"], axis=0)
    x = "x0"
    for layer in range(n_layers):
        name = f"l{layer}"
        graph.norm(x, f"{name}.n1")
        for part, n_out in (("q", n_heads * head), ("k", n_heads_kv * head), ("v", n_heads_kv * head)):
            graph.matmul(f"{name}.n1", f"{name}.{part}", matrix(width, n_out, 2.0))
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        graph.node(
            "GroupQueryAttention",
            [*(f"{name}.{part}" for part in "qkv"), *past, "seqlens_k", "total", "cos", "sin"],
            [f"{name}.a", *present],
            domain="com.microsoft",
            num_heads=n_heads,
            kv_num_heads=n_heads_kv,
            do_rotary=1,
            scale=float(1 / np.sqrt(head)),
        )
        graph.matmul(f"{name}.a", f"{name}.o", matrix(n_heads * head, width, 4.0))
        graph.node("Add", [x, f"{name}.o"], [f"{name}.x1"])
        graph.norm(f"{name}.x1", f"{name}.n2")
        graph.matmul(f"{name}.n2", f"{name}.gate", matrix(width, inner))
        graph.matmul(f"{name}.n2", f"{name}.up", matrix(width, inner))
        graph.node("Sigmoid", [f"{name}.gate"], [f"{name}.s"])
        graph.node("Mul", [f"{name}.gate", f"{name}.s"], [f"{name}.silu"])
        graph.node("Mul", [f"{name}.silu", f"{name}.up"], [f"{name}.h"])
        graph.matmul(f"{name}.h", f"{name}.down", matrix(inner, width))
        graph.node("Add", [f"{name}.x1", f"{name}.down"], [f"x{layer + 1}"])
        x = f"x{layer + 1}"
    graph.norm(x, "final")
    output = matrix(width, n_vocab, 3.0)
    if n_vocab == N_VOCAB:
        output[:, :N_BYTES] *= 0.2  # bytes hardly ever come
    graph.matmul("final", "logits", output)
    (folder / "model.onnx").write_bytes(graph.finish(n_layers, n_heads_kv, head, n_vocab, opset))
    (folder / "genai_config.json").write_text(
        json.dumps(_config(n_layers, width, n_heads, n_heads_kv, head, n_vocab, n_ctx), indent=1)
    )
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: 256 bytes, syllables, two control tokens."""
    letters = _byte_letters()
    vocabulary = {letter: index for index, letter in enumerate([*letters, *WORDS])}
    added = [
        {"id": N_BYTES + len(WORDS) + index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index, text in enumerate(SPECIALS)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
        "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
                  "merges": [f"{word[0]} {word[1]}" for word in WORDS]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": {"content": "<|turn|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _config(
    n_layers: int, width: int, n_heads: int, n_heads_kv: int, head: int, n_vocab: int, n_ctx: int
) -> dict[str, object]:
    return {
        "model": {
            "bos_token_id": TURN,
            "context_length": n_ctx,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": head,
                "hidden_size": width,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": n_heads,
                "num_hidden_layers": n_layers,
                "num_key_value_heads": n_heads_kv,
            },
            "eos_token_id": [END],
            "pad_token_id": END,
            "type": "llama",
            "vocab_size": n_vocab,
        },
        "search": {"max_length": n_ctx, "past_present_share_buffer": True},
    }


class _Graph:
    """A GraphProto in the making; field numbers as in onnx.proto."""

    def __init__(self, folder: Path | None, bits: int) -> None:
        self._data = (folder / "model.onnx.data").open("wb") if folder is not None else None
        self._bits = bits
        self._nodes: list[bytes] = []
        self._tensors: list[bytes] = []

    def tensor(self, name: str, values: np.ndarray) -> None:
        kinds = {"float32": FLOAT, "int64": INT64, "uint8": 2}
        content = b"".join(key(1, VARINT) + varint(size) for size in values.shape)
        content += key(2, VARINT) + varint(kinds[values.dtype.name]) + tagged(8, name.encode())
        raw = np.ascontiguousarray(values).tobytes()
        if self._data is None or len(raw) < 1024:
            self._tensors.append(content + tagged(9, raw))
            return
        self._data.write(b"\0" * (-self._data.tell() % 4096))
        place = {"location": "model.onnx.data", "offset": str(self._data.tell()), "length": str(len(raw))}
        self._data.write(raw)
        for entry, value in place.items():
            content += tagged(13, tagged(1, entry.encode()) + tagged(2, value.encode()))
        self._tensors.append(content + key(14, VARINT) + varint(1))

    def node(
        self, operator: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: int | float
    ) -> None:
        content = b"".join(tagged(1, name.encode()) for name in inputs)
        content += b"".join(tagged(2, name.encode()) for name in outputs)
        content += tagged(3, outputs[0].encode()) + tagged(4, operator.encode())
        for name, value in attributes.items():
            if isinstance(value, float):
                kind, stored = _FLOAT_ATTRIBUTE, key(2, 5) + struct.pack("<f", value)
            else:
                kind, stored = _INT_ATTRIBUTE, key(3, VARINT) + varint(value)
            content += tagged(5, tagged(1, name.encode()) + key(20, VARINT) + varint(kind) + stored)
        self._nodes.append(content + (tagged(7, domain.encode()) if domain else b""))

    def norm(self, name: str, result: str) -> None:
        self.node(
            "SimplifiedLayerNormalization", [name, "unit"], [result], axis=-1 & 0xFFFFFFFFFFFFFFFF, epsilon=1e-5, stash_type=1
        )

    def matmul(self, name: str, result: str, values: np.ndarray) -> None:
        n_in, n_out = values.shape
        if self._bits == 32:
            self.tensor(f"{result}.weight", values)
            self.node("MatMul", [name, f"{result}.weight"], [result])
            return
        blocks = values.T.reshape(n_out, n_in // 32, 32)
        scales = np.abs(blocks).max(axis=2) / 7 + 1e-9
        numbers = np.clip(np.rint(blocks / scales[:, :, None]) + 8, 0, 15).astype(np.uint8)
        self.tensor(f"{result}.weight_Q4", numbers[:, :, 0::2] | numbers[:, :, 1::2] << 4)
        self.tensor(f"{result}.weight_scales", scales.astype(np.float32).reshape(n_out, -1))
        self.node(
            "MatMulNBits", [name, f"{result}.weight_Q4", f"{result}.weight_scales"], [result], domain="com.microsoft",
            K=n_in, N=n_out, accuracy_level=4, bits=4, block_size=32,
        )  # fmt: skip

    def finish(self, n_layers: int, n_heads_kv: int, head: int, n_vocab: int, opset: int) -> bytes:
        if self._data is not None:
            self._data.close()
        inputs = [_port("input_ids", INT64, ("b", "s")), _port("attention_mask", INT64, ("b", "t"))]
        outputs = [_port("logits", FLOAT, ("b", "s", n_vocab))]
        for layer in range(n_layers):
            for kind in ("key", "value"):
                inputs.append(_port(f"past_key_values.{layer}.{kind}", FLOAT, ("b", n_heads_kv, "p", head)))
                outputs.append(_port(f"present.{layer}.{kind}", FLOAT, ("b", n_heads_kv, "t", head)))
        graph = b"".join(tagged(1, node) for node in self._nodes) + tagged(2, b"tiny")
        graph += b"".join(tagged(5, tensor) for tensor in self._tensors)
        graph += b"".join(tagged(11, port) for port in inputs) + b"".join(tagged(12, port) for port in outputs)
        opsets = tagged(8, tagged(1, b"") + key(2, VARINT) + varint(opset))
        opsets += tagged(8, tagged(1, b"com.microsoft") + key(2, VARINT) + varint(1))
        return key(1, VARINT) + varint(10) + tagged(7, graph) + opsets


def _port(name: str, element: int, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(
        tagged(1, key(1, VARINT) + varint(size) if isinstance(size, int) else tagged(2, size.encode())) for size in shape
    )
    kind = tagged(1, key(1, VARINT) + varint(element) + tagged(2, dims))
    return tagged(1, name.encode()) + tagged(2, kind)


def _byte_letters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(N_BYTES)]
