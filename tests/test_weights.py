"""Keeping a run's weight files warm."""

from __future__ import annotations

import functools
from pathlib import Path

from hostler.domain import ModelFiles
from hostler.modelcache import ModelCache
from hostler.weights import WarmWeights
from support import workers

MIB = 1 << 20
wait_until = functools.partial(workers.wait_until, deadline_s=30)


def files(*paths: Path) -> ModelFiles:
    return ModelFiles(str(paths[0]), "gguf", tuple(str(path) for path in paths[1:]))


def test_files_of_a_run_are_read_ahead_and_not_evicted_before_it_is_closed(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x" * MIB)
    second.write_bytes(b"y" * MIB)
    cache = ModelCache(MIB)

    warm = WarmWeights(cache, files(first, second))
    wait_until(lambda: cache.residency(first) == 1.0 and cache.residency(second) == 1.0)
    assert [entry.n_open for entry in cache.entries()] == [1, 1]

    warm.close()
    assert [entry.n_open for entry in cache.entries()] == [0]  # over the budget, so the older one went


def test_a_folder_or_a_file_that_is_gone_is_no_error(tmp_path: Path) -> None:
    cache = ModelCache(MIB)

    WarmWeights(cache, files(tmp_path, tmp_path / "gone")).close()

    assert cache.entries() == []
