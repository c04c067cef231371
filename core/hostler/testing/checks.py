"""The checks of the engine contract: one function each, named after its rule. Floor 2, tests only.

Each docstring is the rule in full. Each check gets an EngineContract whose engine has no active sequence, and leaves it
so.
"""

from __future__ import annotations

import gc
import math
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hostler.domain import FinishReason, MemoryUse, SamplingParams
from hostler.engine import EngineInfo
from hostler.errors import HostlerError, UnsupportedParameter

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract

Check = Callable[["EngineContract"], None]
CHECKS: dict[str, Check] = {}
"""Name -> check, in the order they should run: what later checks build on comes first."""

EMOJI_TEXT = "Grüße, 世界! 🦙🚂 👩‍🚒 naïve\tcafé\nline two  with  spaces {}<>\\ "
PROMPTS = (
    "The engine stood in the roundhouse and",
    "Once upon a time there was a small red fox who",
    "Water boils at one hundred degrees because",
    "The three primary colours are",
    "A recipe for bread begins with flour and",
    "In the year 1969 two people walked on",
    "The capital city of France is known for",
    "My grandmother always told me that",
    "To open a file in Python you write",
    "The quick brown fox jumps over",
    "Ships sail by night because the stars",
    "He opened the letter slowly and read:",
    "Mount Everest is the highest",
    "The first rule of the library is",
    "A good cup of tea needs",
    "When the bell rang for the second time,",
)


def check(function: Check) -> Check:
    """Register a check under its function's name."""
    CHECKS[function.__name__] = function
    return function


# -- load -----------------------------------------------------------------------------------------------------------


@check
def load_gives_sane_info(c: EngineContract) -> None:
    """`load` returns an EngineInfo true of the settings, and reports progress within 0 to 1, never going back."""
    info = c.info
    assert isinstance(info, EngineInfo), f"load() gave {info!r}, not an EngineInfo"
    assert info.n_vocab > 0, f"n_vocab is {info.n_vocab}"
    assert info.version, "version is empty; it is part of cache keys and of `hostler show`"
    assert 1 <= info.n_slots <= c.settings.n_parallel, (
        f"n_slots is {info.n_slots}, n_parallel asked for {c.settings.n_parallel}"
    )
    assert info.n_slots == c.settings.n_parallel or info.warnings, (
        f"n_slots is {info.n_slots} instead of {c.settings.n_parallel} without a word in `warnings`"
    )
    assert info.n_ctx >= 2, f"n_ctx is {info.n_ctx}"
    assert info.n_ctx >= c.settings.ctx_len or info.warnings, (
        f"n_ctx is {info.n_ctx} instead of {c.settings.ctx_len} without a word in `warnings`; ctx_len is per slot"
    )
    if c.settings.device != "auto":
        assert info.device == c.settings.device, f"device is {info.device!r}, {c.settings.device!r} was demanded"
    assert not info.can_embed or info.n_embd > 0, "can_embed is true, n_embd is 0"
    assert all(0.0 <= fraction <= 1.0 for fraction in c.progress), f"progress left 0 to 1: {c.progress}"
    assert c.progress == sorted(c.progress), f"progress went back: {c.progress}"


@check
def load_stops_when_told(c: EngineContract) -> None:
    """`load` calls `progress` at least once and raises when it gives False."""
    calls: list[float] = []

    def refuse(fraction: float) -> bool:
        calls.append(fraction)
        return False

    c.close()
    engine = c.make_engine()
    try:
        engine.load(c.files, c.settings, refuse)
    except Exception:  # noqa: BLE001 - which one is the engine's choice
        assert calls, "load() raised without a call of progress"
        return
    engine.close()
    raise AssertionError("load() went on although progress() gave False" if calls else "load() never called progress()")


