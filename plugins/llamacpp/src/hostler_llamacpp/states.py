"""What a KV stream's state is made of: taken out of llama.cpp, cut into rows by token, put together again.

Worker process, engine thread only. It knows llama.cpp's memory calls and the bytes of its state blobs, nothing of prompts,
budgets or who needs what.

`llama_state_seq_get_data` gives a stream's state as one blob. Of a cache that keeps every position it is

    int32  magic, sequence id                       (both ignored when it is read back into another stream)
    int32  n_streams, then for each stream its number of cells n; behind the only n that is not 0:
      n x int32 (position, 1, sequence id)          (a cell each)
      int32  is_v_transposed, n_layers
      n_layers x  int32 type, uint64 row bytes, n rows of keys
      n_layers x  int32 type, uint64 row bytes, n rows of values
                  or transposed: int32 type, uint32 element bytes, uint32 n_elements, n_elements x n elements

and nothing behind it. So rows can be taken out by token, kept once for all prompts that begin with them, and put together
for a prefix of any length. Models with sliding windows or recurrent layers have more behind it, or nothing of the kind:
that is a checkpoint, good only where it was taken. Nothing here is promised by llama.cpp, so `Layout.learn` looks at real
blobs and takes the whole blob for a checkpoint unless what it puts together is what llama.cpp gave, byte for byte.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import llama_cpp as llama
import numpy as np

from hostler import EngineFailed
from hostler_llamacpp.binding import short

CHUNK_TOKENS = 64
"""Rows are kept in pieces of so many tokens: what a fork in the middle of one copies."""
_CELL_BYTES = 12


class Memory(Protocol):
    """See StreamMemory; tests script it."""

    def cut(self, number: int, start: int, end: int) -> bool:
        """Take positions out of a stream."""

    def positions(self, number: int) -> tuple[int, int]:
        """The smallest and the largest position."""

    def size(self, number: int) -> int:
        """Bytes of a stream's state."""

    def save(self, number: int, room: np.ndarray | None = None) -> np.ndarray:
        """A stream's state."""

    def restore(self, number: int, data: np.ndarray) -> bool:
        """Put it back."""


class StreamMemory:
    """llama.cpp's calls for the streams of one context."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._memory: int = llama.llama_get_memory(context)

    def cut(self, number: int, start: int, end: int) -> bool:
        """Take positions out of a stream; -1: from the beginning, to the end. False: this memory cannot."""
        return bool(short.llama_memory_seq_rm(self._memory, number, start, end))

    def positions(self, number: int) -> tuple[int, int]:
        """The smallest position that all layers still have, and the largest; -1: empty."""
        return (
            int(short.llama_memory_seq_pos_min(self._memory, number)),
            int(short.llama_memory_seq_pos_max(self._memory, number)),
        )

    def size(self, number: int) -> int:
        """Bytes of a stream's state."""
        return int(llama.llama_state_seq_get_size(self._context, number))

    def save(self, number: int, room: np.ndarray | None = None) -> np.ndarray:
        """A stream's state.

        Args:
            room: Memory for it, uint8; too little, or None: it gets its own.
        """
        size = self.size(number)
        data = _within(room, size)
        written: int = llama.llama_state_seq_get_data(self._context, _bytes_at(data), size, number)
        if written == 0:
            raise EngineFailed(f"llama.cpp could not save the state of stream {number}")
        return data[:written]

    def restore(self, number: int, data: np.ndarray) -> bool:
        """Put a state into a stream in place of what lies there; False leaves it empty."""
        self.cut(number, -1, -1)
        return bool(llama.llama_state_seq_set_data(self._context, _bytes_at(data), len(data), number))


def _within(room: np.ndarray | None, n_bytes: int) -> np.ndarray:
    return room[:n_bytes] if room is not None and len(room) >= n_bytes else np.empty(n_bytes, np.uint8)


def _bytes_at(data: np.ndarray) -> object:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


