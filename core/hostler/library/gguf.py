"""GGUF headers: what a model file says of itself, read in about a millisecond and never trusted.

Floor 1; any thread. The native reader checks every number against the file and against bounds (cpp/include/hostler/
gguf_header.h), so a broken or hostile file is refused here, with the reason, before an engine sees it. This module gives
the metadata its names; it must not know engines or the library's folders.

Source: the GGUF specification (ggml/docs/gguf.md) for keys and their meanings; llama.cpp's llama_ftype for file types.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hostler import _native
from hostler.errors import InvalidModelFile

Scalar = str | int | float | bool

FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""`general.file_type` -> the name users know it by."""

MAX_REMEMBERED = 512
"""Headers kept by `read_gguf_header`, each a few kB; listing so many models again costs one `stat` a file."""


class GgufArray(msgspec.Struct, frozen=True):
    """A long array of the metadata, such as a tokenizer's tokens: what it is, not what is in it."""

    item_type: str
    """As the specification calls it: `string`, `int32`, `float32`, ..."""
    length: int


Value = Scalar | tuple[Scalar, ...] | GgufArray


class TensorTypeUse(msgspec.Struct, frozen=True):
    """All tensors of one type together."""

    type: str
    """ggml's name, such as `Q4_1`; `type 99` for one that this version does not know."""
    n_tensors: int
    n_elements: int
    n_bytes: int
    """0 where the type is unknown."""


class GgufTensor(msgspec.Struct, frozen=True):
    """Where one tensor lies."""

    name: str
    type: str
    dims: tuple[int, ...]
    """Innermost first, as in the file."""
    offset: int
    """Bytes from the beginning of the file."""
    n_bytes: int
    """0 where the type is unknown."""


class GgufHeader(msgspec.Struct, frozen=True):
    """One file's header. A property is None, or empty, where the file does not say."""

    path: str
    version: int
    file_bytes: int
    header_bytes: int
    data_offset: int
    alignment: int
    metadata: Mapping[str, Value]
    """Every pair, in the file's order; arrays of more than 1,024 items are a GgufArray."""
    n_tensors: int
    n_params: int
    """Elements of all tensors of this file (of a split model: of this part)."""
    tensor_bytes: int
    tensor_types: tuple[TensorTypeUse, ...]
    """Most bytes first."""

    # -- single keys ------------------------------------------------------------------------------------------------

    def text(self, key: str) -> str | None:
        """The value of a key if it is a string."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """The value of a key if it is an integer."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def per_layer(self, key: str) -> tuple[int, ...]:
        """The value of a key that has one number for all layers, or one for each; empty if it is neither."""
        value = self.metadata.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,) * (self.n_layers or 1)
        if isinstance(value, tuple):
            numbers = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool))
            return numbers if len(numbers) == len(value) else ()
        return ()

    def architecture_key(self, suffix: str) -> str:
        """The key of an architecture's own value: `block_count` -> `llama.block_count`."""
        return f"{self.architecture}.{suffix}"

    # -- what the model is ------------------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        """`llama`, `qwen2`, ...; empty in a file that is no model, or a later part of one."""
        return self.text("general.architecture") or ""

    @property
    def name(self) -> str | None:
        """As its author calls it."""
        return self.text("general.name")

    @property
    def quantization(self) -> str | None:
        """The label users choose by, such as `Q4_1` or `Q4_K_M`; from the file type, else the type of most bytes."""
        file_type = self.integer("general.file_type")
        if file_type is not None and file_type in FILE_TYPES:
            return FILE_TYPES[file_type]
        return self.tensor_types[0].type if self.tensor_types else None

    @property
    def size_label(self) -> str | None:
        """Parameters as people say it, such as `135M`; from the file, else counted (not for one part of several)."""
        label = self.text("general.size_label")
        if label or self.is_split or not self.n_params:
            return label
        for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
            if self.n_params >= unit:
                scaled = self.n_params / unit
                return f"{scaled:.1f}{letter}" if scaled < 10 else f"{scaled:.0f}{letter}"
        return str(self.n_params)

    @property
    def is_split(self) -> bool:
        """Whether the model lies in several files, of which this is one."""
        return (self.split_count or 1) > 1

    @property
    def split_count(self) -> int | None:
        """Files of the model."""
        return self.integer("split.count")

    @property
    def split_index(self) -> int | None:
        """Which of them this is, from 0."""
        return self.integer("split.no")

    @property
    def is_first_part(self) -> bool:
        """Whether this file has the model's metadata."""
        return not self.is_split or self.split_index == 0

    # -- its shape --------------------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int | None:
        """Tokens of one sequence it was trained for."""
        return self.integer(self.architecture_key("context_length"))

    @property
    def n_layers(self) -> int | None:
        """Transformer blocks."""
        return self.integer(self.architecture_key("block_count"))

    @property
    def n_embd(self) -> int | None:
        """Width of the residual stream."""
        return self.integer(self.architecture_key("embedding_length"))

    @property
    def n_head_per_layer(self) -> tuple[int, ...]:
        """Attention heads of each layer."""
        return self.per_layer(self.architecture_key("attention.head_count"))

    @property
    def n_head(self) -> int | None:
        """Attention heads of the layer that has most."""
        return max(self.n_head_per_layer, default=None)

    @property
    def n_head_kv_per_layer(self) -> tuple[int, ...]:
        """Key and value heads of each layer: what a KV cache holds. 0 for a layer without attention."""
        return self.per_layer(self.architecture_key("attention.head_count_kv")) or self.n_head_per_layer

    @property
    def n_head_kv(self) -> int | None:
        """Key and value heads of the layer that has most."""
        return max(self.n_head_kv_per_layer, default=None)

    @property
    def key_length(self) -> int | None:
        """Values of one key of one head."""
        return self.integer(self.architecture_key("attention.key_length")) or self._head_width

    @property
    def value_length(self) -> int | None:
        """Values of one value of one head."""
        return self.integer(self.architecture_key("attention.value_length")) or self._head_width

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a layer with windowed attention looks back; None without such layers."""
        return self.integer(self.architecture_key("attention.sliding_window")) or None

    @property
    def n_experts(self) -> int | None:
        """Experts of a mixture; None for a dense model."""
        return self.integer(self.architecture_key("expert_count")) or None

    @property
    def _head_width(self) -> int | None:
        return self.n_embd // self.n_head if self.n_embd and self.n_head else None

    # -- its text ---------------------------------------------------------------------------------------------------

    @property
    def n_vocab(self) -> int | None:
        """Tokens it knows."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, GgufArray):
            return tokens.length
        if isinstance(tokens, tuple):
            return len(tokens)
        return self.integer(self.architecture_key("vocab_size"))

    @property
    def chat_template(self) -> str | None:
        """Jinja source; a stranger's, to be run in a sandbox."""
        return self.text("tokenizer.chat_template")

    @property
    def bos_token_id(self) -> int | None:
        """Beginning of a sequence."""
        return self.integer("tokenizer.ggml.bos_token_id")

    @property
    def eos_token_id(self) -> int | None:
        """End of a sequence."""
        return self.integer("tokenizer.ggml.eos_token_id")


