"""Weight files kept warm: mapped, counted, evicted by least recent use under a budget of bytes.

Floor 1, in the host; any thread may call any method, and every call that may wait for a disk releases the GIL. The cache
never loads from what it maps (a truncated file must cost no more than an error), so it holds no model in the host's own
memory: it steers the system's page cache, which the workers share.

    cache = ModelCache(budget_bytes=8 << 30)
    cache.prefetch(path, progress=lambda done, total: ...)     # the next model, while one runs
    cache.residency(path)                                      # 0.0 to 1.0, or None where the system does not say
    with cache.open(path): ...                                 # not evicted meanwhile
    cache.pin(path); cache.unpin(path)                         # mlock

The budget counts whole files, whatever part of them is in memory; what is open or pinned may exceed it. A file that was
replaced on disk, or written to, is another file. It must not know models, engines or workers, only paths.
"""

from __future__ import annotations

from hostler._native import (
    CacheBudgetExceeded,
    CacheClosed,
    CacheEntry,
    CacheEntryInUse,
    CacheStats,
    FileChanged,
    MappedFile,
    ModelCache,
    ModelCacheError,
)

__all__ = [
    "ModelCache",
    "MappedFile",
    "CacheEntry",
    "CacheStats",
    "ModelCacheError",
    "CacheBudgetExceeded",
    "CacheClosed",
    "CacheEntryInUse",
    "FileChanged",
]
