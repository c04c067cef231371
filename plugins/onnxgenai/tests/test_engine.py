"""Steps, on a tiny model and both backends."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from hostler import (
    ContextLengthExceeded,
    EngineFailed,
    FinishReason,
    InvalidRequest,
    SamplingParams,
    UnsupportedParameter,
)
from hostler_onnxgenai.tinymodel import END

from .running import GREEDY, Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3


def test_end_token_ends_the_answer_and_ignore_eos_goes_on(llama: Loaded) -> None:
    forced = SamplingParams(temperature=0, seed=1, max_tokens=5, logit_bias={END: 100.0})

    ended = llama.answer(prompt(10, 1), forced)
    ignored = llama.answer(prompt(10, 1), msgspec.structs.replace(forced, ignore_eos=True))

    assert (ended.reason, ended.token_ids, ended.is_ended_by_engine) == (FinishReason.STOP, [], True)
    assert len(ignored.token_ids) == 5
    assert END not in ignored.token_ids


@pytest.mark.parametrize("backend", ["session", "generators"])
def test_many_at_once_say_what_each_says_alone(load: Callable[..., Loaded], backend: str) -> None:
    loaded = load(n_parallel=8, backend=backend)
    prompts = [prompt(10 + 17 * index, 100 + index) for index in range(8)]
    alone = [loaded.answer(tokens, cache_prompt=False) for tokens in prompts]

    together = [loaded.sequence(tokens, cache_prompt=False) for tokens in prompts]
    loaded.driver().run(together)

    for one, other in zip(alone, together, strict=True):
        assert_same_answer(one, other, TOLERANCE)


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


def test_running_answers_get_a_token_in_every_step_of_a_long_prefill(llama: Loaded) -> None:
    talking = llama.sequence(prompt(10, 3), msgspec.structs.replace(GREEDY, max_tokens=100))
    long = llama.sequence(prompt(450, 4))
    driver = llama.driver()
    driver.add(talking)
    driver.step_until(lambda: len(talking.token_ids) >= 2)
    driver.add(long)

    while not long.token_ids:
        n_before = len(talking.token_ids)
        driver.step()
        assert len(talking.token_ids) == n_before + 1

    assert len(long.prefilled_counts) >= 450 / 64
    driver.cancel_all()


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


def test_cancelled_prefill_keeps_what_it_evaluated(llama: Loaded) -> None:
    tokens = prompt(400, 9)
    sequence = llama.sequence(tokens)
    driver = llama.driver()
    driver.add(sequence)
    driver.step_until(lambda: sequence.n_prefilled >= 128)
    driver.cancel(sequence)

    again = llama.answer(tokens)

    assert again.n_cached == sequence.n_prefilled
    assert_same_answer(llama.answer(tokens, cache_prompt=False), again, TOLERANCE)


def test_nothing_is_kept_without_caching(load: Callable[..., Loaded]) -> None:
    loaded = load(caching_enabled=False)
    loaded.answer(prompt(100, 10))

    assert loaded.answer(prompt(100, 10)).n_cached == 0


@pytest.mark.parametrize("tokens", [[], [1] * 512, [1] * 5000])
def test_prompt_that_does_not_fit_is_refused(llama: Loaded, tokens: list[int]) -> None:
    with pytest.raises((InvalidRequest, ContextLengthExceeded)) as caught:
        llama.engine.add(llama.sequence(tokens))

    assert str(len(tokens) or "no tokens") in str(caught.value)
    assert llama.engine._runs == {}


def test_prompt_with_a_foreign_token_is_refused(llama: Loaded) -> None:
    with pytest.raises(InvalidRequest, match="token 999999 at place 1"):
        llama.engine.add(llama.sequence([5, 999_999]))

    assert llama.engine._runs == {}


def test_more_sequences_than_slots_are_refused(llama: Loaded) -> None:
    driver = llama.driver()
    for seed in range(3):
        driver.add(llama.sequence(prompt(5, seed)))

    with pytest.raises(EngineFailed, match="3 slots"):
        llama.engine.add(llama.sequence(prompt(5, 9)))
    driver.cancel_all()


def test_sink_that_forgets_the_context_is_ended_with_an_error(llama: Loaded) -> None:
    """The sink counts the context; should it not, the engine must not write past the row."""
    sequence = llama.sequence(prompt(500, 11), msgspec.structs.replace(GREEDY, max_tokens=1000))
    sequence._max_tokens = 1000
    llama.driver().run([sequence])

    assert sequence.reason is FinishReason.ERROR
    assert "512" in sequence.message
    assert len(sequence.token_ids) == 12


def test_one_sequences_broken_logits_do_not_end_the_others(llama: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = llama.sequence(prompt(10, 12)), llama.sequence(prompt(10, 13))
    driver = llama.driver()
    driver.add(one)
    driver.add(other)
    driver.step_until(lambda: bool(one.token_ids and other.token_ids))

    def fail(*_: object) -> None:
        raise EngineFailed("the model computed no valid probabilities")

    monkeypatch.setattr(llama.engine._runs[one.id].sampler, "pick", fail)
    driver.run()

    assert (one.reason, one.message) == (FinishReason.ERROR, "the model computed no valid probabilities")
    assert (other.reason, len(other.token_ids)) == (FinishReason.LENGTH, 16)


def test_embeddings_are_refused(llama: Loaded) -> None:
    with pytest.raises(UnsupportedParameter):
        llama.engine.embed([[1, 2]])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=3, max_tokens=30),
        SamplingParams(seed=3, max_tokens=30, top_k=40),
        SamplingParams(seed=3, max_tokens=30, top_p=1.0, min_p=0.0),
        SamplingParams(seed=3, max_tokens=30, typ_p=0.8),
        SamplingParams(seed=3, max_tokens=30, mirostat=2),
        SamplingParams(seed=3, max_tokens=30, temperature=0, frequency_penalty=1.0),
    ],
)
def test_a_seed_repeats_the_answer(llama: Loaded, params: SamplingParams) -> None:
    tokens = prompt(20, 14)

    first = llama.answer(tokens, params, cache_prompt=False)
    llama.answer(prompt(20, 15), params)
    second = llama.answer(tokens, params, cache_prompt=False)

    assert first.token_ids == second.token_ids


def test_both_backends_say_the_same(load: Callable[..., Loaded]) -> None:
    session, generators = load(), load(backend="generators")

    for seed in range(5):
        assert_same_answer(session.answer(prompt(50, seed)), generators.answer(prompt(50, seed)), TOLERANCE)


def test_memory_is_accounted_by_the_rows(llama: Loaded) -> None:
    memory = llama.engine.memory()

    assert memory.kv_bytes == 3 * 512 * 3 * 2 * 2 * 16 * 4
    assert memory.weights_bytes > 700_000
