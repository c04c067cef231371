"""Huge pages for the weights, which every step reads from end to end.

Worker process, while a model loads. It knows the process's memory, nothing of models. Linux only; elsewhere it does nothing.

Read in pages of 4 KiB, 84 MB of weights need 20,000 translations a step, more than a processor keeps. Most systems give huge
pages only to memory that asks for them, and onnxruntime's does not ask. Since Linux 6.1 the kernel moves what is there at
once (a second for 4 GB); an older one does it by and by. Where the system has them switched off, they stay off.

Source: madvise(2); Documentation/admin-guide/mm/transhuge.rst and pagemap.rst.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGE_BYTES = 4096
HUGE_BYTES = 2 * 1024 * 1024
MAX_AREA_BYTES = 1 << 40
"""A larger area is address space that somebody has put aside, not memory."""
MIN_RESIDENT_SHARE = 0.9
"""What was not there of a huge page is filled with zeros, so one with holes is left alone."""
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_PRESENT = np.uint64(1 << 63)


def use_huge_pages() -> int:
    """Ask for huge pages for all private memory of this process that is in use.

    Returns:
        How many bytes were asked for.
    """
    if sys.platform != "linux":
        return 0
    try:
        if "[never]" in SWITCH.read_text():
            return 0
        areas = list(_resident(_areas(Path("/proc/self/maps").read_text())))
        madvise = ctypes.CDLL(None).madvise
    except (OSError, ValueError, AttributeError):
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    n_bytes = 0
    for start, end in areas:
        # SAFETY: advice changes no contents, and memory that is gone meanwhile is an error that nobody needs to know.
        if madvise(start, end - start, _MADV_HUGEPAGE) == 0:
            madvise(start, end - start, _MADV_COLLAPSE)
            n_bytes += end - start
    return n_bytes


def _areas(maps: str) -> Iterator[tuple[int, int]]:
    """Private, anonymous, writable areas, cut to whole huge pages."""
    for line in maps.splitlines():
        addresses, mode, _, _, inode, *label = line.split()
        first, _, last = addresses.partition("-")
        start, end = -(-int(first, 16) // HUGE_BYTES) * HUGE_BYTES, int(last, 16) // HUGE_BYTES * HUGE_BYTES
        if mode == "rw-p" and inode == "0" and label in ([], ["[heap]"]) and 0 < end - start <= MAX_AREA_BYTES:
            yield start, end


def _resident(areas: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of them whose pages are there, nearly all."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        for start, end in areas:
            pagemap.seek(start // PAGE_BYTES * 8)
            flags = np.frombuffer(pagemap.read((end - start) // PAGE_BYTES * 8), np.uint64)
            shares = ((flags & _PRESENT) != 0).reshape(-1, HUGE_BYTES // PAGE_BYTES).mean(axis=1)
            is_there = np.concatenate([[False], shares >= MIN_RESIDENT_SHARE, [False]])
            edges = np.flatnonzero(is_there[1:] != is_there[:-1]).tolist()
            for first, last in zip(edges[::2], edges[1::2], strict=True):
                yield start + first * HUGE_BYTES, start + last * HUGE_BYTES
