"""The model cache. Its counts and its locks are tested in C++ (cpp/tests), where the sanitizers turn mlock into nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hostler.modelcache import CacheBudgetExceeded, CacheClosed, CacheEntryInUse, FileChanged, ModelCache, ModelCacheError

DEADLINE_S = 30.0
MIB = 1 << 20


def write(path: Path, n_bytes: int) -> Path:
    path.write_bytes(b"w" * n_bytes)
    return path


def names(cache: ModelCache) -> list[str]:
    return [entry.path.name for entry in cache.entries()]


def test_open_file_is_not_evicted_until_its_handle_is_closed(tmp_path: Path) -> None:
    cache = ModelCache(MIB)
    path = write(tmp_path / "a", 1000)

    with cache.open(path) as handle:
        assert (handle.path, handle.size_bytes, handle.is_closed) == (path, 1000, False)
        assert cache.entries()[0].n_open == 1
        with pytest.raises(CacheEntryInUse, match="open 1 times"):
            cache.evict(path)

    assert handle.is_closed
    assert cache.evict(path) is True
    assert cache.evict(path) is False
    assert cache.stats().n_evictions == 1


def test_paths_may_be_text(tmp_path: Path) -> None:
    cache = ModelCache(MIB)
    path = str(write(tmp_path / "a", 1000))

    cache.open(path).close()

    assert cache.evict(path) is True


def test_two_names_of_one_file_are_one_entry(tmp_path: Path) -> None:
    cache = ModelCache(MIB)
    path = write(tmp_path / "a", 1000)
    (tmp_path / "link").symlink_to(path)
    os.link(path, tmp_path / "hard")

    for name in ("a", "link", "hard"):
        cache.open(tmp_path / name).close()

    assert names(cache) == ["a"]
    assert cache.stats().n_hits == 2
    assert cache.evict(tmp_path / "link") is True


def test_least_recently_used_file_is_evicted_for_the_budget(tmp_path: Path) -> None:
    cache = ModelCache(3000)
    for name in "abc":
        cache.open(write(tmp_path / name, 1000)).close()
    cache.open(tmp_path / "a").close()

    cache.open(write(tmp_path / "d", 1000)).close()

    assert names(cache) == ["c", "a", "d"]
    assert cache.trim(1000) == 2000
    assert names(cache) == ["d"]
    cache.budget_bytes = 999
    assert names(cache) == []
    assert cache.stats().mapped_bytes == 0


def test_prefetch_reports_progress_and_returns_what_it_read(tmp_path: Path) -> None:
    cache = ModelCache(64 * MIB)
    path = write(tmp_path / "a", 20 * MIB)
    calls: list[tuple[int, int]] = []

    n_read = cache.prefetch(path, lambda done, total: calls.append((done, total)))

    assert calls == [(8 * MIB, 20 * MIB), (16 * MIB, 20 * MIB), (20 * MIB, 20 * MIB)]
    assert 0 <= n_read <= 20 * MIB
    if cache.residency(path) is not None:
        assert cache.residency(path) == 1.0
        assert cache.prefetch(path) == 0


def test_prefetch_stops_when_its_callback_raises(tmp_path: Path) -> None:
    cache = ModelCache(64 * MIB)
    path = write(tmp_path / "a", 20 * MIB)

    def refuse(done: int, total: int) -> None:
        raise InterruptedError(f"stopped at {done}")

    with pytest.raises(InterruptedError, match="stopped at 8388608"):
        cache.prefetch(path, refuse)

    assert cache.evict(path) is True


def test_other_threads_run_during_a_prefetch(tmp_path: Path) -> None:
    """The callback runs in the prefetching thread and waits for this one, which needs the GIL to answer it."""
    cache = ModelCache(64 * MIB)
    path = write(tmp_path / "a", 9 * MIB)
    is_called = threading.Event()
    may_go_on = threading.Event()
    answers: list[bool] = []

    def progress(done: int, total: int) -> None:
        is_called.set()
        answers.append(may_go_on.wait(DEADLINE_S))

    thread = threading.Thread(target=cache.prefetch, args=(path, progress))
    thread.start()
    assert is_called.wait(DEADLINE_S)
    with cache.open(path):  # nor is the cache locked meanwhile
        may_go_on.set()
    thread.join(DEADLINE_S)

    assert answers == [True, True]


def test_what_is_larger_than_the_budget_is_refused_with_both_numbers(tmp_path: Path) -> None:
    cache = ModelCache(999)
    path = write(tmp_path / "a", 1000)

    for call in (cache.prefetch, cache.pin):
        with pytest.raises(CacheBudgetExceeded, match=r"1000 bytes.* 999"):
            call(path)
    assert issubclass(CacheBudgetExceeded, ModelCacheError)


def locked_kb() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmLck:"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pinned_file_is_locked_in_memory_until_it_is_unpinned(tmp_path: Path) -> None:
    cache = ModelCache(MIB)
    path = write(tmp_path / "a", 16_384)
    before = locked_kb()

    cache.pin(path)
    cache.pin(path)

    assert locked_kb() == before + 16
    assert cache.entries()[0].is_pinned
    assert cache.stats().pinned_bytes == 16_384
    with pytest.raises(CacheEntryInUse, match="unpin it first"):
        cache.evict(path)
    assert cache.unpin(path) is True
    assert cache.unpin(path) is False
    assert locked_kb() == before
    assert cache.evict(path) is True


PINNING_CHILD = """
import resource, sys
from hostler.modelcache import ModelCache
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
try:
    import os; os.setuid(65534)  # a privileged process has no limit
