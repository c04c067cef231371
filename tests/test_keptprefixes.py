from __future__ import annotations

import os
from array import array
from pathlib import Path

import pytest

from hostler.keptprefixes import KeptPrefixes, write_model_id
from hostler.prefixfiles import MIB, PrefixFiles, prefix_id

DEADLINE_S = 60


def keep(shelf: KeptPrefixes, model: str, n_mib: int, *, when: float | None = None, n: int = 1) -> list[str]:
    """What a worker of this model would leave behind."""
    folder = shelf.folder_of(model)
    write_model_id(folder, model)
    files = PrefixFiles(folder, "one", 1 << 40)
    files.open()
    ids = []
    for number in range(n):
        tokens = array("i", [number]).tobytes()
        ids.append(prefix_id("", tokens))
        files.put(ids[-1], "", 0, tokens, [memoryview(bytes(n_mib * MIB))], 1.0)
    files.close(DEADLINE_S)
    for path in folder.rglob("*.prefix"):
        if when is not None:
            os.utime(path, (when, when))
    return ids


@pytest.fixture
def shelf(tmp_path: Path) -> KeptPrefixes:
    return KeptPrefixes(tmp_path / "prefixes", 10 * MIB)


def test_what_is_kept_is_listed_by_model_the_largest_first(shelf: KeptPrefixes) -> None:
    long_id = "org/" + "m" * 190 + "/%2F:1"  # its folder's name is cut
    keep(shelf, "small", 1, n=2, when=1000.0)
    keep(shelf, long_id, 3, when=2000.0)

    first, second = shelf.models()

    assert (first.model, first.n_prefixes, first.last_used, first.is_in_use) == (long_id, 1, 2000.0, False)
    assert (second.model, second.n_prefixes) == ("small", 2)
    assert first.n_bytes == pytest.approx(3 * MIB, abs=MIB / 8)


def test_nothing_is_kept_where_no_folder_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        shelf = KeptPrefixes(folder, 10 * MIB)
        assert (shelf.models(), shelf.clear("m"), shelf.clear_all()) == ([], 0, 0)
        assert shelf.grant("m", MIB) == MIB


def test_clearing_one_model_leaves_the_others(shelf: KeptPrefixes) -> None:
    keep(shelf, "a", 1)
    keep(shelf, "b", 2)

    n_bytes = shelf.clear("a")

    assert n_bytes == pytest.approx(MIB, abs=MIB / 8)
    assert [kept.model for kept in shelf.models()] == ["b"]
    assert not shelf.folder_of("a").exists()
    assert shelf.clear_all() > MIB
    assert shelf.models() == []


def test_what_a_running_worker_keeps_can_be_cleared_and_it_goes_on(shelf: KeptPrefixes) -> None:
    (id,) = keep(shelf, "m", 1)
    files = PrefixFiles(shelf.folder_of("m"), "one", 1 << 40)
    files.open()
    assert shelf.models()[0].is_in_use

    assert shelf.clear("m") > 0

    assert files.read(id) is None
    tokens = array("i", [7]).tobytes()
    assert files.put(prefix_id("", tokens), "", 0, tokens, [memoryview(b"new")], 1.0)
    files.close(DEADLINE_S)
    assert shelf.models()[0].n_prefixes == 1


def test_all_running_models_together_get_no_more_than_the_total(shelf: KeptPrefixes) -> None:
    assert shelf.grant("a", 6 * MIB) == 6 * MIB
    assert shelf.grant("b", 6 * MIB) == 4 * MIB
    assert shelf.grant("c", 6 * MIB) == 0

    shelf.release("a")
    shelf.release("a")

    assert shelf.grant("b", 8 * MIB) == 8 * MIB  # a second grant is instead of the first
    assert shelf.grant("c", 6 * MIB) == 2 * MIB


def test_what_idle_models_left_makes_room_the_longest_unused_first(shelf: KeptPrefixes) -> None:
    keep(shelf, "old", 3, when=1000.0)
    keep(shelf, "new", 3, when=2000.0)
    keep(shelf, "running", 3, when=500.0)

    shelf.grant("running", 4 * MIB)
    assert {kept.model for kept in shelf.models()} == {"new", "running"}

    shelf.grant("running", 9 * MIB)
    assert {kept.model for kept in shelf.models()} == {"running"}


@pytest.mark.parametrize("total", [0, 10 * MIB])
def test_a_grant_of_nothing_removes_nothing(tmp_path: Path, total: int) -> None:
    shelf = KeptPrefixes(tmp_path / "prefixes", total)
    keep(shelf, "idle", 11)

    assert shelf.grant("m", 0) == 0

    assert [kept.model for kept in shelf.models()] == ["idle"]
