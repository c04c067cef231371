"""The C side: functions bound a second time without releasing the GIL, the batch, and llama.cpp's log.

Worker process only; the engine thread, save where a function says otherwise. It knows llama.cpp's C API and nothing of
sequences or requests.

llama_cpp binds every function so that it releases the GIL. For calls of a microsecond that costs far more than the call
as soon as another Python thread is busy (16 sample and 16 piece calls: 83 ms instead of 0.8), so short calls go through
`short`, a PyDLL. Long ones (decode, load, tokenize, state copies) stay with llama_cpp.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from typing import Any

import llama_cpp as llama
import numpy as np

from hostler import EngineFailed

POINTER = ctypes.c_void_p
_I32 = ctypes.POINTER(ctypes.c_int32)


class TokenDataArray(ctypes.Structure):
    """`llama_token_data_array` with its data as a plain address."""

    _fields_ = [
        ("data", POINTER),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`llama_token_data` as numpy sees it."""


def _bind_short() -> Any:
    library = ctypes.PyDLL(llama.llama_cpp._lib._name)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_sampler_sample": (ctypes.c_int32, [POINTER, POINTER, ctypes.c_int32]),
        "llama_sampler_apply": (None, [POINTER, POINTER]),
        "llama_sampler_accept": (None, [POINTER, ctypes.c_int32]),
        "llama_sampler_free": (None, [POINTER]),
        "llama_token_to_piece": (
            ctypes.c_int32,
            [POINTER, ctypes.c_int32, POINTER, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool],
        ),
        "llama_vocab_is_eog": (ctypes.c_bool, [POINTER, ctypes.c_int32]),
        "llama_vocab_get_attr": (ctypes.c_int, [POINTER, ctypes.c_int32]),
        "llama_vocab_get_text": (ctypes.c_char_p, [POINTER, ctypes.c_int32]),
        "llama_get_logits": (POINTER, [POINTER]),
        "llama_memory_seq_rm": (ctypes.c_bool, [POINTER, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        "llama_memory_seq_pos_min": (ctypes.c_int32, [POINTER, ctypes.c_int32]),
        "llama_memory_seq_pos_max": (ctypes.c_int32, [POINTER, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


short = _bind_short()

_get_name = getattr(short, "ggml_get_name", None)
"""ggml's, where the loader finds it behind llama.cpp's library: not on Windows."""
if _get_name is not None:
    _get_name.restype, _get_name.argtypes = POINTER, [POINTER]
can_name_tensors = _get_name is not None


def tensor_name_offset(tensor: int) -> int:
    """How far behind a ggml tensor's address its name stands; any thread."""
    assert _get_name is not None
    return int(_get_name(tensor)) - tensor


def address(pointer: Any) -> int:
    """The address a llama_cpp pointer object holds; 0 for NULL."""
    return ctypes.cast(pointer, POINTER).value or 0


class Batch:
    """One `llama_batch` over numpy arrays of its own, filled row by row and decoded again and again.

    INVARIANT: the arrays live as long as the struct that points into them; each token belongs to one sequence.
    """

    def __init__(self, capacity: int) -> None:
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.streams = np.zeros(capacity, np.int32)
        self.outputs = np.zeros(capacity, np.int8)
        self._counts = np.ones(capacity, np.int32)
        # seq_id is int32**: entry i points at streams[i].
        self._stream_pointers = (self.streams.ctypes.data + 4 * np.arange(capacity)).astype(np.uint64)
        self.capacity = capacity
        self.struct = llama.llama_batch()
        self.struct.token = ctypes.cast(self.tokens.ctypes.data, _I32)
        self.struct.pos = ctypes.cast(self.positions.ctypes.data, _I32)
        self.struct.n_seq_id = ctypes.cast(self._counts.ctypes.data, _I32)
        self.struct.seq_id = ctypes.cast(self._stream_pointers.ctypes.data, ctypes.POINTER(_I32))
        self.struct.logits = ctypes.cast(self.outputs.ctypes.data, ctypes.POINTER(ctypes.c_int8))
        self.n_tokens = 0

    def clear(self) -> None:
        """Start over."""
        self.n_tokens = 0

    def add(self, stream: int, position: int, tokens: np.ndarray, *, wants_output: bool) -> int:
        """Append tokens of one stream at consecutive positions.

        Args:
            stream: llama.cpp's sequence id.
            position: Of the first token.
            tokens: int32, validated against the vocabulary.
            wants_output: Compute logits for the last of them.

        Returns:
            The batch index of the last token.
        """
        start = self.n_tokens
        end = start + len(tokens)
        if end > self.capacity:
            # SAFETY: llama.cpp aborts the process on a batch over n_batch.
            raise EngineFailed(f"a batch of {end} tokens was built where {self.capacity} fit; this is a bug")
        self.tokens[start:end] = tokens
        self.positions[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self.streams[start:end] = stream
        self.outputs[start:end] = 0
        self.outputs[end - 1] = wants_output
        self.n_tokens = end
        return end - 1

    def add_one(self, stream: int, position: int, token: int) -> int:
        """Append one token whose logits are wanted; its batch index. PERF: `add` of an array takes three times as long."""
        index = self.n_tokens
        if index >= self.capacity:
            raise EngineFailed(f"a batch of over {self.capacity} tokens was built; this is a bug")
        self.tokens[index] = token
        self.positions[index] = position
        self.streams[index] = stream
        self.outputs[index] = 1
        self.n_tokens = index + 1
        return index

    def add_all(self, stream: int, position: int, tokens: list[int]) -> int:
        """Append tokens of one stream, the logits of each wanted; the batch index of the first."""
        first = self.n_tokens
        self.add(stream, position, np.array(tokens, np.int32), wants_output=True)
        self.outputs[first : self.n_tokens] = 1
        return first

    def decode(self, context: int) -> int:
        """Evaluate it; llama_decode's return code. Releases the GIL."""
        self.struct.n_tokens = self.n_tokens
        return int(llama.llama_decode(context, self.struct))

    def encode(self, context: int) -> int:
        """Evaluate it in a model that only embeds; llama_encode's return code. Releases the GIL.

        SAFETY: on a model with a decoder llama_encode ends the process.
        """
        self.struct.n_tokens = self.n_tokens
        return int(llama.llama_encode(context, self.struct))


class LogitRows:
    """The logits of the last decode as a 2-D array, one row per output in batch order.

    PERF: the view is kept while the address stays (0.1 us instead of 1.8 a row); the address moves when a decode had
    more outputs than any before it, so it is read again each time.
    """

    def __init__(self, context: int, n_vocab: int, n_rows: int) -> None:
        self._context = context
        self._shape = (n_rows, n_vocab)
        self._address = 0
        self._rows: list[np.ndarray] = []

    def read(self) -> list[np.ndarray]:
        """The rows; only those of the last decode's outputs hold anything. Writing to them changes what samplers see."""
        address_now = short.llama_get_logits(self._context)
        if address_now != self._address:
            if not address_now:
                raise EngineFailed("llama.cpp computed no logits; this is a bug")
            n_rows, n_vocab = self._shape
            # SAFETY: rows past the last decode's outputs are never read by the engine; no memory is touched here.
            flat = np.ctypeslib.as_array((ctypes.c_float * (n_rows * n_vocab)).from_address(address_now))
            self._rows = list(flat.reshape(n_rows, n_vocab))
            self._address = address_now
        return self._rows


# -- log ------------------------------------------------------------------------------------------------------------

_WARN, _ERROR, _CONTINUED = 3, 4, 5
_BUFFER_SIZE = re.compile(r"(model|KV|RS|compute|output) buffer size\s*=\s*([0-9.]+) MiB")


class Log:
    """What llama.cpp says: errors and warnings go to standard error, the last of them are kept to explain a failure, and
    buffer sizes are summed up. Lines come from whatever thread llama.cpp logs in."""

    def __init__(self) -> None:
        self.last_errors: deque[str] = deque(maxlen=12)
        self.buffer_bytes: dict[str, int] = {}
        self._level = 0
        # INVARIANT: llama.cpp holds this pointer for the life of the process.
        self._callback = llama.llama_log_callback(self._take)

    def install(self) -> None:
        """Replace llama_cpp's own callback, whose level table is off by one."""
        llama.llama_log_set(self._callback, None)

    def reset(self) -> None:
        """Forget what was said; before a load."""
        self.last_errors.clear()
        self.buffer_bytes = {}

    def reason(self) -> str:
        """The last error lines as one sentence; empty when there were none."""
        lines = dict.fromkeys(line.strip().rstrip(".") for line in self.last_errors)
        return "; ".join(line for line in lines if line)

    def _take(self, level: int, text: bytes | None, _user_data: object) -> None:
        if text is None:
            return
        if level != _CONTINUED:
            self._level = level
        line = text.decode("utf-8", "replace")
        if self._level >= _WARN:
            if sys.stderr is not None:
                sys.stderr.write(line)
            if self._level >= _ERROR and line.strip():
                self.last_errors.append(line)
        elif found := _BUFFER_SIZE.search(line):
            kind = found[1]
            n_bytes = int(float(found[2]) * 1024 * 1024)
            self.buffer_bytes[kind] = self.buffer_bytes.get(kind, 0) + n_bytes


log = Log()
log.install()
llama.llama_backend_init()