@dataclass(frozen=True)
class Band:
    """Parts of a blob that have rows of the same size, one part behind the other."""

    n_parts: int
    row_bytes: int
    """Of one part and one token."""
    header: bytes
    """In front of each part."""


@dataclass(frozen=True)
class State:
    """A blob, taken apart."""

    start: int
    """Position of the first row."""
    n_rows: int
    bands: tuple[np.ndarray, ...]
    """For each band uint8, (n_parts, n_rows, row_bytes), by position; views of the blob."""
    checkpoint: np.ndarray
    """What is good at the end alone: uint8; empty in caches that keep every position."""

    def rows(self, start: int, end: int) -> Rows:
        """Those of positions `start` to `end`, copied."""
        return Rows.taken_from(self, start, end)


class Layout:
    """How rows lie in the blobs of one context."""

    def __init__(self, bands: Sequence[Band], n_streams: int, head: bytes, data_head: bytes) -> None:
        """Use `learn`.

        Args:
            head: What a blob begins with, up to the number of streams.
            data_head: What lies between cells and rows.
        """
        self.bands = tuple(bands)
        self.token_bytes = sum(band.n_parts * band.row_bytes for band in bands)
        """Of one token's rows; 0: blobs are checkpoints as a whole."""
        self.is_exact_anywhere = False
        """Rows are all there is, so a prefix of any length can be restored."""
        self.shapes = [(band.n_parts, band.row_bytes) for band in bands]
        """As Chunk takes them."""
        self._n_streams = n_streams
        self._head = head
        self._data_head = data_head
        self._fixed_bytes = sum(band.n_parts * len(band.header) for band in bands)

    @classmethod
    def learn(cls, shorter: np.ndarray, longer: np.ndarray, n_tokens: tuple[int, int], *, has_window: bool) -> Layout:
        """Find out from two blobs of one stream, the second with the same tokens and more behind them.

        Args:
            n_tokens: Of each.
            has_window: Layers forget old positions; a blob that seems whole for a few tokens will not be for many.
        """
        whole = cls((), 0, b"", b"")
        for has_values in (True, False):
            found = _parse(longer, n_tokens[1], has_values=has_values)
            if found is None:
                continue
            one, other = found.take_apart(longer), found.take_apart(shorter)
            if one is None or other is None or (one.start, other.start) != (0, 0):
                continue
            if (one.n_rows, other.n_rows) != (n_tokens[1], n_tokens[0]) or (has_window and not len(one.checkpoint)):
                continue
            rows = Rows.taken_from(one, 0, n_tokens[1])
            again = [
                found.put_together(rows.pieces(0, n), n, checkpoint)
                for n, checkpoint in zip(n_tokens, (other.checkpoint, one.checkpoint), strict=True)
            ]
            if np.array_equal(again[0], shorter) and np.array_equal(again[1], longer):
                found.is_exact_anywhere = not len(one.checkpoint)
                return found
        return whole

    def of_one_stream(self) -> Layout:
        """The layout of a context that differs in having one stream only; where rows are all there is."""
        return Layout(self.bands, 1, self._head[:8] + struct.pack("<i", 1), self._data_head)

    def identity(self) -> str:
        """What a stored payload must have in common with a context: as text, for PrefixFiles."""
        n_streams = 0 if self.is_exact_anywhere else self._n_streams
        return f"payload {PAYLOAD_VERSION}, {self.bands}, {self._data_head.hex()}, {n_streams} streams"

    def take_apart(self, blob: np.ndarray) -> State | None:
        """Rows and checkpoint; None where it is not laid out as learnt."""
        if not self.token_bytes:
            return State(0, 0, (), blob)
        place = len(self._head)
        n, stream = 0, 0
        while stream < self._n_streams and not n:
            n = int(blob[place : place + 4].view(np.int32)[0])
            place, stream = place + 4, stream + 1
        if not n or place + n * _CELL_BYTES > len(blob):
            return None
        positions = blob[place : place + n * _CELL_BYTES].view(np.int32)[::3]
        place += n * _CELL_BYTES + len(self._data_head)
        end = place + self._fixed_bytes + n * self.token_bytes
        if end + 4 * (self._n_streams - stream) > len(blob):
            return None
        start = int(positions[0])
        order = None
        if not np.array_equal(positions, np.arange(start, start + n, dtype=np.int32)):
            order = np.argsort(positions)
            start = int(positions[order[0]])
            if not np.array_equal(positions[order], np.arange(start, start + n, dtype=np.int32)):
                return None
        views = self._views(blob, place, n)
        if order is not None:
            views = tuple(view[:, order, :] for view in views)
        return State(start, n, views, blob[end + 4 * (self._n_streams - stream) :])

    def put_together(
        self,
        pieces: Iterable[Sequence[np.ndarray]],
        n_tokens: int,
        checkpoint: np.ndarray | None,
        room: np.ndarray | None = None,
    ) -> np.ndarray:
        """A blob for `StreamMemory.restore`.

        Args:
            pieces: Rows from position 0 on, one piece behind the other, each as Chunk.bands are.
            n_tokens: As many as the pieces have together.
            checkpoint: What is good at their end; all there is where rows are not known.
            room: As for StreamMemory.save.
        """
        if not self.token_bytes:
            assert checkpoint is not None
            return checkpoint
        head_bytes = len(self._head) + 4 + n_tokens * _CELL_BYTES
        place = head_bytes + len(self._data_head)
        rows_end = place + self._fixed_bytes + n_tokens * self.token_bytes
        end = rows_end + 4 * (self._n_streams - 1)
        n_more = 0 if checkpoint is None else len(checkpoint)
        blob = _within(room, end + n_more)
        blob[: len(self._head)] = np.frombuffer(self._head, np.uint8)
        blob[len(self._head) : len(self._head) + 4] = np.frombuffer(struct.pack("<i", n_tokens), np.uint8)
        cells = blob[len(self._head) + 4 : head_bytes].view(np.int32).reshape(n_tokens, 3)
        cells[:, 0] = np.arange(n_tokens)
        cells[:, 1] = 1
        cells[:, 2] = 0
        blob[head_bytes:place] = np.frombuffer(self._data_head, np.uint8)
        n_done = 0
        targets = self._views(blob, place, n_tokens)
        for piece in pieces:
            n = piece[0].shape[1]
            for target, source in zip(targets, piece, strict=True):
                target[:, n_done : n_done + n, :] = source
            n_done += n
        if n_done != n_tokens:
            raise EngineFailed(f"{n_done} tokens' rows were put together where {n_tokens} were wanted; this is a bug")
        for band in self.bands:
            part = len(band.header) + n_tokens * band.row_bytes
            if band.header:
                headers = np.ndarray((band.n_parts, len(band.header)), np.uint8, blob, place, (part, 1))
                headers[:] = np.frombuffer(band.header, np.uint8)
            place += band.n_parts * part
        blob[rows_end:end] = 0
        if checkpoint is not None:
            blob[end:] = checkpoint
        return blob

    def _views(self, blob: np.ndarray, place: int, n_rows: int) -> tuple[np.ndarray, ...]:
        views = []
        for band in self.bands:
            part = len(band.header) + n_rows * band.row_bytes
            shape, strides = (band.n_parts, n_rows, band.row_bytes), (part, band.row_bytes, 1)
            views.append(np.ndarray(shape, np.uint8, blob.data, place + len(band.header), strides))
            place += band.n_parts * part
        return tuple(views)


