"""What installed plugins cost `hostler --help`, which looks at all of them.

    python benchmarks/bench_cli.py

The window is one whole process, from before it is spawned until it has ended, with the home of a user who has chosen
nothing. Subjects run in turn within a round, `none` first: as many made-up plugins as `--plugins` says, each a package with
metadata of the usual length, one engine and one command, in a folder on the import path; and those with one more that hangs
on import, which shows the deadline. What was installed beforehand is in every subject. `added_ms` is the difference to
`none` in the same round, `added_cpu_ms` the same in processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Context, Row, compare, print_table, write_csv, write_json

UNITS = {"wall_ms": "ms", "cpu_ms": "ms", "added_ms": "ms", "added_cpu_ms": "ms"}
LIMIT_MS = 30.0

PLUGIN = """
import click
from hostler import EngineSpec, hookimpl

HOSTLER_API = 1


def estimate(path, settings):
    return None


@hookimpl
def register_engines():
    engine, probe = "made_up_NAME.engine:Engine", "made_up_NAME.engine:probe"
    return [EngineSpec("NAME", ("NAME",), engine, probe, estimate=estimate, version="1.0")]


@click.command()
def NAME():
    "Do what plugin NAME does."


@hookimpl
def register_commands(cli):
    cli.add_command(NAME)
"""
HANGS = "import threading\nthreading.Event().wait()\n"


def write_plugins(site: Path, n_plugins: int) -> None:
    """Write packages as pip leaves them, with the metadata of a package that has some dependencies and a README."""
    for name in (f"plug{index}" for index in range(n_plugins)):
        write_plugin(site, name, PLUGIN.replace("NAME", name))


def write_plugin(site: Path, name: str, source: str) -> None:
    """Write one."""
    (site / f"made_up_{name}.py").write_text(source)
    info = site / f"made_up_{name}-1.0.dist-info"
    info.mkdir()
    requires = "".join(f"Requires-Dist: library{index}>=1\n" for index in range(10))
    readme = "What this package does, at the length of a README.\n" * 100
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up-{name}\nVersion: 1.0\n{requires}\n{readme}")
    (info / "entry_points.txt").write_text(f"[hostler]\n{name} = made_up_{name}\n")
    (info / "RECORD").write_text(f"made_up_{name}.py,,\n")


def measure(site: Path | None, home: Path, expected: str) -> dict[str, float]:
    """One call."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
    environment["HOSTLER_HOME"] = str(home)
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "hostler", "--help"], capture_output=True, text=True, env=environment, check=True
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if expected not in done.stdout + done.stderr:
        raise SystemExit(f"`hostler --help` does not show {expected!r}:\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_ms": wall * 1000, "cpu_ms": cpu * 1000}


def main() -> int:
    """Measure, print, write; 1 when the plugins cost more than they may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugins", type=int, default=20, help="made-up plugins [20]")
    parser.add_argument("--rounds", type=int, default=15, help="rounds after the first, which is not counted [15]")
    parser.add_argument("--hang", action="store_true", help="also with one that hangs")
    parser.add_argument("--csv", type=Path, help="write rows here")
    parser.add_argument("--json", type=Path, help="write rows with every round's value here")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        home, many = Path(folder, "home"), Path(folder, "many")
        many.mkdir()
        write_plugins(many, arguments.plugins)
        subjects: dict[str, tuple[Path | None, str]] = {
            "none": (None, "serve"),
            f"{arguments.plugins} plugins": (many, f"plug{arguments.plugins - 1}"),
        }
        if arguments.hang:
            hanging = Path(folder, "hanging")
            hanging.mkdir()
            write_plugin(hanging, "asleep", HANGS)
            subjects["one that hangs"] = (hanging, "plugin 'asleep' is skipped")
        rounds: dict[str, list[dict[str, float]]] = {subject: [] for subject in subjects}
        for index in range(arguments.rounds + 1):
            taken = {subject: measure(site, home, expected) for subject, (site, expected) in subjects.items()}
            if index == 0:
                continue  # writes the byte code
            for subject, values in taken.items():
                values["added_ms"] = values["wall_ms"] - taken["none"]["wall_ms"]
                values["added_cpu_ms"] = values["cpu_ms"] - taken["none"]["cpu_ms"]
                rounds[subject].append(values)

    rows: list[Row] = compare("cli", "help", rounds, UNITS, "", settings=f"{arguments.plugins} made-up plugins")
    print_table(rows)
    context = Context()
    if arguments.csv:
        write_csv(arguments.csv, rows, context)
    if arguments.json:
        write_json(arguments.json, rows, context)
    subject = f"{arguments.plugins} plugins"
    added = next(row.median for row in rows if row.subject == subject and row.metric == "added_ms")
    print(f"{subject} add {added:.1f} ms; allowed are {LIMIT_MS:g} ms")
    return int(added > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
