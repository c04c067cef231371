"""A loaded engine with what the tests of engines ask of it again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from hostler import EngineInfo, SamplingParams
from hostler.testing import Driver, RecordingSequence

GREEDY = SamplingParams(temperature=0.0, seed=1, max_tokens=16, ignore_eos=True, logprobs=3)
TOPICS = (
    "a fox", "the sea", "bread", "a railway", "the moon", "chess", "rain", "a lighthouse", "tea", "mountains", "a violin",
    "winter", "bees", "a library", "gold", "sleep",
)  # fmt: skip
AnyEngine = TypeVar("AnyEngine")


@dataclass
class Loaded(Generic[AnyEngine]):
    """An engine and what it said of its model."""

    engine: AnyEngine
    info: EngineInfo

    def driver(self) -> Driver:
        """A driver of its steps."""
        return Driver(self.engine, n_slots=self.info.n_slots)

    def tokens(self, text: str) -> list[int]:
        """Text as token ids."""
        return self.engine.tokenize(text, add_special=True, parse_special=False)

    def sequence(
        self, tokens: Sequence[int], params: SamplingParams = GREEDY, *, cache_prompt: bool = True
    ) -> RecordingSequence:
        """A request."""
        return RecordingSequence(tokens, params, n_ctx=self.info.n_ctx, cache_prompt=cache_prompt)

    def answer(
        self, tokens: Sequence[int], params: SamplingParams = GREEDY, *, cache_prompt: bool = True
    ) -> RecordingSequence:
        """A request, run alone to its end."""
        sequence = self.sequence(tokens, params, cache_prompt=cache_prompt)
        self.driver().run([sequence])
        assert not sequence.violations, sequence.violations
        return sequence


def drawn_tokens(n_tokens: int, seed: int, low: int, high: int) -> list[int]:
    """Token ids that repeat nothing."""
    return [int(token) for token in np.random.default_rng(seed).integers(low, high, n_tokens)]


def chat(loaded: Loaded[AnyEngine], question: str) -> list[int]:
    """A question to SmolLM2 as its template has it."""
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return loaded.engine.tokenize(text, add_special=True, parse_special=True)


def assert_same_answer(one: RecordingSequence, other: RecordingSequence, tolerance: float) -> None:
    """Equal token ids with log probabilities within a tolerance; or a first difference at a near tie."""
    for index, (a, b) in enumerate(zip(one.logprobs, other.logprobs, strict=True)):
        assert a is not None
        assert b is not None
        rivals = {top.token_id: top.logprob for top in a.top}
        if a.token_id != b.token_id:
            gap = abs(a.logprob - rivals[b.token_id]) if b.token_id in rivals else float("inf")
            assert gap < tolerance, f"token {index}: {a} against {b}"
            return
        assert abs(a.logprob - b.logprob) < tolerance, f"token {index}: {a} against {b}"
