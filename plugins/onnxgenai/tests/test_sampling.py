"""Choosing tokens: each parameter against what it is defined to do, computed in the plainest way."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import numpy as np
import pytest

from hostler import EngineFailed, InvalidRequest, SamplingParams, TokenLogprob
from hostler_onnxgenai.sampling import Sampler, largest_ids

N = 2000
PLAIN = SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0, seed=1)


@pytest.fixture(scope="module")
def row() -> np.ndarray:
    """Logits of a shape that models have: a few likely tokens, a long tail."""
    values = np.random.default_rng(3).gumbel(0, 2.0, N).astype(np.float32)
    values[[5, 17, 99]] += [9.0, 8.5, 8.0]
    return values


def sampler(params: SamplingParams, prompt: tuple[int, ...] = (), n_vocab: int = N) -> Sampler:
    return Sampler(
        params, np.array(prompt, np.int32), n_vocab=n_vocab, n_ctx=512, end_tokens={7, 8}, piece=lambda token: b"%d" % token
    )


def with_changes(**changes: object) -> SamplingParams:
    return msgspec.structs.replace(PLAIN, **changes)


def drawn(row: np.ndarray, n: int = 4000, **changes: object) -> Counter[int]:
    """What many draws of one sampler give."""
    one = sampler(with_changes(**changes))
    return Counter(one.pick(row.copy())[0] for _ in range(n))


def softmax(row: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    return weights / weights.sum()


def assert_drawn_as(got: Counter[int], probabilities: dict[int, float]) -> None:
    """Frequencies within five standard deviations, and nothing else."""
    n = got.total()
    assert set(got) <= set(probabilities), f"{set(got) - set(probabilities)} came, which are cut off"
    for token, probability in probabilities.items():
        deviation = math.sqrt(n * probability * (1 - probability))
        assert abs(got[token] - n * probability) <= 5 * deviation + 4, f"token {token}: {got[token]} of {n}, {probability:.4f}"


def kept(row: np.ndarray, ids: np.ndarray, temperature: float = 1.0) -> dict[int, float]:
    probabilities = softmax(row[ids], temperature)
    return {int(token): float(probability) for token, probability in zip(ids, probabilities, strict=True)}


def ranked(row: np.ndarray) -> np.ndarray:
    return np.argsort(-row, kind="stable")


def test_greedy_takes_the_largest_and_the_lowest_id_among_equals(row: np.ndarray) -> None:
    assert sampler(with_changes(temperature=0.0)).pick(row.copy())[0] == int(row.argmax())
    assert sampler(with_changes(temperature=0.0)).pick(np.zeros(N, np.float32))[0] == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_whole_vocabulary_is_drawn_by_the_temperature(row: np.ndarray, temperature: float) -> None:
    probabilities = softmax(row, temperature)

    assert_drawn_as(drawn(row, temperature=temperature), {token: float(p) for token, p in enumerate(probabilities)})


@pytest.mark.parametrize("top_k", [1, 3, 40, N, 10 * N])
def test_top_k_keeps_the_k_largest(row: np.ndarray, top_k: int) -> None:
    assert_drawn_as(drawn(row, top_k=top_k), kept(row, ranked(row)[:top_k]))


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 0.999, 0.9999999])
def test_top_p_keeps_the_fewest_that_hold_p(row: np.ndarray, top_p: float) -> None:
    order = ranked(row)
    n = int(np.searchsorted(softmax(row)[order].cumsum(), top_p)) + 1

    assert_drawn_as(drawn(row, top_p=top_p), kept(row, order[:n]))


def test_top_p_of_a_flat_row_keeps_its_share() -> None:
    got = drawn(np.zeros(N, np.float32), top_p=0.25)

    assert 0.9 * N / 4 <= len(got) <= N / 4 + 1


@pytest.mark.parametrize("min_p", [0.9, 0.3, 0.05, 0.001])
def test_min_p_keeps_what_is_likely_enough_beside_the_best(row: np.ndarray, min_p: float) -> None:
    probabilities = softmax(row)

    assert_drawn_as(drawn(row, min_p=min_p), kept(row, np.flatnonzero(probabilities >= min_p * probabilities.max())))


def test_top_k_then_top_p_counts_p_of_what_top_k_left(row: np.ndarray) -> None:
    order = ranked(row)[:10]
    n = int(np.searchsorted(softmax(row[order]).cumsum(), 0.8)) + 1

    assert_drawn_as(drawn(row, top_k=10, top_p=0.8), kept(row, order[:n]))


def test_temperature_comes_after_the_cuts(row: np.ndarray) -> None:
    order = ranked(row)
    n = int(np.searchsorted(softmax(row)[order].cumsum(), 0.5)) + 1

    assert_drawn_as(drawn(row, top_p=0.5, temperature=2.0), kept(row, order[:n], 2.0))


@pytest.mark.parametrize("cut", [{"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {"typ_p": 0.01}])
def test_min_keep_leaves_so_many(row: np.ndarray, cut: dict[str, float]) -> None:
    assert len(drawn(row, min_keep=4, temperature=2.0, **cut)) == 4


def test_typical_keeps_the_expected_surprise(row: np.ndarray) -> None:
    probabilities = softmax(row)
    surprises = -np.log(probabilities)
    order = np.argsort(np.abs(surprises - (probabilities * surprises).sum()), kind="stable")
    n = int(np.searchsorted(probabilities[order].cumsum(), 0.4)) + 1

    assert_drawn_as(drawn(row, typ_p=0.4), kept(row, order[:n]))


def test_dynamic_temperature_rises_with_the_entropy() -> None:
    flat, steep = np.zeros(50, np.float32), np.array([9.0, 0.0] + [-50.0] * 48, np.float32)
    params = {"temperature": 1.0, "dynatemp_range": 0.9}

    flat_draws = drawn(flat, **params)
    steep_draws = drawn(steep, **params)

    assert_drawn_as(flat_draws, dict.fromkeys(range(50), 1 / 50))
    assert steep_draws[0] == steep_draws.total(), "at a temperature of 0.1 nothing else is left"


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_the_surprise_near_tau(row: np.ndarray, version: int) -> None:
    def mean_surprise(tau: float) -> float:
        one = sampler(with_changes(mirostat=version, mirostat_tau=tau, mirostat_eta=0.2))
        tokens = [one.pick(row.copy())[0] for _ in range(1500)][500:]
        return float(np.mean([-math.log2(softmax(row)[token]) for token in tokens]))

    calm, lively = mean_surprise(1.0), mean_surprise(5.0)

    assert calm < lively
    assert calm < 2.0


def test_mirostat_draws_of_a_single_candidate() -> None:
    steep = np.full(N, -200.0, np.float32)
    steep[3] = 0.0

    assert set(drawn(steep, n=20, mirostat=1)) | set(drawn(steep, n=20, mirostat=2)) == {3}


@pytest.mark.parametrize(
    "changes", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}, {"typ_p": 0.9}, {"mirostat": 1}, {"mirostat": 2}]
)
def test_a_seed_repeats_and_another_differs(row: np.ndarray, changes: dict[str, object]) -> None:
    def tokens(seed: int) -> list[int]:
        one = sampler(with_changes(seed=seed, temperature=1.5, **changes))
        return [one.pick(row.copy())[0] for _ in range(30)]

    assert tokens(4) == tokens(4)
    assert tokens(2**63 - 1) == tokens(2**63 - 1)
    assert len({tuple(tokens(seed)) for seed in range(5)}) > 1


# -- what a request changes ---------------------------------------------------------------------------------------------


def test_bias_is_added_and_its_ends_ban_and_force(row: np.ndarray) -> None:
    best, second, third = ranked(row)[:3].tolist()
    gap = float(row[best] - row[third])

    assert sampler(with_changes(temperature=0, logit_bias={best: -100.0})).pick(row.copy())[0] == second
    assert sampler(with_changes(temperature=0, logit_bias={third: gap + 0.1})).pick(row.copy())[0] == third
    assert sampler(with_changes(temperature=0, logit_bias={1234: 100.0})).pick(row.copy())[0] == 1234
    assert sampler(with_changes(temperature=0, logit_bias={N + 5: 100.0, -3: 100.0})).pick(row.copy())[0] == best


def test_ignored_ends_never_come(row: np.ndarray) -> None:
    likely = row.copy()
    likely[[7, 8]] = 50.0

    assert sampler(with_changes(temperature=0)).pick(likely.copy())[0] == 7
    assert not {7, 8} & set(drawn(likely, n=200, ignore_eos=True))


def test_banning_everything_is_an_error_and_no_token() -> None:
    with pytest.raises(InvalidRequest, match="leaves no token"):
        sampler(with_changes(temperature=0, logit_bias=dict.fromkeys(range(4), -100.0)), n_vocab=4).pick(
            np.zeros(4, np.float32)
        )


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineFailed, match="NaN"):
        sampler(PLAIN).pick(np.full(N, np.nan, np.float32))


def penalised(row: np.ndarray, prompt: tuple[int, ...], **changes: object) -> np.ndarray:
    changed = row.copy()
    sampler(with_changes(temperature=0, **changes), prompt).pick(changed)
    return changed


def test_penalties_count_the_last_tokens(row: np.ndarray) -> None:
    changed = penalised(row, (5, 5, 17, 3), frequency_penalty=0.5, presence_penalty=0.25)

    expected = row.copy()
    expected[[5, 17, 3]] -= [2 * 0.5 + 0.25, 0.75, 0.75]
    np.testing.assert_allclose(changed, expected, rtol=1e-6)


def test_repeat_penalty_divides_what_is_positive_and_multiplies_the_rest() -> None:
    row = np.array([2.0, -2.0, 1.0], np.float32)

    np.testing.assert_allclose(penalised(row, (0, 1), repeat_penalty=2.0), [1.0, -4.0, 1.0])


@pytest.mark.parametrize(("last_n", "seen"), [(2, {2, 3}), (-1, {1, 2, 3}), (0, set()), (64, {1, 2, 3})])
def test_penalties_see_so_many_tokens(row: np.ndarray, last_n: int, seen: set[int]) -> None:
    changed = penalised(row, (1, 2, 3), presence_penalty=1.0, repeat_last_n=last_n)

    assert set(np.flatnonzero(changed != row).tolist()) == seen


def test_penalties_forget_what_leaves_the_window_and_count_what_comes(row: np.ndarray) -> None:
    one = sampler(with_changes(temperature=0, presence_penalty=1.0, repeat_last_n=2), (1, 2))
    for token in (50, 60, 50):
        forced = np.zeros(N, np.float32)
        forced[token] = 90.0
        assert one.pick(forced)[0] == token

    changed = row.copy()
    one.pick(changed)

    assert set(np.flatnonzero(changed != row).tolist()) == {50, 60}


def test_more_different_tokens_than_expected_are_counted(row: np.ndarray) -> None:
    changed = penalised(row, tuple(range(300)), presence_penalty=1.0, repeat_last_n=-1)

    np.testing.assert_allclose(changed[:300], row[:300] - 1.0, rtol=1e-6)


# -- log probabilities --------------------------------------------------------------------------------------------------


def logprob_of(row: np.ndarray, prompt: tuple[int, ...] = (), **changes: object) -> TokenLogprob:
    _, logprob = sampler(with_changes(**changes), prompt).pick(row.copy())
    assert logprob is not None
    return logprob


def test_logprobs_are_those_of_the_whole_vocabulary(row: np.ndarray) -> None:
    expected = np.log(softmax(row))

    logprob = logprob_of(row, temperature=0.3, top_k=2, logprobs=4)

    assert [top.token_id for top in logprob.top] == ranked(row)[:4].tolist()
    np.testing.assert_allclose([top.logprob for top in logprob.top], expected[ranked(row)[:4]], atol=1e-5)
    assert logprob.logprob == pytest.approx(expected[logprob.token_id], abs=1e-5)
    assert logprob.token == b"%d" % logprob.token_id
    assert logprob_of(row, logprobs=0).top == ()


def test_logprobs_leave_out_what_is_banned_and_penalties_leave_them_alone(row: np.ndarray) -> None:
    best, second = ranked(row)[:2].tolist()
    allowed = np.delete(row, best)

    banned = logprob_of(row, temperature=0.0, logprobs=2, logit_bias={best: -100.0})
    penalised = logprob_of(row, (best,), temperature=0.0, logprobs=1, presence_penalty=2.0)

    assert banned.top[0].token_id == second
    assert banned.logprob == pytest.approx(math.log(softmax(allowed).max()), abs=1e-5)
    assert penalised.top[0].token_id == best
    assert penalised.top[0].logprob == pytest.approx(math.log(softmax(row)[best]), abs=1e-5)


def test_largest_ids_are_sorted_and_bounded() -> None:
    row = np.array([1.0, 3.0, 2.0, 3.0], np.float32)

    assert largest_ids(row, 3).tolist() == [1, 3, 2]
    assert largest_ids(row, 9).tolist() == [1, 3, 2, 0]
