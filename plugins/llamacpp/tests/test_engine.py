"""Steps, on tiny models."""

from __future__ import annotations

import msgspec
import pytest

from .running import GREEDY, Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3


def test_a_prompt_alone_leaves_no_crumb_for_a_step_of_its_own(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.engine._pace, "tokens_in", lambda _seconds, *, is_alone=False: 50 if is_alone else 10)
    n_chunk = llama.engine._n_chunk
    n_alone = min(n_chunk, 70)  # 50 and two fifths
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
