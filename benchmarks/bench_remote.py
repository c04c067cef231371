"""What answers lose on their way through another hostler: client -> hostler (remote) -> hostler (echo), beside direct.

    python benchmarks/bench_remote.py

Both servers, both workers and the client share this machine, so the way through does about twice the work on the same cores.
A round asks both ways, one after the other, in an order that turns. Windows as in bench_host.py: tokens a second from
before the first connection to the last byte of the last stream; TTFT and ITL by the client's clock.

`paced`: each engine step of the upstream takes 20 ms, as a model's may; what matters is how much later tokens come.
`flood`: the upstream gives tokens as fast as it can; what matters is how many get through.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_host import UNITS, stream, write_model
from common import Context, compare, print_table, write_csv, write_json
from servers import Hostler, ServerFailed, end_on_sigterm, hostler_command

BENCHMARK = "remote"


def add_remote(server: Hostler, upstream: Hostler, model: str) -> None:
    """Make a model of the upstream one of this server."""
    url = f"http://{upstream.address.host}:{upstream.address.port}/v1"
    options = ["--url", url, "--model", model, "--kind", "hostler"]
    command = [*hostler_command(), "remote", "add", model, *options]
    done = subprocess.run(command, env={**os.environ, **server.environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFailed(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when a server failed or a stream ended in an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4000, help="per stream and flood (4000)")
    parser.add_argument("--paced-tokens", type=int, default=200, help="per stream of the paced workload (200)")
    parser.add_argument("--step-ms", type=float, default=20.0, help="engine step of the paced workload (20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    end_on_sigterm()
    context = Context()
    workloads = {"paced": (arguments.step_ms / 1e3, arguments.paced_tokens), "flood": (0.0, arguments.tokens)}
    rows = []
    upstream = Hostler()
    try:
        server = Hostler()
        try:
            with tempfile.TemporaryDirectory(prefix="hostler-bench-") as folder:
                for name, (delay_s, n_tokens) in workloads.items():
                    settings = {"n_parallel": arguments.streams, "ctx_len": n_tokens + 1024}
                    upstream.import_model(write_model(Path(folder), name, delay_s), name)
                    upstream.start_model(name, settings)
                    add_remote(server, upstream, name)
                    server.start_model(name, {"n_parallel": arguments.streams})
                    ways = {"direct": upstream, "remote": server}
                    found = {way: [] for way in ways}
                    for number in range(-1, arguments.rounds):
                        for way in sorted(ways, reverse=bool(number % 2)):
                            result = stream(ways[way], arguments.streams, n_tokens if number >= 0 else max(1, n_tokens // 8))
                            if number >= 0:
                                found[way].append(result)
                                shown = ", ".join(f"{key} {value:.4g}" for key, value in result.items() if key in UNITS)
                                print(f"{name} {number + 1}/{arguments.rounds} {way}: {shown}", file=sys.stderr)
                    note = f"streams={arguments.streams} tokens={n_tokens} step_ms={delay_s * 1e3:g}"
                    rows += compare(BENCHMARK, name, found, UNITS, "direct", "echo", note)
        finally:
            server.close()
    except ServerFailed as error:
        print(f"bench_remote: {error}", file=sys.stderr)
        return 1
    finally:
        upstream.close()
    print_table(rows)
    if arguments.csv:
        write_csv(arguments.csv, rows, context)
    if arguments.json:
        write_json(arguments.json, rows, context)
    return 1 if any(row.metric == "errors" and max(row.values) > 0 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
