"""Step: how fast a file runs with given settings: one round of a comparison, in a process of its own.

What the timed windows hold: prefill is the evaluation of `n_prompt` tokens in an empty context, in batches of `n_batch`;
decode is one token at a time behind that prompt, `n_new` of them. Loading, a warm-up of both, and sampling are outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from hostler_llamacpp.tuning.steps.opened import Opened

WARM_UP = 32


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Measure.

    Args:
        arguments: `path`, `n_threads`, `n_batch`, `n_ubatch`, `flash_attn`, `cache_type`, `use_mmap`, `repack`, `n_prompt`,
            `n_new`, `n_repeats`.
        show: Takes a text and a fraction.

    Returns:
        `prefill` and `decode` (tokens per second, one number a repeat), `load_s`, `memory_bytes` (most that the process had;
        0: the system does not say), `n_others` (cores that other processes kept busy meanwhile).
    """
    show("loading", None)
    n_prompt, n_new, n_repeats = arguments["n_prompt"], arguments["n_new"], arguments["n_repeats"]
    started = time.perf_counter()
    with Opened(
        arguments["path"],
        n_ctx=n_prompt + n_new + 1,
        n_threads=arguments["n_threads"],
        n_batch=min(arguments["n_batch"], n_prompt),
        n_ubatch=min(arguments["n_ubatch"], n_prompt),
        has_logits=False,
        flash_attn=arguments["flash_attn"],
        cache_type=arguments["cache_type"],
        use_mmap=arguments["use_mmap"],
        repack=arguments["repack"],
    ) as opened:
        load_s = time.perf_counter() - started
        drawn = np.random.default_rng(1).integers(0, opened.n_vocab, n_prompt + n_new).astype(np.int32)
        _prefill(opened, drawn[:WARM_UP])
        _decode(opened, WARM_UP, drawn[:4])
        prefill, decode = [], []
        window = Window()
        for number in range(n_repeats):
            show("measuring", number / n_repeats)
            opened.clear()
            prefill.append(n_prompt / _prefill(opened, drawn[:n_prompt]))
            decode.append(n_new / _decode(opened, n_prompt, drawn[n_prompt:]))
        n_others = window.n_others()
    return {"prefill": prefill, "decode": decode, "load_s": load_s, "memory_bytes": peak_bytes(), "n_others": n_others}


def _prefill(opened: Opened, tokens: np.ndarray) -> float:
    started = time.perf_counter()
    for start in range(0, len(tokens), opened.n_batch):
        opened.evaluate(start, tokens[start : start + opened.n_batch])
    return time.perf_counter() - started


def _decode(opened: Opened, position: int, tokens: np.ndarray) -> float:
    started = time.perf_counter()
    for number in range(len(tokens)):
        opened.evaluate(position + number, tokens[number : number + 1])
    return time.perf_counter() - started


class Window:
    """Looks at who else works on this machine."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.perf_counter(), _busy_s(), time.process_time()

    def n_others(self) -> float:
        """Cores that others kept busy since."""
        others = (_busy_s() - self._busy) - (time.process_time() - self._own)
        return max(0.0, others / (time.perf_counter() - self._started))


def _busy_s() -> float:
    """Seconds that all cores together have worked, or were taken by other guests of this host."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def peak_bytes() -> int:
    """The most memory this process has had."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
