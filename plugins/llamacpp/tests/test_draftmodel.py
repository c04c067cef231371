"""A small model that guesses for another, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hostler import EngineSettings, InvalidRequest, ModelFiles, SamplingParams, UnsupportedParameter
from hostler.library.store import Library
from hostler.placement import draft_path
from hostler.plugins import get_plugins
from hostler_llamacpp import speculation
from hostler_llamacpp.engine import LlamaCppEngine
from hostler_llamacpp.estimate import estimate

from . import tiny_models
from .running import GREEDY, Loaded, assert_same_answer, prompt
from .test_speculation import TOLERANCE, driver_of

N_GUESSES = 5


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can guess drafts, whatever it costs."""
    monkeypatch.setattr(speculation, "choose", lambda sources, *_, **__: (list(range(len(sources))), N_GUESSES))


@pytest.fixture(scope="module")
def itself(load: Callable[..., Loaded], models: Path) -> Loaded:
    """A tiny llama for which the same model guesses: greedily it is always right."""
    return load("llama", speculation="auto", draft_path=str(models / "llama.gguf"))


@pytest.fixture(scope="module")
def other(load: Callable[..., Loaded], models: Path) -> Loaded:
    """A tiny llama for which a model with the same vocabulary guesses that knows nothing of it."""
    return load("llama", speculation="auto", draft_path=str(models / "gemma3.gguf"))


def test_a_model_that_thinks_alike_guesses_right(llama: Loaded, itself: Loaded) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=60)
    plain = llama.answer(prompt(100, 1), params, cache_prompt=False)

    guessed = itself.sequence(prompt(100, 1), params, cache_prompt=False)
    driver_of(itself).run([guessed])

    assert_same_answer(plain, guessed, TOLERANCE)
    assert guessed.n_accepted >= 0.9 * guessed.n_drafted >= 30


def test_many_at_once_say_what_each_says_alone(llama: Loaded, itself: Loaded, other: Loaded) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=50)
    prompts = [prompt(20 + 60 * index, 10 + index) for index in range(5)]
    alone = [llama.answer(tokens, params, cache_prompt=False) for tokens in prompts]

    for loaded in (itself, other):
        together = [loaded.sequence(tokens, params, cache_prompt=False) for tokens in prompts]
        driver_of(loaded).run(together)
        for one, guessed in zip(alone, together, strict=True):
            assert_same_answer(one, guessed, TOLERANCE)
        assert any(sequence.n_drafted for sequence in together)
        assert loaded.engine._speculation is not None
        assert loaded.engine._speculation.model is not None
        assert sorted(loaded.engine._speculation.model._free) == [0, 1, 2]


def test_a_seed_draws_the_same_answer_whoever_guesses(llama: Loaded, other: Loaded) -> None:
    params = SamplingParams(seed=5, max_tokens=50, ignore_eos=True, logprobs=3)
    plain = llama.answer(prompt(40, 20), params, cache_prompt=False)

    guessed = other.sequence(prompt(40, 20), params, cache_prompt=False)
    driver_of(other).run([guessed])

    assert_same_answer(plain, guessed, TOLERANCE)


@pytest.mark.parametrize(
    ("draft", "why"), [("mamba.gguf", "recurrent"), ("bert.gguf", "vocabulary"), ("changed.gguf", "token 261 is")]
)
def test_a_model_that_cannot_guess_is_refused_by_both_names(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draft: str, why: str
) -> None:
    path = models / draft
    if draft == "changed.gguf":
        monkeypatch.setattr(tiny_models, "TOKENS", [*tiny_models.TOKENS[:261], "zzz", *tiny_models.TOKENS[262:]])
        path = tiny_models.write_llama(tmp_path / draft, **{"tokenizer.ggml.tokens": (9, (8, tiny_models.TOKENS))})
    settings = EngineSettings(ctx_len=512, n_parallel=2, draft_path=str(path))

    with pytest.raises(UnsupportedParameter, match=why) as caught:
        LlamaCppEngine().load(ModelFiles(str(models / "llama.gguf"), "gguf"), settings, lambda _: True)

    assert draft in caught.value.message
    assert "llama.gguf" in caught.value.message
    assert caught.value.param == "draft_model"


def test_memory_of_the_draft_model_is_estimated_and_accounted(llama: Loaded, itself: Loaded, models: Path) -> None:
    assert itself.engine.memory().kv_bytes >= 2 * llama.engine.memory().kv_bytes
    assert itself.engine.memory().weights_bytes >= 2 * llama.engine.memory().weights_bytes
    alone = EngineSettings(ctx_len=512)
    both = msgspec.structs.replace(alone, draft_path=str(models / "llama.gguf"))

    one, two = (estimate(models / "llama.gguf", settings) for settings in (alone, both))

    assert two.kv_bytes == 2 * one.kv_bytes
    assert two.weights_bytes == 2 * one.weights_bytes
    assert two.compute_bytes > one.compute_bytes


def test_draft_model_of_the_library_is_found_by_its_id_and_a_missing_one_named(models: Path, tmp_path: Path) -> None:
    library = Library(tmp_path, {})
    target = library.import_path(models / "llama.gguf", id="big").manifest
    library.import_path(models / "gemma3.gguf", id="small")
    spec = get_plugins().engines["llamacpp"]
    settings = {"speculation": "auto", "draft_model": "small"}

    assert draft_path(library, target, spec, settings) == str(models / "gemma3.gguf")
    assert draft_path(library, target, spec, {"speculation": "off", "draft_model": "small"}) == ""
    assert draft_path(library, target, spec, {"speculation": "auto"}) == ""
    with pytest.raises(InvalidRequest, match=r"draft_model of big is 'tiny', which is not there") as caught:
        draft_path(library, target, spec, {"speculation": "auto", "draft_model": "tiny"})
    assert caught.value.param == "draft_model"
