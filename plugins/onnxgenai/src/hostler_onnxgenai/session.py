"""The graph in a plain onnxruntime session, with KV rows of our own: one batched run a step over all decoding rows.

Worker process, engine thread only; `run` releases the GIL. It knows arrays and bindings, nothing of requests.

GroupQueryAttention writes a row's new keys and values into the very array it reads the old ones from, at the position that
the attention mask's row implies. So past and present are bound to the same arrays, (rows, heads, n_ctx, head size) for each
layer, once for each window of rows, and so are the arrays of ids, lengths, mask and logits, which a step writes in place
(to bind all KV anew makes a step three times as long, to bind the small ones 2 % longer). The mask's row has a 1 for each
token up to and with the new one; it is longer than the longest row, which changes nothing, so that it need not be bound anew.

A run's rows must lie side by side. A row in the middle that has nothing to do runs along with a token of no meaning, written
behind its last one, where the next real token overwrites it; when that has cost more than a swap would, rows are swapped.
So a row's number, which the caller knows, is not its place, which only this module does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hostler import EngineFailed, ModelLoadFailed, Packing
from hostler_onnxgenai.backend import SPIN_US
from hostler_onnxgenai.folder import ModelFolder
from hostler_onnxgenai.onnxfile import FLOAT16
from hostler_onnxgenai.opening import open_session

MIN_SCRATCH_BYTES = 128 * 1024 * 1024
_HOLE_SHARE = 3
"""A row that runs for nothing costs about a third of a pass over the weights (SmolLM2-135M int4, two cores)."""
MIN_MASK_TOKENS = 256
"""A step's mask is made for a power of two of tokens, and bound anew when it has to grow."""


class _Place:
    """A slice of the KV arrays."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.n_tokens = 0


class _Window:
    """What is bound for a step over neighbouring places, and where the step writes what it evaluates."""

    def __init__(self, binding: Any, n_places: int, logits: np.ndarray) -> None:
        self.binding = binding
        self.ids = np.zeros((n_places, 1), np.int64)
        self.lengths = np.zeros((n_places, 1), np.int64)
        """Tokens before the new one: its position."""
        self.mask = np.zeros((n_places, 0), np.int64)
        self.logits = logits

    def set_lengths(self, lengths: Sequence[int], n_ctx: int) -> bool:
        """Bring the mask up to date. True: it is another array than before."""
        n_mask = min(n_ctx, max(MIN_MASK_TOKENS, 1 << max(lengths).bit_length()))
        is_new = n_mask != self.mask.shape[1]
        if is_new:
            self.mask = np.zeros((len(lengths), n_mask), np.int64)
            self.lengths.fill(-1)
        for mask, known, n in zip(self.mask, self.lengths, lengths, strict=True):
            before = int(known[0])
            if n > before:
                mask[before + 1 : n + 1] = 1
            else:
                mask[n + 1 : before + 1] = 0
            known[0] = n
        return is_new


class SessionBackend:
    """See Backend."""

    device = "cpu"
    can_copy = True

    def __init__(
        self,
        folder: ModelFolder,
        n_rows: int,
        n_ctx: int,
        *,
        n_threads: int,
        spin_us: int = SPIN_US,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Load the model and make its rows.

        Args:
            folder: One without an objection.
            n_ctx: Tokens a row holds.
            on_progress: Told which part of the weights is there; may raise.

        Raises:
            InvalidModelFile, ModelLoadFailed: With onnxruntime's own words.
        """
        self._folder = folder
        self._n_ctx = n_ctx
        self._session, self._gives_last_only = open_session(folder, n_threads, spin_us, on_progress)
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
        self._windows: dict[tuple[int, int], _Window] = {}
        """For steps, by first place and end."""
        self._bindings: dict[int, Any] = {}
        """For prompts, by place."""
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
        binding = self._bindings.get(place.number)
        if binding is None:
            binding = self._bindings[place.number] = self._bound(place.number, place.number + 1)
        self._bind_inputs(binding, ids, mask, positions)
        self._bind_logits(binding, logits)
        self._run(binding, ids)
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
        numbers = [place.number for place in places]
        first, end = min(numbers), max(numbers) + 1
        window = self._windows.get((first, end)) or self._make_window(first, end)
        if window.set_lengths([place.n_tokens for place in self._places[first:end]], self._n_ctx):
            self._bind_inputs(window.binding, window.ids, window.mask, window.lengths)
        window.ids.fill(0)
        for number, token in zip(numbers, tokens, strict=True):
            window.ids[number - first, 0] = token
        self._run(window.binding, window.ids)
        for place in places:
            place.n_tokens += 1
        results = [window.logits[number - first, 0] for number in numbers]
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
        self._windows.clear()
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

    def _run(self, binding: Any, ids: np.ndarray) -> None:
        # SAFETY: every bound array is alive until `run` returns; the lengths were checked against n_ctx by the caller.
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime has a class for each status
            raise EngineFailed(f"onnxruntime could not evaluate {ids.shape[0]} x {ids.shape[1]} tokens: {error}") from error

    def _make_window(self, first: int, end: int) -> _Window:
        window = _Window(self._bound(first, end), end - first, self._logits[: end - first])
        self._bind_logits(window.binding, window.logits)
        self._windows[first, end] = window
        return window

    def _bound(self, first: int, end: int) -> Any:
        """A binding of the KV rows of neighbouring places; made once, because that takes as long as half a step."""
        binding = self._session.io_binding()
        for array, name, result in zip(self._kv, self._folder.kv_inputs, self._folder.kv_outputs, strict=True):
            window = array[first:end]
            binding.bind_input(name, "cpu", 0, self._kv_type, window.shape, window.ctypes.data)
            binding.bind_output(result, "cpu", 0, self._kv_type, window.shape, window.ctypes.data)
        return binding

    def _bind_inputs(self, binding: Any, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> None:
        folder = self._folder
        for name, array in ((folder.input_ids, ids), (folder.attention_mask, mask), (folder.position_ids, positions)):
            if name is not None:
                binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)

    def _bind_logits(self, binding: Any, logits: np.ndarray) -> None:
        binding.bind_output(self._folder.logits, "cpu", 0, self._logits_type, logits.shape, logits.ctypes.data)
