"""A GGUF file out of several of the same model: each weight from one of them.

Any process; knows the file format, neither llama.cpp nor numpy. The files come from libllama's quantizer, which has done each
weight by itself; so a mix of their weights is what it would have written for that mix, and is made at the speed of the disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from hostler import GgufTensor, read_gguf_header, read_gguf_tensors

TYPE_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13,
    "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23,
    "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39,
}  # fmt: skip
"""enum ggml_type."""
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q6_K": 18, "IQ4_NL": 25, "BF16": 32}
"""enum llama_ftype, of files whose weights have mostly that type."""
_FILE_TYPE_KEY = struct.pack("<Q", 17) + b"general.file_type" + struct.pack("<I", 4)
_COPY_BYTES = 4 * 1024 * 1024


class NotAlike(ValueError):
    """The two files are not of one model, or are laid out in a way that is not known here."""


def splice(base: Path, others: Mapping[str, Path], out: Path, *, is_durable: bool = False) -> int:
    """Write `base` with some weights of other files.

    Args:
        base, others: Whole files of one model; of the others by the name of each weight that is taken from them.
        out: Written anew.
        is_durable: Wait until it is on the disk.

    Returns:
        Its size.

    Raises:
        NotAlike: The files do not have the same weights.
        InvalidModelFile, OSError
    """
    header, tensors = read_gguf_header(base), read_gguf_tensors(base)
    theirs = {path: {tensor.name: tensor for tensor in read_gguf_tensors(path)} for path in set(others.values())}
    chosen: list[tuple[GgufTensor, Path]] = []
    for tensor in tensors:
        path = others.get(tensor.name, base)
        found = tensor if path == base else theirs[path].get(tensor.name)
        if found is None or found.dims != tensor.dims:
            raise NotAlike(f"{path.name} has no weight {tensor.name} as {base.name} has it")
        chosen.append((found, path))
    with ExitStack() as stack:
        streams = {path: stack.enter_context(path.open("rb")) for path in {base, *theirs}}
        stream = stack.enter_context(out.open("wb"))
        head = bytearray(streams[base].read(_end_of_pairs(streams[base], tensors, header.data_offset, header.alignment)))
        _set_file_type(head, main_type([tensor for tensor, _ in chosen]))
        stream.write(head)
        position, infos = 0, bytearray()
        for tensor, _ in chosen:
            infos += _info(tensor, position)
            position += _padded(tensor.n_bytes, header.alignment)
        stream.write(infos)
        stream.write(b"\0" * (-stream.tell() % header.alignment))
        for tensor, path in chosen:
            _copy(streams[path], tensor, stream)
            stream.write(b"\0" * (-tensor.n_bytes % header.alignment))
        stream.flush()
        if is_durable:
            os.fsync(stream.fileno())
        return stream.tell()


def _end_of_pairs(stream: BinaryIO, tensors: tuple[GgufTensor, ...], data_offset: int, alignment: int) -> int:
    """Where the metadata ends: before the list of tensors, which is known to the byte."""
    infos = b"".join(_info(tensor, tensor.offset - data_offset) for tensor in tensors)
    stream.seek(0)
    head = stream.read(data_offset)
    for padding in range(alignment):
        start = data_offset - padding - len(infos)
        if head[start : start + len(infos)] == infos:
            stream.seek(0)
            return start
    raise NotAlike("the list of weights does not end where it should")


def _info(tensor: GgufTensor, offset: int) -> bytes:
    if tensor.type not in TYPE_IDS:
        raise NotAlike(f"{tensor.name} has the type {tensor.type}, which is not known here")
    name = tensor.name.encode()
    dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
    return struct.pack("<Q", len(name)) + name + dims + struct.pack("<IQ", TYPE_IDS[tensor.type], offset)


def main_type(tensors: list[GgufTensor]) -> str:
    """The type of most bytes."""
    sums: dict[str, int] = {}
    for tensor in tensors:
        sums[tensor.type] = sums.get(tensor.type, 0) + tensor.n_bytes
    return max(sums, key=lambda name: sums[name])


def _set_file_type(head: bytearray, name: str) -> None:
    place = head.find(_FILE_TYPE_KEY)
    if place >= 0 and name in FILE_TYPES:
        struct.pack_into("<I", head, place + len(_FILE_TYPE_KEY), FILE_TYPES[name])


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _copy(source: BinaryIO, tensor: GgufTensor, out: BinaryIO) -> None:
    source.seek(tensor.offset)
    left = tensor.n_bytes
    while left:
        data = source.read(min(left, _COPY_BYTES))
        if not data:
            raise NotAlike(f"the file ends inside {tensor.name}")
        out.write(data)
        left -= len(data)
