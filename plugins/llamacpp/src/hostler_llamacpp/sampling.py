"""From a row of logits to a token: one sampler a sequence, and log probabilities.

Worker process, engine thread only. It knows SamplingParams and rows of logits, nothing of sequences or the KV cache.

The order is llama.cpp's: logit bias, penalties, top_k, typical, top_p, min_p, temperature, draw; or mirostat after the
temperature. A constraint's mask comes before all of them, so that they cut and draw among what is allowed. The samplers are
llama.cpp's own, in a chain; numpy only decides what the chain needs to look at. That is where the time goes: without top_k a
chain over the whole vocabulary costs 0.4 ms a token at 49k tokens and 2 ms at 262k, with 16 sequences more than the decode
itself.

- bias: added in numpy. Penalties: llama.cpp's sampler, shown the tokens it has counted; no other can change.
- greedy: argmax.
- top_k set: the chain over the whole row, which is cheap because top_k comes first.
- top_p, min_p: numpy cuts exactly what the two samplers would cut one after the other (both keep a run of the most likely
  tokens: min_p measures against the most likely one, top_p against the whole vocabulary's sum), the chain draws.
- typical, mirostat: the chain over all tokens within e^-50 of the most likely. The rest weighs less than float32 can
  show, and its zeros would make llama.cpp's entropy NaN.
- nothing set: numpy draws from the whole vocabulary, by blocks.
"""

from __future__ import annotations

import ctypes
import math
import random
from typing import Any, Protocol

import llama_cpp as llama
import numpy as np

from hostler import Constraint, EngineFailed, InvalidRequest, SamplingParams, TokenLogprob, TopLogprob
from hostler_llamacpp.binding import TOKEN_DATA, TokenDataArray, address, short
from hostler_llamacpp.vocabulary import Vocabulary

_DEFAULT_SEED = 0xFFFFFFFF
_NEGLIGIBLE = 50.0
"""Logits this far below the largest have a probability under 2e-22."""
_REACHES = (6.0, 9.0, 13.0, _NEGLIGIBLE)
"""How far below the largest logit to look, each time one look did not hold what top_p asks for."""
_BLOCK = 256
_BANNED = np.float32(-math.inf)


