"""What all benchmarks share: statistics, the description of the machine, and result rows as CSV.

Runs in the benchmark's own process; knows neither hostler nor HTTP. A row holds one metric of one subject: command, commit,
machine, model, settings, n, median, spread, and what was measured (see README.md for each field).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def percentile(values: Iterable[float], q: float) -> float:
    """The q-th percentile by linear interpolation between the two nearest ranks; NaN without values.

    Args:
        values: In any order.
        q: 0 to 100.
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median(values: Iterable[float]) -> float:
    """The 50th percentile."""
    return percentile(values, 50)


def spread(values: Iterable[float]) -> float:
    """The interquartile range, in the unit of the values: robust when a neighbour disturbs one round."""
    values = list(values)
    return percentile(values, 75) - percentile(values, 25)


def describe_machine() -> str:
    """Processor, usable cores, memory, system and Python in one line; neither host name nor kernel build."""
    model, mem_kib = platform.processor() or platform.machine(), 0
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
        mem_kib = int(Path("/proc/meminfo").read_text().split(None, 2)[1])
    except OSError:
        pass  # not Linux: the line is shorter
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = f", {mem_kib / 2**20:.0f} GiB" if mem_kib else ""
    return f"{model}, {n_cores} cores{memory}, {platform.system()}, Python {platform.python_version()}"


def describe_commit() -> str:
    """Short hash of the checked-out commit, with `+` behind it when tracked files differ; `unknown` outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_command(argv: Sequence[str] | None = None) -> str:
    """The command line with folders stripped off its paths, so that results name no machine's layout."""
    words = list(sys.argv if argv is None else argv)
    return shlex.join(["python", *(_strip_folders(word) for word in words)])


def _strip_folders(word: str) -> str:
    name, equals, value = word.rpartition("=")
    if "://" in value or "/" not in value:
        return word
    return name + equals + Path(value).name


@dataclass(frozen=True)
class Row:
    """One line of a results file."""

    benchmark: str
    workload: str
    subject: str
    """Who was measured: the server's name."""
    metric: str
    unit: str
    n: int
    """Rounds (or repetitions) behind the median."""
    median: float
    spread: float
    """Interquartile range over the rounds, in `unit`."""
    baseline: str = ""
    ratio: float = math.nan
    """Median over the rounds of subject / baseline, both of the same round; empty without a baseline."""
    ratio_spread: float = math.nan
    """Interquartile range of that ratio."""
    model: str = ""
    settings: str = ""
    values: tuple[float, ...] = field(default=(), repr=False)
    """Every round's value; in the JSON form only."""


@dataclass(frozen=True)
class Context:
    """What is the same for all rows of a run."""

    command: str = field(default_factory=describe_command)
    commit: str = field(default_factory=describe_commit)
    machine: str = field(default_factory=describe_machine)


def compare(
    benchmark: str,
    workload: str,
    rounds: dict[str, Sequence[dict[str, float]]],
    units: dict[str, str],
    baseline: str,
    model: str = "",
    settings: str = "",
) -> list[Row]:
    """Turn what each subject reached in each round into rows.

    Args:
        rounds: Subject -> one dict of metrics a round; the i-th entries of all subjects belong to the same round.
        units: Metric -> unit, in the order in which rows come out; a metric missing in every round gives no row.
        baseline: The subject that ratios refer to; empty: no ratios.
    """
    rows = []
    for metric, unit in units.items():
        for subject, results in rounds.items():
            values = [result[metric] for result in results if not math.isnan(result.get(metric, math.nan))]
            if not values:
                continue
            ratios = []
            if baseline and subject != baseline:
                for result, base in zip(results, rounds.get(baseline, ()), strict=False):
                    ours, theirs = result.get(metric, math.nan), base.get(metric, math.nan)
                    if not math.isnan(ours) and not math.isnan(theirs) and theirs:
                        ratios.append(ours / theirs)
            rows.append(
                Row(
                    benchmark=benchmark,
                    workload=workload,
                    subject=subject,
                    metric=metric,
                    unit=unit,
                    n=len(values),
                    median=median(values),
                    spread=spread(values),
                    baseline=baseline if ratios else "",
                    ratio=median(ratios),
                    ratio_spread=spread(ratios),
                    model=model,
                    settings=settings,
                    values=tuple(values),
                )
            )
    return rows


CSV_FIELDS = ("command", "commit", "machine", *(f.name for f in fields(Row) if f.name != "values"))


def add_run_arguments(parser: argparse.ArgumentParser, *, n_rounds: int, n_threads: int | None, model: str) -> None:
    """What every benchmark of a model in this process or beside it takes: the model, rounds, threads, and where rows go.

    Args:
        model: What `--model-path` names.
    """
    parser.add_argument("--model-path", type=Path, required=True, help=model)
    parser.add_argument("--rounds", type=int, default=n_rounds, help=f"rounds that count ({n_rounds})")
    parser.add_argument("--threads", type=int, default=n_threads, help=f"of the engine ({n_threads})")
    parser.add_argument("--csv", type=Path, help="write rows here")
    parser.add_argument("--json", type=Path, help="write rows with every round's value here")


def write_results(arguments: argparse.Namespace, rows: Sequence[Row], context: Context) -> None:
    """Write rows where `--csv` and `--json` say."""
    if arguments.csv:
        write_csv(arguments.csv, rows, context)
    if arguments.json:
        write_json(arguments.json, rows, context)


def write_csv(path: Path, rows: Sequence[Row], context: Context) -> None:
    """Write the rows with a heading; an existing file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = {**asdict(context), **asdict(row)}
            writer.writerow({name: _format_cell(cells[name]) for name in CSV_FIELDS})


def write_json(path: Path, rows: Sequence[Row], context: Context) -> None:
    """Write the same as JSON, with the value of every round."""
    document = {**asdict(context), "rows": [{k: _drop_nan(v) for k, v in asdict(row).items()} for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def print_table(rows: Sequence[Row]) -> None:
    """Show the rows to a reader, one line a metric and subject."""
    if not rows:
        return
    width = max(len(row.subject) for row in rows)
    workload = None
    for row in rows:
        if row.workload != workload:
            workload = row.workload
            print(f"\n{row.benchmark} {workload}  [{row.settings}]")
        ratio = "" if math.isnan(row.ratio) else f"  x{row.ratio:.3f} (±{row.ratio_spread:.3f}) of {row.baseline}"
        value = f"{row.median:>11.3f} {row.unit:<8} spread {row.spread:<9.3f}"
        print(f"  {row.metric:<22} {row.subject:<{width}} {value} n={row.n}{ratio}")


def _format_cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _drop_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
