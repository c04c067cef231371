"""Huge pages: only for memory that is in use, and never where they are switched off."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from hostler_onnxgenai import hugepages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux alone")
MIB = 1024 * 1024


@pytest.fixture
def is_switched_on() -> None:
    if not hugepages.SWITCH.is_file() or "[never]" in hugepages.SWITCH.read_text():
        pytest.skip("this system has huge pages switched off")


@pytest.mark.usefixtures("is_switched_on")
def test_what_is_in_use_is_asked_for_and_keeps_its_contents() -> None:
    area = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(area, np.uint32)
    values[:] = np.arange(len(values), dtype=np.uint32)

    n_bytes = hugepages.use_huge_pages()

    assert n_bytes >= 14 * MIB
    np.testing.assert_array_equal(values, np.arange(len(values), dtype=np.uint32))


@pytest.mark.usefixtures("is_switched_on")
def test_memory_that_is_put_aside_and_not_used_stays_unused() -> None:
    area = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(area, np.uint8)[:: 4 * hugepages.PAGE_BYTES] = 1
    before = resident_bytes()

    hugepages.use_huge_pages()

    assert resident_bytes() < before + 16 * MIB


def test_a_system_that_has_them_off_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(hugepages, "SWITCH", tmp_path / "enabled")

    assert hugepages.use_huge_pages() == 0


def test_a_system_without_them_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hugepages, "SWITCH", tmp_path / "nothing")

    assert hugepages.use_huge_pages() == 0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
