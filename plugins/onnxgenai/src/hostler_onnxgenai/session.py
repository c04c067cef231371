"""The graph in a plain onnxruntime session, with KV rows of our own: one batched run a step over all decoding rows.

Worker process, engine thread only; `run` releases the GIL. It knows arrays and bindings, nothing of requests.

GroupQueryAttention writes a row's new keys and values into the very array it reads the old ones from, at the position that
the attention mask's row implies. So past and present are bound to the same arrays, (rows, heads, n_ctx, head size) for each
layer, once for each window of rows; a step only binds ids, mask and logits anew (to bind all KV anew makes a step three
times as long). The mask's row has a 1 for each token up to and with the new one.

A run's rows must lie side by side. A row in the middle that has nothing to do runs along with a token of no meaning, written
behind its last one, where the next real token overwrites it; when that has cost more than a swap would, rows are swapped.
So a row's number, which the caller knows, is not its place, which only this module does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hostler import EngineFailed, InvalidModelFile, ModelLoadFailed, Packing
from hostler_onnxgenai.backend import SPIN_US
from hostler_onnxgenai.folder import ModelFolder
from hostler_onnxgenai.onnxfile import FLOAT16, MAX_EDITED_BYTES, with_last_logits_only

MIN_SCRATCH_BYTES = 128 * 1024 * 1024
_HOLE_SHARE = 3
"""A row that runs for nothing costs about a third of a pass over the weights (SmolLM2-135M int4, two cores)."""
_BROKEN_SIGNS = (
    "INVALID_PROTOBUF",
    "INVALID_GRAPH",
    "Protobuf parsing failed",
    "Deserialize tensor",
    "external data",
    "out of bounds",
)
_TOO_NEW_SIGNS = (
    "opset",
    "Opset",
    "is not a registered function/op",
    "NOT_IMPLEMENTED",
    "Could not find an implementation",
    "IR version",
)


class _Place:
    """A slice of the KV arrays."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.n_tokens = 0


