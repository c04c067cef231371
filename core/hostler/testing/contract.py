"""The conformance kit's frame: one engine loaded, named checks run against it. The checks stand in rules/.

Floor 2, for the authors of engine plugins: in a test process, one thread (one check starts a second). It needs no
worker, no server and no network, but real model files.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

from hostler.domain import Message, SamplingParams
from hostler.engine import Engine, EngineInfo, EngineSettings, MessageEngine, ModelFiles, RawPrompt, Vectors
from hostler.testing.driving import ContractError, Driver
from hostler.testing.recording import RecordingSequence
from hostler.testing.rules import CHECKS, MESSAGE_CHECKS

MIB = 1024 * 1024
WAIT_S = 0.05
"""Longest wait for a MessageEngine's wake; a thousand of them without progress and it counts as stuck."""
Input = list[int] | str
"""One input of `embed`."""


def contract_checks(*, without: Collection[str] = (), takes_messages: bool = False) -> tuple[str, ...]:
    """The names of all checks in the order they should run, to parametrize a test with.

    Args:
        without: Checks to leave out because the engine cannot do what they ask, such as `seeds_differ`.
        takes_messages: Those for a MessageEngine.

    Raises:
        ValueError: `without` names no check.
    """
    checks = MESSAGE_CHECKS if takes_messages else CHECKS
    unknown = sorted(set(without) - set(checks))
    if unknown:
        raise ValueError(f"there is no check named {', '.join(unknown)}; there are: {', '.join(checks)}")
    return tuple(name for name in checks if name not in without)


def check_engine_contract(
    engine: Callable[[], Engine],
    files: ModelFiles,
    settings: EngineSettings,
    *,
    without: Collection[str] = (),
    allow_near_tie: float = 0.0,
    ending_prompt: str | None = None,
    max_tokens_per_step: int = 1,
    memory_margin_bytes: int = 32 * MIB,
    takes_messages: bool = False,
) -> None:
    """Run every check of the engine contract on one model.

    Args:
        engine: The engine's class, or any callable that gives a fresh Engine.
        files: A small model of a format the engine takes.
        settings: Small ones make the checks fast and sharp: `ctx_len` 256 to 1024, `n_parallel` 2 to 8 and `n_batch` at
            most a quarter of `ctx_len`.
        without: As for `contract_checks`.
        allow_near_tie: Engines whose arithmetic depends on what else is in a batch may choose differently between two
            tokens of almost equal probability. Where texts should be equal, a difference is let pass when the engine's
            own log probabilities of the two tokens at the first split differ by less than this. 0: texts must be equal.
        ending_prompt: A prompt (control tokens are read) whose greedy answer ends by itself within the context. None:
            the model's chat template with a short question, without a template the question alone.
        max_tokens_per_step: 1; more for an engine that speculates.
        memory_margin_bytes: How much more resident memory a second load, use and close may leave behind.
        takes_messages: It is a MessageEngine, as its EngineSpec says.

    Raises:
        AssertionError: The first check that failed, by name, with what was expected and what came.
    """
    contract = EngineContract(
        engine,
        files,
        settings,
        allow_near_tie=allow_near_tie,
        ending_prompt=ending_prompt,
        max_tokens_per_step=max_tokens_per_step,
        memory_margin_bytes=memory_margin_bytes,
        takes_messages=takes_messages,
    )
    with contract:
        for name in contract_checks(without=without, takes_messages=takes_messages):
            contract.check(name)