@check
def load_refuses_what_is_no_model(c: EngineContract) -> None:
    """`load` of a missing file, and of one with other content, raises a HostlerError with a text for the user."""
    c.close()
    name = Path(c.files.primary).name
    with tempfile.TemporaryDirectory(prefix="hostler-contract-") as folder:
        for kind in ("missing", "garbage"):
            path = Path(folder) / kind / name
            path.parent.mkdir()
            if kind == "garbage" and Path(c.files.primary).is_dir():
                path.mkdir()
                (path / "config.json").write_bytes(b"\x7fno model\n" * 100)
            elif kind == "garbage":
                path.write_bytes(b"\x7fno model\n" * 100)
            engine = c.make_engine()
            files = msgspec.structs.replace(c.files, primary=str(path), others=())
            try:
                engine.load(files, c.settings, lambda _: True)
            except HostlerError as error:
                refusal = str(error)
            else:
                engine.close()
                raise AssertionError(f"load() took a {kind} model")
            assert refusal.strip(), f"a {kind} model was refused without a text"


# -- tokens ---------------------------------------------------------------------------------------------------------


def _tokenize(c: EngineContract, text: str) -> list[int]:
    return list(c.engine.tokenize(text, add_special=False, parse_special=False))


def _without_leading_space(text: bytes) -> bytes:
    # Some vocabularies put a space in front of every text; that much is theirs to decide.
    return text[1:] if text.startswith(b" ") else text


@check
def text_survives_tokenization(c: EngineContract) -> None:
    """`detokenize(tokenize(text))` gives the text back: emoji, blanks, odd lengths, nothing at all."""
    for text in ("", "a", "Hello, world!", EMOJI_TEXT, "🦙", "🦙" * 50, "x" * 2000, *PROMPTS):
        tokens = _tokenize(c, text)
        assert all(isinstance(token, int) and 0 <= token < c.info.n_vocab for token in tokens), (
            f"tokenize({text[:40]!r}) gave a token outside 0 to {c.info.n_vocab - 1}: {tokens[:20]}"
        )
        got = c.engine.detokenize(tokens)
        assert isinstance(got, bytes), f"detokenize() gave {type(got).__name__}, not bytes"
        assert _without_leading_space(got) == _without_leading_space(text.encode()), (
            f"{text[:80]!r} came back as {got[:160]!r}"
        )


@check
def special_tokens_are_read_only_when_asked(c: EngineContract) -> None:
    """With `parse_special` false a control token's text stays text; with it true it is a token that renders as nothing.

    `add_special` puts the BOS in front exactly when EngineInfo says `adds_bos`.
    """
    for text in c.info.special_texts[:8]:
        plain = _tokenize(c, f"a{text}b")
        assert _without_leading_space(c.engine.detokenize(plain)) == f"a{text}b".encode(), (
            f"{text!r} did not stay text with parse_special=False: {plain}"
        )
        special = list(c.engine.tokenize(text, add_special=False, parse_special=True))
        assert special, f"{text!r} gave no token with parse_special=True"
        assert not c.engine.detokenize(special).strip(), f"{text!r}, a control token, rendered as {special}"
    with_special = list(c.engine.tokenize("Hello", add_special=True, parse_special=False))
    has_bos = with_special != _tokenize(c, "Hello")
    assert has_bos or not c.info.adds_bos, "adds_bos is true, but add_special=True added nothing"


@check
def tokenization_is_safe_beside_step(c: EngineContract) -> None:
    """`tokenize` and `detokenize` on a second thread give the right answers while `step` runs."""
    texts = [EMOJI_TEXT, *PROMPTS[:4]]
    expected = [_tokenize(c, text) for text in texts]
    reference = c.answer(PROMPTS[0])
    is_over = threading.Event()
    problems: list[str] = []
    n_rounds = 0

    def tokenize_all() -> None:
        nonlocal n_rounds
        while not (is_over.is_set() and n_rounds) and not problems:
            for text, tokens in zip(texts, expected, strict=True):
                try:
                    if _tokenize(c, text) != tokens:
                        problems.append(f"tokenize({text!r}) gave other tokens beside step()")
                    c.engine.detokenize(tokens)
                except Exception as error:  # noqa: BLE001 - handed to the main thread
                    problems.append(f"tokenizing beside step() raised {type(error).__name__}: {error}")
            n_rounds += 1

    sequence = c.sequence(PROMPTS[0])
    thread = threading.Thread(target=tokenize_all)
    with c.driver() as driver:
        thread.start()
        try:
            driver.run([sequence])
        finally:
            is_over.set()
            thread.join()
    assert not problems, problems[0]
    c.assert_same(reference, sequence, "while another thread tokenizes")


