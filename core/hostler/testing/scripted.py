"""ScriptedEngine: an engine without weights that plays back a script, with bad manners where a test wants them.

Floor 2, tests only, in-process or behind a worker. One byte is one token, so that most characters are split. It answers
every prompt with the script, or with the prompt itself when there is none.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

from hostler.domain import FinishReason, MemoryUse, TokenLogprob, TopLogprob
from hostler.engine import EngineInfo, EngineSettings, ModelFiles, Progress, SequenceSink, Vectors
from hostler.errors import ModelLoadFailed, UnsupportedParameter

EOS = 256
"""The token id after which an answer is over."""

Manner = Callable[[int], None]
"""Called before each step's work with the step's number, from 0; whatever it does is done to the engine thread."""


def at_step(number: int, action: Callable[[], None]) -> Manner:
    """A manner that shows in one step."""

    def manner(step: int) -> None:
        if step == number:
            action()

    return manner


def raise_error(error: Exception) -> Callable[[], None]:
    """An action: raise out of `step`."""

    def action() -> None:
        raise error

    return action


def die(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """An action: die by a signal, as native code does."""
    return lambda: os.kill(os.getpid(), signal_number)


def hang(until: threading.Event | None = None) -> Callable[[], None]:
    """An action: stand still, for good or until an event."""
    event = threading.Event() if until is None else until
    return lambda: void(event.wait())


def void(_: object) -> None:
    """Drop a value."""


class ScriptedEngine:
    """Plays a script to every sequence."""

    def __init__(
        self,
        script: str | bytes | Sequence[int] | None = None,
        *,
        before_step: Manner | None = None,
        before_load: Callable[[Progress], None] | None = None,
        n_ctx_train: int = 0,
    ) -> None:
        """Make one.

        Args:
            script: Token ids (EOS ends the answer) or text, which gets an EOS; None: the prompt.
            before_step: Bad manners in `step`: `at_step(3, die())`, or a callable that turns a fake clock.
            before_load: Called first in `load` with the progress function; may raise or hang.
            n_ctx_train: What EngineInfo says.
        """
        self._script: tuple[int, ...] | None = None
        if isinstance(script, str | bytes):
            self._script = (*(script.encode() if isinstance(script, str) else script), EOS)
        elif script is not None:
            self._script = tuple(script)
        self._before_step = before_step
        self._before_load = before_load
        self._n_ctx_train = n_ctx_train
        self._n_batch = 512
        self._n_slots = 1
        self._sequences: dict[int, _Playing] = {}
        self.n_steps = 0
        self.is_closed = False
        self.cancelled: list[int] = []
        """Ids that `cancel` was called with."""

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        """See Engine."""
        if self._before_load is not None:
            self._before_load(progress)
        for fraction in (0.0, 1.0):
            if not progress(fraction):
                raise ModelLoadFailed(f"{files.primary}: the load was called off")
        self._n_batch, self._n_slots = settings.n_batch, settings.n_parallel
        return EngineInfo(
            n_ctx=settings.ctx_len,
            n_slots=settings.n_parallel,
            n_vocab=EOS + 1,
            n_ctx_train=self._n_ctx_train,
            version="scripted 1",
        )

    def add(self, sequence: SequenceSink) -> None:
        """See Engine."""
        if len(self._sequences) >= self._n_slots:
            raise RuntimeError(f"sequence {sequence.id} came when all {self._n_slots} slots were taken")
        script = (*sequence.tokens, EOS) if self._script is None else self._script
        self._sequences[sequence.id] = _Playing(sequence, script)

    def cancel(self, sequence_id: int) -> None:
        """See Engine."""
        self.cancelled.append(sequence_id)
        self._sequences.pop(sequence_id, None)

    def step(self) -> bool:
        """See Engine."""
        number, self.n_steps = self.n_steps, self.n_steps + 1
        if self._before_step is not None:
            self._before_step(number)
        has_worked = False
        for playing in list(self._sequences.values()):
            if not playing.sequence.is_paused:
                has_worked = True
                if not playing.advance(self._n_batch):
                    del self._sequences[playing.sequence.id]
        return has_worked

    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:  # noqa: ARG002 - the contract's signature
        """See Engine."""
        raise UnsupportedParameter("a scripted engine has no embeddings")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:  # noqa: ARG002 - as above
        """See Engine."""
        return list(text.encode())

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        """See Engine."""
        return bytes(token for token in token_ids if token < EOS)

    def memory(self) -> MemoryUse:
        """See Engine."""
        return MemoryUse()

    def close(self) -> None:
        """See Engine."""
        self.is_closed = True


class _Playing:
    """One sequence and how far it is."""

    def __init__(self, sequence: SequenceSink, script: tuple[int, ...]) -> None:
        self.sequence = sequence
        self._script = script
        self._n_done = -1  # prompt tokens; -1: not begun
        self._position = 0

    def advance(self, n_batch: int) -> bool:
        """One chunk or one token; False: over."""
        sequence = self.sequence
        if self._n_done < len(sequence.tokens):
            if self._n_done < 0:
                sequence.begin(0)
                self._n_done = 0
            self._n_done = min(self._n_done + n_batch, len(sequence.tokens))
            sequence.prefilled(self._n_done)
            return True
        token = self._script[self._position % len(self._script)] if self._script else EOS
        if token == EOS and sequence.params.ignore_eos and len(self._script) > 1:
            self._position += 1
            token = self._script[self._position % len(self._script)]
        if token == EOS:
            sequence.end(FinishReason.STOP)
            return False
        self._position += 1
        piece = bytes([token])
        n_top = sequence.params.logprobs
        if n_top is None:
            return sequence.push(token, piece)
        top = [(token, 0.0)] + [(other, -50.0) for other in range(n_top) if other != token]
        candidates = tuple(TopLogprob(other, bytes([other]), value) for other, value in top[:n_top])
        return sequence.push(token, piece, TokenLogprob(token, piece, 0.0, candidates))
