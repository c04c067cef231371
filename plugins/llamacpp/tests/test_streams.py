"""KV streams: prefixes, sliding windows, holes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hostler.testing import RecordingSequence
from hostler_llamacpp import streams as streams_module
from hostler_llamacpp.streams import may_keep

from .running import GREEDY, Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3


@pytest.mark.parametrize(
    ("n_keep", "position_min", "position_max", "n_swa", "is_legal"),
    [
        (100, 0, 99, 0, True),
        (100, 1, 99, 0, False),  # without windows every position must be there
        (100, 0, 98, 0, False),
        (100, -1, -1, 0, False),  # the cache was emptied
        (100, 36, 99, 64, True),  # the whole window before position 100
        (100, 37, 99, 64, False),  # one position of it is gone
        (10, 0, 9, 64, True),
        (10, 1, 9, 64, False),
    ],
)
def test_streams_go_on_only_where_the_whole_window_is_left(
    n_keep: int, position_min: int, position_max: int, n_swa: int, *, is_legal: bool
) -> None:
    assert may_keep(n_keep, position_min, position_max, n_swa) is is_legal


# -- holes --------------------------------------------------------------------------------------------------------------


def test_swapped_streams_go_on_as_if_nothing_happened(load: Callable[..., Loaded]) -> None:
    loaded = load("llama")
    fresh = [loaded.answer(prompt(40 + i, i), cache_prompt=False) for i in range(3)]
    running = [loaded.sequence(prompt(40 + i, i), cache_prompt=False) for i in range(3)]
    driver = loaded.driver()
    for sequence in running:
        driver.add(sequence)
    driver.step_until(lambda: len(running[0].token_ids) >= 4)
    moved_before = loaded.engine._streams.n_moved_tokens

    driver.cancel(running[1])  # whichever its stream was: another step finds the rest side by side
    for _ in range(3):
        driver.step()
    numbers = sorted(stream.number for stream in loaded.engine._streams.all if stream.is_active)
    driver.run()

    assert numbers[1] - numbers[0] == 1
    assert loaded.engine._streams.n_moved_tokens >= moved_before
    assert_same_answer(fresh[0], running[0], TOLERANCE)
    assert_same_answer(fresh[2], running[2], TOLERANCE)


def test_swap_keeps_what_lies_in_both_streams(load: Callable[..., Loaded]) -> None:
    loaded = load("llama")
    first, second = prompt(50, 11), prompt(60, 12)
    expected = [loaded.answer(tokens, cache_prompt=False) for tokens in (first, second)]
    streams = loaded.engine._streams
    driver = loaded.driver()
    sequences = [loaded.sequence(tokens, cache_prompt=False) for tokens in (first, second)]
    for sequence in sequences:
        driver.add(sequence)
    driver.step_until(lambda: all(len(sequence.token_ids) >= 3 for sequence in sequences))

    one, other = (stream for stream in streams.all if stream.is_active)
    streams.swap(one, other)
    driver.run()

    for fresh, sequence in zip(expected, sequences, strict=True):
        assert_same_answer(fresh, sequence, TOLERANCE)


def test_truncated_stream_goes_on_as_if_the_tokens_had_never_been_there(llama: Loaded) -> None:
    tokens = prompt(60, 13)
    expected = llama.answer(tokens, cache_prompt=False)
    sequence = llama.sequence(tokens, cache_prompt=False)
    driver = llama.driver()
    driver.add(sequence)
    driver.step_until(lambda: len(sequence.token_ids) >= 4)
    streams = llama.engine._streams
    (stream,) = (stream for stream in streams.all if stream.is_active)
    n_tokens = stream.n_tokens
    batch = llama.engine._batch
    batch.clear()
    batch.add(stream.number, n_tokens, np.array(prompt(5, 14), np.int32), wants_output=True)
    llama.engine._decode()
    stream.extend(prompt(5, 14))

    assert streams.can_truncate
    streams.truncate(stream, n_tokens)
    driver.run()

    assert_same_answer(expected, sequence, TOLERANCE)


# -- prefixes -----------------------------------------------------------------------------------------------------------


def second_turn(first: RecordingSequence, seed: int) -> list[int]:
    return [*first.tokens, *first.token_ids, *prompt(20, seed)]


def test_second_turn_evaluates_only_what_is_new(llama: Loaded) -> None:
    first = llama.answer(prompt(100, 20))
    turn = second_turn(first, 21)

    second = llama.answer(turn)
    fresh = llama.answer(turn, cache_prompt=False)

    # The last token that was generated was never evaluated.
    assert second.n_cached == len(first.tokens) + len(first.token_ids) - 1
    assert fresh.n_cached == 0
    assert_same_answer(fresh, second, TOLERANCE)


def test_same_prompt_again_keeps_one_token_back_for_its_logits(llama: Loaded) -> None:
    tokens = prompt(90, 22)
    first = llama.answer(tokens)

    again = llama.answer(tokens)

    assert again.n_cached == len(tokens) - 1
    assert_same_answer(first, again, TOLERANCE)


def test_stream_with_the_longest_common_beginning_is_taken(llama: Loaded) -> None:
    prompts = [prompt(80, seed) for seed in (30, 31, 32)]
    for tokens in prompts:
        llama.answer(tokens)

    cached = [llama.answer([*tokens, 300, 301]).n_cached for tokens in (prompts[1], prompts[0], prompts[2])]

    assert cached == [80, 80, 80]


def test_another_conversation_that_begins_alike_is_copied_not_destroyed(load: Callable[..., Loaded]) -> None:
    loaded = load("llama", n_parallel=2)
    system = prompt(60, 40)
    one = [*system, *prompt(200, 41)]
    first = loaded.answer(one)

    other = loaded.answer([*system, *prompt(50, 42)])
    back = loaded.answer(second_turn(first, 43))

    assert other.n_cached == len(system)
    assert back.n_cached == len(one) + len(first.token_ids) - 1


def test_prefix_of_a_running_sequence_is_copied(load: Callable[..., Loaded]) -> None:
    loaded = load("llama")
    system = prompt(100, 50)
    runner = loaded.sequence([*system, *prompt(20, 51)])
    joiner_tokens = [*system, *prompt(20, 52)]
    driver = loaded.driver()
    driver.add(runner)
    driver.step_until(lambda: len(runner.token_ids) >= 2)

    joiner = loaded.sequence(joiner_tokens)
    driver.add(joiner)
    driver.run()

    assert joiner.n_cached == len(system)
    for sequence in (joiner, runner):
        assert_same_answer(loaded.answer(sequence.tokens, cache_prompt=False), sequence, TOLERANCE)


def test_equal_beginnings_that_arrive_together_are_evaluated_once(load: Callable[..., Loaded]) -> None:
    loaded = load("llama", n_parallel=4)
    system = prompt(150, 60)
    sequences = [loaded.sequence([*system, *prompt(10, 61 + i)]) for i in range(4)]

    loaded.driver().run(sequences)

    n_cached = [sequence.n_cached or 0 for sequence in sequences]
    assert n_cached[0] == 0
    assert min(n_cached[1:]) >= len(system) - 64, n_cached


def test_without_caching_nothing_is_reused(load: Callable[..., Loaded]) -> None:
    loaded = load("llama", caching_enabled=False)
    tokens = prompt(80, 70)

    cached = [loaded.answer(tokens).n_cached for _ in range(2)]

    assert cached == [0, 0]


def test_least_recently_used_stream_is_given_up_first(load: Callable[..., Loaded]) -> None:
    loaded = load("llama", n_parallel=2)
    prompts = [prompt(80, seed) for seed in (80, 81, 82)]
    for tokens in prompts:
        loaded.answer(tokens)

    cached = [loaded.answer(tokens).n_cached for tokens in (prompts[1], prompts[2])]

    assert cached == [79, 79]
    assert loaded.answer(prompts[0]).n_cached == 0


# -- models that forget -------------------------------------------------------------------------------------------------


def test_window_model_answers_rightly_after_any_rollback(load: Callable[..., Loaded]) -> None:
    """gemma3's windowed layers keep 64 + 64 tokens, padded to 256 cells: from 40 tokens of 400 there is no way back."""
    loaded = load("gemma3", ctx_len=1024, n_parallel=1)
    tokens = prompt(400, 90)
    loaded.answer(tokens)

    for n_shared in (395, 330, 200, 40):
        other = [*tokens[:n_shared], *prompt(30, 91 + n_shared)]
        fresh = loaded.answer(other, cache_prompt=False)
        loaded.answer(tokens)
        reused = loaded.answer(other)
        assert_same_answer(fresh, reused, TOLERANCE)
        assert reused.n_cached in (0, n_shared)