# -- streaming ------------------------------------------------------------------------------------------------------


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
    emoji = _tokenize(c, "🦙🚂世界é")
    joined = b"".join(c.engine.detokenize([token]) for token in emoji)
    assert _without_leading_space(joined) == "🦙🚂世界é".encode(), (
        f"token by token '🦙🚂世界é' gave {joined!r}; detokenize must not decode and repair what one token holds"
    )
    sequence = c.answer("Some emoji: 🦙🚂🦙🚂🦙🚂🦙", c.greedy(24))
    for token, piece in zip(sequence.token_ids, sequence.pieces, strict=True):
        expected = c.engine.detokenize([token])
        assert _without_leading_space(piece) == _without_leading_space(expected), (
            f"token {token} was pushed as {piece!r}, detokenize gives {expected!r}"
        )
    text = b"".join(sequence.pieces).decode("utf-8", "replace")
    assert sequence.text == text, f"the text is {sequence.text!r}, the pieces say {text!r}"


@check
def stop_strings_end_it_across_pieces(c: EngineContract) -> None:
    """When `push` gives False at a stop string that spans two pieces, the sequence is over and its slot is free."""
    reference = c.answer(PROMPTS[1], c.greedy(40))
    ends = [len(b"".join(reference.pieces[: index + 1])) for index in range(len(reference.pieces))]
    whole = b"".join(reference.pieces).decode("utf-8", "replace")
    if "\ufffd" in whole or len(whole.encode()) != ends[-1] or not whole.isascii():
        whole = ""
    for index in range(1, len(ends) - 1):
        stop = whole[ends[index] - 1 : ends[index] + 1]
        if len(stop) == 2 and whole.find(stop) == ends[index] - 1:
            break
    else:
        raise AssertionError(f"the model's answer has no place to cut at: {reference.text!r}; use another model")
    n_told = 0
    for _ in range(c.info.n_slots + 1):  # once more than there are slots: a slot that is not freed is missed
        sequence = c.answer(PROMPTS[1], c.greedy(40, stop=(stop,)))
        if c.allow_near_tie and sequence.token_ids[: index + 2] != reference.token_ids[: index + 2]:
            continue  # another answer, which tells nothing of this stop string
        n_told += 1
        assert sequence.reason is FinishReason.STOP, f"it ended with {sequence.reason}, not at {stop!r}"
        assert sequence.stop_string == stop, f"it stopped at {sequence.stop_string!r}, not at {stop!r}"
        assert sequence.text == whole[: ends[index] - 1], f"text before {stop!r} is {sequence.text!r}"
    assert n_told, f"not one of {c.info.n_slots + 1} greedy answers began like the first: {reference.text!r}"


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
    import jinja2.sandbox  # late: only engines with templates need it

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(info.chat_template).render(
        messages=[{"role": "user", "content": question}],
        add_generation_prompt=True,
        bos_token="" if info.adds_bos else info.bos_text,
        eos_token=info.eos_text,
    )


# -- context --------------------------------------------------------------------------------------------------------


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


# -- cancel ---------------------------------------------------------------------------------------------------------


def _assert_all_slots_work(c: EngineContract, when: str) -> None:
    reference = c.answer(PROMPTS[3], c.greedy(8))
    sequences = [c.sequence(PROMPTS[3], c.greedy(8)) for _ in range(c.info.n_slots)]
    with c.driver() as driver:
        for sequence in sequences:
            driver.add(sequence)
        driver.run()
    for sequence in sequences:
        c.assert_same(reference, sequence, when)


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
            driver.step_until(lambda leaving=leaving: len(leaving.token_ids) >= 3)  # type: ignore[misc]
            driver.cancel(leaving)
            driver.run()
        assert not leaving.violations, leaving.violations[0]
        if staying is not None:
            c.assert_same(reference, staying, "beside a sequence that was cancelled")
    _assert_all_slots_work(c, "after sequences cancelled in decode")


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


# -- back-pressure --------------------------------------------------------------------------------------------------


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


