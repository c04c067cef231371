"""Steps, on a tiny model and both backends."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from hostler import Pace, UnsupportedParameter

from .running import GREEDY, Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3


def test_answers_of_all_lengths_coming_and_going_do_not_mix(load: Callable[..., Loaded]) -> None:
    """Rows end between running ones, so that holes come and are closed."""
    loaded = load(n_parallel=6)
    requests = [
        (prompt(5 + (37 * index) % 90, 500 + index), msgspec.structs.replace(GREEDY, max_tokens=3 + (29 * index) % 60))
        for index in range(24)
    ]
    alone = [loaded.answer(tokens, params, cache_prompt=False) for tokens, params in requests]

    together = [
        loaded.sequence(tokens, params, cache_prompt=index % 2 == 0) for index, (tokens, params) in enumerate(requests)
    ]
    loaded.driver().run(together)

    for one, other in zip(alone, together, strict=True):
        assert_same_answer(one, other, TOLERANCE)


def test_a_late_request_is_answered_in_the_step_its_prompt_is_complete(llama: Loaded) -> None:
    talking = llama.sequence(prompt(10, 3), msgspec.structs.replace(GREEDY, max_tokens=50))
    driver = llama.driver()
    driver.add(talking)
    driver.step_until(lambda: len(talking.token_ids) >= 5)
    late = llama.sequence(prompt(12, 30))
    driver.add(late)

    driver.step()

    assert len(late.token_ids) == 1
    driver.cancel_all()


def test_answers_to_prompts_that_came_together_begin_one_by_one_and_go_on_together(
    load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(n_parallel=4)
    monkeypatch.setattr(Pace, "tokens_in", lambda *_, **__: 60)
    monkeypatch.setattr(Pace, "is_long", lambda _, n_tokens: n_tokens > 0)
    sequences = [loaded.sequence(prompt(60, 70 + number), cache_prompt=False) for number in range(4)]
    driver = loaded.driver()
    for sequence in sequences:
        driver.add(sequence)

    lengths = []
    for _ in range(6):
        driver.step()
        lengths.append([len(sequence.token_ids) for sequence in sequences])

    assert lengths == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]
    driver.cancel_all()


def test_short_prompt_overtakes_a_long_one(llama: Loaded) -> None:
    long = llama.sequence(prompt(450, 5), cache_prompt=False)
    short = llama.sequence(prompt(12, 6), cache_prompt=False)
    driver = llama.driver()
    driver.add(long)
    driver.step()
    driver.add(short)

    driver.step_until(lambda: bool(short.token_ids))

    assert not long.token_ids
    driver.cancel_all()


def test_second_turn_is_not_prefilled_again(llama: Loaded) -> None:
    first = llama.answer(prompt(200, 7))
    turn = [*first.tokens, *first.token_ids, *prompt(20, 8)]

    second = llama.answer(turn)

    assert second.n_cached == 200 + len(first.token_ids) - 1
    assert_same_answer(llama.answer(turn, cache_prompt=False), second, TOLERANCE)


@pytest.mark.parametrize("backend", ["session", "generators"])
def test_nothing_is_kept_of_a_prompt_that_is_not_to_be_cached(load: Callable[..., Loaded], backend: str) -> None:
    loaded = load(n_parallel=2, backend=backend)
    tokens = prompt(150, 44)
    unkept = loaded.answer(tokens, cache_prompt=False)
    running = loaded.sequence(tokens, cache_prompt=False)
    driver = loaded.driver()
    driver.add(running)
    driver.step_until(lambda: len(running.token_ids) > 1)

    beside = loaded.sequence(tokens)
    driver.add(beside)
    driver.run()

    assert (unkept.n_cached, running.n_cached, beside.n_cached) == (0, 0, 0)
    assert loaded.answer(tokens).n_cached == len(tokens) - 1
    assert_same_answer(unkept, beside, TOLERANCE)


def test_chats_in_turn_keep_their_own_prefixes(llama: Loaded) -> None:
    chats = {seed: llama.answer(prompt(100, seed)) for seed in (40, 41, 42)}

    for chat in chats.values():
        turn = [*chat.tokens, *chat.token_ids, *prompt(9, 43)]
        assert llama.answer(turn).n_cached == 100 + len(chat.token_ids) - 1


def test_one_beginning_for_all_slots_is_evaluated_once(load: Callable[..., Loaded]) -> None:
    loaded = load(n_parallel=8)
    system = prompt(300, 50)
    sequences = [loaded.sequence([*system, *prompt(20, 60 + index)]) for index in range(8)]

    loaded.driver().run(sequences)

    assert sum(len(one.tokens) - (one.n_cached or 0) for one in sequences) <= 300 + 8 * 20
    for one in sequences:
        assert_same_answer(loaded.answer(one.tokens, cache_prompt=False), one, TOLERANCE)


def test_a_running_ones_beginning_is_copied_and_it_goes_on(load: Callable[..., Loaded]) -> None:
    loaded = load(n_parallel=3)
    system = prompt(100, 51)
    params = msgspec.structs.replace(GREEDY, max_tokens=60)
    running = loaded.sequence([*system, *prompt(30, 52)], params)
    driver = loaded.driver()
    driver.add(running)
    driver.step_until(lambda: len(running.token_ids) >= 20)
    late = loaded.sequence([*system, *prompt(10, 53)])
    driver.add(late)
    driver.run()

    assert late.n_cached == 100
    assert_same_answer(loaded.answer(running.tokens, params, cache_prompt=False), running, TOLERANCE)
    assert_same_answer(loaded.answer(late.tokens, cache_prompt=False), late, TOLERANCE)


def test_nothing_is_kept_without_caching(load: Callable[..., Loaded]) -> None:
    loaded = load(caching_enabled=False)
    loaded.answer(prompt(100, 10))

    assert loaded.answer(prompt(100, 10)).n_cached == 0


def test_embeddings_are_refused(llama: Loaded) -> None:
    with pytest.raises(UnsupportedParameter):
        llama.engine.embed([[1, 2]])


def test_both_backends_say_the_same(load: Callable[..., Loaded]) -> None:
    session, generators = load(), load(backend="generators")

    for seed in range(5):
        assert_same_answer(session.answer(prompt(50, seed)), generators.answer(prompt(50, seed)), TOLERANCE)


def test_memory_is_accounted_by_the_rows(llama: Loaded) -> None:
    memory = llama.engine.memory()

    assert memory.kv_bytes == 3 * 512 * 3 * 2 * 2 * 16 * 4
    assert memory.weights_bytes > 700_000
