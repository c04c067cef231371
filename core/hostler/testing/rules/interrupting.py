"""Checks of what comes between: cancellation and slow readers. Floor 2, tests only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hostler.testing.rules.registry import PROMPTS, also_for_messages, check

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


def _assert_all_slots_work(c: EngineContract, when: str) -> None:
    reference = c.answer(PROMPTS[3], c.greedy(8))
    sequences = [c.sequence(PROMPTS[3], c.greedy(8)) for _ in range(c.info.n_slots)]
    with c.driver() as driver:
        for sequence in sequences:
            driver.add(sequence)
        driver.run()
    for sequence in sequences:
        c.assert_same(reference, sequence, when)


@also_for_messages
@check
def cancel_before_the_first_step(c: EngineContract) -> None:
    """A sequence that is cancelled before any step is never touched; its slot is free."""
    for _ in range(c.info.n_slots + 1):
        sequence = c.sequence(PROMPTS[0])
        with c.driver() as driver:
            driver.add(sequence)
            driver.cancel(sequence)
            assert not driver.step(), "step() gave True although the only sequence was cancelled"
        assert sequence.n_cached is None, "begin() was called"
        assert not sequence.violations, sequence.violations[0]
    _assert_all_slots_work(c, "after cancelled sequences")


@check
def cancel_in_prefill(c: EngineContract) -> None:
    """A sequence that is cancelled between two chunks of its prompt gets no further call; its slot and KV are free."""
    n_tokens = min(c.n_long(1.0), 4 * c.settings.n_batch)
    for index in range(c.info.n_slots + 1):
        sequence = c.sequence(c.long_tokens(n_tokens, topic=f"volume {index} page"))
        with c.driver() as driver:
            driver.add(sequence)
            driver.step()
            n_done = sequence.n_prefilled
            driver.cancel(sequence)
            assert not driver.step(), "step() gave True although the only sequence was cancelled"
        assert not sequence.violations, sequence.violations[0]
        assert sequence.n_prefilled == n_done, "the prefill went on after cancel()"
    _assert_all_slots_work(c, "after sequences cancelled in prefill")


@also_for_messages
@check
def cancel_in_decode(c: EngineContract) -> None:
    """A sequence that is cancelled while it answers gets no further call; the others go on undisturbed."""
    reference = c.answer(PROMPTS[4], c.greedy(16))
    for _ in range(c.info.n_slots + 1):
        leaving = c.sequence(PROMPTS[5], c.greedy(32))
        staying = c.sequence(PROMPTS[4], c.greedy(16)) if c.info.n_slots > 1 else None
        with c.driver() as driver:
            if staying is not None:
                driver.add(staying)
            driver.add(leaving)
            driver.step_until(lambda leaving=leaving: len(leaving.pieces) >= 3)  # type: ignore[misc]
            driver.cancel(leaving)
            driver.run()
        assert not leaving.violations, leaving.violations[0]
        if staying is not None:
            c.assert_same(reference, staying, "beside a sequence that was cancelled")
    _assert_all_slots_work(c, "after sequences cancelled in decode")


@also_for_messages
@check
def cancel_of_an_unknown_id_is_ignored(c: EngineContract) -> None:
    """`cancel` of an id that never was, of one that is over, and of one twice does nothing."""
    sequence = c.answer(PROMPTS[0], c.greedy(4))
    c.engine.cancel(sequence.id)
    c.engine.cancel(2**62)
    with c.driver() as driver:
        cancelled = c.sequence(PROMPTS[1])
        driver.add(cancelled)
        driver.cancel(cancelled)
        c.engine.cancel(cancelled.id)
    _assert_all_slots_work(c, "after a cancel of unknown ids")


@also_for_messages
@check
def a_paused_sequence_waits(c: EngineContract) -> None:
    """A paused sequence is left out, the others go on; resumed, it says what it would have said."""
    reference = c.answer(PROMPTS[6], c.greedy(20))
    other_reference = c.answer(PROMPTS[7], c.greedy(20))
    paused = c.sequence(PROMPTS[6], c.greedy(20))
    other = c.sequence(PROMPTS[7], c.greedy(20)) if c.info.n_slots > 1 else None
    with c.driver() as driver:
        driver.add(paused)
        driver.step_until(lambda: len(paused.token_ids) >= 3)
        paused.pause()
        if other is not None:
            driver.add(other)
            driver.step_until(lambda: other.is_over)
        assert not driver.step(), "step() gave True although its only sequence is paused; the worker's loop would spin"
        paused.resume()
        driver.run()
    c.assert_same(reference, paused, "after a pause")
    if other is not None:
        c.assert_same(other_reference, other, "beside a paused sequence")


@check
def a_sequence_may_pause_in_prefill(c: EngineContract) -> None:
    """A sequence that is paused before or amid its prompt's chunks waits there, and goes on rightly."""
    prompt = c.long_tokens(min(c.n_long(1.0), 3 * c.settings.n_batch))
    reference = c.answer(prompt, c.greedy(8))
    sequence = c.sequence(prompt, c.greedy(8))
    with c.driver() as driver:
        driver.add(sequence)
        for _ in range(2):
            sequence.pause()
            driver.step()
            driver.step()
            sequence.resume()
            driver.step()
        driver.run()
    c.assert_same(reference, sequence, "after a pause in prefill")
