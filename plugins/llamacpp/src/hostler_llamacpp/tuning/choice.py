"""Which variant is best: the rule of recommendation, and the Pareto front. Pure values.

THE RULE: a variant may be recommended if its perplexity on the text is at most `max_loss` above the original's, and neither
its prefill nor its decode is slower than 0.95 of the original's. Of those the one is recommended that answers a request of
512 prompt tokens and 128 new ones in the least time (512 / prefill + 128 / decode), if that is at least 3 % less than the
original takes; else the original stays. The front is drawn over that time and the mean KL divergence, which is less a matter
of luck on a short text than perplexity is.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

PROMPT_TOKENS = 512
NEW_TOKENS = 128
"""The request by which speeds are weighed: a question with some context, and an answer of a paragraph or two."""
LEAST_SPEED = 0.95
"""Of the original's, below which neither prefill nor decode may fall."""
LEAST_GAIN = 0.03
"""What a change must bring to be worth it; differences below are within the spread of measuring."""
WIDE_LOSS = 0.05
"""Of the second choice that is shown: what more loss would buy."""
ORIGINAL = "original"


class Spread(msgspec.Struct, frozen=True):
    """Repeated measurements, tokens per second."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one."""
        return cls(statistics.median(values), min(values), max(values))


class Loss(msgspec.Struct, frozen=True):
    """What a variant loses on the text."""

    perplexity: float
    change: float
    """Of perplexity against the original's: 0.01 is one per cent more."""
    change_se: float
    """Standard error of `change`, token by token."""
    kl: float
    """Mean KL divergence from the source, nats."""
    same_top: float
    """Share of positions with the same likeliest token."""


class Measured(msgspec.Struct, frozen=True):
    """One variant, measured."""

    name: str
    types: str
    """Of its weights: `Q8_0 61 %, IQ4_NL 39 %`."""
    size_bytes: int
    loss: Loss
    prefill: Spread
    decode: Spread
    memory_bytes: int = 0

    @property
    def request_s(self) -> float:
        """Seconds that the request takes by which speeds are weighed."""
        return request_s(self.prefill.median, self.decode.median)


def request_s(prefill: float, decode: float) -> float:
    """Seconds for PROMPT_TOKENS and NEW_TOKENS at these speeds."""
    return PROMPT_TOKENS / prefill + NEW_TOKENS / decode


def recommend(measured: Sequence[Measured], max_loss: float) -> Measured:
    """The best by the rule.

    Args:
        measured: The original first.
        max_loss: Of perplexity: 0.01 is one per cent.
    """
    original = measured[0]
    allowed = [one for one in measured[1:] if one.loss.change <= max_loss and _keeps_speed(one, original)]
    best = min(allowed, key=lambda one: (one.request_s, one.loss.kl), default=original)
    return best if best.request_s <= (1 - LEAST_GAIN) * original.request_s else original


def _keeps_speed(one: Measured, original: Measured) -> bool:
    return (
        one.prefill.median >= LEAST_SPEED * original.prefill.median
        and one.decode.median >= LEAST_SPEED * original.decode.median
    )


def front(measured: Sequence[Measured]) -> list[Measured]:
    """Those that no other one beats in speed and loss at once; the least loss first."""
    ordered = sorted(measured, key=lambda one: (one.loss.kl, one.request_s))
    found: list[Measured] = []
    for one in ordered:
        if not found or one.request_s < found[-1].request_s:
            found.append(one)
    return found
