"""The whole table of issue 5: every workload beside its baseline, one CSV and one plot each, and what was kept or missed.

    python benchmarks/bench_all.py --model-path M.gguf --peer llama.cpp/build/bin
    python benchmarks/bench_all.py --model-path M.gguf --peer llama.cpp/build/bin --piece chats --piece restart
    python benchmarks/bench_all.py --list

The table takes hours on two cores. It is measured piece by piece and round by round; what a round gave is kept at once, so
that a run that is interrupted, or ends after `--limit-s`, goes on when it is called again on the same commit. Without
--peer the pieces that compare with llama.cpp's programs are named as not run. README.md says what each timed window holds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bars import MISSED, Bar, Verdict, judge, show, write_csv, write_markdown
from bench_serving import parse_server
from common import ROOT, Context, compare
from common import write_csv as write_rows
from lineup import Lineup, Setup
from modelfiles import pull, requantised
from pieces import PIECES, Piece
from rounds import OutOfTime, Rounds
from servers import ServerFailed, end_on_sigterm

RESULTS = ROOT / "benchmarks" / "results"
STATE = ROOT / "build" / "bench"


def run_piece(piece: Piece, setup: Setup, rounds: Rounds, stop_at: float) -> str:
    """Measure what is missing; gives why something is missing still, or nothing."""
    try:
        with _lineup(piece, setup, rounds.seed) as lineup:
            for number, subject in rounds.go(stop_at):
                began_s = time.monotonic()
                result = piece.subjects[subject](lineup, str(number), rounds.seed)
                rounds.note(number, subject, result)
                print(_line(piece, number, subject, result, time.monotonic() - began_s), file=sys.stderr)
    except OutOfTime:
        return "out of time; call again to go on"
    except ServerFailed as error:
        print(f"{piece.name}: {error}", file=sys.stderr)
        return str(error).splitlines()[0][:200]
    return ""


def _lineup(piece: Piece, setup: Setup, seed: int) -> Lineup:
    path = requantised(setup.model_path, piece.kind, setup.work) if piece.kind else setup.model_path
    warm_up, prepare = piece.warm_up, piece.prepare
    return Lineup(
        setup,
        setup.settings(piece.n_slots, piece.ctx_len, path),
        piece.more,
        None if warm_up is None else lambda server: warm_up(server, seed),
        piece.home,
        None if prepare is None else lambda server: prepare(server, setup.is_quick),
    )


def _line(piece: Piece, number: int, subject: str, result: dict[str, float], took_s: float) -> str:
    shown = ", ".join(f"{name} {result[name]:.4g}" for name in piece.units if name in result and name != "uncounted")
    return f"{piece.name} round {number + 1}/{piece.n_rounds} {subject} ({took_s:.0f} s): {shown}"


def subjects_of(piece: Piece, setup: Setup) -> list[str]:
    """Those that can be measured."""
    return [name for name in piece.subjects if setup.peer or name in setup.running or name not in piece.peers]


def open_rounds(piece: Piece, setup: Setup, state: Path, commit: str, n_rounds: int, is_fresh: bool) -> Rounds:
    """What is kept of a piece."""
    about = {
        "commit": commit,
        "settings": str(setup.settings(piece.n_slots, piece.ctx_len)),
        "model": setup.model_path.name,
        "more": {name: {**setup.more, **more} for name, more in piece.more.items()} or setup.more,
        "quick": setup.is_quick,
        "running": {name: f"{server.address.host}:{server.address.port}" for name, server in setup.running.items()},
    }
    return Rounds(state / f"{piece.name}.json", subjects_of(piece, setup), n_rounds, about, is_fresh)


def judge_piece(piece: Piece, rounds: Rounds, commit: str, note: str) -> list[tuple[Bar, Verdict]]:
    """Each bar with its verdict."""
    complete = rounds.complete()
    pairs = []
    for bar in piece.bars:
        is_comparable = bar.baseline in ("", *rounds.subjects)
        why = note if is_comparable else f"needs {bar.baseline}: --peer FOLDER (make bench PEER=FOLDER)"
        pairs.append((bar, judge(piece.name, bar, complete, commit, why)))
    return pairs


def write_piece(piece: Piece, rounds: Rounds, setup: Setup, results: Path, context: Context) -> None:
    """The rows of a piece, with ratios to its baseline."""
    others = [name for name in rounds.subjects if name != "hostler"]
    settings = str(setup.settings(piece.n_slots, piece.ctx_len))
    said = " ".join([settings, *(f"{name}={value}" for name, value in setup.more.items())])
    said += "".join(f" {name}:{more}" for name, more in piece.more.items())
    baseline = others[0] if others else ""
    model = setup.model_path.name + (f" as {piece.kind}" if piece.kind else "")
    rows = compare("all", piece.name, rounds.complete(), piece.units, baseline, model, said)
    if rows:
        write_rows(results / f"{piece.name}.csv", rows, context)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, help="GGUF file")
    parser.add_argument("--model", default="smollm2", help="without --model-path: what is downloaded (smollm2)")
    parser.add_argument("--peer", type=Path, help="folder with llama-server, llama-bench and llama-batched-bench")
    parser.add_argument(
        "--running",
        action="append",
        default=[],
        metavar="NAME=URL,MODEL",
        help="a server that runs already, in the place of the one that would be started as NAME: hostler or llama-server",
    )
    parser.add_argument("--api-key", default="", help="bearer token for every --running")
    parser.add_argument("--piece", action="append", default=[], choices=list(PIECES), help="repeatable; default: all")
    parser.add_argument("--quick", action="store_true", help="only the short pieces, one round each: does it all work?")
    parser.add_argument("--rounds", type=int, help="instead of each piece's own number")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin nothing that would end later than this")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is kept from an earlier run on this commit")
    parser.add_argument("--show", action="store_true", help="measure nothing, only write again what is kept")
    parser.add_argument("--threads", type=int, default=2, help="of every server (2)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of hostler's start requests, for experiments"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV, PNG, SVG and summary")
    parser.add_argument("--state", type=Path, default=STATE, help="folder of what rounds gave, and of model files")
    parser.add_argument("--list", action="store_true", help="name the pieces and their bars")
    arguments = parser.parse_args(argv)
    if any("=" not in pair for pair in arguments.set):
        parser.error("--set takes NAME=VALUE")
    return arguments


def parse_value(text: str) -> Any:
    """A setting's value as a start request has it: JSON, or else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def choose(arguments: argparse.Namespace) -> list[Piece]:
    """The pieces to measure."""
    chosen = [PIECES[name] for name in PIECES if name in arguments.piece or not arguments.piece]
    return [piece for piece in chosen if piece.is_quick or not arguments.quick or arguments.piece]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 when a bar was missed or a server failed."""
    arguments = parse_arguments(argv)
    pieces = choose(arguments)
    if arguments.list:
        for piece in pieces:
            print(f"{piece.name:<14} {piece.about}")
            for bar in piece.bars:
                print(f"{'':<14}   {bar.metric} {bar}")
        return 0
    end_on_sigterm()
    context = Context()
    more = {name: parse_value(value) for name, _, value in (pair.partition("=") for pair in arguments.set)}
    peer = arguments.peer and arguments.peer.resolve()
    try:
        running = [parse_server(text, arguments.api_key) for text in arguments.running]
        model_path = arguments.model_path or pull(arguments.model, arguments.state / "home")
    except ServerFailed as error:
        print(f"bench_all: {error}", file=sys.stderr)
        return 1
    by_name = {server.name: server for server in running}
    setup = Setup(model_path, peer, arguments.threads, arguments.state, arguments.quick, more, by_name)
    stop_at = time.monotonic() + arguments.limit_s
    verdicts: list[Verdict] = []
    has_failed = False
    for piece in pieces:
        n_rounds = arguments.rounds or (1 if arguments.quick else piece.n_rounds)
        rounds = open_rounds(piece, setup, arguments.state, context.commit, n_rounds, arguments.fresh)
        note = ""
        if rounds.missing() and not arguments.show:
            note = run_piece(piece, setup, rounds, stop_at)
            has_failed |= bool(note) and not note.startswith("out of time")
        pairs = judge_piece(piece, rounds, context.commit, note)
        write_piece(piece, rounds, setup, arguments.results, context)
        draw_piece(piece, pairs, arguments.results)
        verdicts += [verdict for _, verdict in pairs]
        for verdict in verdicts[-len(pairs) :]:
            print(f"{verdict.workload:<14} {verdict.metric:<22} {verdict.bar:<28} {show(verdict):<26} {verdict.verdict}")
    if not arguments.piece:
        write_csv(arguments.results / "summary.csv", verdicts)
        write_markdown(arguments.results / "summary.md", verdicts, context.machine, context.command)
    return int(has_failed or any(verdict.verdict == MISSED for verdict in verdicts))


def draw_piece(piece: Piece, pairs: list[tuple[Bar, Verdict]], results: Path) -> None:
    """The plot, where matplotlib is installed."""
    try:
        import plots

        plots.draw(results, piece.name, piece.about, pairs)
    except ImportError as error:
        print(f"no plot of {piece.name}: {error}; pip install 'hostler[bench]' or: make bench", file=sys.stderr)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.exit(main())