class Workspace:
    """Arrays that all samplers of an engine use in turn, as large as the vocabulary.

    INVARIANT: what is in them is meaningless between two calls; only the engine thread touches them.
    """

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.mask = np.empty(n_vocab, np.bool_)
        # Padded with zeros to whole blocks for the block search of `FullDraw`.
        self.weights = np.zeros(-(-n_vocab // _BLOCK) * _BLOCK, np.float32)
        self.candidates = np.empty(n_vocab, TOKEN_DATA)
        self.ids = self.candidates["id"]
        self.logits = self.candidates["logit"]
        self._address = self.candidates.ctypes.data
        self.array = TokenDataArray()
        self.array_address = ctypes.addressof(self.array)

    def load(self, ids: np.ndarray, logits: np.ndarray, *, is_sorted: bool = False) -> None:
        """Put candidates where a chain can be applied to them."""
        n = len(ids)
        self.ids[:n] = ids
        self.logits[:n] = logits
        array = self.array
        array.data = self._address
        array.size = n
        array.selected = -1
        array.sorted = is_sorted

    def apply(self, chain: int) -> int:
        """Let a chain that ends in a draw choose among the candidates."""
        short.llama_sampler_apply(chain, self.array_address)
        selected = self.array.selected
        if not 0 <= selected < self.array.size:
            raise EngineFailed("the sampler chose no token; the model's output may be broken")
        return int(self.ids[selected])


class Chooser(Protocol):
    """One way of choosing."""

    def choose(self, row: np.ndarray, index: int, /) -> int:
        """Choose a token.

        Args:
            row: float32, (n_vocab,), after bias and penalties.
            index: The row's batch index, for samplers that read the context themselves.
        """

    def close(self) -> None:
        """Free what C holds."""


class Greedy:
    """The most likely token; the lowest id among equals."""

    def choose(self, row: np.ndarray, _index: int, /) -> int:
        """See Chooser."""
        return int(row.argmax())

    def close(self) -> None:
        """Nothing to free."""


class ChainOverRow:
    """The chain over the whole row, read by llama.cpp from the context."""

    def __init__(self, chain: Chain, context: int) -> None:
        self._chain = chain
        self._context = context

    def choose(self, _row: np.ndarray, index: int, /) -> int:
        """See Chooser."""
        return int(short.llama_sampler_sample(self._chain.pointer, self._context, index))

    def close(self) -> None:
        """See Chooser."""
        self._chain.close()


class ChainOverLikely:
    """The chain over every token that has a probability worth the name."""

    def __init__(self, chain: Chain, workspace: Workspace) -> None:
        self._chain = chain
        self._workspace = workspace

    def choose(self, row: np.ndarray, _index: int, /) -> int:
        """See Chooser."""
        workspace = self._workspace
        np.greater_equal(row, row.max() - _NEGLIGIBLE, out=workspace.mask)
        ids = workspace.mask.nonzero()[0]
        if len(ids) == 1:
            return int(ids[0])
        workspace.load(ids, row[ids])
        token = workspace.apply(self._chain.pointer)
        short.llama_sampler_accept(self._chain.pointer, token)
        return token

    def close(self) -> None:
        """See Chooser."""
        self._chain.close()


class Nucleus:
    """top_p and min_p cut in numpy, temperature and draw in the chain."""

    def __init__(self, chain: Chain, workspace: Workspace, params: SamplingParams) -> None:
        self._chain = chain
        self._workspace = workspace
        self._top_p = params.top_p
        self._min_keep = max(1, params.min_keep)
        self._depth = -math.log(params.min_p) if params.min_p > 0 else math.inf
        """How far below the largest logit min_p lets a token be."""

    def choose(self, row: np.ndarray, _index: int, /) -> int:
        """See Chooser."""
        ids = self._cut(row, row[row.argmax()])  # PERF: numpy's argmax is faster than its max
        if len(ids) == 1:
            return int(ids[0])
        self._workspace.load(ids, row[ids])
        return self._workspace.apply(self._chain.pointer)

    def close(self) -> None:
        """See Chooser."""
        self._chain.close()

    def _cut(self, row: np.ndarray, largest: np.floating[Any]) -> np.ndarray:
        """The ids that both samplers keep, likeliest first.

        PERF: top_p needs the sum over the whole vocabulary, whose exponentials take 0.1 ms at 49k tokens. Most rows do
        not need it: where even a part of the sum is too much for top_p to cut what min_p leaves, the whole is, too.
        """
        ids, depths, sums = self._rank(row, largest, _REACHES[0])
        n_keep = int(depths.searchsorted(self._depth, side="right"))
        is_deep = self._depth > _REACHES[0]
        if is_deep or (n_keep > 1 and sums[n_keep - 2] >= self._top_p * sums[-1]):
            wanted = self._top_p * self._total(row, largest) if self._top_p < 1.0 else math.inf
            for reach in _REACHES[1:]:
                if not is_deep or sums[-1] >= wanted:
                    break
                ids, depths, sums = self._rank(row, largest, min(self._depth, reach))
                n_keep, is_deep = len(ids), self._depth > reach
            n_keep = min(n_keep, int(sums.searchsorted(wanted)) + 1)
        return ids[:n_keep] if n_keep >= self._min_keep else _largest(row, self._min_keep)

    def _rank(self, row: np.ndarray, largest: np.floating[Any], reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens within `reach` of the largest logit: ids, how far below it, and running sums of their weights."""
        np.greater_equal(row, largest - np.float32(reach), out=self._workspace.mask)
        ids = self._workspace.mask.nonzero()[0]
        depths = largest - row[ids]
        order = depths.argsort(kind="stable")
        depths = depths[order]
        return ids[order], depths, np.exp(-depths).cumsum(dtype=np.float64)

    def _total(self, row: np.ndarray, largest: np.floating[Any]) -> float:
        weights = self._workspace.weights[: self._workspace.n_vocab]
        np.subtract(row, largest, out=weights)
        np.exp(weights, out=weights)
        return float(weights.sum(dtype=np.float64))


class FullDraw:
    """A draw from the whole vocabulary at a temperature, nothing cut."""

    def __init__(self, workspace: Workspace, params: SamplingParams) -> None:
        self._workspace = workspace
        self._inverse_temperature = np.float32(1.0 / params.temperature)
        self._random = random.Random(params.seed)

    def choose(self, row: np.ndarray, _index: int, /) -> int:
        """See Chooser."""
        workspace = self._workspace
        weights = workspace.weights[: workspace.n_vocab]
        np.subtract(row, row.max(), out=weights)
        np.multiply(weights, self._inverse_temperature, out=weights)
        np.exp(weights, out=weights)
        blocks = workspace.weights.reshape(-1, _BLOCK)
        ends = np.cumsum(blocks.sum(axis=1, dtype=np.float64))
        target = self._random.random() * float(ends[-1])
        block = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
        before = float(ends[block - 1]) if block else 0.0
        within = np.cumsum(blocks[block], dtype=np.float64)
        place = int(np.searchsorted(within, target - before, side="right"))
        if place >= _BLOCK:  # rounding: the target lies at the block's very end
            place = int(np.flatnonzero(blocks[block])[-1])
        return min(block * _BLOCK + place, workspace.n_vocab - 1)

    def close(self) -> None:
        """Nothing to free."""


class Penalties:
    """llama.cpp's repetition, frequency and presence penalties, on the tokens that have been seen."""

    def __init__(self, params: SamplingParams, prompt: np.ndarray, n_ctx: int, workspace: Workspace) -> None:
        n_last = n_ctx if params.repeat_last_n < 0 else params.repeat_last_n
        self._workspace = workspace
        self._chain = Chain(
            llama.llama_sampler_init_penalties(
                workspace.n_vocab,
                n_last,
                params.repeat_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
        )
        # Every token ever accepted; those that left the window are known to the C side as gone.
        self._seen: dict[int, None] = {}
        self._ids = np.empty(0, np.int64)
        for token in prompt[-n_last:].tolist():
            self.accept(token)

    def apply(self, row: np.ndarray) -> None:
        """Change the row's logits in place."""
        if len(self._ids) != len(self._seen):
            self._ids = np.fromiter(self._seen, np.int64, len(self._seen))
        ids, workspace = self._ids, self._workspace
        workspace.load(ids, row[ids])
        short.llama_sampler_apply(self._chain.pointer, workspace.array_address)
        row[ids] = workspace.logits[: len(ids)]

    def accept(self, token: int) -> None:
        """Count a token."""
        short.llama_sampler_accept(self._chain.pointer, token)
        self._seen[token] = None

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()


class Chain:
    """A llama.cpp sampler chain, freed with its request."""

    def __init__(self, *samplers: Any) -> None:
        params = llama.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = llama.llama_sampler_chain_init(params)
        for sampler in samplers:
            # SAFETY: a NULL sampler in a chain is a segmentation fault later on.
            if not sampler:
                raise EngineFailed("llama.cpp could not make a sampler; out of memory?")
            llama.llama_sampler_chain_add(chain, sampler)
        self.pointer = address(chain)

    def close(self) -> None:
        """Free it and its samplers; once."""
        if self.pointer:
            short.llama_sampler_free(self.pointer)
            self.pointer = 0


class Sampler:
    """How one sequence's tokens are chosen. Must be closed with its sequence."""

    def __init__(
        self, params: SamplingParams, prompt: np.ndarray, vocabulary: Vocabulary, context: int, workspace: Workspace,
        n_ctx: int, constraint: Constraint | None = None,
    ) -> None:  # fmt: skip
        """Set up the samplers.

        Args:
            params: With a seed that is drawn already.
            prompt: Token ids, for the penalties.
            vocabulary: For pieces and end-of-generation tokens.
            context: llama.cpp's, whose last logits the chain may read.
            workspace: Shared with the engine's other samplers.
            n_ctx: What `repeat_last_n` -1 means.
            constraint: The sequence's.
        """
        self._workspace = workspace
        self._vocabulary = vocabulary
        self._n_logprobs = params.logprobs
        self._bias = _bias(params, vocabulary)
        self._penalties = Penalties(params, prompt, n_ctx, workspace) if _has_penalties(params) else None
        self._chooser = _chooser(params, context, workspace)
        self._constraint = constraint
        is_bare = self._bias is None and self._penalties is None and params.logprobs is None
        self.is_plain = is_bare and constraint is None
        """No bias, no penalties, no log probabilities, no constraint: `pick` only chooses."""
        self._is_bare_greedy = is_bare and isinstance(self._chooser, Greedy)

    def pick(self, row: np.ndarray, index: int) -> tuple[int, TokenLogprob | None]:
        """Choose the next token, with its log probability if the request wants it.

        Args:
            row: float32, (n_vocab,): the model's logits; bias and penalties change it in place.
            index: The row's batch index.

        Raises:
            EngineFailed: The logits are not numbers.
            HostlerError: Nothing is left to choose, or the constraint cannot go on.
        """
        # A broken model's rows are NaN throughout; what samplers make of that is a token that means nothing.
        if math.isnan(row[0]):
            raise EngineFailed("the model computed no valid probabilities (NaN); its weights may be corrupt")
        if self.is_plain:
            return self._chooser.choose(row, index), None
        if self._constraint is not None:
            if self._is_bare_greedy:  # PERF: the best of all tokens is the best of those allowed: 5 us instead of 60
                best = int(row.argmax())
                if self._constraint.allows(best):
                    return best, None
            self._mask(row, self._constraint)
        if self._bias is not None:
            ids, values = self._bias
            row[ids] += values
        # Log probabilities are the model's own, of the tokens the request allows: a banned one is no candidate.
        raw = row
        if self._penalties is not None:
            raw = row.copy() if self._n_logprobs is not None else row
            self._penalties.apply(row)
        token = self._chooser.choose(row, index)
        if row[token] == -math.inf:
            raise InvalidRequest("logit_bias leaves no token that the answer could go on with", param="logit_bias")
        if self._penalties is not None:
            self._penalties.accept(token)
        return token, None if self._n_logprobs is None else self._logprob(raw, token, self._n_logprobs)

    def close(self) -> None:
        """Free what C holds; once."""
        self._chooser.close()
        if self._penalties is not None:
            self._penalties.close()

    def _mask(self, row: np.ndarray, constraint: Constraint) -> None:
        """Leave only what the constraint allows. In place, so that a chain which reads the context sees it, too."""
        bits = np.unpackbits(np.frombuffer(constraint.mask(), np.uint8), count=len(row), bitorder="little")
        np.equal(bits, 0, out=self._workspace.mask)
        np.putmask(row, self._workspace.mask, _BANNED)

    def _logprob(self, row: np.ndarray, token: int, n_top: int) -> TokenLogprob:
        weights = self._workspace.weights[: self._workspace.n_vocab]
        largest = row.max()
        np.subtract(row, largest, out=weights)
        np.exp(weights, out=weights)
        total = float(largest) + math.log(float(weights.sum(dtype=np.float64)))
        piece = self._vocabulary.piece
        top = tuple(
            TopLogprob(rival, piece(rival), float(row[rival]) - total)
            for rival in (_largest(row, n_top).tolist() if n_top else ())
            if row[rival] > -math.inf
        )
        return TokenLogprob(token, piece(token), float(row[token]) - total, top)


def _chooser(params: SamplingParams, context: int, workspace: Workspace) -> Chooser:
    if params.temperature <= 0:
        return Greedy()
    seed = concrete_seed(params.seed)
    if params.mirostat:
        return ChainOverLikely(Chain(_temperature(params), _mirostat(params, seed, workspace.n_vocab)), workspace)
    has_typical = params.typ_p < 1.0
    if params.top_k > 0 or has_typical:
        samplers = [llama.llama_sampler_init_top_k(params.top_k)] if params.top_k > 0 else []
        if has_typical:
            samplers.append(llama.llama_sampler_init_typical(params.typ_p, params.min_keep))
        chain = Chain(
            *samplers,
            llama.llama_sampler_init_top_p(params.top_p, params.min_keep),
            llama.llama_sampler_init_min_p(params.min_p, params.min_keep),
            _temperature(params),
            llama.llama_sampler_init_dist(seed),
        )
        return ChainOverLikely(chain, workspace) if has_typical else ChainOverRow(chain, context)
    if params.top_p < 1.0 or params.min_p > 0.0:
        return Nucleus(Chain(_temperature(params), llama.llama_sampler_init_dist(seed)), workspace, params)
    if params.dynatemp_range > 0:
        return ChainOverLikely(Chain(_temperature(params), llama.llama_sampler_init_dist(seed)), workspace)
    return FullDraw(workspace, params)


def _temperature(params: SamplingParams) -> Any:
    if params.dynatemp_range > 0:
        return llama.llama_sampler_init_temp_ext(params.temperature, params.dynatemp_range, params.dynatemp_exponent)
    return llama.llama_sampler_init_temp(params.temperature)


def _mirostat(params: SamplingParams, seed: int, n_vocab: int) -> Any:
    if params.mirostat == 1:
        # 100 most likely tokens for the estimate of Zipf's exponent, as in the paper and in llama.cpp's own tools.
        return llama.llama_sampler_init_mirostat(n_vocab, seed, params.mirostat_tau, params.mirostat_eta, 100)
    return llama.llama_sampler_init_mirostat_v2(seed, params.mirostat_tau, params.mirostat_eta)


def concrete_seed(seed: int) -> int:
    """32 bits of a seed, never the value that llama.cpp takes for "draw one"."""
    folded = (seed ^ (seed >> 32)) & 0xFFFFFFFF
    return 0x9E3779B9 if folded == _DEFAULT_SEED else folded


def _has_penalties(params: SamplingParams) -> bool:
    return params.repeat_last_n != 0 and (
        params.repeat_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    )


def _bias(params: SamplingParams, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray] | None:
    biases = {token: value for token, value in params.logit_bias.items() if 0 <= token < vocabulary.n_tokens}
    if params.ignore_eos:
        biases.update(dict.fromkeys(vocabulary.end_tokens, -math.inf))
    if not biases:
        return None
    ids = np.fromiter(biases, np.int64, len(biases))
    values = np.fromiter(biases.values(), np.float64, len(biases))
    # -100 bans outright: added, it would leave a chance where all else is worse.
    values[values <= -100.0] = -math.inf
    return ids, values.astype(np.float32)


def _largest(row: np.ndarray, n: int) -> np.ndarray:
    """The ids of the n largest logits, largest first."""
    n = min(n, len(row))
    ids = np.argpartition(row, len(row) - n)[len(row) - n :]
    return ids[np.argsort(-row[ids], kind="stable")]
