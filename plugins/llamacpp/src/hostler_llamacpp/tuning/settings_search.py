"""Which settings a file runs best with: one after the other, each against what is best so far.

Process of the command. A setting is changed only for a gain that measuring cannot feign: at least 3 % of a request's time,
and the slowest of its repeats no slower than the median of what it replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from hostler_llamacpp.tuning.bench import Effort, Running, RunSpeed, Speeds, compare, thread_counts
from hostler_llamacpp.tuning.choice import LEAST_GAIN, request_s

BATCHES = ((512, 512), (512, 256), (512, 128), (256, 256), (1024, 1024))
"""n_batch, n_ubatch."""
LONG_PROMPT = 1024
"""So that the larger batches differ."""


class Finding(msgspec.Struct, frozen=True):
    """One setting, tried."""

    name: str
    """As users know it."""
    value: str
    is_taken: bool
    """It is better than what was best before it."""
    gain: float
    """Of the time of a request: 0.1 is a tenth less."""
    speeds: Speeds


class Found(msgspec.Struct, frozen=True):
    """What came of trying them."""

    findings: list[Finding]
    best: Running


class Search:
    """Tries settings on one file."""

    def __init__(
        self,
        path: Path,
        start: Running,
        effort: Effort,
        run: RunSpeed,
        told: Callable[[str, int, int], None],
        *,
        n_cores: int,
        n_ctx_train: int,
        keeps_loss: Callable[[Running], bool],
        has_huge_pages: bool,
    ) -> None:
        """Nothing is measured yet.

        Args:
            has_huge_pages: Processes of these get some.
            keeps_loss: Whether the model loses no more than is allowed with these settings; asked of KV types only.
        """
        self.best = start
        self.findings: list[Finding] = []
        self._path = path
        self._start = start
        self._effort = effort
        self._run = run
        self._told = told
        self._n_cores = n_cores
        self._n_ctx_train = n_ctx_train
        self._keeps_loss = keeps_loss
        self._has_huge_pages = has_huge_pages

    def run(self, *, is_quick: bool) -> Running:
        """Try everything; with `is_quick` threads and batches only."""
        change = msgspec.structs.replace
        self._try("threads", {str(n): change(self.best, cpu_threads=n) for n in thread_counts(self._n_cores)})
        n_prompt = min(LONG_PROMPT, max(self._effort.n_prompt, self._n_ctx_train - self._effort.n_new - 1))
        self._try(
            "n_batch / n_ubatch",
            {f"{batch} / {ubatch}": change(self.best, n_batch=batch, n_ubatch=ubatch) for batch, ubatch in BATCHES},
            change(self._effort, n_prompt=n_prompt),
        )
        if is_quick:
            return self.best
        self._try("flash attention", {"on": change(self.best, flash_attn=True), "off": change(self.best, flash_attn=False)})
        if self.best.flash_attn:
            self._try("KV type", {one: change(self.best, cache_type=one) for one in ("f16", "q8_0")}, needs_loss=True)
        if self._has_huge_pages:
            self._try("huge pages", {"on": change(self.best, huge_pages=True), "off": change(self.best, huge_pages=False)})
        if not self.best.huge_pages:
            self._try("mmap", {"on": change(self.best, use_mmap=True), "off": change(self.best, use_mmap=False)})
        return self.best

    def _try(
        self, name: str, candidates: dict[str, Running], effort: Effort | None = None, *, needs_loss: bool = False
    ) -> None:
        now = self.best
        # What is best so far goes first, whatever it is called.
        label = next((label for label, one in candidates.items() if one == now), "as it is")
        others = {other: one for other, one in candidates.items() if one != now}
        if not others:
            return
        found = compare(
            {other: (lambda: self._path, one) for other, one in {label: now, **others}.items()},
            effort or self._effort,
            self._run,
            lambda turn, number, of: self._told(f"{name} {turn}", number, of),
        )
        base, winner = found[label], label
        for other in sorted(others, key=lambda other: found[other].request_s):
            is_better = is_surely_faster(found[other], base) and (not needs_loss or self._keeps_loss(others[other]))
            if winner == label and is_better:
                winner = other
        for other, speeds in found.items():
            gain = 1 - speeds.request_s / base.request_s
            self.findings.append(Finding(name, other, other == winner, gain, speeds))
        self.best = {label: now, **others}[winner]


def is_surely_faster(one: Speeds, base: Speeds) -> bool:
    """Whether the difference is more than the noise of measuring."""
    slowest = request_s(one.prefill.min, one.decode.min)
    return one.request_s <= (1 - LEAST_GAIN) * base.request_s and slowest <= base.request_s