except PermissionError:
    pass
cache = ModelCache(1 << 30)
try:
    cache.pin(sys.argv[1])
except OSError as error:
    print(error)
print(cache.stats().pinned_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets RLIMIT_MEMLOCK")
def test_pin_over_the_systems_limit_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a", MIB)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)

    child = subprocess.run([sys.executable, "-c", PINNING_CHILD, str(path)], capture_output=True, text=True, check=False)

    assert child.stderr == ""
    assert "this process may lock 65536 bytes (raise it with `ulimit -l`)" in child.stdout
    assert child.stdout.endswith("\n0\n")


def test_replaced_file_is_another_file(tmp_path: Path) -> None:
    cache = ModelCache(MIB)
    path = write(tmp_path / "a", 1000)
    old = cache.open(path)
    write(tmp_path / "fresh", 500).rename(path)

    with cache.open(path) as fresh:
        assert (old.size_bytes, fresh.size_bytes) == (1000, 500)
        assert [entry.is_replaced for entry in cache.entries()] == [True, False]
        old.close()
        assert [entry.size_bytes for entry in cache.entries()] == [500]


TRUNCATING_CHILD = """
import os, sys
from hostler.modelcache import FileChanged, ModelCache
cache = ModelCache(1 << 30)
path = sys.argv[1]
handle = cache.open(path)
os.truncate(path, 0)
assert handle.residency() in (0.0, None), handle.residency()
try:
    cache.pin(path)
except ValueError as error:
    assert "empty" in str(error), error
handle.close()
with open(path, "wb") as stream:
    stream.write(b"w" * (20 << 20))
def truncate(done, total):
    os.truncate(path, done)
try:
    cache.prefetch(path, truncate)
except FileChanged as error:
    print(error)
print(cache.evict(path))
"""


def test_file_truncated_under_the_cache_is_an_error_and_kills_nobody(tmp_path: Path) -> None:
    path = write(tmp_path / "a", MIB)

    child = subprocess.run([sys.executable, "-c", TRUNCATING_CHILD, str(path)], capture_output=True, text=True, check=False)

    assert (child.returncode, child.stderr) == (0, "")
    assert "somebody truncated it" in child.stdout or "\n" not in child.stdout.strip()
    assert child.stdout.endswith("True\n")
    assert issubclass(FileChanged, ModelCacheError)


def test_what_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    cache = ModelCache(MIB)

    with pytest.raises(FileNotFoundError, match="missing"):
        cache.open(tmp_path / "missing")
    with pytest.raises(ValueError, match="is empty"):
        cache.open(write(tmp_path / "empty", 0))
    with pytest.raises(ValueError, match="no regular file"):
        cache.open(tmp_path)
    assert cache.entries() == []


def test_closed_cache_refuses_and_lets_go(tmp_path: Path) -> None:
    cache = ModelCache(MIB)
    path = write(tmp_path / "a", 1000)
    handle = cache.open(path)
    cache.pin(path)

    cache.close()
    cache.close()
    handle.close()

    assert cache.entries() == []
    assert cache.stats().pinned_bytes == 0
    with pytest.raises(CacheClosed, match="closed"):
        cache.open(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_evicted_and_forgotten_files_leave_no_mapping(tmp_path: Path) -> None:
    def is_mapped(name: str) -> bool:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return any(line.rstrip().endswith(str(tmp_path / name)) for line in maps)

    cache = ModelCache(MIB)
    kept = cache.open(write(tmp_path / "kept", 1000))
    cache.open(write(tmp_path / "evicted", 1000)).close()
    assert is_mapped("kept")
    assert is_mapped("evicted")

    cache.evict(tmp_path / "evicted")
    assert not is_mapped("evicted")
    del kept
    del cache
    assert not is_mapped("kept")