# -- the same, and not the same -------------------------------------------------------------------------------------


@check
def greedy_answers_repeat(c: EngineContract) -> None:
    """At temperature 0 the same prompt gives the same answer, whatever the seed."""
    first = c.answer(PROMPTS[8])
    second = c.answer(PROMPTS[8], msgspec.structs.replace(c.greedy(), seed=99))
    c.assert_same(first, second, "the same prompt again at temperature 0")


def _sampled(seed: int, n_tokens: int = 32) -> SamplingParams:
    return SamplingParams(temperature=1.5, top_p=1.0, min_p=0.0, seed=seed, max_tokens=n_tokens, ignore_eos=True)


@check
def a_seed_repeats(c: EngineContract) -> None:
    """With a fixed seed a sampled answer repeats, also after other requests and with every seed of 32 bits."""
    for seed in (0, 1, 2**32 - 1):
        first = c.answer(PROMPTS[9], _sampled(seed))
        c.answer(PROMPTS[10], _sampled(5, 4))
        second = c.answer(PROMPTS[9], _sampled(seed))
        assert first.token_ids == second.token_ids, f"seed {seed} gave {first.text!r}, then {second.text!r}"


@check
def seeds_differ(c: EngineContract) -> None:
    """At temperature 1.5 four seeds do not all give one answer."""
    answers = {tuple(c.answer(PROMPTS[9], _sampled(seed)).token_ids) for seed in (1, 2, 3, 4)}
    assert len(answers) > 1, "four seeds at temperature 1.5 gave the same 32 tokens"


@check
def logit_bias_bans_and_forces(c: EngineContract) -> None:
    """A logit bias of -100 keeps a token out, one of +100 gets it chosen at temperature 0."""
    plain = c.answer(PROMPTS[0], c.greedy(6))
    banned = plain.token_ids[0]
    without = c.answer(PROMPTS[0], msgspec.structs.replace(c.greedy(6), logit_bias={banned: -100.0}))
    assert banned not in without.token_ids, f"token {banned} was banned and came all the same: {without.token_ids}"
    wanted = next(token for token in _tokenize(c, "zebra") if token not in plain.token_ids)
    forced = c.answer(PROMPTS[0], msgspec.structs.replace(c.greedy(6), logit_bias={wanted: 100.0}))
    assert wanted in forced.token_ids, f"token {wanted} was all but forced and never came: {forced.token_ids}"


# -- many at once ---------------------------------------------------------------------------------------------------


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


# -- prefix cache ---------------------------------------------------------------------------------------------------


@check
def a_known_prefix_is_reused(c: EngineContract) -> None:
    """A second turn reports the tokens it need not evaluate in `begin`, and answers as without them."""
    prompt = c.long_tokens(c.n_long(0.6), topic="reused page")
    first = c.answer(prompt, c.greedy(12), cache_prompt=True)
    turn = [*prompt, *first.token_ids, *_tokenize(c, " And then?")]
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
        prompt = [*shared, *_tokenize(c, tail)]
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
    """With `cache_prompt` false the whole prompt is evaluated: `begin(0)`."""
    for _ in range(2):
        sequence = c.answer(PROMPTS[13], c.greedy(4), cache_prompt=False)
        assert sequence.n_cached == 0, f"begin() said {sequence.n_cached} cached tokens"


# -- log probabilities ----------------------------------------------------------------------------------------------


