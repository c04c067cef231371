"""Checks of sequences beside and after each other: batches and the prefix cache. Floor 2, tests only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostler.testing.rules.registry import PROMPTS, also_for_messages, check, tokenize

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


@also_for_messages
@check
def concurrent_sequences_do_not_mix(c: EngineContract) -> None:
    """As many sequences as there are slots, coming and going, each say what they say alone at temperature 0."""
    n_sequences = 2 * c.info.n_slots
    texts = [f"{PROMPTS[index % 16]} {index // 16 or ''}".rstrip() for index in range(n_sequences)]
    lengths = [8 + 5 * (index % 4) for index in range(n_sequences)]
    alone = [c.answer(text, c.greedy(length)) for text, length in zip(texts, lengths, strict=True)]
    together = [c.sequence(text, c.greedy(length)) for text, length in zip(texts, lengths, strict=True)]
    waiting = list(together)
    with c.driver() as driver:
        while waiting or driver.active:
            if waiting and len(driver.active) < c.info.n_slots:
                driver.add(waiting.pop(0))
            driver.step()
            driver.step()
    for text, expected, got in zip(texts, alone, together, strict=True):
        c.assert_same(expected, got, f"{text!r} among {c.info.n_slots} at once")


@check
def equal_prompts_at_once_agree(c: EngineContract) -> None:
    """The same prompt in all slots at once, sharing what can be shared, gives the same answer in each."""
    prompt = c.long_tokens(c.n_long(0.5))
    reference = c.answer(prompt)
    sequences = [c.sequence(prompt, cache_prompt=True) for _ in range(c.info.n_slots)]
    with c.driver() as driver:
        for sequence in sequences:
            driver.add(sequence)
        driver.run()
    for sequence in sequences:
        c.assert_same(reference, sequence, "one prompt in all slots at once")


@check
def a_known_prefix_is_reused(c: EngineContract) -> None:
    """A second turn reports the tokens it need not evaluate in `begin`, and answers as without them."""
    prompt = c.long_tokens(c.n_long(0.6), topic="reused page")
    first = c.answer(prompt, c.greedy(12), cache_prompt=True)
    turn = [*prompt, *first.token_ids, *tokenize(c, " And then?")]
    second = c.answer(turn, c.greedy(12), cache_prompt=True)
    fresh = c.answer(turn, c.greedy(12), cache_prompt=False)
    assert fresh.n_cached == 0, f"with cache_prompt=False begin() said {fresh.n_cached} cached tokens"
    assert (second.n_cached or 0) >= len(prompt) // 2, (
        f"of {len(turn)} prompt tokens, the first {len(prompt)} just evaluated, {second.n_cached} were reused"
    )
    c.assert_same(fresh, second, "with a reused prefix")


@check
def a_prefix_that_parts_is_not_trusted(c: EngineContract) -> None:
    """Prompts that share only a beginning, after a cancel too, answer as if evaluated afresh."""
    n_shared = c.n_long(0.5)
    shared = c.long_tokens(n_shared, topic="parted page")
    for tail in (PROMPTS[11], PROMPTS[12], PROMPTS[11]):
        prompt = [*shared, *tokenize(c, tail)]
        fresh = c.answer(prompt, c.greedy(12), cache_prompt=False)
        with c.driver() as driver:
            leaving = c.sequence(prompt, c.greedy(12), cache_prompt=True)
            driver.add(leaving)
            driver.step_until(lambda leaving=leaving: len(leaving.token_ids) >= 2)  # type: ignore[misc]
            driver.cancel(leaving)
        cached = c.answer(prompt, c.greedy(12), cache_prompt=True)
        c.assert_same(fresh, cached, "with a prefix that another prompt left")
    shorter = shared[: n_shared // 2]
    c.assert_same(
        c.answer(shorter, c.greedy(12), cache_prompt=False),
        c.answer(shorter, c.greedy(12), cache_prompt=True),
        "a prompt that is the beginning of one in the cache",
    )


@check
def no_reuse_when_not_wanted(c: EngineContract) -> None:
    """With `cache_prompt` false the whole prompt is evaluated: `begin(0)`; and no later prompt finds any of it."""
    prompt = c.long_tokens(c.n_long(0.5), topic="private page")
    for _ in range(2):
        sequence = c.answer(prompt, c.greedy(4), cache_prompt=False)
        assert sequence.n_cached == 0, f"begin() said {sequence.n_cached} cached tokens"
    later = c.answer(prompt, c.greedy(4), cache_prompt=True)
    assert (later.n_cached or 0) < len(prompt) // 2, (
        f"of {len(prompt)} prompt tokens that were evaluated with cache_prompt=False a later prompt found {later.n_cached}"
    )
