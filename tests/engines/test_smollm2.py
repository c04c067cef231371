"""One real model in both engines, with the settings a user has: what each promises of whole answers. Without a server."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hostler import EngineSettings, ModelFiles, SamplingParams
from support.running import GREEDY, TOPICS, Loaded, assert_same_answer, chat

from .test_steps import KINDS

pytestmark = pytest.mark.weights
NEAR_TIE = 0.25
"""As both engines' samples have it: log probabilities closer than this may swap places."""
N_EQUAL = {16: 8, 8: 6}
"""Of so many answers at least so many are the same to the last token."""
N_SLOTS = {"llamacpp": 16, "session": 8, "generators": 8}


@pytest.fixture(scope="module", params=KINDS)
def smollm2(request: pytest.FixtureRequest) -> Iterator[Loaded[Any]]:
    kind = str(request.param)
    place, model_format, own = KINDS[kind]
    path = request.getfixturevalue("smollm2_path" if kind == "llamacpp" else "smollm2_onnx_path")
    module, _, name = place.partition(":")
    engine = getattr(importlib.import_module(module), name)()
    extra = own.get("extra", {})
    # A step is a token; what is drafted has tests of its own.
    settings = EngineSettings(ctx_len=640, n_parallel=N_SLOTS[kind], speculation="off", extra=extra)
    yield Loaded(engine, engine.load(ModelFiles(str(path), model_format), settings, lambda _: True))
    engine.close()


def test_all_slots_at_once_say_what_each_says_alone(smollm2: Loaded[Any]) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=40, logprobs=5)
    prompts = [chat(smollm2, f"Write a few sentences on {topic}.") for topic in TOPICS[: smollm2.info.n_slots]]
    alone = [smollm2.answer(tokens, params, cache_prompt=False) for tokens in prompts]

    together = [smollm2.sequence(tokens, params, cache_prompt=False) for tokens in prompts]
    smollm2.driver().run(together)

    for one, other in zip(alone, together, strict=True):
        assert_same_answer(one, other, NEAR_TIE)
    n_equal = sum(one.token_ids == other.token_ids for one, other in zip(alone, together, strict=True))
    assert n_equal >= N_EQUAL[len(prompts)], "near ties are rare; so many different answers are something else"


def test_second_turn_of_a_long_chat_is_reused(smollm2: Loaded[Any]) -> None:
    params = msgspec.structs.replace(GREEDY, max_tokens=24, logprobs=5)
    first_turn = chat(smollm2, "Tell me of these: " + ", ".join(TOPICS * 4))
    first = smollm2.answer(first_turn, params)
    turn = [*first_turn, *first.token_ids, *chat(smollm2, "And of dogs?")]

    second = smollm2.answer(turn, params)

    assert second.n_cached == len(first_turn) + len(first.token_ids) - 1
    assert_same_answer(smollm2.answer(turn, params, cache_prompt=False), second, NEAR_TIE)


def test_seed_repeats_and_temperature_matters(smollm2: Loaded[Any]) -> None:
    tokens = chat(smollm2, "Invent a name for a horse.")
    params = SamplingParams(seed=11, max_tokens=24)

    def text(**changes: object) -> str:
        return smollm2.answer(tokens, msgspec.structs.replace(params, **changes), cache_prompt=False).text

    assert text() == text()
    assert len({text(seed=seed, temperature=1.5) for seed in range(4)}) > 1
