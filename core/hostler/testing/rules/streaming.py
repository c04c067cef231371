"""Checks of what one sequence gets: its tokens, their text, its end, its context. Floor 2, tests only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hostler.domain import FinishReason, Message
from hostler.engine import EngineInfo
from hostler.testing.rules.registry import PROMPTS, check, tokenize, without_leading_space

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


@check
def tokens_stream_one_step_at_a_time(c: EngineContract) -> None:
    """`begin`, then `prefilled` up to the whole prompt, then one `push` a step; at the end `step` has nothing to do."""
    sequence = c.sequence(PROMPTS[0], c.greedy(12))
    with c.driver() as driver:
        assert not driver.step(), "step() gave True with no sequence in the engine"
        driver.add(sequence)
        assert sequence.n_cached is None, "add() began the prefill; only step() evaluates"
        n_before = driver.n_steps
        driver.run()
        n_steps = driver.n_steps - n_before
        assert len(sequence.token_ids) == 12, f"{len(sequence.token_ids)} tokens came, max_tokens is 12"
        assert sequence.n_prefilled == len(sequence.tokens), "prefilled() never reached the prompt's length"
        assert n_steps >= 12 / c.max_tokens_per_step, f"12 tokens came in {n_steps} steps"
        assert not driver.step(), "step() gave True after the last sequence was over"


@check
def pieces_are_the_tokens_bytes(c: EngineContract) -> None:
    """Each pushed piece is its token's raw bytes: split characters come out whole in the joined pieces."""
    emoji = tokenize(c, "🦙🚂世界é")
    joined = b"".join(c.engine.detokenize([token]) for token in emoji)
    assert without_leading_space(joined) == "🦙🚂世界é".encode(), (
        f"token by token '🦙🚂世界é' gave {joined!r}; detokenize must not decode and repair what one token holds"
    )
    sequence = c.answer("Some emoji: 🦙🚂🦙🚂🦙🚂🦙", c.greedy(24))
    for token, piece in zip(sequence.token_ids, sequence.pieces, strict=True):
        expected = c.engine.detokenize([token])
        assert without_leading_space(piece) == without_leading_space(expected), (
            f"token {token} was pushed as {piece!r}, detokenize gives {expected!r}"
        )
    text = b"".join(sequence.pieces).decode("utf-8", "replace")
    assert sequence.text == text, f"the text is {sequence.text!r}, the pieces say {text!r}"


@check
def stop_strings_end_it_across_pieces(c: EngineContract) -> None:
    """When `push` gives False at a stop string that spans two pieces, the sequence is over and its slot is free."""
    for prompt in PROMPTS[1:6]:
        reference = c.answer(prompt, c.greedy(40))
        place = _place_to_cut(reference.pieces)
        if place is not None:
            break
    else:
        raise AssertionError(f"no answer has a place to cut at, such as {reference.text!r}; use another model")
    n_tokens, stop, before = place
    n_told = 0
    for _ in range(c.info.n_slots + 1):  # once more than there are slots: a slot that is not freed is missed
        sequence = c.answer(prompt, c.greedy(40, stop=(stop,)))
        if c.allow_near_tie and sequence.token_ids[:n_tokens] != reference.token_ids[:n_tokens]:
            continue  # another answer, which tells nothing of this stop string
        n_told += 1
        assert sequence.reason is FinishReason.STOP, f"it ended with {sequence.reason}, not at {stop!r}"
        assert sequence.stop_string == stop, f"it stopped at {sequence.stop_string!r}, not at {stop!r}"
        assert sequence.text == before, f"text before {stop!r} is {sequence.text!r}"
    assert n_told, f"not one of {c.info.n_slots + 1} greedy answers began like the first: {reference.text!r}"


def _place_to_cut(pieces: Sequence[bytes]) -> tuple[int, str, str] | None:
    """Where two neighbouring characters come in different pieces, and nowhere earlier in the text.

    Returns:
        The tokens up to and with the second character's, the two characters, and the text before them.
    """
    for n_tokens in range(2, len(pieces)):
        try:
            head = b"".join(pieces[:n_tokens]).decode()
            text = b"".join(pieces[: n_tokens + 1]).decode()
        except UnicodeDecodeError:
            continue
        stop = text[len(head) - 1 : len(head) + 1]
        if len(stop) == 2 and text.find(stop) == len(head) - 1:
            return n_tokens + 1, stop, head[:-1]
    return None


