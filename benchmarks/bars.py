"""What each workload must reach, whether it did, and the table that says so, as Markdown and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common import median, spread

KEPT, MISSED, NOT_RUN = "kept", "missed", "not run"


@dataclass(frozen=True)
class Bar:
    """One promise: a metric of one subject, alone or as a ratio to the same metric of another in the same round."""

    metric: str
    is_least: bool
    """Whether the bound is the least that will do, or the most."""
    bound: float
    baseline: str = ""
    """The subject that a ratio refers to; empty: the metric itself."""
    subject: str = "hostler"

    def __str__(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.bound:g}" + (f" × {self.baseline}" if self.baseline else "")


@dataclass(frozen=True)
class Verdict:
    """What became of a bar."""

    workload: str
    subject: str
    metric: str
    bar: str
    reached: float = math.nan
    """Median over the rounds: of the ratio, or of the metric itself."""
    spread: float = math.nan
    """Interquartile range of the same."""
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    verdict: str = NOT_RUN
    commit: str = ""
    note: str = ""
    """Why it was not run."""


def judge(workload: str, bar: Bar, rounds: dict[str, list[dict[str, float]]], commit: str, note: str = "") -> Verdict:
    """Compare what was reached with the bar.

    Args:
        rounds: Subject -> one dict of metrics a round; the i-th entries of all subjects belong to the same round.
        note: Why there are no rounds, if there are none.
    """
    values = reached(bar, rounds)
    if not values:
        note = note or "no round gave a value"
        return Verdict(workload, bar.subject, bar.metric, str(bar), commit=commit, note=note)
    middle = median(values)
    is_kept = middle >= bar.bound if bar.is_least else middle <= bar.bound
    return Verdict(
        *(workload, bar.subject, bar.metric, str(bar), middle, spread(values), min(values), max(values), len(values)),
        verdict=KEPT if is_kept else MISSED,
        commit=commit,
    )


def reached(bar: Bar, rounds: dict[str, list[dict[str, float]]]) -> list[float]:
    """What each round gave; rounds in which a side failed are left out."""
    own = [result.get(bar.metric, math.nan) for result in rounds.get(bar.subject, [])]
    if not bar.baseline:
        return [value for value in own if not math.isnan(value)]
    other = [result.get(bar.metric, math.nan) for result in rounds.get(bar.baseline, [])]
    pairs = zip(own, other, strict=False)
    return [one / base for one, base in pairs if not math.isnan(one) and not math.isnan(base) and base]


def write_csv(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write one row a bar; an existing file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Verdict)]
    with path.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, names, lineterminator="\n")
        writer.writeheader()
        for verdict in verdicts:
            writer.writerow({name: _cell(value) for name, value in asdict(verdict).items()})


def write_markdown(path: Path, verdicts: Sequence[Verdict], machine: str, command: str) -> None:
    """Write the table for a reader."""
    lines = [
        "# What was reached",
        "",
        f"{machine}. `{command}`. Medians over n rounds, in brackets the least and the most of them; the bars are issue 5's.",
        "",
        "| workload | metric | bar | reached | n | verdict | commit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in verdicts:
        subject = "" if one.subject == "hostler" else f", {one.subject}"
        said = one.verdict if one.verdict != MISSED else f"**{MISSED}**"
        said = f"{said}: {one.note}" if one.note else said
        cells = (one.workload + subject, f"`{one.metric}`", one.bar, show(one), one.n, said, one.commit)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def show(verdict: Verdict) -> str:
    """What was reached, short."""
    if math.isnan(verdict.reached):
        return ""
    return f"{verdict.reached:.3g} ({verdict.low:.3g} to {verdict.high:.3g})"


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
