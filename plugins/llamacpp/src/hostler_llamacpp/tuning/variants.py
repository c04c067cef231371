"""What a model may be written as: single types, and mixes of them. Pure values, and what a file's header says."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from hostler import GgufTensor, read_gguf_tensors

FINE = "Q8_0"
"""What keeps all that a 4-bit source has, and runs on fast kernels."""
COARSE = ("IQ4_NL", "Q4_0")
"""4-bit types whose rows llama.cpp repacks for the CPU, the closer one first."""
COARSE_K = "Q4_K"
"""The same for models whose rows are multiples of 256."""
K_BLOCK = 256
COARSE_PACKED = "Q4_1"
"""The closest of all, where the plugin packs it itself (see kernels.py)."""
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of mixes: how much of what could be saved they save."""
ENDS = ("token_embd.weight", "output.weight", "per_layer_token_embd.weight")
"""Fine in the variants of a single type: they cost most."""


class Variant(msgspec.Struct, frozen=True):
    """A way to write the model."""

    name: str
    weights: dict[str, str]
    """Weight -> coarse type; those that are missing are fine."""


def single(name: str, sizes: dict[str, int]) -> Variant:
    """All weights in one type but the ends."""
    return Variant(name, {} if name == FINE else {weight: name for weight in sizes if weight not in ENDS})


def changeable(fine: Path, coarse: Path) -> dict[str, int]:
    """Weights that the quantizer wrote in other types in the two files -> their elements."""
    theirs = {tensor.name: tensor.type for tensor in read_gguf_tensors(coarse)}
    return {one.name: n_elements(one) for one in read_gguf_tensors(fine) if theirs.get(one.name) not in (None, one.type)}


def n_elements(tensor: GgufTensor) -> int:
    """Elements of a weight."""
    product = 1
    for size in tensor.dims:
        product *= size
    return product


def coarse_types(tensors: tuple[GgufTensor, ...], packed: Collection[str]) -> tuple[str, ...]:
    """The coarse types worth trying, the closest first.

    Args:
        packed: Types that the plugin packs itself on this processor.
    """
    rows = [tensor.dims[0] for tensor in tensors if len(tensor.dims) > 1]
    types = (COARSE_K, *COARSE) if rows and all(row % K_BLOCK == 0 for row in rows) else COARSE
    return (COARSE_PACKED, *types) if COARSE_PACKED in packed else types


def types_of(tensors: tuple[GgufTensor, ...]) -> str:
    """The types of a model's weights, by their share of the elements: `Q8_0 61 %, IQ4_NL 39 %`."""
    sums: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.dims) > 1:
            sums[tensor.type] = sums.get(tensor.type, 0) + n_elements(tensor)
    total = sum(sums.values()) or 1
    shown = [(name, round(100 * count / total)) for name, count in sorted(sums.items(), key=lambda item: -item[1])]
    return ", ".join(f"{name} {share} %" if share < 100 else name for name, share in shown if share)


def label_of(tensors: tuple[GgufTensor, ...]) -> str:
    """The same as a quantization is called: `Q8_0+IQ4_NL`, most elements first."""
    return "+".join(part.split()[0] for part in types_of(tensors).split(", "))


def fine_bytes(n_params: int) -> int:
    """Of a file with all weights fine, about."""
    return int(n_params * 1.07)


def coarse_bytes(n_params: int) -> int:
    """Of a file with all weights coarse, about."""
    return int(n_params * 0.64)
