"""The memory ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.domain import MemoryEstimate
from hostler.errors import InsufficientMemory
from hostler.ledger import CTX_STEP, HEADROOM_BYTES, MIB, Ledger, available_memory_bytes


def estimate(ctx_len: int) -> MemoryEstimate:
    return MemoryEstimate(weights_bytes=100 * MIB, kv_bytes=ctx_len * MIB // 10, compute_bytes=50 * MIB)


def ledger(available_mib: int, budget_mib: int = 0) -> Ledger:
    return Ledger(budget_mib * MIB, available=lambda: available_mib * MIB + HEADROOM_BYTES)


def test_a_context_that_was_asked_for_by_number_is_granted_whole() -> None:
    grant = ledger(1000).grant("m", 4096, is_auto=False, estimate=estimate)

    assert grant.ctx_len == 4096


def test_a_model_that_cannot_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(InsufficientMemory, match=r"560 MiB .* 400 MiB are available") as caught:
        ledger(400).grant("m", 4100, is_auto=False, estimate=estimate)

    assert caught.value.needed_bytes == 560 * MIB
    assert caught.value.available_bytes == 400 * MIB


def test_auto_grants_the_largest_context_that_fits() -> None:
    grant = ledger(400).grant("m", 8192, is_auto=True, estimate=estimate)

    assert grant.ctx_len % CTX_STEP == 0
    assert estimate(grant.ctx_len).total_bytes <= 400 * MIB < estimate(grant.ctx_len + CTX_STEP).total_bytes


def test_auto_is_refused_when_even_the_smallest_context_does_not_fit() -> None:
    with pytest.raises(InsufficientMemory):
        ledger(160).grant("m", 8192, is_auto=True, estimate=estimate)


def test_auto_never_grants_more_than_the_file_allows() -> None:
    assert ledger(10_000).grant("m", 300, is_auto=True, estimate=estimate).ctx_len == 300


def test_what_a_starting_model_was_granted_is_not_granted_twice() -> None:
    book = ledger(700)
    book.grant("a", 4100, is_auto=False, estimate=estimate)

    with pytest.raises(InsufficientMemory):
        book.grant("b", 4100, is_auto=False, estimate=estimate)
    book.release("a")
    book.grant("b", 4100, is_auto=False, estimate=estimate)


def test_of_a_loaded_model_only_the_mapped_weights_still_count() -> None:
    book = ledger(700)
    book.grant("a", 4100, is_auto=False, estimate=estimate)
    book.settle("a")

    assert book.available_bytes() == 600 * MIB


def test_weights_that_an_engine_keeps_a_copy_of_are_not_counted_twice() -> None:
    """The system shows the copy as taken already."""
    book = ledger(700)
    copied = MemoryEstimate(weights_bytes=100 * MIB, kv_bytes=0, compute_bytes=0, is_mapped=False)
    book.grant("a", 512, is_auto=False, estimate=lambda _: copied)
    assert book.available_bytes() == 600 * MIB
    book.settle("a")

    assert book.available_bytes() == 700 * MIB


def test_a_budget_counts_loaded_models_whole() -> None:
    book = ledger(100_000, budget_mib=700)
    book.grant("a", 4100, is_auto=False, estimate=estimate)
    book.settle("a")

    assert book.available_bytes() == 140 * MIB


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="compares with /proc/meminfo, which only Linux has")
def test_available_memory_is_no_more_than_the_machine_has() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))

    assert 0 < available_memory_bytes() <= total_kib * 1024


def test_what_takes_nothing_is_granted_where_nothing_is_left() -> None:
    ledger = Ledger(0, available=lambda: 0)

    grant = ledger.grant("far", 0, is_auto=True, estimate=lambda _: MemoryEstimate(0, 0, 0))

    assert grant.ctx_len == 0
    assert ledger.bytes_of("far") == 0
