"""Many random requests against one server: mixed lengths, shared beginnings, clients that leave, pins; is memory kept?

Nothing here depends on how fast the machine is but its duration and where a client that leaves happens to leave.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from answers import Reply
from common import median
from servers import Server
from streamclient import Request, one_after_the_other, run_scripts
from workloads import draw, make_body

N_CLIENTS = 8
N_SLICE = 25
"""Requests between two looks at the memory."""
N_BEGINNINGS = 6
CUT_SHARE = 0.25
PIN_SHARE = 0.05
UNITS = {"growth": "x", "rss_quarter": "MB", "rss_end": "MB", "rss_most": "MB", "cut": "requests", "errors": "requests"}


@dataclass
class Soak:
    """What happened so far."""

    rss: list[float] = field(default_factory=list)
    """MB of the whole process tree, after each slice."""
    n_requests: int = 0
    n_cut: int = 0
    errors: list[str] = field(default_factory=list)

    def growth(self) -> float:
        """The last tenth of the samples by those around the end of the first quarter."""
        return self.end() / self.quarter()

    def quarter(self) -> float:
        """MB around the end of the first quarter."""
        n = len(self.rss)
        return median(self.rss[max(0, n // 4 - n // 20) : n // 4 + n // 20 + 1])

    def end(self) -> float:
        """MB in the last tenth."""
        return median(self.rss[-max(1, len(self.rss) // 10) :])


def make_requests(model: str, n_requests: int, ctx_len: int, seed: int, can_pin: bool = True) -> Iterator[Request]:
    """Random chats; the same seed gives the same ones.

    Args:
        ctx_len: Tokens of a slot; no request needs more.
    """
    rng = random.Random(seed)
    beginnings = [draw(rng.randint(50, ctx_len // 2), seed, "soak", number) for number in range(N_BEGINNINGS)]
    for number in range(n_requests):
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.6:
            message = {"role": "system", "content": rng.choice(beginnings)}
            if can_pin and rng.random() < PIN_SHARE:
                message["cache"] = "pin"
            messages.append(message)
        n_words = min(int(rng.expovariate(1 / 50)) + 1, ctx_len // 4)
        messages.append({"role": "user", "content": draw(n_words, seed, "soak", "own", number)})
        body = make_body(model, messages, min(int(rng.expovariate(1 / 12)) + 1, ctx_len // 8), rng.random() < 0.8)
        body["temperature"] = rng.choice([0, 0.7, 1.0])
        cut_after_s = rng.uniform(0, 1.5) if rng.random() < CUT_SHARE else None
        yield Request("/chat/completions", body, cut_after_s)


def run(server: Server, requests: Sequence[Request], n_clients: int = N_CLIENTS) -> Iterator[Soak]:
    """Send all requests in slices; yields after each, and the last time at the end."""
    soak = Soak()
    for start in range(0, len(requests), N_SLICE):
        part = requests[start : start + N_SLICE]
        replies = run_scripts(server.address, [one_after_the_other(part[i::n_clients]) for i in range(n_clients)])
        note(soak, [reply for client in replies for reply in client], server.memory()["rss"])
        yield soak


def note(soak: Soak, replies: Sequence[Reply], rss: float) -> None:
    """Add a slice."""
    soak.n_requests += len(replies)
    soak.n_cut += sum(reply.is_cut for reply in replies)
    soak.errors += [reply.error for reply in replies if reply.error is not None]
    soak.rss.append(rss)


def evaluate(soak: Soak) -> dict[str, float]:
    """The metrics of a soak that has ended."""
    return {
        "growth": soak.growth(),
        "rss_quarter": soak.quarter(),
        "rss_end": soak.end(),
        "rss_most": max(soak.rss),
        "cut": float(soak.n_cut),
        "errors": float(len(soak.errors)),
    }
