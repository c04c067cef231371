"""Samplers on made-up rows of logits, against llama.cpp's own chain where numpy stands in for it."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from typing import Any, cast

import llama_cpp as llama
import numpy as np
import pytest

from hostler import EngineFailed, SamplingParams
from hostler_llamacpp.binding import TOKEN_DATA, short
from hostler_llamacpp.sampling import Chain, FullDraw, Nucleus, Penalties, Sampler, Workspace, concrete_seed
from hostler_llamacpp.vocabulary import Vocabulary

N_VOCAB = 5000
NO_PROMPT = np.array([1], np.int32)


class Letters:
    """As much of a vocabulary as samplers look at."""

    n_tokens = N_VOCAB
    end_tokens = frozenset({0, 2})

    def piece(self, token: int) -> bytes:
        return f"<{token}>".encode()


def make(params: SamplingParams, prompt: np.ndarray = NO_PROMPT) -> Sampler:
    # No context: the samplers under test here are those that are given their row.
    return Sampler(params, prompt, cast(Vocabulary, Letters()), 0, Workspace(N_VOCAB), 512)


def row_of(seed: int, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, N_VOCAB).astype(np.float32)


def survivors(row: np.ndarray, *samplers: Any) -> set[int]:
    """What llama.cpp's own samplers leave of a row."""
    workspace = Workspace(len(row))
    workspace.load(np.arange(len(row)), row)
    chain = Chain(*samplers)
    short.llama_sampler_apply(chain.pointer, workspace.array_address)
    left = (ctypes.c_char * (workspace.array.size * TOKEN_DATA.itemsize)).from_address(workspace.array.data)
    ids = {int(token) for token in np.frombuffer(left, TOKEN_DATA)["id"]}
    chain.close()
    return ids


def test_greedy_takes_the_most_likely_token() -> None:
    row = row_of(1)

    token, logprob = make(SamplingParams(temperature=0, seed=1)).pick(row, 0)

    assert (token, logprob) == (int(row.argmax()), None)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize(
    ("top_p", "min_p", "min_keep"),
    [(0.95, 0.05, 0), (0.5, 0.0, 0), (1.0, 0.1, 0), (0.9, 0.001, 0), (0.99, 0.5, 4), (0.0, 0.0, 0), (1.0, 1.0, 0)],
)
def test_nucleus_keeps_what_llamacpp_keeps(top_p: float, min_p: float, min_keep: int, spread: float) -> None:
    params = SamplingParams(top_p=top_p, min_p=min_p, min_keep=min_keep, seed=1)
    for seed in range(4):
        row = row_of(seed, spread)
        expected = survivors(
            row, llama.llama_sampler_init_top_p(top_p, min_keep), llama.llama_sampler_init_min_p(min_p, min_keep)
        )

        kept = {int(token) for token in Nucleus(Chain(), Workspace(N_VOCAB), params)._cut(row, row.max())}

        # llama.cpp adds up in float32: at the edge of a large nucleus a few tokens may differ.
        assert len(kept ^ expected) <= len(expected) // 500


def test_draws_follow_the_probabilities() -> None:
    row = np.full(N_VOCAB, -100, np.float32)
    row[[10, 300, 4999]] = np.log([0.5, 0.3, 0.2])
    for params in (
        SamplingParams(temperature=1, top_p=1, min_p=0, seed=5),  # from the whole vocabulary, by blocks
        SamplingParams(temperature=1, top_p=0.9999, min_p=0, seed=5),  # from a nucleus, by the chain
        SamplingParams(temperature=1, top_p=1, min_p=0, typ_p=0.9999, seed=5),
    ):
        sampler = make(params)

        counts = Counter(sampler.pick(row.copy(), 0)[0] for _ in range(4000))

        assert counts[10] / 4000 == pytest.approx(0.5, abs=0.04)
        assert counts[300] / 4000 == pytest.approx(0.3, abs=0.04)
        assert counts[10] + counts[300] + counts[4999] == 4000
        sampler.close()


