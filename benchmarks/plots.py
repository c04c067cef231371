"""One small picture a workload: each bar's ratio or value, its spread, and the line it must not cross. PNG and SVG.

Needs matplotlib, which is imported when the first picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bars import KEPT, Bar, Verdict

KEPT_COLOUR, MISSED_COLOUR, BOUND_COLOUR = "#2a7f62", "#c0392b", "#333333"
WIDTH_INCHES, ROW_INCHES, MARGIN_INCHES = 6.4, 0.55, 1.1


def draw(folder: Path, workload: str, about: str, pairs: Sequence[tuple[Bar, Verdict]]) -> list[Path]:
    """Draw what was measured of one workload; nothing when nothing was.

    A row is one bar: the median as a bar, the least and the most round as a whisker, the bound as a line. Rows have
    different units, so each is drawn in multiples of its bound, and the line stands at 1.

    Returns:
        The files written.
    """
    shown = [(bar, verdict) for bar, verdict in pairs if not math.isnan(verdict.reached)]
    if not shown:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = workload  # the same numbers give the same file
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, MARGIN_INCHES + ROW_INCHES * len(shown)), layout="constrained")
    try:
        for row, (bar, verdict) in enumerate(reversed(shown)):
            middle, low, high = (value / bar.bound for value in (verdict.reached, verdict.low, verdict.high))
            colour = KEPT_COLOUR if verdict.verdict == KEPT else MISSED_COLOUR
            whisker = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
            axes.barh(row, middle, height=0.6, color=colour, xerr=whisker, capsize=3, ecolor="#666666")
            axes.annotate(f" {verdict.reached:.3g}", (high, row), va="center", ha="left", fontsize=8, annotation_clip=False)
        axes.axvline(1.0, color=BOUND_COLOUR, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(shown)), [_label(bar) for bar, _ in reversed(shown)], fontsize=8)
        axes.set_xlim(0, max(1.25, 1.2 * max(verdict.high / bar.bound for bar, verdict in shown)))
        axes.set_xlabel("reached, in multiples of the bar (dashed)", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{workload}: {about}\ncommit {shown[0][1].commit}, n = {shown[0][1].n}", fontsize=9, loc="left")
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{workload}.{kind}" for kind in ("png", "svg")]
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, dpi=120, metadata=metadata)
    finally:
        pyplot.close(figure)
    return paths


def _label(bar: Bar) -> str:
    subject = "" if bar.subject == "hostler" else f" ({bar.subject})"
    return f"{bar.metric}{subject}\n{bar}"