def _parse(blob: np.ndarray, n_tokens: int, *, has_values: bool) -> Layout | None:
    """Read a blob's heads; None where they make no sense."""
    data = blob.tobytes()
    try:
        (n_streams,) = struct.unpack_from("<i", data, 8)
        place, n, stream = 12, 0, 0
        if not 1 <= n_streams <= 4096:
            return None
        while stream < n_streams and not n:
            (n,) = struct.unpack_from("<i", data, place)
            place, stream = place + 4, stream + 1
        if n != n_tokens:
            return None
        place += n * _CELL_BYTES
        is_transposed, n_layers = struct.unpack_from("<ii", data, place)
        if is_transposed not in (0, 1) or not 1 <= n_layers <= 4096:
            return None
        data_head = data[place : place + 8]
        place += 8
        bands: list[Band] = []
        for _ in range(n_layers * (1 if is_transposed or not has_values else 2)):
            place = _add_band(bands, data, place, n)
        if is_transposed and has_values:
            for _ in range(n_layers):
                _, element_bytes, n_elements = struct.unpack_from("<iII", data, place)
                # The head belongs to the layer; a band of its own, without rows, carries it.
                bands.append(Band(1, 0, data[place : place + 12]))
                bands.append(Band(n_elements, element_bytes, b""))
                place += 12 + n_elements * element_bytes * n
                if place > len(data):
                    return None
    except struct.error:
        return None
    return Layout(bands, n_streams, data[:12], data_head)