def test_full_draw_reaches_the_first_and_the_last_token() -> None:
    workspace = Workspace(N_VOCAB)
    for token in (0, N_VOCAB - 1):
        row = np.full(N_VOCAB, -200, np.float32)
        row[token] = 0

        assert FullDraw(workspace, SamplingParams(temperature=1, seed=1)).choose(row, 0) == token


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1, seed=7),
        SamplingParams(temperature=1, top_p=1, min_p=0, seed=7),
        SamplingParams(temperature=1, typ_p=0.8, seed=7),
        SamplingParams(temperature=1, top_k=50, typ_p=0.8, seed=7),
        SamplingParams(temperature=1, mirostat=1, seed=7),
        SamplingParams(temperature=1, mirostat=2, seed=7),
        SamplingParams(temperature=1, top_p=1, min_p=0, dynatemp_range=0.5, seed=7),
        SamplingParams(temperature=1, dynatemp_range=0.5, seed=2**32 - 1),
        SamplingParams(temperature=1, seed=2**63),
    ],
)
def test_a_seed_repeats_its_draws_and_another_does_not(params: SamplingParams) -> None:
    import msgspec

    def draws(params: SamplingParams) -> list[int]:
        sampler = make(params)
        tokens = [sampler.pick(row_of(index, 1.0), 0)[0] for index in range(40)]
        sampler.close()
        return tokens

    assert draws(params) == draws(params)
    assert draws(params) != draws(msgspec.structs.replace(params, seed=8))


def test_no_seed_means_draw_one_to_llamacpp() -> None:
    seeds = {concrete_seed(seed) for seed in (0, 1, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1)}

    assert 2**32 - 1 not in seeds
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_mirostat_holds_surprise_near_its_target() -> None:
    sampler = make(SamplingParams(temperature=1, mirostat=2, mirostat_tau=3, mirostat_eta=0.2, seed=3))
    row = row_of(9, 1.5)
    probabilities = np.exp(row) / np.exp(row).sum()

    tokens = [sampler.pick(row.copy(), 0)[0] for _ in range(600)]

    # Measured among the candidates that were left, so the target is met from above.
    assert max(-np.log2(probabilities[tokens])) < -np.log2(probabilities).mean()
    assert len(set(tokens)) > 4


def test_low_temperature_narrows_and_high_widens() -> None:
    def n_different(temperature: float) -> int:
        sampler = make(SamplingParams(temperature=temperature, min_p=0.0, top_p=0.999, seed=3))
        return len({sampler.pick(row_of(2, 1.0), 0)[0] for _ in range(200)})

    assert n_different(0.05) < n_different(0.5) < n_different(2.0)


# -- bias and penalties ---------------------------------------------------------------------------------------------------


def test_bias_of_minus_100_bans_even_when_all_else_is_worse() -> None:
    row = np.full(N_VOCAB, -500, np.float32)
    row[42] = 500

    token, _ = make(SamplingParams(temperature=0, logit_bias={42: -100.0}, seed=1)).pick(row, 0)

    assert token != 42


def test_bias_shifts_a_logit_and_foreign_ids_are_ignored() -> None:
    row = row_of(4)
    second = int(np.argsort(row)[-2])
    gap = float(row.max() - row[second])
    params = SamplingParams(temperature=0, logit_bias={second: gap + 0.01, -1: 100.0, N_VOCAB: 100.0}, seed=1)

    assert make(params).pick(row, 0)[0] == second


def test_ignore_eos_bans_every_end_token() -> None:
    row = np.zeros(N_VOCAB, np.float32)
    row[[0, 2]] = 50

    assert make(SamplingParams(temperature=0, seed=1)).pick(row.copy(), 0)[0] in Letters.end_tokens
    assert make(SamplingParams(temperature=0, ignore_eos=True, seed=1)).pick(row.copy(), 0)[0] not in Letters.end_tokens


