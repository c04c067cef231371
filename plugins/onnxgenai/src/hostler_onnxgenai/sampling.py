"""From a row of logits to a token, in numpy: one sampler a sequence, and log probabilities.

Worker process, engine thread only. It knows SamplingParams and rows of logits, nothing of sequences or the KV cache.

The order is that of hostler's other engines: a constraint's mask, so that all that follows cuts and draws among what is
allowed; logit bias, penalties, top_k, typical, top_p, min_p, temperature, draw; or mirostat after the temperature. The
library's own sampling is not used: its settings are fixed when a generator is made, it has no min_p, no penalties but one, no
bias and no log probabilities, and its top_k of 0 costs 4 to 8 ms a token.

Candidates are kept as two arrays, ids and weights, the likeliest first; a weight is e to the distance from the likeliest
token's logit, so the first is always 1 and no sum can overflow. PERF: at 49k tokens argmax takes 5 us, a draw with the
default settings (top_p, min_p) 60 us, one from the whole vocabulary 150 us (AMD EPYC).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from hostler import Constraint, EngineFailed, InvalidRequest, SamplingParams, TokenLogprob, TopLogprob

_FLOORS = (1e-2, 1e-4, 1e-7)
"""How far down to look for top_p's candidates, each time one look did not hold what it asks for."""
_NEGLIGIBLE = 1e-20
"""A weight below this has no chance worth the name: whole-vocabulary steps leave it out."""
_BANNED = np.float32(-math.inf)
_ZIPF_TOKENS = 100
"""How many of the likeliest tokens mirostat's first version fits Zipf's law to, as in its paper."""

Candidates = tuple[np.ndarray, np.ndarray]
"""Ids (int64) and weights (float64), the likeliest first, at least one."""


