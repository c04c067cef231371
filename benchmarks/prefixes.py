"""A long beginning that many requests have in common: what the first of them waits for, what the next, and what the first
after the server was stopped and started again.

Each request is the beginning (a system message) and a question of its own. TTFT is the client's; loading the model after the
restart is not in it.
"""

from __future__ import annotations

from answers import Reply
from servers import Server
from streamclient import Request, run_clients
from workloads import draw, make_body

N_WORDS = 4000
N_QUESTION_WORDS = 8
N_TOKENS = 8

UNITS = {
    "ttft_cold": "ms",
    "ttft_warm": "ms",
    "ttft_restarted": "ms",
    "warm_by_cold": "x",
    "restarted_by_cold": "x",
    "prompt_tokens": "tok",
    "cached_warm": "tok",
    "cached_restarted": "tok",
    "errors": "requests",
}


def measure(server: Server, round_name: str, seed: int, n_words: int = N_WORDS) -> dict[str, float]:
    """One round against a server that can be restarted."""
    beginning = draw(n_words, seed, "prefixes", round_name)

    def ask(when: str) -> Reply:
        question = draw(N_QUESTION_WORDS, seed, "prefixes", round_name, when)
        messages = [{"role": "system", "content": beginning}, {"role": "user", "content": question}]
        ((reply,),) = run_clients(
            server.address, [[Request("/chat/completions", make_body(server.model, messages, N_TOKENS))]]
        )
        return reply

    cold, warm = ask("cold"), ask("warm")
    server.restart()
    # The restarted server has answered before, or its first answer's own costs would count.
    body = make_body(server.model, [{"role": "user", "content": draw(8, seed, "prefixes", round_name, "first")}], 2)
    run_clients(server.address, [[Request("/chat/completions", body)]])
    return evaluate(cold, warm, ask("restarted"))


def evaluate(cold: Reply, warm: Reply, restarted: Reply) -> dict[str, float]:
    """The metrics of a round."""
    replies = {"cold": cold, "warm": warm, "restarted": restarted}
    n_bad = sum(reply.error is not None or not reply.arrival_s for reply in replies.values())
    result = {"errors": float(n_bad)}
    if n_bad:
        return result
    ttft = {name: 1e3 * (reply.arrival_s[0] - reply.sent_s) for name, reply in replies.items()}
    result |= {f"ttft_{name}": value for name, value in ttft.items()}
    result["warm_by_cold"], result["restarted_by_cold"] = ttft["warm"] / ttft["cold"], ttft["restarted"] / ttft["cold"]
    result["prompt_tokens"] = float(cold.prompt_tokens)
    result["cached_warm"], result["cached_restarted"] = float(warm.cached_tokens), float(restarted.cached_tokens)
    return result
