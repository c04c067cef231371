"""Checks of engines that take messages: what is different where a sequence has no tokens. Floor 2, tests only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from hostler.domain import SEED_RANDOM, FinishReason, Message
from hostler.engine import RawPrompt
from hostler.testing.rules.registry import PROMPTS, also_for_messages

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


@also_for_messages
def chats_and_plain_prompts_are_answered(c: EngineContract) -> None:
    """A chat of several turns and a plain text are each answered and end by themselves, or at `max_tokens`."""
    turns = (("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", PROMPTS[3]))
    chat = tuple(Message(role, text) for role, text in turns)
    for raw in (RawPrompt(messages=chat), RawPrompt(prompt=PROMPTS[0])):
        sequence = c.raw_sequence(raw, msgspec.structs.replace(c.greedy(16), seed=SEED_RANDOM, ignore_eos=False))
        with c.driver() as driver:
            assert not driver.step(), "step() gave True with no sequence in the engine"
            driver.run([sequence])
            assert not driver.step(), "step() gave True after the last sequence was over"
        assert sequence.n_cached is not None, "begin() was not called"
        assert sequence.reason in (FinishReason.STOP, FinishReason.LENGTH), (
            f"it ended with {sequence.reason}: {sequence.message}"
        )
        assert sequence.is_ended_by_engine, "the engine never ended it"


@also_for_messages
def step_does_not_block(c: EngineContract) -> None:
    """While an answer is waited for, `step` gives False, or goes on with what has come, and calls `wake` when more has."""
    sequence = c.sequence(PROMPTS[1], c.greedy(8))
    with c.driver() as driver:
        driver.add(sequence)
        results = [driver.step()]
        while not sequence.is_over:
            results.append(driver.step())
    assert False in results[:-1], f"{len(results)} steps each gave True; the worker's loop would spin while it waits"


@also_for_messages
def max_tokens_is_the_engines_business(c: EngineContract) -> None:
    """An answer of more than `max_tokens` ends with LENGTH, none is longer by the engine's own count, and slots are freed."""
    sequences = [c.sequence(PROMPTS[index % 16], c.greedy(1 + index % 4)) for index in range(3 * c.info.n_slots)]
    with c.driver() as driver:
        driver.run(sequences)
    for sequence in sequences:
        assert sequence.reason is FinishReason.LENGTH, f"{sequence!r}: it did not end with LENGTH"
        limit = sequence.params.max_tokens
        assert sequence.usage is None or sequence.usage.completion_tokens <= limit, f"{sequence.usage} for max_tokens {limit}"


@also_for_messages
def tokens_are_counted_before_the_end(c: EngineContract) -> None:
    """`counted` says how long the prompt and the answer were, unless nobody told the engine."""
    sequence = c.answer(PROMPTS[2], c.greedy(8))
    usage = sequence.usage
    if usage is None:
        return
    assert usage.prompt_tokens > 0, f"the prompt is said to have {usage.prompt_tokens} tokens"
    assert 0 < usage.completion_tokens <= 8, f"the answer is said to have {usage.completion_tokens} tokens, 8 were allowed"
    assert 0 <= usage.cached_tokens <= usage.prompt_tokens, f"{usage.cached_tokens} cached tokens of {usage.prompt_tokens}"


@also_for_messages
def stop_strings_end_it(c: EngineContract) -> None:
    """An answer ends before the first stop string, whoever finds it, and its slot is free."""
    reference = c.answer(PROMPTS[1], c.greedy(40))
    middle = len(reference.text) // 2
    stop = reference.text[middle : middle + 3]
    assert len(stop) == 3, f"the answer {reference.text!r} is too short to be cut; use another model"
    for _ in range(c.info.n_slots + 1):  # once more than there are slots: a slot that is not freed is missed
        sequence = c.answer(PROMPTS[1], c.greedy(40, stop=(stop,)))
        assert sequence.reason is FinishReason.STOP, f"it ended with {sequence.reason}, not at {stop!r}"
        assert sequence.text == reference.text[: reference.text.find(stop)], f"text before {stop!r} is {sequence.text!r}"