class Sampler:
    """How one sequence's tokens are chosen."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: np.ndarray,
        *,
        n_vocab: int,
        n_ctx: int,
        end_tokens: Iterable[int],
        piece: Callable[[int], bytes],
        constraint: Constraint | None = None,
    ) -> None:
        """Set up.

        Args:
            params: With a seed that is drawn already.
            prompt: Token ids, for the penalties.
            n_vocab: Tokens that may be chosen.
            n_ctx: What `repeat_last_n` -1 means.
            end_tokens: What `ignore_eos` bans.
            piece: Gives a token's bytes.
            constraint: The sequence's.
        """
        self._params = params
        self._piece = piece
        self._bias = _bias(params, n_vocab, end_tokens)
        self._penalties = Penalties(params, prompt, n_ctx) if _has_penalties(params) else None
        self._draw = None if params.temperature <= 0 else _draw(params, n_vocab)
        self._constraint = constraint
        is_bare = self._bias is None and self._penalties is None and params.logprobs is None
        self._is_bare_greedy = is_bare and self._draw is None

    def pick(self, row: np.ndarray) -> tuple[int, TokenLogprob | None]:
        """Choose the next token, with its log probability if the request wants it.

        Args:
            row: float32, (n_vocab,): the model's logits; bias and penalties change it in place.

        Raises:
            EngineFailed: The logits are not numbers.
            HostlerError: Nothing is left to choose, or the constraint cannot go on.
        """
        # A broken model's rows are NaN throughout; whatever was chosen of them would mean nothing.
        if math.isnan(row[0]):
            raise EngineFailed("the model computed no valid probabilities (NaN); its weights may be corrupt")
        if self._constraint is not None:
            if self._is_bare_greedy:  # PERF: the best of all tokens is the best of those allowed: 5 us instead of 60
                best = int(row.argmax())
                if self._constraint.allows(best):
                    return best, None
            bits = np.unpackbits(np.frombuffer(self._constraint.mask(), np.uint8), count=len(row), bitorder="little")
            np.putmask(row, bits == 0, _BANNED)
        if self._bias is not None:
            ids, values = self._bias
            row[ids] += values
        wants = self._params.logprobs
        # Log probabilities are the model's own, of the tokens the request allows: a banned one is no candidate.
        raw = row.copy() if wants is not None and self._penalties is not None else row
        if self._penalties is not None:
            self._penalties.apply(row)
        token = int(row.argmax()) if self._draw is None else self._draw(row)
        if row[token] == -math.inf:
            raise InvalidRequest("logit_bias leaves no token that the answer could go on with", param="logit_bias")
        if self._penalties is not None:
            self._penalties.accept(token)
        return token, None if wants is None else self._logprob(raw, token, wants)

    def _logprob(self, row: np.ndarray, token: int, n_top: int) -> TokenLogprob:
        largest = float(row[row.argmax()])
        total = largest + math.log(float(np.exp(row - np.float32(largest)).sum(dtype=np.float64)))
        rivals = (int(rival) for rival in (largest_ids(row, n_top) if n_top else ()))
        top = tuple(
            TopLogprob(rival, self._piece(rival), float(row[rival]) - total) for rival in rivals if row[rival] > -math.inf
        )
        return TokenLogprob(token, self._piece(token), float(row[token]) - total, top)


class Penalties:
    """Repetition, frequency and presence penalties on the last tokens, prompt included."""

    def __init__(self, params: SamplingParams, prompt: np.ndarray, n_ctx: int) -> None:
        n_last = n_ctx if params.repeat_last_n < 0 else params.repeat_last_n
        self._repeat = np.float32(params.repeat_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._window: deque[int] = deque()
        self._n_last = n_last
        self._place: dict[int, int] = {}
        """Token -> its place in the two arrays, for every token that was ever seen; a count of 0 is one that has left."""
        self._ids = np.empty(64, np.int64)
        self._counts = np.zeros(64, np.float32)
        for token in prompt[-n_last:].tolist():
            self.accept(token)

    def apply(self, row: np.ndarray) -> None:
        """Change the row's logits in place."""
        n_seen = len(self._place)
        is_here = self._counts[:n_seen] > 0
        ids, counts = self._ids[:n_seen][is_here], self._counts[:n_seen][is_here]
        logits = row[ids]
        if self._repeat != 1:
            logits = np.where(logits > 0, logits / self._repeat, logits * self._repeat)
        row[ids] = logits - counts * self._frequency - self._presence

    def accept(self, token: int) -> None:
        """Count a token, and let the oldest of the window go."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1
        self._window.append(token)
        if len(self._window) > self._n_last:
            self._counts[self._place[self._window.popleft()]] -= 1


# -- choosing ---------------------------------------------------------------------------------------------------------


def _draw(params: SamplingParams, n_vocab: int) -> Callable[[np.ndarray], int]:
    # Python's generator and not numpy's: its sequence for a seed is the same in every version.
    chance = random.Random(params.seed).random
    if params.mirostat:
        return Mirostat(params, n_vocab, chance).choose
    is_whole = (
        params.top_k <= 0 and params.top_p >= 1 and params.min_p <= 0 and params.typ_p >= 1 and params.dynatemp_range <= 0
    )
    if is_whole:
        return WholeVocabulary(params.temperature, chance).choose
    return Truncated(params, chance).choose


class WholeVocabulary:
    """A draw at a temperature, nothing cut."""

    def __init__(self, temperature: float, chance: Callable[[], float]) -> None:
        self._inverse_temperature = np.float32(1.0 / temperature)
        self._chance = chance

    def choose(self, row: np.ndarray) -> int:
        """Choose a token."""
        weights = np.exp((row - row[row.argmax()]) * self._inverse_temperature)
        ends = weights.cumsum(dtype=np.float64)
        return _at(ends, self._chance())


class Truncated:
    """top_k, typical, top_p and min_p one after the other, then a draw at the temperature."""

    def __init__(self, params: SamplingParams, chance: Callable[[], float]) -> None:
        self._params = params
        self._min_keep = max(1, params.min_keep)
        self._chance = chance

    def choose(self, row: np.ndarray) -> int:
        """Choose a token."""
        params = self._params
        weights = np.exp(row - row[row.argmax()])
        if params.top_k > 0:
            candidates = self._largest(weights, max(params.top_k, self._min_keep))
            total = float(candidates[1].sum())
        elif params.typ_p < 1:
            candidates = _down_to(weights, _NEGLIGIBLE)
            total = float(candidates[1].sum())
        else:
            candidates, total = self._likely(weights)
        if params.typ_p < 1:
            candidates = _typical(candidates, params.typ_p, self._min_keep)
            total = float(candidates[1].sum())
        ids, kept = self._cut(candidates, total)
        if len(ids) == 1:
            return int(ids[0])
        temperature = _dynamic_temperature(params, kept) if params.dynatemp_range > 0 else params.temperature
        if temperature <= 0:
            return int(ids[0])
        return int(ids[_at((kept ** (1.0 / temperature)).cumsum(), self._chance())])

    @staticmethod
    def _largest(weights: np.ndarray, n: int) -> Candidates:
        for floor in _FLOORS:  # PERF: a look down to a floor costs a tenth of a partition of the whole vocabulary
            ids, kept = _down_to(weights, floor)
            if len(ids) >= n:
                return ids[:n], kept[:n]
        ids = largest_ids(weights, n)
        return ids, weights[ids].astype(np.float64)

    def _likely(self, weights: np.ndarray) -> tuple[Candidates, float]:
        """Candidates down to min_p, or to where top_p is sure to cut; and the weight of the whole vocabulary."""
        params = self._params
        total = float(weights.sum(dtype=np.float64))
        for floor in (*_FLOORS, 0.0):
            floor = max(floor, params.min_p)
            candidates = _down_to(weights, floor)
            is_enough = floor <= params.min_p or candidates[1].sum() >= params.top_p * total
            if is_enough and len(candidates[0]) >= min(self._min_keep, len(weights)):
                return candidates, total
        ids = largest_ids(weights, len(weights))
        return (ids, weights[ids].astype(np.float64)), total

    def _cut(self, candidates: Candidates, total: float) -> Candidates:
        """What top_p and then min_p keep: both a run of the likeliest."""
        params, (ids, weights) = self._params, candidates
        n_keep = len(ids)
        if params.top_p < 1:
            n_keep = min(n_keep, int(weights.cumsum().searchsorted(params.top_p * total)) + 1)
        if params.min_p > 0:
            n_keep = min(n_keep, int((weights >= params.min_p * weights[0]).sum()))
        n_keep = max(n_keep, min(self._min_keep, len(ids)))
        return ids[:n_keep], weights[:n_keep]


class Mirostat:
    """Keeps the surprise of the text at a wanted level, by a cut that learns. Versions 1 and 2.

    Source: Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity", and
    llama.cpp's samplers of that name.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, chance: Callable[[], float]) -> None:
        self._params = params
        self._n_vocab = n_vocab
        self._chance = chance
        self._mu = 2.0 * params.mirostat_tau

    def choose(self, row: np.ndarray) -> int:
        """Choose a token, and learn from how surprising it is."""
        params = self._params
        temperature = params.temperature
        weights = np.exp((row - row[row.argmax()]) * np.float32(1.0 / temperature))
        if params.dynatemp_range > 0:
            _, likely = _down_to(np.exp(row - row[row.argmax()]), _NEGLIGIBLE)
            temperature = max(1e-3, _dynamic_temperature(params, likely))
            weights = np.exp((row - row[row.argmax()]) * np.float32(1.0 / temperature))
        ids, kept = _down_to(weights, _NEGLIGIBLE)
        n_keep = self._zipf_cut(kept) if params.mirostat == 1 else self._surprise_cut(kept)
        ids, kept = ids[:n_keep], kept[:n_keep]
        place = _at(kept.cumsum(), self._chance())
        surprise = -math.log2(kept[place] / kept.sum())
        self._mu -= params.mirostat_eta * (surprise - params.mirostat_tau)
        return int(ids[place])

    def _surprise_cut(self, weights: np.ndarray) -> int:
        surprises = -np.log2(weights / weights.sum())
        return max(1, int((surprises <= self._mu).sum()))

    def _zipf_cut(self, weights: np.ndarray) -> int:
        probabilities = weights / weights.sum()
        n = min(_ZIPF_TOKENS, len(weights))
        if n < 2:
            return 1
        ranks = np.log(np.arange(2, n + 1) / np.arange(1, n))
        ratios = np.log(probabilities[: n - 1] / probabilities[1:n])
        exponent = float((ranks * ratios).sum() / (ranks * ranks).sum())
        epsilon = exponent - 1
        try:
            k = ((epsilon * 2.0**self._mu) / (1 - self._n_vocab ** (-epsilon))) ** (1 / exponent)
        except (ZeroDivisionError, OverflowError):
            return len(weights)
        return max(1, min(len(weights), int(k))) if isinstance(k, float) and math.isfinite(k) else len(weights)


