"""Answers with guesses, on tiny models: what is written is what would have been written without."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from hostler import EngineFailed, FinishReason, SamplingParams
from hostler.testing import Driver, RecordingSequence
from hostler_llamacpp import speculation
from hostler_llamacpp.engine import LlamaCppEngine

from . import tiny_models
from .running import GREEDY, Loaded, assert_same_answer, prompt

TOLERANCE = 1e-3
N_GUESSES = 5


class Oracle:
    """Guesses a given answer, every so many tokens wrongly."""

    def __init__(self, answer: list[int], wrong_every: int) -> None:
        self._answer = answer
        self._wrong_every = wrong_every
        self.n_written = 0

    has_guess = True

    def note(self, _token: int) -> None:
        self.n_written += 1

    def draft(self, n: int) -> list[int]:
        places = range(self.n_written, self.n_written + n)
        right = [self._answer[place] if place < len(self._answer) else 270 for place in places]
        return [token if (place + 1) % self._wrong_every else token - 1 for place, token in zip(places, right, strict=True)]

    def expected(self, n_most: int) -> list[float]:
        return [1.0 + n for n in range(n_most + 1)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a guess drafts N_GUESSES tokens, whatever it costs."""

    def everybody(sources: list[Any], *_: Any, **__: Any) -> tuple[list[int], int]:
        return list(range(len(sources))), N_GUESSES

    monkeypatch.setattr(speculation, "choose", everybody)


@pytest.fixture(scope="module")
def drafting(load: Callable[..., Loaded]) -> Loaded:
    """A tiny llama that guesses."""
    return load("llama", speculation="auto")


def run(loaded: Loaded, sequences: list[RecordingSequence], oracles: list[Oracle | None]) -> None:
    """Run sequences side by side, each with its own guesses."""
    driver = driver_of(loaded)
    for sequence, oracle in zip(sequences, oracles, strict=True):
        driver.add(sequence)
        if oracle is not None:
            loaded.engine._runs[sequence.id].ngrams = oracle  # type: ignore[assignment]
    driver.run()
    assert not any(sequence.violations for sequence in sequences)


def driver_of(loaded: Loaded) -> Driver:
    return Driver(loaded.engine, n_slots=loaded.info.n_slots, max_tokens_per_step=N_GUESSES + 1)


PARAMS = [
    GREEDY,
    SamplingParams(seed=3, logprobs=3, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, top_k=40, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, top_p=1.0, min_p=0.0, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, typ_p=0.8, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, mirostat=1, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, mirostat=2, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, top_k=40, frequency_penalty=1.0, repeat_penalty=1.3, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, temperature=0, presence_penalty=1.5, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, logit_bias={270: 2.0, 271: -100.0}, ignore_eos=True),
    SamplingParams(seed=3, logprobs=3, dynatemp_range=0.5, ignore_eos=True),
]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("wrong_every", [2, 4, 1000])
@pytest.mark.parametrize("params", PARAMS)
def test_an_answer_with_guesses_is_the_one_without(
    llama: Loaded, drafting: Loaded, params: SamplingParams, wrong_every: int
) -> None:
    params = msgspec.structs.replace(params, max_tokens=60)
    plain = llama.answer(prompt(40, 1), params, cache_prompt=False)

    guessed = drafting.sequence(prompt(40, 1), params, cache_prompt=False)
    run(drafting, [guessed], [Oracle(plain.token_ids, wrong_every)])

    assert_same_answer(plain, guessed, TOLERANCE)
    if plain.token_ids == guessed.token_ids:
        assert (guessed.n_accepted == guessed.n_drafted) == (wrong_every > 60)
        assert guessed.n_accepted > 60 / 4


@pytest.mark.usefixtures("always")
def test_neighbours_that_guess_well_badly_and_not_at_all_say_what_each_says_alone(llama: Loaded, drafting: Loaded) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=70)
    prompts = [prompt(30 + 20 * index, 10 + index) for index in range(3)]
    alone = [llama.answer(tokens, params, cache_prompt=False) for tokens in prompts]

    together = [drafting.sequence(tokens, params, cache_prompt=False) for tokens in prompts]
    run(drafting, together, [Oracle(alone[0].token_ids, 1000), Oracle(alone[1].token_ids, 2), None])

    for one, other in zip(alone, together, strict=True):
        assert_same_answer(one, other, TOLERANCE)


