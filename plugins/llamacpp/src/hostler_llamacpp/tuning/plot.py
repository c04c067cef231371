"""Speed against loss, as a picture: two panels, prefill and decode. Needs matplotlib, the plugin's extra `tune`.

Process of the command; matplotlib is imported when a picture is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hostler import HostlerError
from hostler_llamacpp.tuning.choice import Measured
from hostler_llamacpp.tuning.job import Tuned

INSTALL = "pip install 'hostler-llamacpp[tune]'"
FIELDS = ("prefill", "decode")


class NoMatplotlib(HostlerError):
    """The extra is not installed."""

    code = "missing_tools"


def has_matplotlib() -> bool:
    """Whether pictures can be drawn; imports nothing."""
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def draw(tuned: Tuned, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg.

    Raises:
        NoMatplotlib
        OSError
    """
    if not has_matplotlib():
        raise NoMatplotlib(f"a plot needs matplotlib, which is not installed; get it with: {INSTALL}")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "hostler"  # the same figures give the same file
    figure, panels = plt.subplots(1, 2, figsize=(12, 5.5), sharey=True)
    for panel, field in zip(panels, FIELDS, strict=True):
        _panel(panel, tuned, field)
    panels[0].set_ylabel("mean KL divergence from the source (nats)")
    figure.suptitle(f"{tuned.id} on {tuned.machine}")
    figure.tight_layout()
    written = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        path = stem.with_name(f"{stem.name}.{suffix}")
        figure.savefig(path, dpi=120, metadata=metadata)
        written.append(path)
    plt.close(figure)
    return written


def _panel(panel: Any, tuned: Tuned, field: str) -> None:
    on_front = sorted((one for one in tuned.variants if one.name in tuned.front), key=lambda one: one.loss.kl)
    panel.plot([_x(one, field) for one in on_front], [one.loss.kl for one in on_front], color="0.8", zorder=1)
    for one in tuned.variants:
        spread = getattr(one, field)
        is_best = one.name == tuned.recommended
        error = [[spread.median - spread.min], [spread.max - spread.median]]
        color = "tab:green" if is_best else "tab:orange" if one.name == tuned.wide else "tab:blue"
        panel.errorbar(_x(one, field), one.loss.kl, xerr=error, fmt="o", color=color, markersize=8 if is_best else 5, zorder=2)
        label = f"{one.name} ({one.loss.change:+.1%})" if one.loss.change else one.name
        panel.annotate(label, (_x(one, field), one.loss.kl), textcoords="offset points", xytext=(7, 4), fontsize=8)
    panel.set_xlabel(f"{field} (tokens per second)")
    panel.grid(alpha=0.3)
    panel.margins(x=0.15)


def _x(one: Measured, field: str) -> float:
    return float(getattr(one, field).median)
