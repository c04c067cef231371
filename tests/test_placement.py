"""What a start gets for its prefix cache, and what that costs others: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hostler.config import load_settings
from hostler.domain import MemoryEstimate, ModelFiles
from hostler.engine import EngineSpec
from hostler.hosted import HostedModel, StartAttempt
from hostler.keptprefixes import KeptPrefixes
from hostler.ledger import HEADROOM_BYTES, MIB, Ledger, machine_memory_bytes
from hostler.library.fields import settings_with_defaults
from hostler.placement import Placed, Placement, Plan

WEIGHTS = 100 * MIB


def spec(*, keeps_prefixes: bool = True) -> EngineSpec:
    return EngineSpec(
        "engine",
        ("gguf",),
        "module:Engine",
        "module:probe",
        estimate=lambda path, settings: MemoryEstimate(WEIGHTS, 0, 0),
        keeps_prefixes=keeps_prefixes,
    )


class Starts:
    """Starts on a machine with so much memory free."""

    def __init__(self, home: Path, free_mib: int, **settings: Any) -> None:
        self.settings = load_settings(home, environ={}).replace(**settings)
        self.ledger = Ledger(available=lambda: free_mib * MIB + HEADROOM_BYTES)
        self.kept = KeptPrefixes(home / "prefixes", self.settings.cache_disk_bytes)
        self.placement = Placement(self.settings, self.ledger, self.kept, list, lambda _: False)

    def place(self, model: str = "m", engine: EngineSpec | None = None, **settings: Any) -> Placed:
        files = ModelFiles("m.gguf", "gguf")
        plan = Plan(engine or spec(), files, settings_with_defaults(settings), is_auto=False, wanted_ctx_len=512, digest="d")
        return self.placement.place(HostedModel(model, queue_len=1), StartAttempt(), plan)


def test_a_model_gets_memory_and_disk_and_the_folder_and_the_digest(tmp_path: Path) -> None:
    starts = Starts(tmp_path, 10_000)

    placed = starts.place("org/m", cache_ram_mib=64, cache_disk_mib=128)

    assert placed.settings.cache_ram_bytes == 64 * MIB
    assert placed.settings.cache_disk_bytes == 128 * MIB
    assert placed.settings.cache_folder == str(starts.kept.folder_of("org/m"))
    assert placed.settings.model_digest == "d"
    assert placed.grant.total_bytes == WEIGHTS + 64 * MIB
    assert placed.warnings == ()


def test_auto_is_a_tenth_of_the_machine_at_most(tmp_path: Path) -> None:
    starts = Starts(tmp_path, 1_000_000)
    tenth = machine_memory_bytes() // 10

    assert starts.place().grant.cache_bytes == min(4096 * MIB, tenth)
    less = Starts(tmp_path, 1_000_000, cache_ram_bytes=7 * MIB)
    assert less.place().grant.cache_bytes == 7 * MIB


@pytest.mark.parametrize(
    "settings", [{"caching_enabled": False}, {"cache_ram_mib": 0, "cache_disk_mib": 0}, {"engine": spec(keeps_prefixes=False)}]
)
def test_who_wants_or_knows_no_cache_gets_none(tmp_path: Path, settings: dict[str, Any]) -> None:
    placed = Starts(tmp_path, 10_000).place(**settings)

    assert (placed.grant.cache_bytes, placed.settings.cache_ram_bytes, placed.settings.cache_disk_bytes) == (0, 0, 0)
    assert placed.settings.cache_folder == ""
    assert placed.warnings == ()
    assert not (tmp_path / "prefixes").exists()


def test_zero_on_the_server_is_off_for_all(tmp_path: Path) -> None:
    placed = Starts(tmp_path, 10_000, cache_ram_bytes=0, cache_disk_bytes=0).place()

    assert (placed.settings.cache_ram_bytes, placed.settings.cache_disk_bytes) == (0, 0)
    assert placed.settings.cache_folder == ""


def test_more_memory_than_there_is_is_cut_and_said_and_never_refused(tmp_path: Path) -> None:
    placed = Starts(tmp_path, 300).place(cache_ram_mib=2**31 - 1)

    assert placed.settings.cache_ram_bytes == 100 * MIB  # half of what the model leaves
    assert "cache_ram_mib is 2147483647, and the prefix cache gets 100 MiB" in placed.warnings[0]


def test_more_disk_than_there_is_is_said(tmp_path: Path) -> None:
    starts = Starts(tmp_path, 1000, cache_disk_bytes=2**60)

    placed = starts.place(cache_disk_mib=2**31 - 1)

    assert "and the disk of" in placed.warnings[0]
    assert placed.settings.cache_disk_bytes == (2**31 - 1) * MIB  # the worker leaves a reserve, whatever is free by then


def test_more_disk_than_the_server_allows_is_cut_and_said(tmp_path: Path) -> None:
    starts = Starts(tmp_path, 10_000, cache_disk_bytes=100 * MIB)
    starts.place("a", cache_disk_mib=70)

    placed = starts.place("b", cache_disk_mib=70)

    assert placed.settings.cache_disk_bytes == 30 * MIB
    assert "gets 30 MiB of disk" in placed.warnings[0]
    starts.placement.release("a")
    assert starts.place("b", cache_disk_mib=70).settings.cache_disk_bytes == 70 * MIB


def test_a_cache_counts_against_those_who_start_later_until_it_is_gone(tmp_path: Path) -> None:
    starts = Starts(tmp_path, 1000)
    starts.place("a", cache_ram_mib=400)
    starts.ledger.settle("a")

    assert starts.ledger.available_bytes() == 500 * MIB

    starts.placement.release("a")
    assert starts.ledger.available_bytes() == 1000 * MIB


def test_a_model_that_writes_nothing_gives_its_cache_back_once_that_is_known(tmp_path: Path) -> None:
    starts = Starts(tmp_path, 1000)
    starts.place(cache_ram_mib=400)

    starts.ledger.settle("m", has_cache=False)

    assert starts.ledger.available_bytes() == 900 * MIB


def test_a_model_that_just_fits_starts_without_a_cache(tmp_path: Path) -> None:
    assert Starts(tmp_path, 100).place(cache_ram_mib=50).grant.cache_bytes == 0
