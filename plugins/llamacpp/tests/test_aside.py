"""Long prompts that are evaluated aside, between the steps of running answers."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from hostler import Pace
from hostler.testing import Driver, RecordingSequence
from hostler_llamacpp.aside import Aside
from hostler_llamacpp.detour import Detour

from .running import GREEDY, Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3
_is_worth = Detour.is_worth
TALKING = msgspec.structs.replace(GREEDY, max_tokens=400)


def test_room_is_made_when_the_first_long_prompt_comes_and_not_for_a_short_one(load: Callable[..., Loaded]) -> None:
    loaded = load("llama", n_parallel=2, ctx_len=512, n_batch=256)
    assert loaded.engine._detour is not None
    aside = loaded.engine._detour.aside
    loaded.answer(prompt(20, 1))
    aside.wait_for_room()
    assert not aside.buffer_bytes

    loaded.answer(prompt(300, 2))

    aside.wait_for_room()
    assert aside.buffer_bytes
    assert aside.has_room(300)


@pytest.fixture(scope="module")
def loaded(load: Callable[..., Loaded]) -> Loaded:
    """Prompts of a few hundred tokens are long enough here."""
    loaded = load("llama", n_parallel=3, ctx_len=1024, n_batch=256)
    assert loaded.engine._detour is not None
    aside = loaded.engine._detour.aside
    assert not aside.has_room(1000), "it is made when it is needed"
    aside.wait_for_room()
    assert aside.has_room(1000)
    return loaded


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Aside, "is_long", staticmethod(lambda n_missing, _n_done: n_missing > 100))
    monkeypatch.setattr(Detour, "is_worth", lambda _self, n_missing, _n_done, _seconds: n_missing > 100)


def test_a_prompt_of_a_few_chunks_goes_aside_and_the_more_lies_before_it_the_longer_it_must_be(loaded: Loaded) -> None:
    pace = Pace(512, 4)
    pace.learn(0, 500, 1.0)  # 2 ms a token: 10 in a step
    assert loaded.engine._detour is not None
    detour = Detour(loaded.engine._detour.aside, loaded.engine._streams, pace)

    def is_worth(n_missing: int, n_done: int) -> bool:
        return _is_worth(detour, n_missing, n_done, 0.020)

    assert [is_worth(n, 0) for n in (29, 30)] == [False, True]
    assert [is_worth(n, 6400) for n in (129, 130)] == [False, True]


def talk(loaded: Loaded) -> tuple[Driver, RecordingSequence]:
    """An answer that has run for so long that it has to flow."""
    driver = loaded.driver()
    talking = loaded.sequence(prompt(10, 3), TALKING)
    driver.add(talking)
    driver.step_until(lambda: len(talking.token_ids) >= 2)
    for run in loaded.engine._runs.values():
        run.begun_s -= 60.0
    return driver, talking


def beside_talk(loaded: Loaded, tokens: list[int], *, cache_prompt: bool):
    """The answer to a prompt beside a running one, and the number of steps until its first token."""
    driver, talking = talk(loaded)
    late = loaded.sequence(tokens, cache_prompt=cache_prompt)
    driver.add(late)
    n_steps, has_been_aside = 0, False
    while not late.token_ids:
        n_before = len(talking.token_ids)
        driver.step()
        assert len(talking.token_ids) == n_before + 1, "the running answer waited"
        n_steps += 1
        has_been_aside = has_been_aside or loaded.engine._detour.run is not None
        assert n_steps < 2000
    assert has_been_aside
    driver.step_until(lambda: late.is_over)
    driver.cancel_all()
    return late


def test_a_prompt_evaluated_aside_gets_the_answer_that_it_gets_alone(loaded: Loaded) -> None:
    tokens = prompt(700, 50)
    alone = loaded.answer(tokens, cache_prompt=False)

    late = beside_talk(loaded, tokens, cache_prompt=False)

    assert_same_answer(alone, late, TOLERANCE)
    assert late.prefilled_counts == sorted(set(late.prefilled_counts))
    assert not late.violations


def test_what_lies_in_the_cache_is_not_evaluated_again_aside(loaded: Loaded) -> None:
    beginning = prompt(300, 51)
    loaded.answer(beginning)
    tokens = [*beginning, *prompt(400, 52)]

    late = beside_talk(loaded, tokens, cache_prompt=True)

    assert late.n_cached is not None
    assert late.n_cached >= 299
    assert_same_answer(loaded.answer(tokens, cache_prompt=False), late, TOLERANCE)


def test_what_was_evaluated_aside_is_found_again(loaded: Loaded) -> None:
    tokens = prompt(600, 53)
    late = beside_talk(loaded, tokens, cache_prompt=True)

    again = loaded.answer(tokens)

    assert again.n_cached == 599
    assert_same_answer(late, again, TOLERANCE)


def test_a_prompt_that_is_cancelled_aside_leaves_its_complete_chunks_and_room_for_the_next(loaded: Loaded) -> None:
    tokens = prompt(900, 54)
    driver, _ = talk(loaded)
    late = loaded.sequence(tokens)
    driver.add(late)
    driver.step_until(lambda: late.n_prefilled > 0)
    n_prefilled = late.n_prefilled
    driver.step()
    driver.cancel(late)
    driver.cancel_all()

    assert loaded.engine._detour.run is None
    again = loaded.answer(tokens)
    assert again.n_cached is not None
    assert again.n_cached >= n_prefilled
    assert_same_answer(loaded.answer(tokens, cache_prompt=False), again, TOLERANCE)


def test_a_short_prompt_passes_a_long_one_that_is_aside(loaded: Loaded) -> None:
    driver, _ = talk(loaded)
    late = loaded.sequence(prompt(900, 55), cache_prompt=False)
    driver.add(late)
    driver.step()
    short = loaded.sequence(prompt(20, 56), cache_prompt=False)
    driver.add(short)
    driver.step_until(lambda: bool(short.token_ids))

    assert not late.token_ids
    driver.step_until(lambda: late.is_over)
    driver.cancel_all()


@pytest.mark.parametrize("answer_goes_on", [True, False])
def test_who_waits_for_the_beginning_of_a_prompt_that_is_aside_does_not_wait_forever(
    loaded: Loaded, *, answer_goes_on: bool
) -> None:
    """The short one goes first, and is left for later: it waits for what only the long one's turn brings."""
    tokens = prompt(900, 57 + answer_goes_on)
    driver, talking = talk(loaded)
    late = loaded.sequence(tokens)
    driver.add(late)
    driver.step()
    assert loaded.engine._detour.run is not None
    short = loaded.sequence([*tokens[:60], *prompt(20, 59)])
    driver.add(short)
    if not answer_goes_on:
        driver.cancel(talking)

    driver.step_until(lambda: bool(short.token_ids) and bool(late.token_ids), max_steps=350)

    assert answer_goes_on is not talking.is_over, "it was not the answer's end that helped"
    driver.cancel_all()


def test_models_that_cannot_move_rows_and_users_who_do_not_want_it_have_none(load: Callable[..., Loaded]) -> None:
    assert load("gemma3").engine._detour is None
    assert load("llama", extra={"prefill_aside": False}).engine._detour is None
    assert load("llama", n_parallel=1).engine._detour is None