def _add_band(bands: list[Band], data: bytes, place: int, n_rows: int) -> int:
    header = data[place : place + 12]
    row_bytes: int = struct.unpack_from("<iQ", data, place)[1]
    if place + 12 + row_bytes * n_rows > len(data):
        raise struct.error("rows beyond the end")
    if bands and bands[-1].header == header:
        bands[-1] = Band(bands[-1].n_parts + 1, row_bytes, header)
    else:
        bands.append(Band(1, row_bytes, header))
    return place + 12 + row_bytes * n_rows


# -- kept -----------------------------------------------------------------------------------------------------------------


class Chunk:
    """Rows of a few tokens, in memory of their own or of a mapped file."""

    __slots__ = ("bands", "data", "n_rows")

    def __init__(self, data: np.ndarray, n_rows: int, shapes: Sequence[tuple[int, int]]) -> None:
        """Lay rows over bytes.

        Args:
            data: uint8, as long as so many rows.
            shapes: For each band its parts and a row's bytes.
        """
        self.data = data
        self.n_rows = n_rows
        self.bands: list[np.ndarray] = []
        place = 0
        for n_parts, row_bytes in shapes:
            n_bytes = n_parts * n_rows * row_bytes
            self.bands.append(data[place : place + n_bytes].reshape(n_parts, n_rows, row_bytes))
            place += n_bytes

    @classmethod
    def copied(cls, bands: Sequence[np.ndarray], start: int, end: int) -> Chunk:
        """Rows `start` to `end` of these bands in memory of their own."""
        shapes = [(band.shape[0], band.shape[2]) for band in bands]
        n_rows = end - start
        chunk = cls(np.empty(n_rows * sum(parts * size for parts, size in shapes), np.uint8), n_rows, shapes)
        for target, source in zip(chunk.bands, bands, strict=True):
            target[:] = source[:, start:end, :]
        return chunk