@pytest.mark.parametrize("repeat_last_n", [4, 64, -1])
def test_penalties_change_a_row_as_llamacpps_sampler_over_the_whole_vocabulary_does(repeat_last_n: int) -> None:
    params = SamplingParams(
        repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=-0.25, repeat_last_n=repeat_last_n, seed=1
    )
    prompt = np.array([5, 6, 7, 5, 8, 5, 9, 10], np.int32)
    row = row_of(6)
    expected = row.copy()
    n_last = 512 if repeat_last_n < 0 else repeat_last_n
    for token, count in Counter(prompt[-n_last:].tolist()).items():
        logit = expected[token]
        expected[token] = (logit * 1.3 if logit <= 0 else logit / 1.3) - count * 0.5 + 0.25

    penalties = Penalties(params, prompt, 512, Workspace(N_VOCAB))
    penalties.apply(row)

    np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_tokens_that_left_the_window_are_penalised_no_more() -> None:
    params = SamplingParams(repeat_penalty=2.0, repeat_last_n=2, seed=1)
    penalties = Penalties(params, np.array([5], np.int32), 512, Workspace(N_VOCAB))
    for token in (6, 7):
        penalties.accept(token)
    row = np.full(N_VOCAB, 4.0, np.float32)

    penalties.apply(row)

    assert (row[5], row[6], row[7]) == (4.0, 2.0, 2.0)


def test_repeat_penalty_stops_a_loop() -> None:
    row = np.zeros(N_VOCAB, np.float32)
    row[[7, 8]] = [3.0, 2.9]
    sampler = make(SamplingParams(temperature=0, repeat_penalty=1.5, seed=1))

    assert [sampler.pick(row.copy(), 0)[0] for _ in range(2)] == [7, 8]


def test_repeat_last_n_of_zero_means_no_penalty() -> None:
    sampler = make(SamplingParams(temperature=0, repeat_penalty=1.5, repeat_last_n=0, seed=1))

    assert sampler.is_plain


# -- log probabilities -----------------------------------------------------------------------------------------------------


def test_log_probabilities_are_the_models_own() -> None:
    row = row_of(8)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    params = SamplingParams(temperature=0, logprobs=4, repeat_penalty=1.5, seed=1)

    token, logprob = make(params, np.array([int(row.argmax())], np.int32)).pick(row.copy(), 0)

    assert logprob is not None
    assert logprob.logprob == pytest.approx(exact[token], abs=1e-4)
    assert [top.token_id for top in logprob.top] == np.argsort(-exact)[:4].tolist()
    assert [top.logprob for top in logprob.top] == pytest.approx(np.sort(exact)[::-1][:4], abs=1e-4)
    assert logprob.token == f"<{token}>".encode()


def test_log_probabilities_of_the_whole_vocabulary_sum_to_one() -> None:
    _, logprob = make(SamplingParams(temperature=0, logprobs=N_VOCAB, seed=1)).pick(row_of(3), 0)

    assert logprob is not None
    assert sum(math.exp(top.logprob) for top in logprob.top) == pytest.approx(1, abs=1e-3)


def test_a_banned_token_is_no_candidate() -> None:
    row = row_of(3)
    best = int(row.argmax())

    _, logprob = make(SamplingParams(temperature=0, logprobs=5, logit_bias={best: -100}, seed=1)).pick(row, 0)

    assert logprob is not None
    assert best not in [top.token_id for top in logprob.top]


def test_broken_logits_are_an_error_not_a_token() -> None:
    row = np.full(N_VOCAB, np.nan, np.float32)

    with pytest.raises(EngineFailed, match="NaN"):
        make(SamplingParams(seed=1)).pick(row, 0)


def test_forced_token_with_typical_sampling_does_not_crash() -> None:
    """A bias of 100 makes all other probabilities zero, whose logarithm llama.cpp's typical sampler would take."""
    sampler = make(SamplingParams(temperature=1, typ_p=0.5, logit_bias={77: 100.0}, seed=1))

    assert {sampler.pick(row_of(1), 0)[0] for _ in range(20)} == {77}