@pytest.mark.usefixtures("always")
def test_guesses_beside_a_long_prompt_leave_both_right(llama: Loaded, drafting: Loaded) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=60)
    talking, long = prompt(20, 20), prompt(400, 21)
    alone = [llama.answer(tokens, params, cache_prompt=False) for tokens in (talking, long)]
    sequences = [drafting.sequence(tokens, params, cache_prompt=False) for tokens in (talking, long)]

    run(drafting, sequences, [Oracle(alone[0].token_ids, 4), Oracle(alone[1].token_ids, 3)])

    for one, other in zip(alone, sequences, strict=True):
        assert_same_answer(one, other, TOLERANCE)


@pytest.mark.usefixtures("always")
def test_what_a_guessed_answer_leaves_in_the_cache_is_right(llama: Loaded, drafting: Loaded) -> None:
    tokens = prompt(50, 30)
    params = msgspec.structs.replace(GREEDY, max_tokens=40)
    plain = llama.answer(tokens, params, cache_prompt=False)
    first = drafting.sequence(tokens, params)
    run(drafting, [first], [Oracle(plain.token_ids, 3)])
    turn = [*tokens, *first.token_ids, *prompt(10, 31)]

    second = drafting.sequence(turn)
    run(drafting, [second], [None])

    assert second.n_cached == len(tokens) + len(first.token_ids) - 1
    assert_same_answer(llama.answer(turn, cache_prompt=False), second, TOLERANCE)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 7, 12])
def test_an_answer_ends_where_it_must_though_more_was_guessed_right(llama: Loaded, drafting: Loaded, n_tokens: int) -> None:
    plain = llama.answer(prompt(30, 40), msgspec.structs.replace(GREEDY, max_tokens=40), cache_prompt=False)
    stopped = RecordingSequence(prompt(30, 40), msgspec.structs.replace(GREEDY, max_tokens=40), stop_after=n_tokens)
    limited = drafting.sequence(prompt(30, 40), msgspec.structs.replace(GREEDY, max_tokens=n_tokens))

    for sequence in (stopped, limited):
        run(drafting, [sequence], [Oracle(plain.token_ids, 1000)])
        assert sequence.token_ids == plain.token_ids[:n_tokens]

    again = drafting.sequence([*prompt(30, 40), *plain.token_ids[:n_tokens], 280])
    run(drafting, [again], [None])
    assert again.n_cached == 30 + n_tokens - 1


@pytest.mark.usefixtures("always")
def test_guesses_stop_at_the_context(llama: Loaded, drafting: Loaded) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=1000)
    plain = llama.answer(prompt(480, 41), params, cache_prompt=False)
    sequence = drafting.sequence(prompt(480, 41), params, cache_prompt=False)

    run(drafting, [sequence], [Oracle(plain.token_ids, 1000)])

    assert (sequence.reason, len(sequence.token_ids)) == (FinishReason.LENGTH, 512 - 480)
    assert_same_answer(plain, sequence, TOLERANCE)


@pytest.mark.usefixtures("always")
def test_an_end_token_ends_the_answer_and_is_never_guessed(drafting: Loaded) -> None:
    # A bias that grows on the answer's third token would need a grammar; a bias on the end token ends it at once.
    ending = msgspec.structs.replace(GREEDY, ignore_eos=False, max_tokens=50, logit_bias={2: 4.0})
    sequence = drafting.sequence(prompt(30, 42), ending, cache_prompt=False)
    run(drafting, [sequence], [None])
    assert sequence.reason is FinishReason.STOP
    guessed = drafting.sequence(prompt(30, 42), ending, cache_prompt=False)

    run(drafting, [guessed], [Oracle([*sequence.token_ids, 2, 2, 2], 1000)])

    assert (guessed.reason, guessed.token_ids) == (FinishReason.STOP, sequence.token_ids)


@pytest.mark.usefixtures("always")
def test_cancel_and_pause_among_guesses_leave_no_trace(llama: Loaded, drafting: Loaded) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=60)
    plain = llama.answer(prompt(30, 43), params, cache_prompt=False)
    driver = driver_of(drafting)
    cancelled, paused = (drafting.sequence(prompt(30, 43), params, cache_prompt=False) for _ in range(2))
    for sequence in (cancelled, paused):
        driver.add(sequence)
        drafting.engine._runs[sequence.id].ngrams = Oracle(plain.token_ids, 3)  # type: ignore[assignment]
    driver.step_until(lambda: len(paused.token_ids) > 10)
    driver.cancel(cancelled)
    paused.pause()
    n_before = len(paused.token_ids)
    driver.step()
    assert len(paused.token_ids) == n_before
    paused.resume()

    driver.run()

    assert_same_answer(plain, paused, TOLERANCE)