class EngineContract:
    """Keeps an engine loaded between checks; use it in a `with` block, or as a module-scoped fixture.

    The arguments are those of `check_engine_contract`.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        files: ModelFiles,
        settings: EngineSettings,
        *,
        allow_near_tie: float = 0.0,
        ending_prompt: str | None = None,
        max_tokens_per_step: int = 1,
        memory_margin_bytes: int = 32 * MIB,
        takes_messages: bool = False,
    ) -> None:
        self._engine_class = engine
        self.files = files
        self.settings = settings
        self.allow_near_tie = allow_near_tie
        self.ending_prompt = ending_prompt
        self.max_tokens_per_step = sys.maxsize if takes_messages else max_tokens_per_step
        self.memory_margin_bytes = memory_margin_bytes
        self.takes_messages = takes_messages
        self.progress: list[float] = []
        """What the load of the current engine reported."""
        self.near_ties: list[str] = []
        """Differences that `allow_near_tie` let pass; worth a look."""
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._has_news = threading.Event()

    # -- running checks -------------------------------------------------------------------------------------------

    def check(self, name: str) -> None:
        """Run one check.

        Raises:
            AssertionError: It failed; the text begins with the check's name.
        """
        function = (MESSAGE_CHECKS if self.takes_messages else CHECKS)[name]
        try:
            function(self)
        except AssertionError as error:
            self.close()  # whatever state it is in, the next check starts with a fresh one
            raise ContractError(f"engine contract, {name}: {error}") from error
        except Exception as error:
            self.close()
            raise ContractError(f"engine contract, {name}: the engine raised {type(error).__name__}: {error}") from error

    def __enter__(self) -> EngineContract:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine if one is loaded."""
        engine, self._engine, self._info = self._engine, None, None
        if engine is not None:
            engine.close()
            del engine
            gc.collect()

    # -- what checks use ------------------------------------------------------------------------------------------

    def make_engine(self) -> Engine:
        """A fresh engine, not loaded."""
        engine = self._engine_class()
        if self.takes_messages:
            cast(MessageEngine, engine).wake_with(self._has_news.set)
        return engine

    @property
    def engine(self) -> Engine:
        """The engine, loaded on first use."""
        if self._engine is None:
            self.progress = []
            engine = self.make_engine()
            self._info = engine.load(self.files, self.settings, self._note_progress)
            self._engine = engine
        return self._engine

    @property
    def info(self) -> EngineInfo:
        """What the engine said of its model."""
        if self._info is None:
            _ = self.engine
        assert self._info is not None
        return self._info

    @contextmanager
    def driver(self) -> Iterator[Driver]:
        """A driver over the loaded engine; what is left active at the end of the block is cancelled."""
        driver = Driver(
            self.engine,
            n_slots=self.info.n_slots,
            max_tokens_per_step=self.max_tokens_per_step,
            wait=self.wait if self.takes_messages else None,
        )
        yield driver
        driver.cancel_all()

    def wait(self) -> None:
        """Wait for the engine's wake, a moment at most."""
        self._has_news.wait(WAIT_S)
        self._has_news.clear()

    def input(self, text: str) -> Input:
        """A text to be embedded, as this engine gets it."""
        if self.takes_messages:
            return text
        return list(self.engine.tokenize(text, add_special=False, parse_special=False))

    def embed(self, inputs: Sequence[Any]) -> Iterator[Vectors]:
        """Ask for vectors."""
        return self.engine.embed(inputs)

    def tokens(self, text: str) -> list[int]:
        """A prompt's token ids, as for `/v1/completions`."""
        tokens = list(self.engine.tokenize(text, add_special=True, parse_special=False))
        assert tokens, f"tokenize({text!r}) gave no tokens"
        return tokens

    def long_tokens(self, n_tokens: int, *, topic: str = "page") -> list[int]:
        """A prompt of exactly so many tokens that does not repeat itself; prompts of different topics differ early."""
        lines: list[str] = []
        tokens: list[int] = []
        while len(tokens) < n_tokens:
            lines += [
                f"{topic} {len(lines) + i}: the hostler moves engine number {7 * (len(lines) + i)}.\n" for i in range(16)
            ]
            tokens = self.tokens("".join(lines))
        return tokens[:n_tokens]

    def n_long(self, share: float) -> int:
        """A prompt length: a share of the context that leaves room for 40 tokens of answer."""
        return max(4, int((self.info.n_ctx - 40) * share))

    def greedy(self, n_tokens: int = 24, *, ignore_eos: bool = True, stop: tuple[str, ...] = ()) -> SamplingParams:
        """Parameters of an answer that must repeat, with log probabilities where near ties need them."""
        return SamplingParams(
            temperature=0.0,
            seed=1,
            max_tokens=n_tokens,
            ignore_eos=ignore_eos,
            stop=stop,
            logprobs=5 if self.allow_near_tie > 0 else None,
        )

    def sequence(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        cache_prompt: bool = False,
        stop_after: int | None = None,
    ) -> RecordingSequence:
        """A request to this engine; one that takes messages gets a chat of one."""
        if self.takes_messages:
            assert isinstance(prompt, str), "there are no tokens for an engine that takes messages"
            return self.raw_sequence(RawPrompt(messages=(Message("user", prompt),)), params, stop_after=stop_after)
        tokens = self.tokens(prompt) if isinstance(prompt, str) else prompt
        return RecordingSequence(
            tokens,
            self.greedy() if params is None else params,
            n_ctx=self.info.n_ctx,
            cache_prompt=cache_prompt,
            stop_after=stop_after,
        )

    def raw_sequence(
        self, raw: RawPrompt, params: SamplingParams | None = None, *, stop_after: int | None = None
    ) -> RecordingSequence:
        """A request to an engine that takes messages."""
        return RecordingSequence((), self.greedy() if params is None else params, raw=raw, stop_after=stop_after)

    def answer(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, *, cache_prompt: bool = False
    ) -> RecordingSequence:
        """Run one request alone to its end."""
        sequence = self.sequence(prompt, params, cache_prompt=cache_prompt)
        with self.driver() as driver:
            driver.run([sequence])
        return sequence

    def assert_same(self, expected: RecordingSequence, got: RecordingSequence, when: str) -> None:
        """Fail unless two answers are equal, or part at a near tie that is allowed."""
        if expected.said == got.said:
            return
        pairs = zip(expected.token_ids, got.token_ids, strict=False)
        split = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
        if split is not None and self.allow_near_tie > 0:
            gap = _gap(expected, got, split)
            if gap is not None and gap < self.allow_near_tie:
                self.near_ties.append(f"{when}: token {split}, log probabilities {gap:.4f} apart")
                return
            text = "neither is among the other's best" if gap is None else f"{gap:.4f} apart in log probability"
            raise ContractError(f"{when}: the answers part at token {split}, {text}: {_texts(expected, got)}")
        raise ContractError(f"{when}: the answers differ: {_texts(expected, got)}")

    def _note_progress(self, fraction: float) -> bool:
        self.progress.append(fraction)
        return True


def _gap(expected: RecordingSequence, got: RecordingSequence, index: int) -> float | None:
    """How far apart two engines' choices are, by either side's own log probabilities."""
    gaps = []
    for one, other in ((expected, got), (got, expected)):
        logprob = one.logprobs[index]
        rival = other.token_ids[index]
        if logprob is not None:
            gaps += [abs(logprob.logprob - top.logprob) for top in logprob.top if top.token_id == rival]
    return min(gaps, default=None)


def _texts(expected: RecordingSequence, got: RecordingSequence) -> str:
    return f"expected {b''.join(expected.pieces)!r}, got {b''.join(got.pieces)!r}"
