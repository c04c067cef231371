"""Step: what each group of weights costs when it alone is coarse.

All files are mixes of two that the quantizer has written; a group's cost is the KL divergence from the source that it adds to
the fine file's own, on the calibration text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostler_llamacpp.tuning.splice import splice
from hostler_llamacpp.tuning.steps import loss


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Measure all groups.

    Args:
        arguments: `original`, `fine`, `coarse`: files; `groups`: name -> names of weights; `folder`: to work in; `text`,
            `n_tokens`, `n_threads`, `flash_attn`, `cache_type`, `repack`.
        show: Takes a text and a fraction.

    Returns:
        `fine`: mean KL of the fine file; `groups`: name -> mean KL with that group coarse.
    """
    folder = Path(arguments["folder"])
    coarse = Path(arguments["coarse"])
    reference, mix = folder / "sensitivity.logp", folder / "sensitivity.gguf"
    common = {name: arguments[name] for name in ("text", "n_tokens", "n_threads", "flash_attn", "cache_type", "repack")}
    common["reference"] = str(reference)
    loss.run({**common, "path": arguments["original"], "is_reference": True}, _quiet)
    found: dict[str, float] = {}
    try:
        fine = _divergence(arguments["fine"], common)
        for number, (name, weights) in enumerate(arguments["groups"].items()):
            show(name, number / len(arguments["groups"]))
            splice(Path(arguments["fine"]), dict.fromkeys(weights, coarse), mix)
            found[name] = _divergence(str(mix), common)
    finally:
        for path in (mix, reference, reference.with_suffix(".npy")):
            path.unlink(missing_ok=True)
    return {"fine": fine, "groups": found}


def _divergence(path: str, common: dict[str, Any]) -> float:
    return float(loss.run({**common, "path": path, "is_reference": False}, _quiet)["kl"])


def _quiet(text: str, fraction: float | None = None) -> None:
    del text, fraction
