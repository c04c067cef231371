"""Start to ready and resident memory: PUT start of a hostler model against the start of a llama-server, equal contexts.

    python benchmarks/bench_load.py --model-path M.gguf --llama-server /path/llama-server

Each round starts both from nothing, one after the other, measures, sends both the same traffic, measures again and stops them.
Windows: `serve_ready` and llama-server's `start` run from the creation of the process to its first healthy answer; hostler's
`start` from the PUT to the answer that says running. The model file is in the page cache (read once before the first round).
Memory is that of the whole process tree, in MB of 10^6 bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

from common import Context, Row, add_run_arguments, compare, print_table, write_results
from servers import Hostler, LlamaServer, Server, ServerFailed, Settings, end_on_sigterm, start_settings
from streamclient import fetch, run_clients
from workloads import Workload

BENCHMARK = "load"

UNITS = {
    "serve_ready": "s",
    "start": "s",
    "rss_idle": "MB",
    "rss_started": "MB",
    "rss_worked": "MB",
    "pss_started": "MB",
    "pss_worked": "MB",
    "own_started": "MB",
    "own_worked": "MB",
    "host_rss_started": "MB",
    "host_rss_worked": "MB",
    "errors": "requests",
}
"""rss counts pages that processes share in each of them, pss shares them out, own is what only this tree has."""


def note_memory(server: Server, when: str, result: dict[str, float]) -> None:
    """Add the memory of a server to a round's result."""
    memory = server.memory()
    result[f"rss_{when}"] = memory["rss"]
    result[f"pss_{when}"] = memory["pss"]
    result[f"own_{when}"] = memory["own"]
    if isinstance(server, Hostler):
        result[f"host_rss_{when}"] = memory["host_rss"]


def work(server: Server, workload: Workload, round_name: str, seed: int, result: dict[str, float]) -> None:
    """Let every slot have its turn, then look at the memory again."""
    replies = run_clients(server.address, workload.make_requests(server.model, round_name, seed))
    errors = [reply.error for client in replies for reply in client if reply.error]
    for error in errors:
        print(f"  {server.name}: {error}", file=sys.stderr)
    result["errors"] = float(len(errors))
    note_memory(server, "worked", result)


def measure_hostler(settings: Settings, workload: Workload, round_name: str, seed: int) -> dict[str, float]:
    """One life of `hostler serve` with one model."""
    server = Hostler()
    try:
        result = {"serve_ready": server.ready_s}
        server.import_model(settings.model_path)
        fetch(server.address, "GET", "/models")  # so that the first request's late imports count as idle memory
        result["rss_idle"] = server.memory()["rss"]
        result["start"] = server.start_model("bench", start_settings(settings))
        note_memory(server, "started", result)
        work(server, workload, round_name, seed, result)
        return result
    finally:
        server.close()


def measure_llama_server(binary: Path, settings: Settings, workload: Workload, round_name: str, seed: int) -> dict[str, float]:
    """One life of llama-server."""
    server = LlamaServer(binary, settings)
    try:
        result = {"start": server.ready_s}
        note_memory(server, "started", result)
        work(server, workload, round_name, seed, result)
        return result
    finally:
        server.close()


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, n_rounds=5, n_threads=os.cpu_count(), model="GGUF file")
    parser.add_argument("--llama-server", type=Path, help="binary to compare with; without it hostler alone is measured")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--ctx", type=int, default=4096, help="tokens per slot (4096)")
    parser.add_argument("--words", type=int, default=200, help="prompt length of the traffic between two looks (200)")
    arguments = parser.parse_args(argv)
    settings = Settings(arguments.model_path, arguments.slots, arguments.ctx, arguments.threads)
    workload = Workload("load", "each slot works twice", settings.n_slots, 2, arguments.words, 16)
    seed = random.SystemRandom().randrange(1 << 32)
    end_on_sigterm()
    context = Context()
    with arguments.model_path.open("rb") as source:
        while source.read(1 << 20):
            pass
    rounds: dict[str, list[dict[str, float]]] = {"hostler": []}
    if arguments.llama_server:
        rounds["llama-server"] = []
    try:
        for number in range(arguments.rounds):
            for name in list(rounds) if number % 2 else list(rounds)[::-1]:
                if name == "hostler":
                    result = measure_hostler(settings, workload, str(number), seed)
                else:
                    result = measure_llama_server(arguments.llama_server, settings, workload, str(number), seed)
                rounds[name].append(result)
                shown = ", ".join(f"{metric} {value:.2f}" for metric, value in result.items())
                print(f"round {number + 1}/{arguments.rounds} {name}: {shown}", file=sys.stderr)
    except ServerFailed as error:
        print(f"bench_load: {error}", file=sys.stderr)
        return 1
    baseline = "llama-server" if arguments.llama_server else ""
    workload_name = f"{settings.n_slots}x{settings.ctx_len}"
    rows: list[Row] = compare(BENCHMARK, workload_name, rounds, UNITS, baseline, arguments.model_path.name, str(settings))
    print_table(rows)
    write_results(arguments, rows, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
