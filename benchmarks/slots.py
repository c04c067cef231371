"""Decode alone, with every slot at work on a context of its own, beside llama-batched-bench at the same contexts.

The contexts are evaluated beforehand and stay in the server's cache; a request brings its context and a few words of its
own, so that all slots are in decode at about the same time. The window is the part of the round in which they all are: from
the last stream's first text to the first stream's last one, by the client's clock.
"""

from __future__ import annotations

import json
import subprocess
from itertools import chain
from pathlib import Path

from answers import Reply
from common import median
from servers import Server, Settings
from streamclient import Request, run_clients
from workloads import draw, make_body

N_NEW_WORDS = 4
"""Of each request, behind its context."""
UNITS = {"decode_tok_s": "tok/s", "cached_tokens": "tok", "prompt_tokens": "tok", "errors": "requests"}


def make_requests(server: Server, n_slots: int, n_context: int, n_new: int, seed: int, round_name: str) -> list[Request]:
    """One request a slot; with `round_name` "" the context alone."""
    requests = []
    for slot in range(n_slots):
        words = draw(n_context, seed, "slots", n_slots, n_context, slot)
        if round_name:
            words += " " + draw(N_NEW_WORDS, seed, "slots", slot, round_name)
        body = make_body(server.model, [{"role": "user", "content": words}], n_new)
        requests.append(Request("/chat/completions", body))
    return requests


def warm_up(server: Server, n_slots: int, n_context: int, seed: int) -> None:
    """Evaluate the contexts, then decode a little with all of them."""
    for name, n_new in (("", 1), ("warm-up", 8)):
        run_clients(server.address, [[request] for request in make_requests(server, n_slots, n_context, n_new, seed, name)])


def measure(server: Server, n_slots: int, n_context: int, n_new: int, seed: int, round_name: str) -> dict[str, float]:
    """One round against one server."""
    requests = make_requests(server, n_slots, n_context, n_new, seed, round_name)
    return evaluate(list(chain.from_iterable(run_clients(server.address, [[request] for request in requests]))))


def evaluate(replies: list[Reply]) -> dict[str, float]:
    """Tokens a second of all streams together while all of them ran."""
    n_bad = sum(reply.error is not None or len(reply.arrival_s) < 2 for reply in replies)
    result = {"errors": float(n_bad)}
    if n_bad:
        return result
    began_s, ended_s = max(reply.arrival_s[0] for reply in replies), min(reply.arrival_s[-1] for reply in replies)
    if ended_s <= began_s:
        return result  # they never ran all together: there is nothing to tell
    n_tokens = 0.0
    for reply in replies:
        n_inside = sum(began_s < at <= ended_s for at in reply.arrival_s)
        n_tokens += reply.completion_tokens * n_inside / len(reply.arrival_s)
    result["decode_tok_s"] = n_tokens / (ended_s - began_s)
    result["cached_tokens"] = median(reply.cached_tokens for reply in replies)
    result["prompt_tokens"] = median(reply.prompt_tokens for reply in replies)
    return result


def run_batched_bench(binary: Path, settings: Settings, n_context: int, n_new: int) -> dict[str, float]:
    """The same by llama.cpp alone: its decode rate over all sequences."""
    command = [
        *(str(binary), "-m", str(settings.model_path), "-t", str(settings.n_threads), "-fa", "on"),
        *("-c", str(settings.n_slots * settings.ctx_len), "-npp", str(n_context), "-ntg", str(n_new)),
        *("-npl", str(settings.n_slots), "--output-format", "jsonl"),
    ]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return {"decode_tok_s": read_batched_bench(output), "errors": 0.0}


def read_batched_bench(output: str) -> float:
    """The decode rate in llama-batched-bench's only line of JSON."""
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    return float(json.loads(line)["speed_tg"])
