"""Tiny GGUF files for tests: `write_gguf(path, metadata, tensors)`. Independent of the reader it helps to test.

Python values become GGUF values: bool, int (uint32 where it fits, else uint64 or a signed type), float (float32), str,
list or tuple (array of its first item's type, nested ones, too). `U16(3)`, `I32(-1)`, `F64(0.5)`, ... choose another type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

F32 = 0
Q4_1 = 3
BLOCKS = {0: (1, 4), 1: (1, 2), 3: (32, 20), 8: (32, 34), 12: (256, 144), 30: (1, 2)}
"""Tensor type -> (values, bytes) of a block; other types get no data."""

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9


class Typed(NamedTuple):
    """A number with its GGUF type."""

    type: int
    value: float


U8, I8, U16, I16, U32, I32 = (partial(Typed, number) for number in range(6))
U64, I64, F64 = (partial(Typed, number) for number in (10, 11, 12))


class Tensor(NamedTuple):
    """One tensor; its data is zeros."""

    name: str
    dims: Sequence[int]
    type: int = F32

    @property
    def n_bytes(self) -> int:
        """What it takes in the file."""
        elements, size = BLOCKS.get(self.type, (1, 0))
        n_elements = 1
        for dim in self.dims:
            n_elements *= dim
        return n_elements // elements * size


def gguf_bytes(metadata: Mapping[str, Any] | None = None, tensors: Iterable[Tensor] = (), version: int = 3) -> bytes:
    """A whole file as bytes."""
    pairs = dict(metadata or {})
    listed = list(tensors)
    alignment = int(pairs.get("general.alignment", 32))
    header = [b"GGUF", struct.pack("<IQQ", version, len(listed), len(pairs))]
    for key, value in pairs.items():
        number, body = _encode(value)
        header += [_string(key), struct.pack("<I", number), body]
    offset = 0
    data = []
    for tensor in listed:
        header.append(_string(tensor.name))
        header.append(struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims))
        header.append(struct.pack("<IQ", tensor.type, offset))
        padded = _aligned(tensor.n_bytes, alignment)
        data.append(bytes(padded))
        offset += padded
    head = b"".join(header)
    return head + bytes(_aligned(len(head), alignment) - len(head) if listed else 0) + b"".join(data)


def write_gguf(
    path: str | Path, metadata: Mapping[str, Any] | None = None, tensors: Iterable[Tensor] = (), version: int = 3
) -> Path:
    """Write a file and return its path."""
    Path(path).write_bytes(gguf_bytes(metadata, tensors, version))
    return Path(path)


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """What a small llama says of itself; underscores in `changes` stay, `None` removes a key."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.file_type": 3,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
    }
    metadata.update(changes)
    return {key: value for key, value in metadata.items() if value is not None}


LLAMA_TENSORS = (Tensor("token_embd.weight", (64, 4), Q4_1), Tensor("output_norm.weight", (64,)))


def _aligned(n: int, alignment: int) -> int:
    return (n + alignment - 1) // alignment * alignment


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _encode(value: Any) -> tuple[int, bytes]:
    if isinstance(value, Typed):
        return value.type, struct.pack("<" + _FORMATS[value.type], value.value)
    if isinstance(value, str | bytes):
        return _STRING, _string(value)
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        number = 4 if 0 <= value < 2**32 else 10 if value >= 0 else 5 if value >= -(2**31) else 11
        return number, struct.pack("<" + _FORMATS[number], value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    items = [_encode(item) for item in value]
    item_type = items[0][0] if items else 4
    if any(number != item_type for number, _ in items):
        raise TypeError(f"the items of an array need one type: {value!r}")
    return _ARRAY, struct.pack("<IQ", item_type, len(items)) + b"".join(body for _, body in items)