@check
def logprobs_are_probabilities(c: EngineContract) -> None:
    """With `logprobs` n each push carries the chosen token's log probability and those of the n best, best first."""
    for n_top, temperature in ((0, 0.0), (3, 0.0), (5, 1.0)):
        params = SamplingParams(temperature=temperature, seed=3, max_tokens=8, ignore_eos=True, logprobs=n_top)
        sequence = c.answer(PROMPTS[14], params)
        for token, piece, logprob in zip(sequence.token_ids, sequence.pieces, sequence.logprobs, strict=True):
            assert logprob is not None, "no logprob"
            assert (logprob.token_id, logprob.token) == (token, piece), (
                f"token {token} {piece!r} was pushed with the log probability of {logprob.token_id} {logprob.token!r}"
            )
            values = [top.logprob for top in logprob.top]
            assert len(values) == n_top, f"logprobs={n_top} gave {len(values)} candidates"
            assert all(-math.inf < value <= 1e-4 for value in [*values, logprob.logprob]), (
                f"a log probability is above 0 or not finite: {logprob}"
            )
            assert values == sorted(values, reverse=True), f"the candidates are not in order: {values}"
            assert sum(math.exp(value) for value in values) <= 1.001, f"probabilities that sum to over 1: {values}"
            same = [top.logprob for top in logprob.top if top.token_id == token]
            assert all(abs(value - logprob.logprob) < 1e-3 for value in same), f"two values for one token: {logprob}"
            if temperature == 0.0 and n_top:
                assert logprob.logprob >= values[0] - 1e-3, f"a greedy choice that is not the best: {logprob}"
            if values and not same:
                assert logprob.logprob <= values[-1] + 1e-3, f"a likely token is missing in the candidates: {logprob}"


# -- the rest -------------------------------------------------------------------------------------------------------


@check
def embeddings_are_given_or_refused(c: EngineContract) -> None:
    """`embed` gives a finite vector of n_embd for each input, the same each time, and leaves running sequences alone.

    An engine that cannot embed raises UnsupportedParameter.
    """
    inputs = [_tokenize(c, PROMPTS[0]), _tokenize(c, PROMPTS[1])]
    if not c.info.can_embed:
        try:
            c.engine.embed(inputs)
        except UnsupportedParameter:
            return
        raise AssertionError("can_embed is false, but embed() did not raise UnsupportedParameter")
    reference = c.answer(PROMPTS[2], c.greedy(12))
    sequence = c.sequence(PROMPTS[2], c.greedy(12))
    with c.driver() as driver:
        driver.add(sequence)
        driver.step_until(lambda: len(sequence.token_ids) >= 3)
        result = c.engine.embed(inputs)
        driver.run()
    c.assert_same(reference, sequence, "after embed() between two steps")
    assert result.n_tokens == sum(len(tokens) for tokens in inputs), f"n_tokens is {result.n_tokens}"
    assert len(result.vectors) == 2, f"{len(result.vectors)} vectors came for 2 inputs"
    for vector in result.vectors:
        assert len(vector) == c.info.n_embd, f"a vector has {len(vector)} numbers, n_embd is {c.info.n_embd}"
        assert all(math.isfinite(value) for value in vector), "a vector holds a number that is not finite"
        assert any(vector), "a vector is all zeros"
    again = c.engine.embed([inputs[1]]).vectors[0]
    assert _cosine(again, result.vectors[1]) > 0.99, "one text alone and among others has different vectors"
    assert _cosine(result.vectors[0], result.vectors[1]) < 0.9999, "two texts have the same vector"


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@check
def memory_is_accounted(c: EngineContract) -> None:
    """`memory` gives a MemoryUse without negative numbers, also while a sequence runs."""
    sequence = c.sequence(PROMPTS[0])
    with c.driver() as driver:
        driver.add(sequence)
        driver.step()
        use = c.engine.memory()
    assert isinstance(use, MemoryUse), f"memory() gave {use!r}"
    assert min(use.weights_bytes, use.kv_bytes, use.compute_bytes) >= 0, f"memory() gave {use}"


@check
def close_gives_the_memory_back(c: EngineContract) -> None:
    """Loading, using and closing it once more leaves the process no larger than before, within the margin."""
    sizes = []
    for _ in range(3):
        c.close()
        c.answer(c.long_tokens(c.n_long(0.5)), c.greedy(4))
        c.close()
        sizes.append(_resident_bytes())
    growth = min(sizes[1] - sizes[0], sizes[2] - sizes[1])
    assert growth <= c.memory_margin_bytes, (
        f"each load, use and close left {growth / 2**20:.0f} MiB behind, over the margin of "
        f"{c.memory_margin_bytes / 2**20:.0f} MiB"
    )


def _resident_bytes() -> int:
    import psutil  # late: only this check needs it

    gc.collect()
    return int(psutil.Process().memory_info().rss)
