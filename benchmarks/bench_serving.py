"""Streaming clients against OpenAI servers, in turn: TTFT, time between tokens, tokens a second, and ratios to a baseline.

    python benchmarks/bench_serving.py --model-path M.gguf --spawn llama-server=/path/llama-server --spawn hostler
    python benchmarks/bench_serving.py --server a=http://127.0.0.1:8080/v1,model-a --server b=http://127.0.0.1:1337/v1,model-b
    python benchmarks/bench_serving.py --model-path M.gguf --spawn hostler --raw /path/llama-bench

One process holds all clients. In each round every server gets the same fresh prompts, one server after the other, in an
order that turns with the round; a ratio compares two servers of one round. The window of a round runs from before the first
connection to the last byte of the last answer. `--raw` compares the server's own clock (`timings`) with llama-bench on
prompts of exactly as many tokens. README.md defines each metric.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import Context, Row, compare, print_table, write_csv, write_json
from servers import Server, ServerFailed, Settings, end_on_sigterm, spawn
from streamclient import Address, Request, run_clients
from workloads import UNITS, WORKLOADS, Workload, summarise

BENCHMARK = "serving"


def measure(server: Server, workload: Workload, round_name: str, seed: int, idle: list[Server]) -> dict[str, float]:
    """Run one workload once against one server while the others should be idle."""
    requests = workload.make_requests(server.model, round_name, seed)
    cpu_before_s = [other.cpu_s() for other in (server, *idle)]
    client_before_s, began_s = time.process_time(), time.perf_counter()
    replies = run_clients(server.address, requests)
    wall_s, client_cpu_s = time.perf_counter() - began_s, time.process_time() - client_before_s
    cpu_s = [other.cpu_s() - before for other, before in zip((server, *idle), cpu_before_s, strict=True)]
    result = summarise(replies)
    if new_tokens := result.get("new_tokens"):
        result["client_cpu"] = 1e3 * client_cpu_s / new_tokens
        if server.process is not None:
            result["server_cpu"] = 1e3 * cpu_s[0] / new_tokens
    if any(other.process is not None for other in idle):
        result["idle_cpu"] = sum(cpu_s[1:]) / wall_s
    for error in {reply.error for client in replies for reply in client if reply.error}:
        print(f"  {server.name}: {error}", file=sys.stderr)
    return result


def run_workload(
    servers: list[Server], workload: Workload, n_rounds: int, seed: int, baseline: str, model: str, settings: str
) -> list[Row]:
    """All rounds of one workload, after one unmeasured round."""
    rounds: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for number in range(-1, n_rounds):
        for server in rotate(servers, number):
            others = [other for other in servers if other is not server]
            name = f"warm-up {server.name}" if number < 0 else str(number)
            result = measure(server, workload, name, seed, others)
            if number >= 0:
                rounds[server.name].append(result)
                reached = f"{result.get('new_tok_s', 0.0):.1f} new tok/s, TTFT p50 {result.get('ttft_p50', 0.0):.0f} ms"
                line = f"{workload.name} round {number + 1}/{n_rounds} {server.name}: {reached}"
                print(f"{line}, {result['errors']:.0f} errors", file=sys.stderr)
    return compare(BENCHMARK, workload.name, rounds, UNITS, baseline, model, settings)


def rotate(servers: list[Server], number: int) -> list[Server]:
    """Who goes first changes with the round, so that a machine that slows down slows all alike."""
    start = number % len(servers)
    return servers[start:] + servers[:start]


# -- against the engine alone ---------------------------------------------------------------------------------------

FIRST_TOKEN_ID, LAST_TOKEN_ID = 1000, 20000
"""Random prompts are drawn from here: ordinary tokens in any vocabulary of more than 20,000."""


def run_raw(
    server: Server,
    llama_bench: Path,
    settings: Settings,
    n_prompt: list[int],
    n_gen: int,
    n_rounds: int,
    seed: int,
    model: str,
    said: str,
) -> list[Row]:
    """llama-bench and non-streamed requests in turn: prefill of `n_prompt` and decode of `n_gen` tokens, worker's clock."""
    raw = "llama-bench"
    rounds: dict[str, list[dict[str, float]]] = {raw: [], server.name: []}
    tests = [(f"pp{n}", n, 0) for n in n_prompt] + [(f"tg{n_gen}", 0, n_gen)]
    for number in range(-1, n_rounds):
        results: dict[str, dict[str, float]] = {raw: {}, server.name: {"errors": 0.0}}
        for name, n_tokens, n_new in tests:
            order = (raw, server.name) if number % 2 else (server.name, raw)
            for subject in order:
                if subject == raw:
                    results[raw][name] = run_llama_bench(llama_bench, settings, n_tokens, n_new)
                else:
                    rate, error = ask_by_tokens(server, n_tokens, n_new, f"{seed} {name} {number}")
                    results[subject][name] = rate
                    if error:
                        results[subject]["errors"] += 1
                        print(f"  {server.name} {name}: {error}", file=sys.stderr)
        if number >= 0:
            for subject, result in results.items():
                rounds[subject].append(result)
            print(f"raw round {number + 1}/{n_rounds}: {json.dumps(results)}", file=sys.stderr)
    units = {name: "tok/s" for name, _, _ in tests} | {"errors": "requests"}
    return compare(BENCHMARK, "raw", rounds, units, raw, model, said)


def run_llama_bench(binary: Path, settings: Settings, n_prompt: int, n_gen: int) -> float:
    """Tokens a second of one test, after llama-bench's own warm-up."""
    command = [
        *(str(binary), "-m", str(settings.model_path), "-t", str(settings.n_threads)),
        *("-p", str(n_prompt), "-n", str(n_gen), "-r", "1", "-fa", "1", "-o", "json"),
    ]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return float(json.loads(output)[0]["avg_ts"])


