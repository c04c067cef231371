"""Workloads for OpenAI servers as a table, and the prompts they send.

A prompt is made of common words drawn at random from a seed that names workload, round, client and request: all servers get
the same prompts in the same round, and no prompt (nor the start of one) ever comes twice, since a repeat would come out of
a prompt cache and measure that.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from answers import Reply
from common import median, percentile
from streamclient import Request

# Frequent English words; with a space in front nearly all are one token in the byte-pair vocabularies of today's models.
_WORD_LIST = """
time person year way day thing man world life hand part child eye woman place work week case point government company
number group problem fact water money story month book night side home room area family mother power member music game
house service friend father hour line end law car city name team minute idea body information back parent face level
office door health art war history party result change morning reason research girl guy moment air teacher force order
light table court market nature letter garden river mountain road train paper window machine engine language question
answer forest winter summer animal plant stone bridge island ocean village kitchen dinner coffee sugar metal glass cloud
green black white small large early young strong simple quiet bright heavy clear modern common certain several
"""
WORDS = _WORD_LIST.split()


@dataclass(frozen=True)
class Workload:
    """One kind of load. Token counts are approximate: a word is about one token, the chat template comes on top."""

    name: str
    about: str
    n_clients: int
    n_requests: int
    """Requests each client sends one after the other in a round."""
    n_prompt_words: int
    """Words of each request's own user message."""
    max_tokens: int
    n_shared_words: int = 0
    """Words of the system message that all requests of a round share; 0: no system message."""
    is_streamed: bool = True

    def make_requests(self, model: str, round_name: str, seed: int = 0) -> list[list[Request]]:
        """The requests of all clients for one round; the same arguments give the same prompts."""
        shared = draw(self.n_shared_words, seed, self.name, round_name)
        return [
            [
                Request("/chat/completions", self._make_body(model, shared, seed, round_name, client, index))
                for index in range(self.n_requests)
            ]
            for client in range(self.n_clients)
        ]

    def _make_body(self, model: str, shared: str, seed: int, *where: object) -> dict[str, Any]:
        messages = [{"role": "user", "content": draw(self.n_prompt_words, seed, self.name, *where)}]
        if shared:
            messages.insert(0, {"role": "system", "content": shared})
        return make_body(model, messages, self.max_tokens, self.is_streamed)


def make_body(model: str, messages: list[dict[str, str]], max_tokens: int, is_streamed: bool = True) -> dict[str, Any]:
    """A chat request whose answer is as long as `max_tokens` says, on servers that know `ignore_eos`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 1,
        "ignore_eos": True,
        "stream": is_streamed,
    }
    if is_streamed:
        body["stream_options"] = {"include_usage": True}
    return body


def draw(n_words: int, *seed: object) -> str:
    """So many words at random; the same seed gives the same ones."""
    return " ".join(random.Random(repr(seed)).choices(WORDS, k=n_words))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("single", "one client, ~115-token prompts", 1, 4, 82, 64),
        Workload("distinct16", "16 clients, distinct ~115-token prompts", 16, 2, 82, 64),
        Workload("shared16", "16 clients, one 600-token system prompt", 16, 2, 24, 64, n_shared_words=590),
        Workload("whole", "one client, not streamed", 1, 4, 82, 64, is_streamed=False),
    )
}

UNITS = {
    "new_tok_s": "tok/s",
    "total_tok_s": "tok/s",
    "decode_tok_s": "tok/s",
    "ttft_p50": "ms",
    "ttft_p99": "ms",
    "itl_p50": "ms",
    "itl_p99": "ms",
    "tokens_per_arrival": "tok",
    "prompt_tokens": "tok",
    "cached_tokens": "tok",
    "worker_prefill_tok_s": "tok/s",
    "worker_decode_tok_s": "tok/s",
    "server_cpu": "ms/tok",
    "client_cpu": "ms/tok",
    "idle_cpu": "cores",
    "errors": "requests",
    "uncounted": "requests",
}
"""Metric -> unit, in the order of the report; README.md defines each."""


def summarise(clients: list[list[Reply]]) -> dict[str, float]:
    """The metrics of one round by the client's clock; requests that failed count as errors and in nothing else."""
    replies = [reply for client in clients for reply in client]
    good = [reply for reply in replies if reply.error is None]
    result = {
        "errors": float(len(replies) - len(good)),
        "uncounted": float(sum(not reply.is_counted for reply in good)),
    }
    if not good:
        return result
    window_s = max(reply.ended_s for reply in replies) - min(reply.sent_s for reply in replies)
    n_new = sum(reply.completion_tokens for reply in good)
    result["new_tokens"] = float(n_new)
    result["window_s"] = window_s
    result["new_tok_s"] = n_new / window_s
    result["total_tok_s"] = (n_new + sum(reply.prompt_tokens for reply in good)) / window_s
    result["prompt_tokens"] = median(reply.prompt_tokens for reply in good)
    result["cached_tokens"] = median(reply.cached_tokens for reply in good)
    streamed = [reply for reply in good if reply.arrival_s]
    if streamed:
        ttft_s = [reply.arrival_s[0] - reply.sent_s for reply in streamed]
        gaps_s = [late - early for reply in streamed for early, late in pairwise(reply.arrival_s)]
        result["decode_tok_s"] = median(
            (reply.completion_tokens - 1) / (reply.arrival_s[-1] - reply.arrival_s[0])
            for reply in streamed
            if len(reply.arrival_s) > 1
        )
        result["ttft_p50"], result["ttft_p99"] = (1e3 * percentile(ttft_s, q) for q in (50, 99))
        result["itl_p50"], result["itl_p99"] = (1e3 * percentile(gaps_s, q) for q in (50, 99))
        result["tokens_per_arrival"] = n_new / sum(len(reply.arrival_s) for reply in streamed)
    timings = [reply.timings for reply in good if reply.timings]
    result["worker_prefill_tok_s"] = median(_prefill_rate(timing) for timing in timings)
    result["worker_decode_tok_s"] = median(_decode_rate(timing) for timing in timings)
    return result


def _prefill_rate(timing: dict[str, float]) -> float:
    """Prompt tokens a second by the server's clock; NaN when nothing was evaluated."""
    return timing["prompt_n"] / timing["prompt_ms"] * 1e3 if timing.get("prompt_ms") else math.nan


def _decode_rate(timing: dict[str, float]) -> float:
    """Tokens after the first a second by the server's clock: predicted_ms runs from the first token to the last."""
    return (timing["predicted_n"] - 1) / timing["predicted_ms"] * 1e3 if timing.get("predicted_ms") else math.nan
