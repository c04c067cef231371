"""The real model in 16 slots, with the settings a user has: flash attention, 16-bit KV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostler import EngineSettings, FinishReason, InvalidModelFile, ModelFiles, SamplingParams
from hostler_llamacpp.engine import LlamaCppEngine
from support.running import TOPICS, chat

from .running import Loaded

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[Loaded]:
    engine = LlamaCppEngine()
    # A step is a token; what is drafted has tests of its own.
    settings = EngineSettings(ctx_len=640, n_parallel=16, speculation="off")
    yield Loaded(engine, engine.load(ModelFiles(str(smollm2_path), "gguf"), settings, lambda _: True))
    engine.close()


def test_model_answers_and_ends_by_itself(smollm2: Loaded) -> None:
    params = SamplingParams(temperature=0, seed=1, max_tokens=100)

    answer = smollm2.answer(chat(smollm2, "What is the capital of France?"), params)

    assert "Paris" in answer.text
    assert answer.reason is FinishReason.STOP
    assert "<|im_end|>" not in answer.text


def test_info_carries_template_and_special_texts(smollm2: Loaded) -> None:
    info = smollm2.info

    assert info.chat_template is not None
    assert "<|im_start|>" in info.chat_template
    assert {"<|im_start|>", "<|im_end|>"} <= set(info.special_texts)
    assert (info.n_ctx, info.n_slots, info.n_vocab, info.n_ctx_train) == (640, 16, 49152, 8192)


def test_one_system_prompt_for_16_is_evaluated_once(smollm2: Loaded) -> None:
    system = chat(smollm2, "Remember: " + ", ".join(TOPICS * 5))
    sequences = [smollm2.sequence([*system, *chat(smollm2, f"Now {topic}!")]) for topic in TOPICS]

    smollm2.driver().run(sequences)

    n_evaluated = sum(len(sequence.tokens) - (sequence.n_cached or 0) for sequence in sequences)
    assert n_evaluated < 3 * len(system)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_truncated_model_is_refused_as_damaged(smollm2_path: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as source:
        path.write_bytes(source.read(int(smollm2_path.stat().st_size * share)))

    with pytest.raises(InvalidModelFile):
        LlamaCppEngine().load(ModelFiles(str(path), "gguf"), EngineSettings(ctx_len=512), lambda _: True)


@pytest.mark.parametrize("settings", [{"cache_type": "q8_0"}, {"cache_type": "q4_0"}, {"flash_attn": False}])
def test_other_caches_answer_sensibly(load: Callable[..., Loaded], smollm2_path: Path, settings: dict[str, object]) -> None:
    loaded = load(smollm2_path, **{"cache_type": "f16", "flash_attn": True, "n_parallel": 1, **settings})

    answer = loaded.answer(
        chat(loaded, "What is the capital of France?"), SamplingParams(temperature=0, seed=1, max_tokens=40)
    )

    assert "Paris" in answer.text
