"""The model after `hostler tune --apply` beside llama-server on the file as shipped: prefill and decode of one request.

Both clocks are the servers' own (`timings`), prompts are random token ids. Tuning is not timed; what it found is kept in a
home that stays, so that only the first round waits for it. The change of perplexity is the one that tuning measured.
"""

from __future__ import annotations

import math
import sys

from bench_serving import ask_by_tokens
from servers import Hostler, Server
from streamclient import fetch

N_PROMPT, N_NEW = 512, 128
UNITS = {
    "pp512": "tok/s",
    "tg128": "tok/s",
    "perplexity_change": "share",
    "kl_divergence": "nats",
    "errors": "requests",
}


def tune(server: Hostler, is_quick: bool) -> None:
    """Tune the model and keep what is recommended, unless that was done before."""
    if "tuned_variant" in metadata(server):
        return
    print("tuning; this takes a while", file=sys.stderr)
    server.command("tune", "bench", "--apply", "--json", *(["--quick"] if is_quick else []))


def metadata(server: Server) -> dict[str, object]:
    """What the library knows of the model."""
    status, answer = fetch(server.address, "GET", "/models/bench?schema=native")
    return dict(answer.get("metadata") or {}) if status == 200 else {}


def measure(server: Server, round_name: str, seed: int) -> dict[str, float]:
    """One round against one server."""
    result = {"errors": 0.0}
    for name, n_prompt, n_new in (("pp512", N_PROMPT, 0), ("tg128", 0, N_NEW)):
        result[name], error = ask_by_tokens(server, n_prompt, n_new, f"{seed} tuned {name} {round_name}")
        if error:
            result["errors"] += 1
            print(f"  {server.name} {name}: {error}", file=sys.stderr)
    if isinstance(server, Hostler):
        # The file as shipped may be what is best: then nothing is lost.
        known = metadata(server)
        for metric in ("perplexity_change", "kl_divergence"):
            value = known.get(f"tuned_{metric}") if "tuned_variant" in known else 0.0
            result[metric] = float(value) if isinstance(value, int | float) else math.nan
    return result
