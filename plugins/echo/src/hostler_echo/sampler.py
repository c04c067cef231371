"""Which token comes next, when it is not just the text's: all of SamplingParams, log probabilities. Engine thread.

The "model" gives the text's next token 90 %, the same letter in the other case 8 % and a few common letters the rest. So
at temperature 0 it repeats the text; the higher the temperature, the more letters go wrong; and what it says of itself
adds up. Characters beyond ASCII never go wrong, so that the answer stays valid UTF-8.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from operator import mul

from hostler import Constraint, SamplingParams, TokenLogprob, TopLogprob
from hostler_echo.vocabulary import END, piece_of, token_of

_LETTERS = [token_of(letter.encode()) for letter in "etaoinshrdlucmfwypvbgkq "]
_CLOSING: tuple[int, ...] = (END, *b'"}]:,{[0123456789')
_LOGIT_RIGHT, _LOGIT_CASE, _LOGIT_FIRST_LETTER = math.log(0.9), math.log(0.08), math.log(0.01)
_LOGIT_NEVER = -30.0
Candidate = tuple[float, int]
"""A log probability and its token."""


class Sampler:
    """Chooses for one sequence."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        self._random = random.Random(params.seed)
        self._has_penalties = _has_penalties(params)
        n_last = None if params.repeat_last_n < 0 else params.repeat_last_n
        self._last = deque(prompt if self._has_penalties else (), n_last)
        """What the penalties see."""
        self._most_bits = 2 * params.mirostat_tau
        """Mirostat cuts what would be a greater surprise."""

    @staticmethod
    def is_needed(params: SamplingParams) -> bool:
        """False: the text's own token is always right, and nobody asks how likely it was."""
        return params.temperature > 0 or params.logprobs is not None or bool(params.logit_bias) or _has_penalties(params)

    def choose(self, right: int, constraint: Constraint | None = None) -> tuple[int, TokenLogprob | None]:
        """The next token where the text says `right`, with its log probability if that was asked for."""
        params = self._params
        logits = _logits(right)
        if constraint is not None:
            logits = {token: value for token, value in logits.items() if constraint.allows(token)}
        for token, bias in params.logit_bias.items():
            logits[token] = logits.get(token, _LOGIT_NEVER) + bias
        if params.ignore_eos:
            logits.pop(END, None)
        ranked = _normal((value, token) for token, value in logits.items())
        candidates = self._penalised(ranked) if self._has_penalties else ranked
        token = candidates[0][1] if params.temperature <= 0 else self._draw(candidates)
        self._last.append(token)
        if params.logprobs is None:
            return token, None
        value = next(logprob for logprob, candidate in ranked if candidate == token)
        top = tuple(TopLogprob(other, piece_of(other), logprob) for logprob, other in ranked[: params.logprobs])
        return token, TokenLogprob(token, piece_of(token), value, top)

    def _penalised(self, ranked: list[Candidate]) -> list[Candidate]:
        params = self._params
        found = []
        for value, token in ranked:
            if _is_letter(piece_of(token)) and (n_times := self._last.count(token)):
                value = value * params.repeat_penalty if value <= 0 else value / params.repeat_penalty
                value -= n_times * params.frequency_penalty + params.presence_penalty
            found.append((value, token))
        return _normal(found)

    def _draw(self, ranked: list[Candidate]) -> int:
        params = self._params
        if params.mirostat:
            return self._draw_by_surprise(ranked)
        n_least = max(1, params.min_keep)
        if params.top_k > 0:
            ranked = _normal(ranked[: max(params.top_k, n_least)])
        if params.typ_p < 1:
            ranked = _typical(ranked, params.typ_p, n_least)
        n_kept = len(ranked)
        if params.min_p > 0:
            least = ranked[0][0] + math.log(params.min_p)
            n_kept = sum(value >= least for value, _ in ranked)
        if params.top_p < 1:
            n_kept = min(n_kept, _n_up_to(ranked, params.top_p))
        ranked = self._heated(ranked[: max(n_kept, n_least)])
        return ranked[self._place(ranked)][1]

    def _draw_by_surprise(self, ranked: list[Candidate]) -> int:
        """Mirostat, version 1 or 2: keeps the text's surprise, which is counted in bits, at a level, by a cut that learns."""
        ranked = self._heated(ranked)
        if self._params.mirostat == 1:
            n_kept = _zipf_cut(ranked, self._most_bits)
        else:
            n_kept = sum(-value / math.log(2) <= self._most_bits for value, _ in ranked)
        ranked = _normal(ranked[: max(1, n_kept)])
        value, token = ranked[self._place(ranked)]
        self._most_bits -= self._params.mirostat_eta * (-value / math.log(2) - self._params.mirostat_tau)
        return token

    def _heated(self, ranked: list[Candidate]) -> list[Candidate]:
        """At the temperature; at the one between its bounds that the candidates' entropy asks for, if there is a range."""
        params, temperature = self._params, self._params.temperature
        if params.dynatemp_range > 0 and len(ranked) > 1:
            entropy = sum(-value * math.exp(value) for value, _ in _normal(ranked)) / math.log(len(ranked))
            lowest, highest = max(0.0, temperature - params.dynatemp_range), temperature + params.dynatemp_range
            temperature = lowest + (highest - lowest) * max(0.0, entropy) ** params.dynatemp_exponent
        return _normal([(value / max(1e-3, temperature), token) for value, token in ranked])

    def _place(self, ranked: list[Candidate]) -> int:
        return self._random.choices(range(len(ranked)), [math.exp(value) for value, _ in ranked])[0]