_remembered: OrderedDict[tuple[str, int, int, int, int], GgufHeader] = OrderedDict()
"""Headers by path and identity of the file (device, inode, size, mtime), oldest use first; guarded by `_lock`."""
_lock = threading.Lock()


def read_gguf_header(path: str | os.PathLike[str]) -> GgufHeader:
    """Read and check the header of a GGUF file; tensor data is not touched.

    A file that has not changed since it was last read is not read again.

    Raises:
        InvalidModelFile: It is no GGUF, malformed, truncated or over a bound; the text says which, and at which byte.
        OSError: It cannot be read.
    """
    status = os.stat(path)
    key = (os.fspath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    with _lock:
        known = _remembered.get(key)
        if known is not None:
            _remembered.move_to_end(key)
            return known
    header = _read(path)
    with _lock:
        _remembered[key] = header
        while len(_remembered) > MAX_REMEMBERED:
            _remembered.popitem(last=False)
    return header


def read_gguf_array(path: str | os.PathLike[str], key: str) -> tuple[Scalar, ...] | None:
    """Read one array of the metadata whole, such as `tokenizer.ggml.tokens`; None if the file has no such array.

    Raises:
        InvalidModelFile: As `read_gguf_header`; also for more than 1,048,576 items.
        OSError: It cannot be read.
    """
    value = _read(path, list_keys=(key,)).metadata.get(key)
    return value if isinstance(value, tuple) else None


def read_gguf_tensors(path: str | os.PathLike[str]) -> tuple[GgufTensor, ...]:
    """List a file's tensors, in the file's order.

    Raises:
        InvalidModelFile: As `read_gguf_header`.
        OSError: It cannot be read.
    """
    native = _open(path, with_tensors=True)
    return tuple(
        GgufTensor(tensor.name, tensor.type, tuple(tensor.dims), tensor.offset, tensor.n_bytes) for tensor in native.tensors
    )


def _open(path: str | os.PathLike[str], *, list_keys: Sequence[str] = (), with_tensors: bool = False) -> _native.GgufHeader:
    try:
        return _native.read_gguf_header(path, list_keys=list_keys, with_tensors=with_tensors)
    except _native.GgufError as error:
        raise InvalidModelFile(f"{Path(path)} is no usable GGUF file: {error}", path=str(path)) from error
    except ValueError as error:
        raise InvalidModelFile(f"{error}, so it is no GGUF file", path=str(path)) from error


def _read(path: str | os.PathLike[str], list_keys: Sequence[str] = ()) -> GgufHeader:
    native = _open(path, list_keys=list_keys)
    return GgufHeader(
        path=os.fspath(path),
        version=native.version,
        file_bytes=native.file_bytes,
        header_bytes=native.header_bytes,
        data_offset=native.data_offset,
        alignment=native.alignment,
        metadata={key: _value(value) for key, value in native.metadata().items()},
        n_tensors=native.n_tensors,
        n_params=native.n_elements,
        tensor_bytes=native.tensor_bytes,
        tensor_types=tuple(TensorTypeUse(use.type, use.n_tensors, use.n_elements, use.n_bytes) for use in native.tensor_types),
    )


def _value(value: Scalar | list[Scalar] | tuple[str, int]) -> Value:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, tuple):
        return GgufArray(*value)
    return value
