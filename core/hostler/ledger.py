"""One account of memory over all workers: what each takes, what is free, what a new one may have.

Floor 4, used by the host. It decides before a load, so that a model that cannot fit is a clear 507 and not a crash. All
numbers are bytes of main memory; what an engine puts on a GPU is that engine's own check.

What is available: the machine's available memory (or the control group's, if that is less), minus what starting models
have been granted and not taken yet, minus the mapped weights and the prefix caches of running ones: the kernel calls file
pages available, but taking them away would make every step read the disk, and a cache fills with time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from hostler.domain import MemoryEstimate
from hostler.errors import InsufficientMemory

MIB = 1024 * 1024
HEADROOM_BYTES = 256 * MIB
"""Left to everybody else on the machine."""
AUTO_CTX_LEN = 8192
"""What `ctx_len: auto` asks for at most."""
MIN_AUTO_CTX_LEN = 512
CTX_STEP = 256
"""llama.cpp pads contexts to this many tokens; finer grants would only be rounded."""


class Grant(msgspec.Struct, frozen=True):
    """What a model may take."""

    ctx_len: int
    estimate: MemoryEstimate
    cache_bytes: int = 0
    """For its prefix cache, beside the estimate."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.estimate.total_bytes + self.cache_bytes


class _Account(msgspec.Struct):
    grant: Grant
    is_loaded: bool = False

    @property
    def owed_bytes(self) -> int:
        """What the machine's own numbers do not show yet as taken, or show as available though it must stay. A prefix cache
        fills in its own time, so it counts in full: rather too much than a model that grows into another's memory."""
        if not self.is_loaded:
            return self.grant.total_bytes
        estimate = self.grant.estimate
        return (estimate.weights_bytes if estimate.is_mapped else 0) + self.grant.cache_bytes


class Ledger:
    """The account. Safe from any thread; `_lock` protects the accounts."""

    def __init__(self, budget_bytes: int = 0, available: Callable[[], int] | None = None) -> None:
        """Open the account.

        Args:
            budget_bytes: What all models together may take; 0: what the machine has available.
            available: Gives the machine's available memory in bytes; replaced in tests.
        """
        self._budget_bytes = budget_bytes
        self._available = available or available_memory_bytes
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}

    def available_bytes(self) -> int:
        """What a new model could take now."""
        with self._lock:
            return self._free()

    def grant(
        self,
        model_id: str,
        wanted_ctx_len: int,
        *,
        is_auto: bool,
        estimate: Callable[[int], MemoryEstimate],
        cache_bytes: int = 0,
    ) -> Grant:
        """Reserve memory for a model that is about to load.

        Args:
            model_id: Whose account; a second grant replaces the first.
            wanted_ctx_len: Tokens per slot.
            is_auto: A smaller context will do; else it is all or nothing.
            estimate: Gives the bytes for a context length.
            cache_bytes: Wanted for its prefix cache. It gets at most half of what the model leaves free: it makes a model
                faster, and is no reason to refuse one, or to unload another.

        Raises:
            InsufficientMemory: With both numbers.
        """
        with self._lock:
            self._accounts.pop(model_id, None)
            free = max(0, self._free())  # what takes nothing always fits
            needed = estimate(wanted_ctx_len)
            ctx_len = wanted_ctx_len
            if needed.total_bytes > free and is_auto:
                ctx_len, needed = self._largest(wanted_ctx_len, free, estimate)
            if needed.total_bytes > free:
                raise InsufficientMemory(
                    f"{model_id} needs {needed.total_bytes / MIB:,.0f} MiB with a context of {ctx_len} tokens per slot "
                    f"(weights {needed.weights_bytes / MIB:,.0f}, KV cache {needed.kv_bytes / MIB:,.0f}, compute "
                    f"{needed.compute_bytes / MIB:,.0f}), and {free / MIB:,.0f} MiB are available; lower ctx_len or "
                    f"n_parallel, stop another model, or take a smaller quantization",
                    needed_bytes=needed.total_bytes,
                    available_bytes=free,
                )
            left = (free - needed.total_bytes) // 2
            grant = Grant(ctx_len, needed, min(cache_bytes, left // MIB * MIB))
            self._accounts[model_id] = _Account(grant)
            return grant

    def settle(self, model_id: str, *, is_loaded: bool = True, has_cache: bool = True) -> None:
        """The model is loaded, so what it took shows in the machine's own numbers now; or its worker died.

        Args:
            has_cache: False: it has turned out to need no prefix cache, so that is free again.
        """
        with self._lock:
            account = self._accounts.get(model_id)
            if account is not None:
                account.is_loaded = is_loaded
                if not has_cache:
                    account.grant = msgspec.structs.replace(account.grant, cache_bytes=0)

    def release(self, model_id: str) -> None:
        """The model is gone. Idempotent."""
        with self._lock:
            self._accounts.pop(model_id, None)

    def bytes_of(self, model_id: str) -> int:
        """What was granted to a model; 0: nothing."""
        with self._lock:
            account = self._accounts.get(model_id)
            return account.grant.total_bytes if account else 0

    def _free(self) -> int:
        machine = self._available() - HEADROOM_BYTES
        for account in self._accounts.values():
            machine -= account.owed_bytes
        if not self._budget_bytes:
            return machine
        taken = sum(account.grant.total_bytes for account in self._accounts.values())
        return min(machine, self._budget_bytes - taken)

    @staticmethod
    def _largest(
        wanted: int, free: int, estimate: Callable[[int], MemoryEstimate]
    ) -> tuple[int, MemoryEstimate]:
        """The largest context in steps of CTX_STEP that fits, else the smallest one allowed."""
        low, high = MIN_AUTO_CTX_LEN // CTX_STEP, max(MIN_AUTO_CTX_LEN, wanted) // CTX_STEP
        while low < high:
            middle = (low + high + 1) // 2
            if estimate(middle * CTX_STEP).total_bytes <= free:
                low = middle
            else:
                high = middle - 1
        ctx_len = min(wanted, low * CTX_STEP)
        return ctx_len, estimate(ctx_len)


def machine_memory_bytes() -> int:
    """Main memory of the machine, whatever takes it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no sysconf on Windows
        import psutil

        return int(psutil.virtual_memory().total)


def available_memory_bytes() -> int:
    """Main memory that could be had now: the machine's, or the control group's where that is less."""
    import psutil  # late: the ledger is made at start, psutil is needed at the first load

    available = int(psutil.virtual_memory().available)
    for limit_path, usage_path in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, usage = int(Path(limit_path).read_text()), int(Path(usage_path).read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        available = min(available, limit - usage)
    return available
