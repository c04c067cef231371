"""Long prompts that arrive one after the other among running streams: what the streams feel, what the newcomers wait.

One round: a newcomer alone; then the streams, and when they have run for a while newcomers, each when the last has ended; the
streams are cut a little later. A gap between two arrivals of a stream counts as `during` when a newcomer's prefill (from
sending it to its first text) lies in it. `steady` is the mean of two medians, of the gaps just before the first newcomer and
just behind the last: a fast server's streams have grown long meanwhile, and would be compared with short ones otherwise.
"""

from __future__ import annotations

import itertools
from itertools import pairwise
from statistics import mean

from answers import Reply
from common import median, percentile
from servers import Server
from streamclient import Pause, Request, Script, run_clients, run_scripts
from workloads import draw, make_body

N_STREAMS = 4
N_STREAM_WORDS = 80
MAX_STREAM_TOKENS = 3500
"""With its prompt less than the context; a stream that ends before it is cut begins anew."""
N_NEWCOMERS = 2
N_WORDS = 3000
N_WORDS_8K = 7500
TEMPERATURE = 2.0
"""Of the streams: a small model that is greedy repeats itself, which is easy to guess and like no real answer; at 0.8 and 1.2
it still does behind a few hundred tokens, and guesses come in bursts, whose gaps say nothing of the steps."""
SETTLE_S = 0.5
"""After the last stream has begun: their prompts' own prefill is over."""
STEADY_S = 2.0
"""So long before the first newcomer and behind the last the streams count as steady."""

UNITS = {
    "itl_steady": "ms",
    "itl_p99": "ms",
    "itl_longest": "ms",
    "itl_p99_by_steady": "x",
    "itl_longest_by_steady": "x",
    "ttft_alone": "ms",
    "ttft": "ms",
    "ttft_by_alone": "x",
    "stream_tok_s": "tok/s",
    "errors": "requests",
}


def measure(
    server: Server, round_name: str, seed: int, n_newcomers: int = N_NEWCOMERS, n_words: int = N_WORDS, steady_s: float = 4.0
) -> dict[str, float]:
    """One round against one server."""

    def newcomer(number: int) -> Request:
        words = draw(n_words, seed, "arrivals", round_name, "newcomer", number)
        return Request("/chat/completions", make_body(server.model, [{"role": "user", "content": words}], 8))

    def stream(number: int) -> Script:
        for part in itertools.count():
            words = draw(N_STREAM_WORDS, seed, "arrivals", round_name, "stream", number, part)
            body = make_body(server.model, [{"role": "user", "content": words}], MAX_STREAM_TOKENS)
            yield Request("/chat/completions", body | {"temperature": TEMPERATURE})

    def newcomers() -> Script:
        yield Pause(steady_s)
        for number in range(n_newcomers):
            yield newcomer(number)
        yield Pause(STEADY_S)

    ((alone,),) = run_clients(server.address, [[newcomer(-1)]])
    came, *streams = run_scripts(server.address, [newcomers(), *map(stream, range(N_STREAMS))], n_background=N_STREAMS)
    return evaluate(alone, came, streams)


def evaluate(alone: Reply, came: list[Reply], streams: list[list[Reply]]) -> dict[str, float]:
    """The metrics of a round.

    Args:
        alone: The newcomer with nobody beside it.
        came: The newcomers among the streams, in order.
        streams: What each stream gave until it was cut: one reply, or more where it had to begin anew.
    """
    flat = [reply for stream in streams for reply in stream]
    # The last part of a stream may be cut before anything came of it.
    needed = [alone, *came, *(stream[0] for stream in streams)]
    n_bad = sum(reply.error is not None for reply in [alone, *came, *flat])
    n_bad += sum(not reply.arrival_s for reply in needed if reply.error is None)
    result = {"errors": float(n_bad)}
    if n_bad:
        return result
    began_s = max(stream[0].arrival_s[0] for stream in streams) + SETTLE_S
    first_s, last_s = came[0].sent_s, came[-1].ended_s
    busy = [(reply.sent_s, reply.arrival_s[0]) for reply in came]
    before_s, behind_s, during_s = [], [], []
    for reply in flat:
        for early, late in pairwise(reply.arrival_s):
            if max(began_s, first_s - STEADY_S) <= early and late <= first_s:
                before_s.append(late - early)
            elif early >= last_s:
                behind_s.append(late - early)
            elif any(early < until and late > since for since, until in busy):
                during_s.append(late - early)
    steady = mean([median(gaps_s) for gaps_s in (before_s, behind_s) if gaps_s])
    ttft_s = [reply.arrival_s[0] - reply.sent_s for reply in came]
    alone_s = alone.arrival_s[0] - alone.sent_s
    result["itl_steady"] = 1e3 * steady
    result["itl_p99"], result["itl_longest"] = 1e3 * percentile(during_s, 99), 1e3 * max(during_s)
    result["itl_p99_by_steady"] = percentile(during_s, 99) / steady
    result["itl_longest_by_steady"] = max(during_s) / steady
    result["ttft_alone"], result["ttft"] = 1e3 * alone_s, 1e3 * median(ttft_s)
    result["ttft_by_alone"] = median(ttft_s) / alone_s
    busy_s = sum(until - since for since, until in busy)
    n_during = sum(since < at <= until for reply in flat for at in reply.arrival_s for since, until in busy)
    result["stream_tok_s"] = n_during / busy_s
    return result