def _normal(ranked: Iterable[Candidate]) -> list[Candidate]:
    """The likeliest first, the lower token first among equals; together they have a probability of 1."""
    ranked = sorted(ranked, key=lambda item: (-item[0], item[1]))
    most = ranked[0][0]
    total = most + math.log(sum(math.exp(value - most) for value, _ in ranked))
    return [(value - total, token) for value, token in ranked]


def _n_up_to(ranked: list[Candidate], share: float) -> int:
    """How many are needed for a share of their probability."""
    ends = list(accumulate(math.exp(value) for value, _ in ranked))
    return bisect_left(ends, share * ends[-1]) + 1


def _typical(ranked: list[Candidate], share: float, n_least: int) -> list[Candidate]:
    """Those whose surprise is nearest to the expected one. Source: Meister et al., "Locally Typical Sampling"."""
    expected = sum(-value * math.exp(value) for value, _ in ranked)
    by_distance = sorted(ranked, key=lambda item: abs(-item[0] - expected))
    return _normal(by_distance[: max(_n_up_to(by_distance, share), n_least)])


def _zipf_cut(ranked: list[Candidate], most_bits: float) -> int:
    """How many to keep, by Zipf's law. Source: Basu et al., "Mirostat", whose first version this is."""
    ranks = [math.log((rank + 1) / rank) for rank in range(1, len(ranked))]
    ratios = [one[0] - other[0] for one, other in pairwise(ranked)]
    exponent = sum(map(mul, ranks, ratios)) / sum(map(mul, ranks, ranks)) if ranks else 0.0
    epsilon = exponent - 1
    try:
        k = (epsilon * 2**most_bits / (1 - len(ranked) ** -epsilon)) ** (1 / exponent)
        return min(len(ranked), int(k))
    except (ZeroDivisionError, OverflowError):  # where the law knows no end
        return len(ranked)


def nearest(constraint: Constraint, wanted: int) -> int:
    """The token that the text wants, if its form allows it; else what brings the form to its end, and then whatever it takes.

    Inside a string a quote comes first of all, behind a value a bracket: so every schema is done in a few tokens.
    """
    if constraint.allows(wanted):
        return wanted
    for token in _CLOSING:
        if constraint.allows(token):
            return token
    mask = constraint.mask()
    return next(8 * index + bit for index, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1)


def _has_penalties(params: SamplingParams) -> bool:
    return (params.repeat_penalty, params.frequency_penalty, params.presence_penalty) != (1.0, 0.0, 0.0)


def _is_letter(piece: bytes) -> bool:
    return piece.isalpha() and piece.isascii()


def _logits(right: int) -> dict[int, float]:
    piece = piece_of(right)
    can_go_wrong = _is_letter(piece)
    logits = {right: _LOGIT_RIGHT}
    if can_go_wrong:
        logits[token_of(piece.swapcase())] = _LOGIT_CASE
    for rank, letter in enumerate(_LETTERS):
        first = _LOGIT_FIRST_LETTER if can_go_wrong else _LOGIT_NEVER
        logits.setdefault(letter, first - rank * math.log(2))
    return logits
