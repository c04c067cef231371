"""What hostler itself costs: an engine that costs nothing (plugins/echo) over 16 SSE streams; memory idle; time to ready.

    python benchmarks/bench_host.py

A round is a fresh `hostler serve` on an empty home. Windows: `ready` runs from the creation of the process to the first 200 of
/readyz; `rss_idle` is the serving process after its first answered request, no model running; tokens a second run from
before the first connection to the last byte of the last stream, 16 streams at once, counted by the server's `usage` and
checked against the length of the text. Client, host and worker share the machine; the client reads sockets only and takes
the answers apart afterwards.

`flood`: the engine gives tokens as fast as it can, so that many become one write. `paced`: each engine step takes 5 ms, so
that every token is written by itself; there `server_cpu` is what hostler takes from an engine on the same cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from common import Context, compare, print_table, write_csv, write_json
from servers import Hostler, ServerFailed, end_on_sigterm
from streamclient import Request, fetch, run_clients
from workloads import UNITS as SERVING_UNITS
from workloads import summarise

BENCHMARK = "host"
TEXT = "The quick brown fox jumps over the lazy dog, now and again. "
BYTES_PER_TOKEN = 3
"""About what a word piece of English has (echo's have 1 to 3); a divisor of TEXT's length, so that no token is shorter."""

UNITS = {
    "ready": "s",
    "rss_idle": "MB",
    "own_idle": "MB",
    "rss_started": "MB",
    "rss_worked": "MB",
    **{name: unit for name, unit in SERVING_UNITS.items() if not name.startswith(("worker", "cached", "prompt", "total"))},
}


def stream(server: Hostler, n_streams: int, n_tokens: int) -> dict[str, float]:
    """All streams at once, once."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Go on."}],
        "max_tokens": n_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    cpu_s, client_s = server.cpu_s(), time.process_time()
    replies = run_clients(server.address, [[Request("/chat/completions", body)]] * n_streams)
    client_s, cpu_s = time.process_time() - client_s, server.cpu_s() - cpu_s
    for (reply,) in replies:
        if reply.error is None and len(reply.text) != reply.completion_tokens * BYTES_PER_TOKEN:
            reply.error = f"{reply.completion_tokens} tokens are said to be {len(reply.text)} characters"
    for error in {reply.error for (reply,) in replies if reply.error}:
        print(f"  {error}", file=sys.stderr)
    result = summarise(replies)
    if new_tokens := result.get("new_tokens"):
        result["server_cpu"], result["client_cpu"] = 1e3 * cpu_s / new_tokens, 1e3 * client_s / new_tokens
    return result


def measure(folder: Path, n_streams: int, workloads: dict[str, tuple[float, int]]) -> dict[str, dict[str, float]]:
    """One life of `hostler serve`: workload -> metrics."""
    server = Hostler()
    try:
        result = {"ready": server.ready_s}
        fetch(server.address, "GET", "/models")
        memory = server.memory()
        result["rss_idle"], result["own_idle"] = memory["rss"], memory["own"]
        results = {"start": result}
        for name, (delay_s, n_tokens) in workloads.items():
            server.import_model(write_model(folder, name, delay_s), name)
            server.start_model(name, {"n_parallel": n_streams, "ctx_len": n_tokens + 1024})
            result = {"rss_started": server.memory()["rss"]}
            stream(server, n_streams, max(1, n_tokens // 8))  # unmeasured: late imports, buffers
            result |= stream(server, n_streams, n_tokens)
            result["rss_worked"] = server.memory()["rss"]
            results[name] = result
            fetch(server.address, "PUT", f"/models/{name}/stop")
        return results
    finally:
        server.close()


def write_model(folder: Path, name: str, delay_s: float) -> Path:
    """An echo model that goes on and on, each step taking `delay_s`."""
    path = folder / f"{name}.echo"
    manners = {"flood": True, "delay_s": delay_s}
    path.write_text(json.dumps({"script": TEXT, "bytes_per_token": BYTES_PER_TOKEN, "n_ctx": 1 << 20, "manners": manners}))
    return path


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when the server failed or a stream ended in an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=8000, help="per stream and flood (8000)")
    parser.add_argument("--paced-tokens", type=int, default=400, help="per stream of the paced workload (400)")
    parser.add_argument("--step-ms", type=float, default=5.0, help="engine step of the paced workload (5)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    end_on_sigterm()
    context = Context()
    workloads = {"flood": (0.0, arguments.tokens), "paced": (arguments.step_ms / 1e3, arguments.paced_tokens)}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ("start", *workloads)}
    with tempfile.TemporaryDirectory(prefix="hostler-bench-") as folder:
        try:
            for number in range(-1, arguments.rounds):
                results = measure(Path(folder), arguments.streams, workloads)
                for name, result in results.items() if number >= 0 else ():
                    rounds[name].append(result)
                    shown = ", ".join(f"{metric} {result[metric]:.4g}" for metric in UNITS if metric in result)
                    print(f"round {number + 1}/{arguments.rounds} {name}: {shown}", file=sys.stderr)
        except ServerFailed as error:
            print(f"bench_host: {error}", file=sys.stderr)
            return 1
    rows = []
    for name, results_of in rounds.items():
        delay_s, n_tokens = workloads.get(name, (0.0, 0))
        settings = f"streams={arguments.streams} tokens={n_tokens} step_ms={delay_s * 1e3:g}" if name in workloads else ""
        rows += compare(BENCHMARK, name, {"hostler": results_of}, UNITS, "", "echo", settings)
    print_table(rows)
    if arguments.csv:
        write_csv(arguments.csv, rows, context)
    if arguments.json:
        write_json(arguments.json, rows, context)
    return 1 if any(row.metric == "errors" and max(row.values) > 0 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
