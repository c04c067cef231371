"""Step: how much each input of each weight matters: the mean square of what it was multiplied with, over a text.

llama.cpp asks a callback about every node of its graph; of products with weights it is then shown the input. That is what
llama.cpp's own `llama-imatrix` does, whose file llama_model_quantize takes as an array.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

from hostler_llamacpp.machine import library
from hostler_llamacpp.tuning.steps.opened import Opened

CHUNK = 512
_F32 = 0


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` up to its name; `test_tuning_steps.py` holds it against what llama.cpp says of a node."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Evaluate a text, and write what was seen.

    Args:
        arguments: `path`, `text`, `n_threads`, `repack`, `out`: a file in numpy's npz form.
        show: Takes a text and a fraction.

    Returns:
        `n_tensors`, `n_tokens`.
    """
    collector = Collector()
    show("loading", None)
    with Opened(
        arguments["path"],
        n_ctx=CHUNK,
        n_threads=arguments["n_threads"],
        has_logits=False,
        repack=arguments["repack"],
        on_node=collector.callback,
    ) as opened:
        chunks = opened.chunks(arguments["text"], CHUNK, 0)
        n_tokens = sum(map(len, chunks))
        n_done = 0
        for chunk in chunks:
            opened.clear()
            for start in range(0, len(chunk), opened.n_batch):
                part = chunk[start : start + opened.n_batch]
                opened.evaluate(start, part)
                n_done += len(part)
                show("importance", n_done / n_tokens)
        if collector.failure is not None:
            raise collector.failure
    found = collector.means()
    with Path(arguments["out"]).open("wb") as stream:  # a name of its own would get a suffix
        np.savez(stream, **found)  # type: ignore[arg-type]
    return {"n_tensors": len(found), "n_tokens": n_tokens}


class Collector:
    """Sums squares, by the weight's name."""

    def __init__(self) -> None:
        base = library("ggml-base")
        base.ggml_op_name.restype, base.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
        self._op_name = base.ggml_op_name
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}
        self.failure: Exception | None = None
        # INVARIANT: lives as long as the context that was given it.
        self.callback = llama.ggml_backend_sched_eval_callback(self._on_node)

    def means(self) -> dict[str, np.ndarray]:
        """Mean squares of every weight that was used: float32; of experts one after the other."""
        return {
            name: (sums / np.maximum(self._counts[name], 1)[:, None]).astype(np.float32).ravel()
            for name, sums in self._sums.items()
        }

    def _on_node(self, address: int | None, is_asked: bool, _user_data: object) -> bool:
        """Called by C, once to ask whether the node is of interest, once when it is computed."""
        try:
            node = Tensor.from_address(address or 0)
            op = self._op_name(node.op)
            if op not in (b"MUL_MAT", b"MUL_MAT_ID"):
                return not is_asked
            weight, given = Tensor.from_address(node.src[0]), Tensor.from_address(node.src[1])
            name = weight.name.decode("utf-8", "replace")
            if not name.endswith(".weight") or given.type != _F32:
                return not is_asked
            if not is_asked:
                self._add(name, weight, given, Tensor.from_address(node.src[2]) if op == b"MUL_MAT_ID" else None)
        except Exception as error:  # noqa: BLE001 - C must not see it; it is raised when C is through
            self.failure = error
            return not is_asked
        return True

    def _add(self, name: str, weight: Tensor, given: Tensor, chosen: Tensor | None) -> None:
        n_in, n_experts = int(weight.ne[0]), int(weight.ne[2]) if chosen is not None else 1
        if name not in self._sums:
            self._sums[name], self._counts[name] = np.zeros((n_experts, n_in)), np.zeros(n_experts)
        values = _array(given, np.float32)  # (.., n_tokens, n_rows a token or 1, n_in)
        if chosen is None:
            rows = values.reshape(-1, n_in).astype(np.float64)
            self._sums[name][0] += np.square(rows).sum(axis=0)
            self._counts[name][0] += len(rows)
            return
        experts = _array(chosen, np.int32)[0, 0]  # (n_tokens, n_used)
        inputs = values[0]  # (n_tokens, n_used or 1, n_in)
        for token, used in enumerate(experts):
            for place, expert in enumerate(used):
                row = inputs[token, place % inputs.shape[1]].astype(np.float64)
                self._sums[name][expert] += np.square(row)
                self._counts[name][expert] += 1


def _array(tensor: Tensor, dtype: Any) -> np.ndarray:
    """A tensor's values, dimensions outermost first, whatever its strides."""
    shape = tuple(int(size) for size in reversed(tensor.ne))
    strides = tuple(int(step) for step in reversed(tensor.nb))
    n_bytes = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    flat = (ctypes.c_byte * n_bytes).from_address(tensor.data)
    result: np.ndarray = np.ndarray(shape, dtype, buffer=flat, strides=strides)
    return result