def _down_to(weights: np.ndarray, floor: float) -> Candidates:
    """All tokens with at least a weight, the likeliest first."""
    ids = (weights >= np.float32(floor)).nonzero()[0] if floor > 0 else np.arange(len(weights))
    kept = weights[ids]
    order = (-kept).argsort()  # PERF: numpy's vectorised sort, 5 times the stable one; equals come in a fixed order, too
    return ids[order], kept[order].astype(np.float64)


def _typical(candidates: Candidates, share: float, min_keep: int) -> Candidates:
    """Those whose surprise is nearest to the expected one, up to a share of the probability.

    Source: Meister et al., "Locally Typical Sampling".
    """
    ids, weights = candidates
    probabilities = weights / weights.sum()
    surprises = -np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    expected = float((probabilities * surprises).sum())
    order = np.abs(surprises - expected).argsort(kind="stable")
    n_keep = int(probabilities[order].cumsum().searchsorted(share)) + 1
    kept = np.sort(order[: max(n_keep, min_keep)])  # the likeliest first again
    return ids[kept], weights[kept] / weights[kept[0]]


def _dynamic_temperature(params: SamplingParams, weights: np.ndarray) -> float:
    """The temperature between its bounds that the candidates' entropy asks for."""
    lowest = max(0.0, params.temperature - params.dynatemp_range)
    highest = params.temperature + params.dynatemp_range
    if len(weights) < 2:
        return params.temperature
    probabilities = weights[weights > 0] / weights.sum()
    entropy = float(-(probabilities * np.log(probabilities)).sum()) / math.log(len(weights))
    return float(lowest + (highest - lowest) * max(0.0, entropy) ** params.dynatemp_exponent)