@check
def a_full_answer_frees_its_slot(c: EngineContract) -> None:
    """When `push` gives False at max_tokens, nothing more is pushed and the slot takes the next sequence."""
    sequences = [c.sequence(PROMPTS[index % 16], c.greedy(1 + index % 4)) for index in range(3 * c.info.n_slots)]
    with c.driver() as driver:
        driver.run(sequences)
    for sequence in sequences:
        assert len(sequence.token_ids) == sequence.params.max_tokens, f"{sequence!r}: not max_tokens"


@check
def the_model_can_end_its_answer(c: EngineContract) -> None:
    """At an end-of-generation token the engine calls end(STOP) and pushes nothing; with `ignore_eos` it goes on."""
    prompt = c.ending_prompt if c.ending_prompt is not None else _ending_prompt(c.info)
    tokens = list(c.engine.tokenize(prompt, add_special=True, parse_special=True))
    n_free = c.info.n_ctx - len(tokens)
    assert n_free > 8, f"the ending prompt of {len(tokens)} tokens does not fit in n_ctx {c.info.n_ctx}"
    sequence = c.answer(tokens, c.greedy(n_free, ignore_eos=False))
    assert (sequence.is_ended_by_engine, sequence.reason) == (True, FinishReason.STOP), (
        f"the answer to {prompt!r} did not end by itself within {n_free} tokens ({sequence.reason}); "
        f"give `ending_prompt` one whose answer does: {sequence.text!r}"
    )
    n_tokens = min(len(sequence.token_ids) + 4, n_free)
    longer = c.answer(tokens, c.greedy(n_tokens, ignore_eos=True))
    assert len(longer.token_ids) == n_tokens, f"with ignore_eos {len(longer.token_ids)} of {n_tokens} tokens came"


def _ending_prompt(info: EngineInfo) -> str:
    question = "Say hello in one word."
    if info.chat_template is None:
        return question
    from hostler.prompt.template import ChatTemplate  # late: only engines with templates need it

    bos_text = "" if info.adds_bos else info.bos_text  # tokenize puts the other one there
    template = ChatTemplate(info.chat_template, bos_text=bos_text, eos_text=info.eos_text)
    return "".join(template.render([Message("user", question)]).segments)


@check
def a_prompt_may_fill_the_context(c: EngineContract) -> None:
    """A prompt of n_ctx - 1 tokens is taken and gives one token, one of n_ctx - 5 five; then push(False) ends it."""
    for n_free in (1, 5):
        sequence = c.answer(c.long_tokens(c.info.n_ctx - n_free), c.greedy(64))
        assert sequence.reason is FinishReason.LENGTH, f"with {n_free} tokens free it ended with {sequence.reason}"
        assert len(sequence.token_ids) == n_free, f"{len(sequence.token_ids)} tokens came where {n_free} fitted"


@check
def the_context_is_each_slots_own(c: EngineContract) -> None:
    """All slots at once can be filled up to n_ctx: it is never divided among them."""
    n_free = 4
    prompts = [c.long_tokens(c.info.n_ctx - n_free, topic=f"book {index} page") for index in range(c.info.n_slots)]
    sequences = [c.sequence(prompt, c.greedy(64)) for prompt in prompts]
    with c.driver() as driver:
        driver.run(sequences)
    for sequence in sequences:
        assert (sequence.reason, len(sequence.token_ids)) == (FinishReason.LENGTH, n_free), (
            f"{sequence!r} of {c.info.n_slots} at once: {n_free} tokens fitted, {sequence.message}"
        )


@check
def prefill_goes_in_chunks(c: EngineContract) -> None:
    """A prompt of several n_batch takes several steps, and sequences in decode get a token in each of them."""
    n_tokens = min(c.n_long(1.0), 4 * c.settings.n_batch)
    assert n_tokens > 2 * c.settings.n_batch, (
        f"n_batch {c.settings.n_batch} is too large for n_ctx {c.info.n_ctx}; give the kit settings with a smaller one"
    )
    talking = c.sequence(PROMPTS[2], c.greedy(32)) if c.info.n_slots > 1 else None
    long = c.sequence(c.long_tokens(n_tokens), c.greedy(4))
    with c.driver() as driver:
        if talking is not None:
            driver.add(talking)
            driver.step_until(lambda: len(talking.token_ids) >= 2)
        driver.add(long)
        n_steps = 0
        while long.n_prefilled < n_tokens:
            n_before = 0 if talking is None else len(talking.token_ids)
            driver.step()
            n_steps += 1
            if talking is not None and not talking.is_over:
                assert len(talking.token_ids) > n_before, "decode stood still while another's prompt came in"
        assert n_steps >= 2, f"a prompt of {n_tokens} tokens was evaluated in one step; n_batch is {c.settings.n_batch}"
        assert long.prefilled_counts == sorted(set(long.prefilled_counts)), f"prefilled(): {long.prefilled_counts}"
