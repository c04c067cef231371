"""Steps, on tiny models."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from hostler import (
    FinishReason,
    SamplingParams,
)

from .running import GREEDY, Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3


def test_many_at_once_say_what_each_says_alone(load: Callable[..., Loaded]) -> None:
    loaded = load("llama", n_parallel=8)
    prompts = [prompt(10 + 17 * index, 100 + index) for index in range(8)]
    alone = [loaded.answer(tokens, cache_prompt=False) for tokens in prompts]

    together = [loaded.sequence(tokens, cache_prompt=False) for tokens in prompts]
    loaded.driver().run(together)

    for one, other in zip(alone, together, strict=True):
        assert_same_answer(one, other, TOLERANCE)


def test_a_prompt_alone_leaves_no_crumb_for_a_step_of_its_own(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.engine._pace, "tokens_in", lambda _seconds, *, is_alone=False: 50 if is_alone else 10)
    n_chunk = llama.engine._n_chunk
    n_alone = min(n_chunk, 62)  # 50 and a quarter
    for n_tokens, expected in ((n_alone, [n_alone]), (n_alone + 1, [50, n_alone + 1])):
        sequence = llama.sequence(prompt(n_tokens, 60 + n_tokens), cache_prompt=False)
        driver = llama.driver()
        driver.add(sequence)
        driver.step_until(lambda one=sequence: bool(one.token_ids))
        driver.cancel_all()

        assert sequence.prefilled_counts == expected


def test_short_prompt_overtakes_a_long_one(llama: Loaded) -> None:
    long = llama.sequence(prompt(450, 5), cache_prompt=False)
    short = llama.sequence(prompt(20, 6), cache_prompt=False)
    driver = llama.driver()
    driver.add(long)
    driver.add(short)

    driver.step_until(lambda: bool(short.token_ids))

    assert long.n_prefilled < 450
    driver.cancel_all()


def test_a_long_prompt_does_not_starve_behind_short_ones_that_keep_coming(llama: Loaded) -> None:
    long = llama.sequence(prompt(450, 7), cache_prompt=False)
    driver = llama.driver()
    driver.add(long)
    seed, n_others = 1000, 0
    while not long.token_ids:
        while len(driver.active) < 3:
            seed += 1
            driver.add(llama.sequence(prompt(60, seed), msgspec.structs.replace(GREEDY, max_tokens=1), cache_prompt=False))
            n_others += 60
        driver.step()
        assert n_others <= 450 * llama.info.n_slots, "it waits for longer than promised"
    driver.cancel_all()


def test_slots_are_free_again_after_cancel_in_each_phase(llama: Loaded) -> None:
    reference = llama.answer(prompt(30, 8), cache_prompt=False)
    for n_steps in (0, 1, 3, 12):
        sequence = llama.sequence(prompt(200, 9), cache_prompt=False)
        driver = llama.driver()
        driver.add(sequence)
        for _ in range(n_steps):
            driver.step()
        driver.cancel(sequence)
        assert not driver.step()
        assert not sequence.violations

    assert_same_answer(reference, llama.answer(prompt(30, 8), cache_prompt=False), TOLERANCE)
    assert llama.engine._runs == {}
    assert not any(stream.is_active for stream in llama.engine._streams.all)


def test_sink_that_forgets_the_context_is_ended_with_an_error(llama: Loaded) -> None:
    """The sink counts the context; should it not, the engine must not write past the stream."""
    sequence = llama.sequence(prompt(500, 11), msgspec.structs.replace(GREEDY, max_tokens=1000))
    sequence._max_tokens = 1000
    llama.driver().run([sequence])

    assert sequence.reason is FinishReason.ERROR
    assert "512" in sequence.message
    assert len(sequence.token_ids) == 13


def test_top_k_of_one_is_greedy(llama: Loaded) -> None:
    tokens = prompt(20, 16)
    greedy = llama.answer(tokens)

    assert llama.answer(tokens, SamplingParams(seed=9, top_k=1, max_tokens=16, ignore_eos=True)).token_ids == greedy.token_ids
