"""What the lines of a tuning say of its steps. Process of the command."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from hostler import usable_cores
from hostler_llamacpp.tuning.bench import BUSY_CORES
from hostler_llamacpp.tuning.settings_search import Found


def machine() -> str:
    """This machine, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {usable_cores()} cores, {platform.system()}"


def loss_words(found: dict[str, Any]) -> str:
    """Of the step `loss`."""
    return f"perplexity {found['perplexity']:.3f} over {found['n_scored']} tokens"


def search_words(found: Found) -> str:
    """Of a search for settings."""
    taken = [f"{one.name} {one.value}" for one in found.findings if one.is_taken and one.gain > 0]
    text = ", ".join(taken) or "they are good as they are"
    n_others = max((one.speeds.n_others for one in found.findings), default=0.0)
    return text if n_others <= BUSY_CORES else f"{text}; {disturbed(n_others)}"


def disturbed(n_others: float) -> str:
    """A warning: somebody else was working."""
    return f"other programs kept {n_others:.1f} cores busy, so that these figures say little: measure again with --again"


def listed(values: dict[str, str]) -> str:
    """`Q8_0 1.30 s, IQ4_NL 0.98 s`."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