@pytest.mark.usefixtures("always")
def test_broken_logits_among_guesses_fail_that_answer_alone(
    llama: Loaded, drafting: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=30)
    plain = [llama.answer(prompt(30, seed), params, cache_prompt=False) for seed in (44, 45)]
    one, other = (drafting.sequence(prompt(30, seed), params, cache_prompt=False) for seed in (44, 45))
    driver = driver_of(drafting)
    for sequence, answer in ((one, plain[0]), (other, plain[1])):
        driver.add(sequence)
        drafting.engine._runs[sequence.id].ngrams = Oracle(answer.token_ids, 1000)  # type: ignore[assignment]
    driver.step_until(lambda: bool(one.token_ids and other.token_ids))

    def fail(*_: object) -> None:
        raise EngineFailed("the model computed no valid probabilities")

    monkeypatch.setattr(drafting.engine._runs[one.id].sampler, "pick", fail)
    driver.run()

    assert one.reason is FinishReason.ERROR
    assert_same_answer(plain[1], other, TOLERANCE)


@pytest.mark.usefixtures("always")
def test_an_answer_that_repeats_itself_is_guessed_from_its_own_words(llama: Loaded, drafting: Loaded) -> None:
    """Without an oracle: a prompt that says everything twice, and an answer forced to say it again."""
    circle = prompt(8, 46)
    params = msgspec.structs.replace(GREEDY, max_tokens=80, logit_bias=dict.fromkeys(circle, 30.0))
    plain = llama.answer(circle * 4, params, cache_prompt=False)

    guessed = drafting.sequence(circle * 4, params, cache_prompt=False)
    driver_of(drafting).run([guessed])

    assert_same_answer(plain, guessed, TOLERANCE)
    assert guessed.n_drafted > 0


N_SEEDS = 1500


@pytest.fixture(scope="module")
def drawn(load: Callable[..., Loaded]) -> tuple[list[RecordingSequence], list[RecordingSequence]]:
    """Drawn answers of four tokens to one prompt, without guesses and with: always the greedy answer is guessed."""
    loaded = load("llama", speculation="auto")
    tokens = prompt(20, 50)
    greedy = loaded.answer(tokens).token_ids
    params = SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0, top_k=6, max_tokens=4, ignore_eos=True)
    plain, guessed = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation, "choose", lambda sources, *_, **__: (list(range(len(sources))), 2))
        for seed in range(N_SEEDS):
            for found, oracle in ((plain, None), (guessed, Oracle(greedy, 1000))):
                sequence = loaded.sequence(tokens, msgspec.structs.replace(params, seed=seed + 1))
                driver = driver_of(loaded)
                driver.add(sequence)
                loaded.engine._runs[sequence.id].ngrams = oracle  # type: ignore[assignment]
                driver.run()
                found.append(sequence)
    return plain, guessed


def test_a_seed_draws_the_same_answer_with_guesses(drawn: tuple[list[RecordingSequence], list[RecordingSequence]]) -> None:
    plain, guessed = drawn

    n_equal = sum(one.token_ids == other.token_ids for one, other in zip(plain, guessed, strict=True))

    assert n_equal >= N_SEEDS - 3
    n_accepted = [sequence.n_accepted for sequence in guessed]
    assert min(n_accepted.count(n) for n in range(3)) > N_SEEDS // 50, "right and wrong guesses both occur"


@pytest.mark.parametrize("n_tokens", [1, 2, 3])
def test_drawn_tokens_follow_the_distribution_whatever_was_guessed(
    drawn: tuple[list[RecordingSequence], list[RecordingSequence]], n_tokens: int
) -> None:
    """The seeds are fixed, so this cannot flake; other seeds on either side, or equal ones would hide all else."""
    plain, guessed = drawn
    expected = Counter(tuple(sequence.token_ids[:n_tokens]) for sequence in plain[::2])
    got = Counter(tuple(sequence.token_ids[:n_tokens]) for sequence in guessed[1::2])

    assert chi_squared_p(expected, got) > 0.001


def test_the_test_of_distributions_sees_a_token_that_comes_too_often() -> None:
    fair = Counter({"a": 300, "b": 250, "c": 200})

    assert chi_squared_p(fair, Counter({"a": 310, "b": 236, "c": 204})) > 0.1
    assert chi_squared_p(fair, Counter({"a": 380, "b": 210, "c": 160})) < 0.001