def _at(ends: np.ndarray, chance: float) -> int:
    """The place that a chance of [0, 1) falls on, given running sums of weights."""
    place = int(ends.searchsorted(chance * float(ends[-1]), side="right"))
    # Rounding can put the target on the very end, behind which only weights of nothing lie.
    return place if place < len(ends) else int(ends.searchsorted(ends[-1]))


def largest_ids(row: np.ndarray, n: int) -> np.ndarray:
    """The ids of the n largest values, largest first; the lower id first among equals."""
    n = min(n, len(row))
    ids = np.argpartition(row, len(row) - n)[len(row) - n :] if n < len(row) else np.arange(len(row))
    ids.sort()
    order: np.ndarray = ids[(-row[ids]).argsort(kind="stable")]
    return order


# -- what a request changes about the logits --------------------------------------------------------------------------


def _has_penalties(params: SamplingParams) -> bool:
    return params.repeat_last_n != 0 and (
        params.repeat_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    )


def _bias(params: SamplingParams, n_vocab: int, end_tokens: Iterable[int]) -> tuple[np.ndarray, np.ndarray] | None:
    biases = {token: value for token, value in params.logit_bias.items() if 0 <= token < n_vocab}
    if params.ignore_eos:
        biases.update(dict.fromkeys(end_tokens, -math.inf))
    if not biases:
        return None
    ids = np.fromiter(biases, np.int64, len(biases))
    values = np.fromiter(biases.values(), np.float64, len(biases))
    # -100 bans outright: added, it would leave a chance where all else is worse.
    values[values <= -100.0] = -math.inf
    return ids, values.astype(np.float32)