def test_window_model_without_the_rule_would_answer_wrongly(
    load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: llama.cpp itself says nothing."""
    loaded = load("gemma3", ctx_len=1024, n_parallel=1)
    tokens = prompt(700, 92)
    other = [*tokens[:300], *prompt(30, 93)]
    fresh = loaded.answer(other, cache_prompt=False)
    loaded.answer(tokens)

    monkeypatch.setattr(streams_module, "may_keep", lambda *_: True)
    reused = loaded.answer(other)

    assert reused.n_cached == 300
    with pytest.raises(AssertionError):
        assert_same_answer(fresh, reused, TOLERANCE)


def test_window_models_second_turn_is_reused(load: Callable[..., Loaded]) -> None:
    loaded = load("gemma3", ctx_len=1024)
    first = loaded.answer(prompt(400, 94))
    turn = second_turn(first, 95)

    second = loaded.answer(turn)

    assert second.n_cached == len(first.tokens) + len(first.token_ids) - 1
    assert_same_answer(loaded.answer(turn, cache_prompt=False), second, TOLERANCE)


def test_recurrent_model_goes_on_but_never_back(load: Callable[..., Loaded]) -> None:
    loaded = load("mamba")
    first = loaded.answer(prompt(100, 96))
    turn = second_turn(first, 97)

    second = loaded.answer(turn)
    parted = [*prompt(100, 96)[:60], *prompt(20, 98)]
    back = loaded.answer(parted)

    assert second.n_cached == len(first.tokens) + len(first.token_ids) - 1
    assert_same_answer(loaded.answer(turn, cache_prompt=False), second, TOLERANCE)
    assert back.n_cached == 0
    assert_same_answer(loaded.answer(parted, cache_prompt=False), back, TOLERANCE)


def test_longest_answer_fits_the_stream(llama: Loaded) -> None:
    n_ctx = llama.info.n_ctx

    full = llama.answer(prompt(n_ctx - 1, 99), GREEDY)

    assert len(full.token_ids) == 1