def chi_squared_p(one: Counter[Any], other: Counter[Any]) -> float:
    """The chance that two samples of one distribution differ at least so much (Wilson and Hilferty's approximation)."""
    common = [key for key in one | other if one[key] + other[key] >= 10]
    rows = [[one[key], other[key]] for key in common]
    rest = [one.total() - sum(row[0] for row in rows), other.total() - sum(row[1] for row in rows)]
    table = np.array([*rows, rest] if sum(rest) >= 10 else rows, float)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    freedom = len(table) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


# -- models that forget -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windowed(load: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Loaded]:
    """A tiny gemma3 without guesses and with them. Its windows have as few cells to spare as llama.cpp allows: 16."""
    path = tiny_models.write_gemma3(tmp_path_factory.mktemp("windowed") / "gemma3.gguf", window=240)
    plain, guessing = (
        load(path, ctx_len=1024, n_parallel=2, extra={"n_ubatch": 16}, speculation=what) for what in ("off", "auto")
    )
    return plain, guessing


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("wrong_every", [2, 3, 4, 1000])
def test_guesses_are_taken_back_rightly_where_windows_slide_over_all_cells(
    windowed: tuple[Loaded, Loaded], wrong_every: int
) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=700)
    plain = windowed[0].answer(prompt(100, 60), params, cache_prompt=False)
    guessed = windowed[1].sequence(prompt(100, 60), params, cache_prompt=False)

    run(windowed[1], [guessed], [Oracle(plain.token_ids, wrong_every)])

    assert_same_answer(plain, guessed, TOLERANCE)
    assert guessed.n_accepted >= 700 / 4


@pytest.mark.usefixtures("always")
def test_neighbours_in_windows_that_guess_and_do_not_say_what_each_says_alone(windowed: tuple[Loaded, Loaded]) -> None:
    params = [msgspec.structs.replace(GREEDY, max_tokens=n) for n in (600, 500)]
    prompts = [prompt(150, 61), prompt(250, 62)]
    alone = [windowed[0].answer(tokens, one, cache_prompt=False) for tokens, one in zip(prompts, params, strict=True)]

    for oracles in ([Oracle(alone[0].token_ids, 3), Oracle(alone[1].token_ids, 2)], [None, Oracle(alone[1].token_ids, 4)]):
        together = [windowed[1].sequence(tokens, one, cache_prompt=False) for tokens, one in zip(prompts, params, strict=True)]
        run(windowed[1], together, oracles)
        for one, other in zip(alone, together, strict=True):
            assert_same_answer(one, other, TOLERANCE)


@pytest.mark.usefixtures("always")
def test_a_chat_goes_on_rightly_behind_a_guessed_answer_in_a_window(windowed: tuple[Loaded, Loaded]) -> None:
    plain = windowed[0].answer(prompt(300, 63), msgspec.structs.replace(GREEDY, max_tokens=203), cache_prompt=False)
    first = windowed[1].sequence(prompt(300, 63), msgspec.structs.replace(GREEDY, max_tokens=203))
    run(windowed[1], [first], [Oracle(plain.token_ids, 3)])
    turn = [*first.tokens, *first.token_ids, *prompt(30, 64)]

    second = windowed[1].sequence(turn)
    run(windowed[1], [second], [None])

    assert second.n_cached == 300 + 203 - 1
    assert_same_answer(windowed[0].answer(turn, cache_prompt=False), second, TOLERANCE)


@pytest.mark.usefixtures("always")
def test_a_window_that_was_lost_is_an_error_and_never_a_wrong_text(windowed: tuple[Loaded, Loaded]) -> None:
    loaded = windowed[1]
    run(loaded, [loaded.sequence(prompt(900, 65))], [None])
    streams = loaded.engine._streams
    stream = max(streams.all, key=lambda stream: stream.n_tokens)

    with pytest.raises(EngineFailed, match="has lost the window before token 400"):
        streams.truncate(stream, 400)
    streams._clear(stream)


def test_no_guesses_where_they_are_off_or_cannot_be_taken_back(load: Callable[..., Loaded]) -> None:
    engines: list[LlamaCppEngine] = [load("llama").engine, load("mamba", speculation="auto").engine]

    assert all(engine._speculation is None for engine in engines)
    for engine in engines:
        assert engine._loaded is not None
        assert engine._loaded.n_draft_rows == 0
