"""Which token comes next, when it is not just the text's: temperature, seed, logit bias, log probabilities. Engine thread.

The "model" gives the text's next token 90 %, the same letter in the other case 8 % and a few common letters the rest. So
at temperature 0 it repeats the text; the higher the temperature, the more letters go wrong; and what it says of itself
adds up. Characters beyond ASCII never go wrong, so that the answer stays valid UTF-8.
"""

from __future__ import annotations

import math
import random

from hostler import Constraint, SamplingParams, TokenLogprob, TopLogprob
from hostler_echo.vocabulary import END, piece_of, token_of

_LETTERS = [token_of(letter.encode()) for letter in "etaoinshrdlucmfwypvbgkq "]
_CLOSING: tuple[int, ...] = (END, *b'"}]:,{[0123456789')
_LOGIT_RIGHT, _LOGIT_CASE, _LOGIT_FIRST_LETTER = math.log(0.9), math.log(0.08), math.log(0.01)
_LOGIT_NEVER = -30.0


class Sampler:
    """Chooses for one sequence."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = random.Random(params.seed)

    @staticmethod
    def is_needed(params: SamplingParams) -> bool:
        """False: the text's own token is always right, and nobody asks how likely it was."""
        return params.temperature > 0 or params.logprobs is not None or bool(params.logit_bias)

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
        total = math.log(sum(math.exp(value) for value in logits.values()))
        ranked = sorted(((value - total, token) for token, value in logits.items()), key=lambda item: (-item[0], item[1]))
        token = ranked[0][1] if params.temperature <= 0 else self._draw(ranked)
        if params.logprobs is None:
            return token, None
        value = next(logprob for logprob, candidate in ranked if candidate == token)
        top = tuple(TopLogprob(other, piece_of(other), logprob) for logprob, other in ranked[: params.logprobs])
        return token, TokenLogprob(token, piece_of(token), value, top)

    def _draw(self, ranked: list[tuple[float, int]]) -> int:
        params = self._params
        if params.top_k > 0:
            ranked = ranked[: params.top_k]
        if params.min_p > 0:
            least = ranked[0][0] + math.log(params.min_p)
            ranked = [item for item in ranked if item[0] >= least]
        if params.top_p < 1:
            mass, n_kept = 0.0, 0
            while n_kept < len(ranked) and (n_kept == 0 or mass < params.top_p):
                mass += math.exp(ranked[n_kept][0])
                n_kept += 1
            ranked = ranked[:n_kept]
        weights = [math.exp((logprob - ranked[0][0]) / params.temperature) for logprob, _ in ranked]
        return self._random.choices([token for _, token in ranked], weights)[0]


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


def _logits(right: int) -> dict[int, float]:
    piece = piece_of(right)
    can_go_wrong = piece.isalpha() and piece.isascii()
    logits = {right: _LOGIT_RIGHT}
    if can_go_wrong:
        logits[token_of(piece.swapcase())] = _LOGIT_CASE
    for rank, letter in enumerate(_LETTERS):
        first = _LOGIT_FIRST_LETTER if can_go_wrong else _LOGIT_NEVER
        logits.setdefault(letter, first - rank * math.log(2))
    return logits
