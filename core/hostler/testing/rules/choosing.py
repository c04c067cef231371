"""Checks of which token is chosen, and how likely the engine says it was. Floor 2, tests only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from hostler.domain import SamplingParams
from hostler.testing.rules.registry import PROMPTS, also_for_messages, check, tokenize

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


@also_for_messages
@check
def greedy_answers_repeat(c: EngineContract) -> None:
    """At temperature 0 the same prompt gives the same answer, whatever the seed."""
    first = c.answer(PROMPTS[8])
    second = c.answer(PROMPTS[8], msgspec.structs.replace(c.greedy(), seed=99))
    c.assert_same(first, second, "the same prompt again at temperature 0")


def _sampled(seed: int, n_tokens: int = 32) -> SamplingParams:
    return SamplingParams(temperature=1.5, top_p=1.0, min_p=0.0, seed=seed, max_tokens=n_tokens, ignore_eos=True)


@also_for_messages
@check
def a_seed_repeats(c: EngineContract) -> None:
    """With a fixed seed a sampled answer repeats, also after other requests and with every seed of 32 bits."""
    for seed in (0, 1, 2**32 - 1):
        first = c.answer(PROMPTS[9], _sampled(seed))
        c.answer(PROMPTS[10], _sampled(5, 4))
        second = c.answer(PROMPTS[9], _sampled(seed))
        assert first.said == second.said, f"seed {seed} gave {first.text!r}, then {second.text!r}"


@also_for_messages
@check
def seeds_differ(c: EngineContract) -> None:
    """At temperature 1.5 four seeds do not all give one answer."""
    answers = {c.answer(PROMPTS[9], _sampled(seed)).said for seed in (1, 2, 3, 4)}
    assert len(answers) > 1, "four seeds at temperature 1.5 gave the same 32 tokens"


@check
def logit_bias_bans_and_forces(c: EngineContract) -> None:
    """A logit bias of -100 keeps a token out, one of +100 gets it chosen at temperature 0."""
    plain = c.answer(PROMPTS[0], c.greedy(6))
    banned = plain.token_ids[0]
    without = c.answer(PROMPTS[0], msgspec.structs.replace(c.greedy(6), logit_bias={banned: -100.0}))
    assert banned not in without.token_ids, f"token {banned} was banned and came all the same: {without.token_ids}"
    wanted = next(token for token in tokenize(c, "zebra") if token not in plain.token_ids)
    forced = c.answer(PROMPTS[0], msgspec.structs.replace(c.greedy(6), logit_bias={wanted: 100.0}))
    assert wanted in forced.token_ids, f"token {wanted} was all but forced and never came: {forced.token_ids}"


@also_for_messages
@check
def logprobs_are_probabilities(c: EngineContract) -> None:
    """With `logprobs` n each push carries the chosen token's log probability and those of the n best, best first."""
    for n_top, temperature in ((0, 0.0), (3, 0.0), (5, 1.0)):
        params = SamplingParams(temperature=temperature, seed=3, max_tokens=8, ignore_eos=True, logprobs=n_top)
        sequence = c.answer(PROMPTS[14], params)
        for token, piece, logprob in zip(sequence.token_ids, sequence.pieces, sequence.logprobs, strict=True):
            assert logprob is not None, "no logprob"
            assert (logprob.token_id, logprob.token) == (token, piece), (
                f"token {token} {piece!r} was pushed with the log probability of {logprob.token_id} {logprob.token!r}"
            )
            values = [top.logprob for top in logprob.top]
            assert len(values) == n_top, f"logprobs={n_top} gave {len(values)} candidates"
            assert all(-math.inf < value <= 1e-4 for value in [*values, logprob.logprob]), (
                f"a log probability is above 0 or not finite: {logprob}"
            )
            assert values == sorted(values, reverse=True), f"the candidates are not in order: {values}"
            assert sum(math.exp(value) for value in values) <= 1.001, f"probabilities that sum to over 1: {values}"
            same = [top.logprob for top in logprob.top if (top.token_id, top.token) == (token, piece)]
            assert all(abs(value - logprob.logprob) < 1e-3 for value in same), f"two values for one token: {logprob}"
            if temperature == 0.0 and n_top:
                assert logprob.logprob >= values[0] - 1e-3, f"a greedy choice that is not the best: {logprob}"
            if values and not same:
                assert logprob.logprob <= values[-1] + 1e-3, f"a likely token is missing in the candidates: {logprob}"
