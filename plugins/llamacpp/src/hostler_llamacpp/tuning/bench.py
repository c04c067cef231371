"""Speeds: rounds of short processes, in turns, so that a noisy minute hits all of them; medians and spreads.

Process of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hostler_llamacpp.tuning.choice import Spread, request_s


class Running(msgspec.Struct, frozen=True):
    """Settings that a file is measured with; names as a model's settings have them."""

    cpu_threads: int
    n_batch: int = 512
    n_ubatch: int = 512
    flash_attn: bool = True
    cache_type: str = "f16"
    use_mmap: bool = True
    huge_pages: bool = False
    """Weights are read into them: see hugepages.py."""

    def arguments(self) -> dict[str, Any]:
        """As the steps take them."""
        return {
            "n_threads": self.cpu_threads,
            "n_batch": self.n_batch,
            "n_ubatch": self.n_ubatch,
            "flash_attn": self.flash_attn,
            "cache_type": self.cache_type,
            "use_mmap": self.use_mmap and not self.huge_pages,
        }


class Effort(msgspec.Struct, frozen=True):
    """How long is measured."""

    n_rounds: int
    n_prompt: int
    n_new: int
    n_repeats: int
    """In each round's process."""


class Speeds(msgspec.Struct, frozen=True):
    """What was found."""

    prefill: Spread
    decode: Spread
    memory_bytes: int
    n_others: float = 0.0
    """Cores that other processes kept busy in the worst of its rounds."""

    @property
    def request_s(self) -> float:
        """See choice.request_s."""
        return request_s(self.prefill.median, self.decode.median)


BUSY_CORES = 0.25
"""Other processes' work above which a round counts as disturbed."""
MAX_TRIES = 3
"""Of a round that is disturbed; then the least disturbed one counts."""

RunSpeed = Callable[[Path, Running, Effort], dict[str, Any]]
"""One round of one file."""


def compare(
    entries: Mapping[str, tuple[Callable[[], Path], Running]],
    effort: Effort,
    run: RunSpeed,
    told: Callable[[str, int, int], None],
) -> dict[str, Speeds]:
    """Measure all in turns.

    Args:
        entries: Name -> its file, which is made when it is its turn, and its settings.
        run: Measures one file once.
        told: Of each turn: name, number, of how many.
    """
    prefill: dict[str, list[float]] = {name: [] for name in entries}
    decode: dict[str, list[float]] = {name: [] for name in entries}
    memory: dict[str, int] = dict.fromkeys(entries, 0)
    others: dict[str, float] = dict.fromkeys(entries, 0.0)
    names = list(entries)
    for number in range(effort.n_rounds):
        # There and back again: what grows slower with the minutes, as a warm machine does, hits all alike.
        for turn, name in enumerate(names if number % 2 == 0 else names[::-1]):
            told(name, number * len(names) + turn + 1, effort.n_rounds * len(names))
            make, running = entries[name]
            found = _undisturbed(make, running, effort, run)
            prefill[name] += found["prefill"]
            decode[name] += found["decode"]
            memory[name] = max(memory[name], found["memory_bytes"])
            others[name] = max(others[name], found["n_others"])
    return {name: Speeds(Spread.of(prefill[name]), Spread.of(decode[name]), memory[name], others[name]) for name in names}


def _undisturbed(make: Callable[[], Path], running: Running, effort: Effort, run: RunSpeed) -> dict[str, Any]:
    """A round while nobody else works, if there is such a time."""
    best: dict[str, Any] | None = None
    for _ in range(MAX_TRIES):
        found = run(make(), running, effort)
        if best is None or found["n_others"] < best["n_others"]:
            best = found
        if best["n_others"] <= BUSY_CORES:
            break
    assert best is not None
    return best


def thread_counts(n_cores: int) -> list[int]:
    """Numbers of threads worth trying, most first."""
    wanted: Sequence[int] = range(1, n_cores + 1) if n_cores <= 4 else (n_cores // 4, n_cores // 2, 3 * n_cores // 4, n_cores)
    return sorted(set(wanted), reverse=True)
