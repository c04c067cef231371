"""Step: write a model anew in another type, by libllama's own quantizer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

from hostler_llamacpp.binding import log
from hostler_llamacpp.tuning.steps.opened import NotMeasurable

FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25}
"""enum llama_ftype."""
TENSOR_TYPES = {
    "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20,
}  # fmt: skip
"""enum ggml_type."""


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Quantize.

    Args:
        arguments: `source`, `out`, `type` (a key of FILE_TYPES), `n_threads`; `is_pure`: every weight gets that type;
            `overrides`: pairs of a regular expression and a key of TENSOR_TYPES; `output_type`, `embedding_type`: keys of
            TENSOR_TYPES or empty; `importance`: what the step of that name wrote, or empty.
        show: Takes a text and a fraction.

    Returns:
        `size_bytes`.
    """
    show(arguments["type"], None)
    params = llama.llama_model_quantize_default_params()
    params.nthread = arguments["n_threads"]
    params.ftype = FILE_TYPES[arguments["type"]]
    params.allow_requantize = True
    params.pure = arguments["is_pure"]
    if arguments["output_type"]:
        params.output_tensor_type = TENSOR_TYPES[arguments["output_type"]]
    if arguments["embedding_type"]:
        params.token_embedding_type = TENSOR_TYPES[arguments["embedding_type"]]
    overrides = (llama.llama_model_tensor_override * (len(arguments["overrides"]) + 1))()
    for entry, (pattern, name) in zip(overrides, arguments["overrides"], strict=False):
        entry.pattern, entry.type = pattern.encode(), TENSOR_TYPES[name]
    if arguments["overrides"]:
        params.tt_overrides = overrides
    kept: list[np.ndarray] = []
    if arguments["importance"]:
        params.imatrix = _importance(Path(arguments["importance"]), kept)
    log.reset()
    code = llama.llama_model_quantize(arguments["source"].encode(), arguments["out"].encode(), ctypes.byref(params))
    del overrides, kept
    if code:
        raise NotMeasurable(f"llama.cpp cannot write it as {arguments['type']}: {log.reason() or f'code {code}'}")
    return {"size_bytes": Path(arguments["out"]).stat().st_size}


def _importance(path: Path, kept: list[np.ndarray]) -> Any:
    """llama.cpp's array of them; `kept` is what it points into."""
    with np.load(path) as found:
        values = {name: np.ascontiguousarray(found[name], np.float32) for name in found.files}
    entries = (llama.llama_model_imatrix_data * (len(values) + 1))()
    for entry, (name, value) in zip(entries, values.items(), strict=False):
        kept.append(value)
        entry.name = name.encode()
        entry.data = value.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(value)
    return entries
