"""The real model, int4, in 8 slots, with the settings a user has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime_genai
import pytest

from hostler import EngineSettings, FinishReason, Message, ModelFiles, SamplingParams
from hostler.prompt.template import ChatTemplate
from hostler_onnxgenai.engine import OnnxGenaiEngine
from support.running import TOPICS, chat

from .conftest import BACKENDS
from .running import Loaded

pytestmark = pytest.mark.weights

TEXTS = [
    "Hello, world!", "", " ", "\n\n\t x", "def f(x):\n    return x ** 2\n", "naïve café – “quotes” …", "🦙🚂 世界 é",
    "1234567890 3.14159", "WORDS in CAPS and camelCase_snake", "a" * 300, "<|im_start|>user\nHi<|im_end|>\n",
    "Ünïcödé ﬁ ligature", "mixed\r\nline\rends", "  leading and trailing  ",
]  # fmt: skip


@pytest.fixture(scope="module", params=BACKENDS)
def smollm2(smollm2_onnx_path: Path, request: pytest.FixtureRequest) -> Iterator[Loaded]:
    engine = OnnxGenaiEngine()
    settings = EngineSettings(ctx_len=640, n_parallel=8, extra={"backend": request.param})
    yield Loaded(engine, engine.load(ModelFiles(str(smollm2_onnx_path), "onnxgenai"), settings, lambda _: True))
    engine.close()


def test_model_answers_and_ends_by_itself(smollm2: Loaded) -> None:
    params = SamplingParams(temperature=0, seed=1, max_tokens=60)
    template = ChatTemplate(str(smollm2.info.chat_template), bos_text="", eos_text="")
    [hello] = template.render([Message("user", "Say hello in one word.")]).segments

    answer = smollm2.answer(chat(smollm2, "What is the capital of France?"), params)
    ended = smollm2.answer(
        smollm2.engine.tokenize(hello, add_special=True, parse_special=True), msgspec.structs.replace(params, max_tokens=500)
    )

    assert "Paris" in answer.text
    assert ended.reason is FinishReason.STOP
    assert "<|im_end|>" not in ended.text


def test_info_carries_template_and_special_texts(smollm2: Loaded) -> None:
    info = smollm2.info

    assert info.chat_template is not None
    assert "<|im_start|>" in info.chat_template
    assert {"<|im_start|>", "<|im_end|>"} <= set(info.special_texts)
    assert (info.n_ctx, info.n_slots, info.n_vocab, info.n_ctx_train) == (640, 8, 49152, 8192)
    assert (info.bos_text, info.eos_text, info.adds_bos, info.device) == ("<|im_start|>", "<|im_end|>", False, "cpu")


def test_greedy_text_is_that_of_the_librarys_own_loop(smollm2: Loaded, smollm2_onnx_path: Path) -> None:
    model = onnxruntime_genai.Model(str(smollm2_onnx_path))
    n_equal = 0
    for topic in TOPICS[:4]:
        tokens = chat(smollm2, f"Write a few sentences on {topic}.")
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(max_length=640, do_sample=False)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array(tokens, np.int32))
        expected: list[int] = []
        while len(expected) < 60 and not generator.is_done():
            generator.generate_next_token()
            expected.append(int(generator.get_next_tokens()[0]))
        while expected and expected[-1] in smollm2.engine._vocabulary.end_tokens:
            expected.pop()

        answer = smollm2.answer(tokens, SamplingParams(temperature=0, seed=1, max_tokens=60), cache_prompt=False)

        n_equal += answer.token_ids == expected
    assert n_equal == 4


def test_token_ids_are_those_of_the_librarys_tokenizer(smollm2: Loaded, smollm2_onnx_path: Path) -> None:
    library = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(smollm2_onnx_path)))

    for text in TEXTS:
        ours = smollm2.engine.tokenize(text, add_special=True, parse_special=True)
        assert ours == library.encode(text).tolist(), text