class Rows:
    """Keys and values of a node's tokens in host memory, and the checkpoint at its end where there is one."""

    __slots__ = ("checkpoint", "chunks")

    def __init__(self, chunks: list[Chunk], checkpoint: np.ndarray | None = None) -> None:
        self.chunks = chunks
        self.checkpoint = checkpoint
        """None: it can only be gone on from elsewhere, or from anywhere (caches that keep every position)."""

    @classmethod
    def taken_from(cls, state: State, start: int, end: int) -> Rows:
        """Copy the rows of positions `start` to `end`."""
        chunks = []
        for place in range(start, end, CHUNK_TOKENS) if state.bands else ():
            stop = min(end, place + CHUNK_TOKENS)
            chunks.append(Chunk.copied(state.bands, place - state.start, stop - state.start))
        return cls(chunks)

    @property
    def n_bytes(self) -> int:
        """In memory."""
        n_bytes: int = 0 if self.checkpoint is None else self.checkpoint.nbytes
        return n_bytes + sum(chunk.data.nbytes for chunk in self.chunks)

    def pieces(self, start: int, end: int) -> Iterator[Sequence[np.ndarray]]:
        """Views of the rows from `start` to `end`, counted from its own first."""
        place = 0
        for chunk in self.chunks:
            first, last = max(start - place, 0), min(end - place, chunk.n_rows)
            if first < last:
                is_whole = last - first == chunk.n_rows
                yield chunk.bands if is_whole else [band[:, first:last, :] for band in chunk.bands]
            place += chunk.n_rows

    def part(self, start: int, end: int) -> Rows:
        """A copy of the rows from `start` to `end`."""
        return Rows([Chunk.copied(piece, 0, piece[0].shape[1]) for piece in self.pieces(start, end)])

    def split(self, n_tokens: int) -> tuple[Rows, Rows]:
        """See Kept: only a chunk in whose middle it is cut is copied."""
        first: list[Chunk] = []
        second: list[Chunk] = []
        n_left = n_tokens
        for chunk in self.chunks:
            if n_left >= chunk.n_rows:
                first.append(chunk)
            elif n_left <= 0:
                second.append(chunk)
            else:
                first.append(Chunk.copied(chunk.bands, 0, n_left))
                second.append(Chunk.copied(chunk.bands, n_left, chunk.n_rows))
            n_left -= chunk.n_rows
        return Rows(first), Rows(second, self.checkpoint)

    def has_checkpoint(self) -> bool:
        """See Kept."""
        return self.checkpoint is not None

    def drop_checkpoint(self) -> None:
        """See Kept."""
        self.checkpoint = None


@dataclass(frozen=True)
class TakenRows:
    """A state whose rows were copied out of its blob; what is taken of it is not copied again, but where chunks are cut."""

    start: int
    n_rows: int
    checkpoint: np.ndarray
    own: Rows

    def rows(self, start: int, end: int) -> Rows:
        """See State; each at most once, since they are kept as they are."""
        behind = self.own.split(start - self.start)[1]
        return behind.split(end - start)[0]


# -- on disk --------------------------------------------------------------------------------------------------------------
#
# A payload is  int32 n_chunks, n_chunks x int32 rows, uint64 checkpoint bytes (or NO_CHECKPOINT)
#               the chunks' bytes, the checkpoint's.

_NO_CHECKPOINT = 2**64 - 1
PAYLOAD_VERSION = 1
"""Part of the identity of what is stored."""


def payload_of(several: Sequence[Rows], checkpoint: np.ndarray | None) -> list[memoryview]:
    """Rows, one behind the other, as PrefixFiles takes them; nothing is copied."""
    chunks = [chunk for rows in several for chunk in rows.chunks]
    n_more = _NO_CHECKPOINT if checkpoint is None else checkpoint.nbytes
    head = struct.pack(f"<i{len(chunks)}iQ", len(chunks), *(chunk.n_rows for chunk in chunks), n_more)
    parts = [memoryview(head), *(chunk.data.data for chunk in chunks)]
    if checkpoint is not None:
        parts.append(checkpoint.data)
    return parts


def rows_in(payload: memoryview, layout: Layout, n_rows: int) -> Rows | None:
    """Rows over the bytes of a payload, which are not copied; None where they do not fit the layout."""
    try:
        (n_chunks,) = struct.unpack_from("<i", payload, 0)
        *counts, n_more = struct.unpack_from(f"<{n_chunks}iQ", payload, 4)
    except struct.error:
        return None
    data = np.frombuffer(payload, np.uint8)
    place = 4 + 4 * n_chunks + 8
    chunks = []
    n_expected = place + sum(counts) * layout.token_bytes + (0 if n_more == _NO_CHECKPOINT else n_more)
    if n_expected != len(data) or any(n < 1 for n in counts) or (layout.token_bytes and sum(counts) != n_rows):
        return None
    for n in counts:
        end = place + n * layout.token_bytes
        chunks.append(Chunk(data[place:end], n, layout.shapes))
        place = end
    return Rows(chunks, None if n_more == _NO_CHECKPOINT else data[place:])