def ask_by_tokens(server: Server, n_prompt: int, n_gen: int, seed: str) -> tuple[float, str | None]:
    """The same by a request: prefill rate when `n_gen` is 0, else decode rate behind a prompt of 8 tokens."""
    draw = random.Random(seed)
    body: dict[str, Any] = {
        "model": server.model,
        "prompt": [draw.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(n_prompt or 8)],
        "max_tokens": n_gen + 1 if n_gen else 1,
        "temperature": 0,
        "ignore_eos": True,
    }
    ((reply,),) = run_clients(server.address, [[Request("/completions", body)]])
    timings = reply.timings or {}
    if reply.error or not timings:
        return float("nan"), reply.error or "the answer has no timings"
    if n_gen:
        return (timings["predicted_n"] - 1) / timings["predicted_ms"] * 1e3, None
    if timings["prompt_n"] != n_prompt:
        return float("nan"), f"{timings['prompt_n']:g} of {n_prompt} prompt tokens were evaluated"
    return timings["prompt_n"] / timings["prompt_ms"] * 1e3, None


# -- command line ---------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_argument_group("servers, measured in turn")
    which.add_argument("--server", action="append", default=[], metavar="NAME=URL,MODEL", help="one that runs already")
    which.add_argument(
        "--spawn", action="append", default=[], metavar="WHAT", help="start `hostler` or `llama-server=/path/to/llama-server`"
    )
    which.add_argument(
        "--baseline", default="", help="name that ratios refer to; default: llama-server if measured, else the first"
    )
    which.add_argument("--api-key", default="", help="bearer token for every --server")
    which.add_argument(
        "--hostler-env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment of a spawned hostler, to experiment",
    )
    equal = parser.add_argument_group("what spawned servers get alike")
    equal.add_argument("--model-path", type=Path, help="GGUF file")
    equal.add_argument("--slots", type=int, default=16)
    equal.add_argument("--ctx", type=int, default=1024, help="tokens per slot (1024)")
    equal.add_argument("--threads", type=int, default=os.cpu_count())
    load = parser.add_argument_group("load")
    load.add_argument(
        "--workload", action="append", default=[], choices=sorted(WORKLOADS), help="repeatable; default: single, distinct16"
    )
    load.add_argument("--rounds", type=int, default=5)
    load.add_argument("--seed", type=int, help="of the prompts; default: a new one each run")
    raw = parser.add_argument_group("against the engine alone, by the worker's clock")
    raw.add_argument("--raw", type=Path, metavar="LLAMA_BENCH", help="compare with this binary instead of running workloads")
    raw.add_argument("--raw-prompt", type=int, action="append", default=[], help="prefill lengths (115 and 512)")
    raw.add_argument("--raw-gen", type=int, default=128, help="decode length (128)")
    out = parser.add_argument_group("output")
    out.add_argument("--csv", type=Path)
    out.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    if not arguments.server and not arguments.spawn:
        parser.error("name a server with --server or start one with --spawn")
    if any("=" not in pair for pair in arguments.hostler_env):
        parser.error("--hostler-env takes NAME=VALUE")
    if arguments.spawn and not arguments.model_path:
        parser.error("--spawn needs --model-path")
    if arguments.raw and not arguments.model_path:
        parser.error("--raw needs --model-path: llama-bench loads it")
    return arguments


def parse_server(text: str, api_key: str) -> Server:
    """Read NAME=URL,MODEL."""
    name, equals, rest = text.partition("=")
    url, comma, model = rest.rpartition(",")
    if not (equals and comma and name and model):
        raise ServerFailed(f"--server {text!r} is not NAME=URL,MODEL such as mine=http://127.0.0.1:8080/v1,smollm2")
    return Server(name, Address.parse(url, api_key), model)


def choose_baseline(servers: list[Server], wanted: str) -> str:
    """The server that ratios refer to."""
    names = [server.name for server in servers]
    if wanted and wanted not in names:
        raise ServerFailed(f"--baseline {wanted!r} is none of {', '.join(names)}")
    return wanted or ("llama-server" if "llama-server" in names else names[0])


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 when a server failed or a request ended in an error."""
    arguments = parse_arguments(argv)
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    end_on_sigterm()
    context = Context()
    rows: list[Row] = []
    servers: list[Server] = []
    try:
        settings = Settings(arguments.model_path or Path(), arguments.slots, arguments.ctx, arguments.threads)
        servers += [parse_server(text, arguments.api_key) for text in arguments.server]
        for what in arguments.spawn:
            servers.append(spawn(what, settings, dict(pair.split("=", 1) for pair in arguments.hostler_env)))
        baseline = choose_baseline(servers, arguments.baseline)
        model = arguments.model_path.name if arguments.model_path else servers[0].model
        said = str(settings) if arguments.spawn else "as the servers were started"
        said = " ".join([said, *arguments.hostler_env])
        if arguments.raw:
            for server in servers:
                prompts = arguments.raw_prompt or [115, 512]
                rows += run_raw(
                    server, arguments.raw, settings, prompts, arguments.raw_gen, arguments.rounds, seed, model, said
                )
        else:
            for name in arguments.workload or ["single", "distinct16"]:
                rows += run_workload(servers, WORKLOADS[name], arguments.rounds, seed, baseline, model, said)
    except ServerFailed as error:
        print(f"bench_serving: {error}", file=sys.stderr)
        return 1
    finally:
        for server in servers:
            server.close()
        if arguments.csv and rows:
            write_csv(arguments.csv, rows, context)
        if arguments.json and rows:
            write_json(arguments.json, rows, context)
        print_table(rows)
    return 1 if any(row.metric == "errors" and max(row.values) > 0 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
