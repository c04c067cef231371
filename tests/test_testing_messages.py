"""The kit for engines that take messages: it passes a sound one, and each of its checks finds the one that breaks its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from hostler.domain import FinishReason, MemoryUse, SamplingParams, TokenLogprob, Usage
from hostler.engine import EngineInfo, EngineSettings, ModelFiles, Progress, RawPrompt, SequenceSink, Vectors
from hostler.errors import EngineFailed, HostlerError
from hostler.testing import ContractError, EngineContract, RecordingSequence, check_engine_contract, contract_checks
from support.messages import MessageEcho

SETTINGS = EngineSettings(ctx_len=0, n_parallel=3, n_batch=64)
CHAT = RawPrompt(prompt="Hello")


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    path = tmp_path / "parrot.echo"
    path.write_text("{}")
    return ModelFiles(str(path), "echo")


def test_a_sound_engine_passes_every_check(files: ModelFiles) -> None:
    check_engine_contract(MessageEcho, files, SETTINGS, takes_messages=True)


def test_the_checks_for_engines_with_tokens_are_others(files: ModelFiles) -> None:
    names = contract_checks(takes_messages=True)

    assert "text_survives_tokenization" not in names
    assert "stop_strings_end_it" not in contract_checks()
    with pytest.raises(ValueError, match="there is no check named prefill_goes_in_chunks"):
        contract_checks(takes_messages=True, without=("prefill_goes_in_chunks",))


# -- engines that break one rule each ---------------------------------------------------------------------------------


class Bent:
    """A sequence as a faulty engine would treat it."""

    def __init__(self, sequence: SequenceSink, **changes: Any) -> None:
        self._sequence = sequence
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sequence, name)


class Bends(MessageEcho):
    n_added = 0

    def add(self, sequence: SequenceSink) -> None:
        self.n_added += 1
        super().add(self.bend(sequence))

    def bend(self, sequence: SequenceSink) -> Any:
        raise NotImplementedError


class HasMoreSlotsThanAskedFor(MessageEcho):
    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        return msgspec.structs.replace(super().load(files, settings, progress), n_slots=settings.n_parallel + 1)


class IsDeafWhileLoading(MessageEcho):
    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        return super().load(files, settings, lambda fraction: progress(fraction) or True)


class RaisesWhateverComes(MessageEcho):
    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        try:
            return super().load(files, settings, progress)
        except HostlerError as error:
            raise ValueError(error) from error


class KnowsNoPlainPrompts(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        if sequence.raw is not None and sequence.raw.messages is None:
            raise EngineFailed("only chats here")
        return sequence


class Spins(MessageEcho):
    def step(self) -> bool:
        return super().step() or bool(self._active)


class AsksForNoLimit(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, params=msgspec.structs.replace(sequence.params, max_tokens=50))


class CountsNothing(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, counted=lambda usage: sequence.counted(Usage(0, usage.completion_tokens)))


class CallsAStopLong(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        def push(token: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
            if sequence.params.stop and not piece.isalpha():
                return sequence.push(token, piece, logprob)
            return sequence.push(token, piece + b"." if sequence.params.stop else piece, logprob)

        return Bent(sequence, push=push)


class CancelsLate(MessageEcho):
    def cancel(self, sequence_id: int) -> None:
        pass


class KnowsItsIds(MessageEcho):
    def cancel(self, sequence_id: int) -> None:
        if sequence_id not in self._active:
            raise KeyError(sequence_id)
        super().cancel(sequence_id)


class NeverPauses(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, is_paused=False)


class NeverTheSame(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, params=msgspec.structs.replace(sequence.params, temperature=1.9, seed=self.n_added))


class AlwaysTheSame(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, params=msgspec.structs.replace(sequence.params, temperature=0.0))


class GivesLogits(Bends):
    def bend(self, sequence: SequenceSink) -> Any:
        def push(token: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
            if logprob is not None:
                logprob = TokenLogprob(token, piece, logprob.logprob + 20.0, logprob.top)
            return sequence.push(token, piece, logprob)

        return Bent(sequence, push=push)


class MixesNeighbours(Bends):
    last: SequenceSink | None = None

    def bend(self, sequence: SequenceSink) -> Any:
        if len(self._active) == 2 and self.last is not None:
            return Bent(sequence, raw=self.last.raw)
        self.last = sequence
        return sequence


class CutsVectors(MessageEcho):
    def embed(self, inputs: Sequence[Any]) -> Iterator[Vectors]:
        for vectors in super().embed(inputs):
            yield [vector[1:] for vector in vectors]


class OwesMemory(MessageEcho):
    def memory(self) -> MemoryUse:
        return MemoryUse(weights_bytes=-1)


class Leaks(MessageEcho):
    leaked: ClassVar[list[bytearray]] = []

    def close(self) -> None:
        # Well over the margin: meanwhile the system may take other pages from this process.
        self.leaked.append(bytearray(b"\x01") * (256 * 2**20))


BREAKERS: dict[str, Callable[[], MessageEcho]] = {
    "load_gives_sane_info": HasMoreSlotsThanAskedFor,
    "load_stops_when_told": IsDeafWhileLoading,
    "load_refuses_what_is_no_model": RaisesWhateverComes,
    "chats_and_plain_prompts_are_answered": KnowsNoPlainPrompts,
    "step_does_not_block": Spins,
    "max_tokens_is_the_engines_business": AsksForNoLimit,
    "tokens_are_counted_before_the_end": CountsNothing,
    "stop_strings_end_it": CallsAStopLong,
    "cancel_before_the_first_step": CancelsLate,
    "cancel_in_decode": CancelsLate,
    "cancel_of_an_unknown_id_is_ignored": KnowsItsIds,
    "a_paused_sequence_waits": NeverPauses,
    "greedy_answers_repeat": NeverTheSame,
    "a_seed_repeats": NeverTheSame,
    "seeds_differ": AlwaysTheSame,
    "logprobs_are_probabilities": GivesLogits,
    "concurrent_sequences_do_not_mix": MixesNeighbours,
    "embeddings_are_given_or_refused": CutsVectors,
    "memory_is_accounted": OwesMemory,
    "close_gives_the_memory_back": Leaks,
}


def test_every_check_has_an_engine_that_breaks_its_rule() -> None:
    assert list(BREAKERS) == list(contract_checks(takes_messages=True))


@pytest.mark.parametrize("name", contract_checks(takes_messages=True))
def test_each_check_finds_the_engine_that_breaks_its_rule(name: str, files: ModelFiles) -> None:
    contract = EngineContract(BREAKERS[name], files, SETTINGS, memory_margin_bytes=8 * 2**20, takes_messages=True)

    with contract, pytest.raises(ContractError, match=rf"^engine contract, {name}: "):
        contract.check(name)
    Leaks.leaked.clear()


# -- the recording ----------------------------------------------------------------------------------------------------


def test_a_recording_of_messages_is_limited_by_the_engine_alone() -> None:
    sequence = RecordingSequence(raw=CHAT, params=SamplingParams(max_tokens=2))
    sequence.begin(0)

    assert all(sequence.push(-1, b"x") for _ in range(5))
    sequence.counted(Usage(3, 2))
    sequence.end(FinishReason.LENGTH)

    assert (sequence.said, sequence.usage, sequence.reason) == ("xxxxx", Usage(3, 2), FinishReason.LENGTH)
    assert sequence.violations == []


def test_a_recording_of_messages_keeps_a_random_seed() -> None:
    assert RecordingSequence(raw=CHAT).params.seed == -1


def test_a_recording_keeps_the_error_that_ended_it() -> None:
    sequence = RecordingSequence(raw=CHAT)
    error = EngineFailed("no answer")

    sequence.fail(error)
    sequence.counted(Usage(1, 1))

    assert (sequence.reason, sequence.message, sequence.error) == (FinishReason.ERROR, "no answer", error)
    assert sequence.violations == [f"sequence {sequence.id}: counted() was called after the sequence was over (error)"]
