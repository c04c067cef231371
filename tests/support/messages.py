"""An engine that takes messages without a network: echo behind a template and a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from hostler.domain import SEED_RANDOM, FinishReason, SamplingParams, TokenLogprob, TopLogprob, Usage
from hostler.engine import EngineInfo, EngineSettings, ModelFiles, Progress, RawPrompt, SequenceSink, Vectors
from hostler_echo.engine import EchoEngine

ROOM = 4096
"""Context of the echo behind it; to the outside it is unknown."""


class MessageEcho(EchoEngine):
    """Every other step it waits, as if for another machine."""

    def __init__(self) -> None:
        super().__init__()
        self.wake: Callable[[], None] = lambda: None
        self.is_waiting = False
        self.raws: list[RawPrompt] = []

    def wake_with(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        info = super().load(files, msgspec.structs.replace(settings, ctx_len=ROOM), progress)
        return msgspec.structs.replace(info, n_ctx=settings.ctx_len, n_vocab=0, chat_template=None, special_texts=())

    def add(self, sequence: SequenceSink) -> None:
        assert sequence.raw is not None
        self.raws.append(sequence.raw)
        super().add(Inner(sequence, self._tokens(sequence.raw)))

    def _tokens(self, raw: RawPrompt) -> list[int]:
        prompt = raw.messages[-1].content if raw.messages else raw.prompt
        return self._vocabulary.tokenize(prompt or "", parse_special=False) if isinstance(prompt, str) else list(prompt or ())

    def step(self) -> bool:
        if not any(not slot.sequence.is_paused for slot in self._active.values() if slot.sequence is not None):
            return False
        self.is_waiting = not self.is_waiting
        if self.is_waiting:
            self.wake()
            return False
        return super().step()

    def embed(self, inputs: Sequence[Any]) -> Iterator[Vectors]:
        tokens = [self._vocabulary.tokenize(one, parse_special=False) if isinstance(one, str) else one for one in inputs]
        vectors = super().embed(tokens)

        def give() -> Iterator[Vectors]:
            yield []
            self.wake()
            yield from vectors
            return sum(map(len, tokens))

        return give()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raise AssertionError("nobody may tokenize here")

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        raise AssertionError("nobody may detokenize here")


class Inner:
    """What the echo inside sees of a sequence: tokens, and a seed."""

    def __init__(self, sequence: SequenceSink, tokens: list[int]) -> None:
        self._sequence = sequence
        self.id = sequence.id
        self.tokens = tokens
        self.cache_prompt = False
        self.n_pinned = 0
        self.constraint = None
        params = sequence.params
        self.params: SamplingParams = msgspec.structs.replace(params, seed=7) if params.seed == SEED_RANDOM else params
        self._n_pushed = 0

    @property
    def is_paused(self) -> bool:
        return self._sequence.is_paused

    def begin(self, n_cached: int) -> None:
        self._sequence.begin(n_cached)

    def prefilled(self, n_done: int) -> None:
        pass

    def push(self, token_id: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
        self._n_pushed += 1
        if not self._sequence.push(-1, piece, None if logprob is None else without_ids(logprob)):
            return False
        if self._n_pushed == self.params.max_tokens:
            self.end(FinishReason.LENGTH)
            return False
        return True

    def end(self, reason: FinishReason, message: str = "") -> None:
        if reason is not FinishReason.ERROR:
            self._sequence.counted(Usage(len(self.tokens), self._n_pushed))
        self._sequence.end(reason, message)


def without_ids(logprob: TokenLogprob) -> TokenLogprob:
    """As somebody gives it who is not told the ids of tokens."""
    top = tuple(TopLogprob(-1, one.token, one.logprob) for one in logprob.top)
    return TokenLogprob(-1, logprob.token, logprob.logprob, top)