class SessionBackend:
    """See Backend."""

    device = "cpu"
    can_copy = True

    def __init__(self, folder: ModelFolder, n_rows: int, n_ctx: int, *, n_threads: int, spin_us: int = SPIN_US) -> None:
        """Load the model and make its rows.

        Args:
            folder: One without an objection.
            n_ctx: Tokens a row holds.

        Raises:
            InvalidModelFile, ModelLoadFailed: With onnxruntime's own words.
        """
        self._folder = folder
        self._n_ctx = n_ctx
        self._session, self._gives_last_only = _open(folder, n_threads, spin_us)
        kinds = {port.name: port.type for port in self._session.get_outputs()}
        self._logits_type = np.float16 if kinds.get(folder.logits) == "tensor(float16)" else np.float32
        self._kv_type = np.float16 if folder.kv_element == FLOAT16 else np.float32
        shape = (n_rows, folder.n_heads_kv, n_ctx, folder.n_head)
        self.kv_bytes = n_rows * n_ctx * folder.kv_token_bytes
        try:
            self._kv = [np.zeros(shape, self._kv_type) for _ in folder.kv_inputs]
            self._logits = np.zeros((n_rows, 1, folder.n_vocab), self._logits_type)
        except MemoryError:
            raise ModelLoadFailed(
                f"there is no memory for a KV cache of {n_rows} x {n_ctx} tokens ({self.kv_bytes >> 20} MiB); a smaller "
                "ctx_len or n_parallel needs less"
            ) from None
        self._places = [_Place(number) for number in range(n_rows)]
        """By number."""
        self._place_of = list(self._places)
        """By row."""
        self._bindings: dict[tuple[int, int], Any] = {}
        self._packing = Packing(
            hole_bytes=folder.weights_bytes // _HOLE_SHARE,
            token_bytes=folder.kv_token_bytes,
            scratch_bytes=max(MIN_SCRATCH_BYTES, self.kv_bytes // 8),
            is_hole_per_cache=True,
        )

    def prefill(self, row: int, start: int, tokens: np.ndarray) -> np.ndarray:
        """See Backend."""
        place = self._place_of[row]
        n_tokens = len(tokens)
        ids = tokens.astype(np.int64).reshape(1, n_tokens)
        mask = np.ones((1, start + n_tokens), np.int64)
        n_rows = 1 if self._gives_last_only else n_tokens
        logits = self._logits[:1] if n_rows == 1 else np.empty((1, n_rows, self._logits.shape[2]), self._logits_type)
        positions = np.arange(start, start + n_tokens).reshape(1, n_tokens)
        self._run(place.number, place.number + 1, ids, mask, positions, logits)
        place.n_tokens = start + n_tokens
        last: np.ndarray = logits[0, -1].astype(np.float32, copy=False)
        return last

    def decode(self, rows: Sequence[int], starts: Sequence[int], tokens: Sequence[int]) -> Sequence[np.ndarray]:
        """See Backend."""
        places = [self._place_of[row] for row in rows]
        for place, start in zip(places, starts, strict=True):
            place.n_tokens = start
        if len(places) > 1:
            running = {id(place) for place in places}
            for one, other in self._packing.plan(self._places, lambda place: id(place) in running):
                self._swap(one, other)
        first = min(place.number for place in places)
        end = max(place.number for place in places) + 1
        window = self._places[first:end]
        lengths = np.array([[place.n_tokens] for place in window], np.int64)
        ids = np.zeros((end - first, 1), np.int64)
        for place, token in zip(places, tokens, strict=True):
            ids[place.number - first, 0] = token
        mask = (np.arange(int(lengths.max()) + 1) <= lengths).astype(np.int64)
        logits = self._logits[: end - first]
        self._run(first, end, ids, mask, lengths, logits)
        for place in places:
            place.n_tokens += 1
        results = [logits[place.number - first, 0] for place in places]
        return results if self._logits_type is np.float32 else [row.astype(np.float32) for row in results]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """See Backend."""
        one, other = self._place_of[source], self._place_of[target]
        for array in self._kv:
            array[other.number, :, :n_tokens] = array[one.number, :, :n_tokens]
        other.n_tokens = n_tokens

    def close(self) -> None:
        """See Backend."""
        self._bindings.clear()
        self._kv.clear()
        del self._session

    def _swap(self, one: _Place, other: _Place) -> None:
        """Exchange two places, contents and all."""
        n = max(one.n_tokens, other.n_tokens)
        for array in self._kv:
            saved = array[one.number, :, :n].copy()
            array[one.number, :, :n] = array[other.number, :, :n]
            array[other.number, :, :n] = saved
        one.number, other.number = other.number, one.number
        self._places[one.number], self._places[other.number] = one, other

    def _run(self, first: int, end: int, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, logits: np.ndarray) -> None:
        folder = self._folder
        binding = self._bindings.get((first, end)) or self._bind(first, end)
        for name, array in ((folder.input_ids, ids), (folder.attention_mask, mask), (folder.position_ids, positions)):
            if name is not None:
                binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output(folder.logits, "cpu", 0, self._logits_type, logits.shape, logits.ctypes.data)
        # SAFETY: every bound array is alive until `run` returns; the lengths were checked against n_ctx by the caller.
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime has a class for each status
            raise EngineFailed(f"onnxruntime could not evaluate {ids.shape[0]} x {ids.shape[1]} tokens: {error}") from error

    def _bind(self, first: int, end: int) -> Any:
        """A binding of the KV rows of one window; made once, because that takes as long as half a step."""
        binding = self._session.io_binding()
        for array, name, result in zip(self._kv, self._folder.kv_inputs, self._folder.kv_outputs, strict=True):
            window = array[first:end]
            binding.bind_input(name, "cpu", 0, self._kv_type, window.shape, window.ctypes.data)
            binding.bind_output(result, "cpu", 0, self._kv_type, window.shape, window.ctypes.data)
        self._bindings[first, end] = binding
        return binding


def _open(folder: ModelFolder, n_threads: int, spin_us: int) -> tuple[Any, bool]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # PERF: as fast as with onnxruntime's arena, and what a long prompt took goes back to the system.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    graph = folder.graph
    edited: bytes | None = None
    if graph.file_bytes <= MAX_EDITED_BYTES:
        edited = with_last_logits_only(Path(graph.path).read_bytes(), folder.logits)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.path.abspath(Path(graph.path).parent)
        )
    try:
        return ort.InferenceSession(edited or graph.path, options, providers=["CPUExecutionProvider"]), edited is not None
    except Exception as error:
        if edited is None:
            raise _refusal(graph.path, str(error)) from error
    # Whether the change or the model is to blame, the model itself tells.
    try:
        return ort.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"]), False
    except Exception as error:
        raise _refusal(graph.path, str(error)) from error


def _refusal(path: str, words: str) -> InvalidModelFile | ModelLoadFailed:
    reason = " ".join(words.split()).rstrip(".")
    if any(sign in reason for sign in _TOO_NEW_SIGNS):
        return ModelLoadFailed(
            f"{path} uses what onnxruntime {ort.__version__} does not have: {reason}. Update onnxruntime-genai, or take an "
            "export for this device",
            last_output=reason,
        )
    if any(sign in reason for sign in _BROKEN_SIGNS):
        return InvalidModelFile(f"{path} cannot be loaded: {reason}. It may be damaged; pull the model again", path=path)
    return ModelLoadFailed(f"{path} cannot be loaded: {reason}", last_output=reason)
