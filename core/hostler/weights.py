"""The weight files of one run, kept warm in the host's model cache from its start to its stop. Floor 4.

The reading runs on a thread of its own beside the worker, which imports its engine meanwhile and then finds the pages in
memory. What was started once stays in the cache after the stop, the first to go when another model needs the room.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from hostler.domain import ModelFiles
from hostler.modelcache import MappedFile, ModelCache, ModelCacheError

log = logging.getLogger("hostler.weights")


class WarmWeights:
    """Open handles that keep a running model's files from being evicted. Made and closed by the start and stop threads."""

    def __init__(self, cache: ModelCache, files: ModelFiles) -> None:
        """Map the files and begin to read them; never fails: a cold start is only slower."""
        self._cache = cache
        self._is_closed = threading.Event()
        self._handles: list[MappedFile] = []
        paths = [path for path in (files.primary, *files.others) if Path(path).is_file()]
        try:
            for path in paths:
                self._handles.append(cache.open(path))
        except (OSError, ValueError, ModelCacheError) as error:
            log.debug("%s is not kept warm: %s", paths, error)
        threading.Thread(target=self._prefetch, name="prefetch", daemon=True).start()

    def close(self) -> None:
        """Stop reading and let the cache evict the files when it must. Idempotent."""
        self._is_closed.set()
        for handle in self._handles:
            handle.close()

    def _prefetch(self) -> None:
        try:
            for handle in self._handles:
                self._cache.prefetch(handle.path, self._go_on)
        except _NotWantedAnyMore:
            pass
        except (OSError, ValueError, ModelCacheError) as error:
            log.debug("reading ahead stopped: %s", error)

    def _go_on(self, done_bytes: int, total_bytes: int) -> None:  # noqa: ARG002 - the cache's callback
        if self._is_closed.is_set():
            raise _NotWantedAnyMore


class _NotWantedAnyMore(Exception):
    """The model was stopped while its files were read ahead."""
