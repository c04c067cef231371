"""What each engine that computes does in its steps, asked of the engine itself: on tiny models, without a server or a worker.

The contract's own checks are in hostler.testing; here is what one cannot ask of an engine that is not known.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hostler import (
    ContextLengthExceeded,
    EngineFailed,
    EngineSettings,
    FinishReason,
    InvalidRequest,
    ModelFiles,
    SamplingParams,
)
from hostler_onnxgenai import tinymodel
from support.running import GREEDY, assert_same_answer, drawn_tokens
from support.running import Loaded as AnyLoaded

from .conftest import make_model

TOLERANCE = 1e-3
KINDS = {
    "llamacpp": ("hostler_llamacpp.engine:LlamaCppEngine", "gguf", {"cache_type": "f32", "flash_attn": False}),
    "session": ("hostler_onnxgenai.engine:OnnxGenaiEngine", "onnxgenai", {"extra": {"backend": "session"}}),
    "generators": ("hostler_onnxgenai.engine:OnnxGenaiEngine", "onnxgenai", {"extra": {"backend": "generators"}}),
}
"""Engine, format, and settings of its own: all in float32, so that log probabilities of one text agree whatever the batch."""
Loaded = AnyLoaded[Any]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """A tiny llama in eight slots of 512 tokens."""
    place, model_format, own = KINDS[kind]
    path = make_model("llamacpp" if kind == "llamacpp" else "onnxgenai", tmp_path_factory.mktemp("steps") / kind)
    module, _, name = place.partition(":")
    engine = getattr(importlib.import_module(module), name)()
    settings = EngineSettings(ctx_len=512, n_parallel=8, n_batch=64, cpu_threads=1, speculation="off", **own)
    yield Loaded(engine, engine.load(ModelFiles(path, model_format), settings, lambda _: True))
    engine.close()


@pytest.fixture
def end(kind: str) -> int:
    """The token that ends an answer."""
    return 2 if kind == "llamacpp" else tinymodel.END


def prompt(n_tokens: int, seed: int) -> list[int]:
    """Token ids that repeat nothing; syllables in both vocabularies."""
    return drawn_tokens(n_tokens, seed, 261, 300)


def test_end_token_ends_the_answer_and_ignore_eos_goes_on(loaded: Loaded, end: int) -> None:
    forced = SamplingParams(temperature=0, seed=1, max_tokens=5, logit_bias={end: 100.0})

    ended = loaded.answer(prompt(10, 1), forced)
    ignored = loaded.answer(prompt(10, 1), msgspec.structs.replace(forced, ignore_eos=True))

    assert (ended.reason, ended.token_ids, ended.is_ended_by_engine) == (FinishReason.STOP, [], True)
    assert len(ignored.token_ids) == 5
    assert end not in ignored.token_ids


def test_running_answers_get_a_token_in_every_step_of_a_long_prefill(loaded: Loaded) -> None:
    talking = loaded.sequence(prompt(10, 3), msgspec.structs.replace(GREEDY, max_tokens=100))
    long = loaded.sequence(prompt(450, 4))
    driver = loaded.driver()
    driver.add(talking)
    driver.step_until(lambda: len(talking.token_ids) >= 2)
    driver.add(long)

    while not long.token_ids:
        n_before = len(talking.token_ids)
        driver.step()
        assert len(talking.token_ids) == n_before + 1

    assert len(long.prefilled_counts) >= 450 / 64
    driver.cancel_all()


def test_cancelled_prefill_leaves_its_prefix_for_the_next(loaded: Loaded) -> None:
    tokens = prompt(300, 10)
    sequence = loaded.sequence(tokens)
    driver = loaded.driver()
    driver.add(sequence)
    driver.step_until(lambda: sequence.n_prefilled >= 128)
    driver.cancel(sequence)

    again = loaded.answer(tokens)

    assert again.n_cached == sequence.n_prefilled
    assert_same_answer(loaded.answer(tokens, cache_prompt=False), again, TOLERANCE)


@pytest.mark.parametrize("tokens", [[], [1] * 512, [1] * 5000])
def test_prompt_that_does_not_fit_is_refused(loaded: Loaded, tokens: list[int]) -> None:
    with pytest.raises((InvalidRequest, ContextLengthExceeded)) as caught:
        loaded.engine.add(loaded.sequence(tokens))

    assert str(len(tokens) or "no tokens") in str(caught.value)
    assert loaded.engine._runs == {}


def test_prompt_with_a_foreign_token_is_refused(loaded: Loaded) -> None:
    with pytest.raises(InvalidRequest, match="token 999999 at place 1"):
        loaded.engine.add(loaded.sequence([5, 999_999]))

    assert loaded.engine._runs == {}


def test_more_sequences_than_slots_are_refused(loaded: Loaded) -> None:
    driver = loaded.driver()
    for seed in range(8):
        driver.add(loaded.sequence(prompt(5, seed)))

    with pytest.raises(EngineFailed, match="8 slots"):
        loaded.engine.add(loaded.sequence(prompt(5, 9)))
    driver.cancel_all()


def test_one_sequences_broken_logits_do_not_end_the_others(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = loaded.sequence(prompt(10, 12)), loaded.sequence(prompt(10, 13))
    driver = loaded.driver()
    driver.add(one)
    driver.add(other)
    driver.step_until(lambda: bool(one.token_ids and other.token_ids))

    def fail(*_: object) -> None:
        raise EngineFailed("the model computed no valid probabilities")

    monkeypatch.setattr(loaded.engine._runs[one.id].sampler, "pick", fail)
    driver.run()

    assert (one.reason, one.message) == (FinishReason.ERROR, "the model computed no valid probabilities")
    assert (other.reason, len(other.token_ids)) == (FinishReason.LENGTH, 16)


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
def test_a_seed_repeats_the_answer(loaded: Loaded, params: SamplingParams) -> None:
    tokens = prompt(20, 14)

    first = loaded.answer(tokens, params, cache_prompt=False)
    loaded.answer(prompt(20, 15), params)
    second = loaded.answer(tokens, params, cache_prompt=False)

    assert first.token_ids == second.token_ids


def test_many_at_once_say_what_each_says_alone(loaded: Loaded) -> None:
    prompts = [prompt(10 + 17 * index, 100 + index) for index in range(8)]
    alone = [loaded.answer(tokens, cache_prompt=False) for tokens in prompts]

    together = [loaded.sequence(tokens, cache_prompt=False) for tokens in prompts]
    loaded.driver().run(together)

    for one, other in zip(alone, together, strict=True):
        assert_same_answer(one, other, TOLERANCE)


def test_sink_that_forgets_the_context_is_ended_with_an_error(loaded: Loaded) -> None:
    """The sink counts the context; should it not, the engine must not write past its slot."""
    sequence = loaded.sequence(prompt(500, 11), msgspec.structs.replace(GREEDY, max_tokens=1000))
    sequence._max_tokens = 1000
    loaded.driver().run([sequence])

    assert sequence.reason is FinishReason.ERROR
    assert "512" in sequence.message
    assert 12 <= len(sequence.token_ids) <= 13


def test_top_k_of_one_is_greedy(loaded: Loaded) -> None:
    tokens = prompt(20, 16)
    greedy = loaded.answer(tokens)

    assert loaded.answer(tokens, SamplingParams(seed=9, top_k=1, max_tokens=16, ignore_eos=True)).token_ids == greedy.token_ids
