"""The kit for plugin authors: it passes a sound engine, and each of its checks finds the engine that breaks its rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from hostler.domain import FinishReason, MemoryUse, SamplingParams, TokenLogprob, TopLogprob
from hostler.engine import Engine, EngineInfo, EngineSettings, ModelFiles, Progress, SequenceSink, Vectors
from hostler.errors import EngineFailed, HostlerError
from hostler.testing import (
    ContractError,
    EngineContract,
    RecordingSequence,
    ScriptedEngine,
    check_engine_contract,
    contract_checks,
)
from hostler_echo.engine import EchoEngine

SETTINGS = EngineSettings(ctx_len=512, n_parallel=3, n_batch=64)
FILES = ModelFiles("/nowhere/script", "scripted")


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    path = tmp_path / "parrot.echo"
    path.write_text("{}")
    return ModelFiles(str(path), "echo")


# -- a sound engine ---------------------------------------------------------------------------------------------------


def test_a_sound_engine_passes_every_check(files: ModelFiles) -> None:
    check_engine_contract(EchoEngine, files, SETTINGS)


def test_a_sound_engine_with_one_slot_passes_every_check(files: ModelFiles) -> None:
    check_engine_contract(EchoEngine, files, msgspec.structs.replace(SETTINGS, n_parallel=1))


def test_checks_that_an_engine_cannot_pass_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text("no weights")
    without = (
        "load_refuses_what_is_no_model",
        "seeds_differ",
        "logit_bias_bans_and_forces",
        "a_known_prefix_is_reused",
    )

    check_engine_contract(ScriptedEngine, ModelFiles(str(path), "scripted"), SETTINGS, without=without)

    assert not set(without) & set(contract_checks(without=without))


def test_leaving_out_a_check_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no check named seeds_difer; there are: load_gives_sane_info, "):
        contract_checks(without=("seeds_difer",))


def test_a_check_names_itself_and_the_engines_exception(files: ModelFiles) -> None:
    class Raising(EchoEngine):
        def step(self) -> bool:
            raise EngineFailed("the fire is out")

    with EngineContract(Raising, files, SETTINGS) as contract, pytest.raises(ContractError) as caught:
        contract.check("greedy_answers_repeat")

    assert str(caught.value) == "engine contract, greedy_answers_repeat: the engine raised EngineFailed: the fire is out"


def test_after_a_failed_check_the_next_one_gets_a_fresh_engine(files: ModelFiles) -> None:
    engines: list[EchoEngine] = []

    class OnceBroken(EchoEngine):
        def __init__(self) -> None:
            super().__init__()
            engines.append(self)

        def memory(self) -> MemoryUse:
            return MemoryUse(-1) if len(engines) == 1 else super().memory()

    with EngineContract(OnceBroken, files, SETTINGS) as contract:
        with pytest.raises(ContractError, match="memory_is_accounted"):
            contract.check("memory_is_accounted")
        contract.check("memory_is_accounted")

    assert len(engines) == 2


# -- engines that break one rule each ---------------------------------------------------------------------------------


class Bent:
    """A sequence as a faulty engine would treat it: some of what it says is replaced."""

    def __init__(self, sequence: SequenceSink, **changes: Any) -> None:
        self._sequence = sequence
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sequence, name)


class BendsSequences(EchoEngine):
    n_added = 0

    def add(self, sequence: SequenceSink) -> None:
        self.n_added += 1
        super().add(self.bend(sequence))

    def bend(self, sequence: SequenceSink) -> Any:
        raise NotImplementedError


class BendsSettings(EchoEngine):
    changes: ClassVar[dict[str, Any]] = {}

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        return super().load(files, msgspec.structs.replace(settings, **self.changes), progress)


class DividesTheContext(EchoEngine):
    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        info = super().load(files, settings, progress)
        return msgspec.structs.replace(info, n_ctx=info.n_ctx // info.n_slots)


class IsDeafWhileLoading(EchoEngine):
    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        return super().load(files, settings, lambda fraction: progress(fraction) or True)


class RaisesWhateverComes(EchoEngine):
    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        try:
            return super().load(files, settings, progress)
        except HostlerError as error:
            raise KeyError("magic") from error


class LosesAccents(EchoEngine):
    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        return super().detokenize(token_ids).decode("ascii", "ignore").encode()


class AlwaysReadsControlTokens(EchoEngine):
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return super().tokenize(text, add_special=add_special, parse_special=True)


class TokenizesInTheStepsBuffer(EchoEngine):
    is_stepping = False

    def step(self) -> bool:
        self.is_stepping = True
        time.sleep(0.001)  # lets the other thread run, as any native call would
        has_worked = super().step()
        self.is_stepping = False
        return has_worked

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = super().tokenize(text, add_special=add_special, parse_special=parse_special)
        return tokens[1:] if self.is_stepping else tokens


class StepsTwice(EchoEngine):
    def step(self) -> bool:
        return super().step() and super().step()


class RepairsPieces(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        def push(token: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
            return sequence.push(token, piece.decode("utf-8", "replace").encode(), logprob)

        return Bent(sequence, push=push)


class KeepsSlots(EchoEngine):
    def step(self) -> bool:
        before = dict(self._active)
        has_worked = super().step()
        for sequence_id, slot in before.items():
            if sequence_id not in self._active:
                slot.sequence = RecordingSequence([0])  # nobody's, and so for good
        return has_worked


class NeverEnds(BendsSettings):
    changes: ClassVar = {"extra": {"flood": True}}


class WantsRoomToSpare(EchoEngine):
    def add(self, sequence: SequenceSink) -> None:
        super().add(sequence)
        if len(sequence.tokens) > self._n_ctx - 4:
            self.cancel(sequence.id)
            sequence.end(FinishReason.ERROR, "the prompt is too long")


class SharesOneContext(EchoEngine):
    def step(self) -> bool:
        if sum(len(slot.cells) for slot in self._active.values()) > self._n_ctx:
            for sequence_id, slot in list(self._active.items()):
                assert slot.sequence is not None
                slot.sequence.end(FinishReason.ERROR, "the KV cache is full")
                self.cancel(sequence_id)
            return True
        return super().step()


class SwallowsPromptsWhole(BendsSettings):
    changes: ClassVar = {"n_batch": 10**6}


class CancelsLate(EchoEngine):
    def __init__(self) -> None:
        super().__init__()
        self.late: list[int] = []

    def cancel(self, sequence_id: int) -> None:
        self.late.append(sequence_id)

    def step(self) -> bool:
        has_worked = super().step()
        while self.late:
            super().cancel(self.late.pop())
        return has_worked


class KnowsItsIds(EchoEngine):
    def cancel(self, sequence_id: int) -> None:
        if sequence_id not in self._active:
            raise KeyError(sequence_id)
        super().cancel(sequence_id)


class NeverPauses(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, is_paused=False)


class NeverTheSame(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, params=msgspec.structs.replace(sequence.params, temperature=2.0, min_p=0.0, seed=self.n_added))


class AlwaysTheSame(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, params=msgspec.structs.replace(sequence.params, seed=1))


class IgnoresBias(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, params=msgspec.structs.replace(sequence.params, logit_bias={}))


class MixesNeighbours(EchoEngine):
    def add(self, sequence: SequenceSink) -> None:
        others = list(self._active.values())
        super().add(sequence)
        if others:
            self._active[sequence.id].prepare(others[0]._answer, others[0].manners)


class SharesWhatItShouldCopy(EchoEngine):
    def add(self, sequence: SequenceSink) -> None:
        has_twin = any(slot._prompt == list(sequence.tokens) for slot in self._active.values())
        super().add(sequence)
        if has_twin:
            slot = self._active[sequence.id]
            slot.prepare(slot._answer[1:], slot.manners)


class NeverReuses(BendsSettings):
    changes: ClassVar = {"caching_enabled": False}


class TrustsWhatIsCached(EchoEngine):
    def add(self, sequence: SequenceSink) -> None:
        super().add(sequence)
        slot = self._active[sequence.id]
        if slot.n_done:
            slot.prepare(slot._answer[::-1], slot.manners)


class AlwaysReuses(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, cache_prompt=True)


class KeepsWhatItMustNot(EchoEngine):
    def add(self, sequence: SequenceSink) -> None:
        super().add(sequence)
        self._active[sequence.id].is_shared = True


class GivesLogits(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        def push(token: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
            if logprob is not None:
                logprob = TokenLogprob(token, piece, logprob.logprob + 20.0, logprob.top)
            return sequence.push(token, piece, logprob)

        return Bent(sequence, push=push)


class CutsVectors(EchoEngine):
    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        for vectors in super().embed(inputs):
            yield [vector[1:] for vector in vectors]


class EmbedsTheLastChunk(EchoEngine):
    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        return super().embed([tokens[-self._n_batch :] for tokens in inputs])


class SaysWhatItLikes(BendsSequences):
    def bend(self, sequence: SequenceSink) -> Any:
        return Bent(sequence, constraint=None)


class OwesMemory(EchoEngine):
    def memory(self) -> MemoryUse:
        return MemoryUse(weights_bytes=-1)


class Leaks(EchoEngine):
    leaked: ClassVar[list[bytearray]] = []

    def close(self) -> None:
        # Well over the margin: meanwhile the system may take other pages from this process.
        self.leaked.append(bytearray(b"\x01") * (256 * 2**20))


BREAKERS: dict[str, Callable[[], Engine]] = {
    "load_gives_sane_info": DividesTheContext,
    "load_stops_when_told": IsDeafWhileLoading,
    "load_refuses_what_is_no_model": RaisesWhateverComes,
    "text_survives_tokenization": LosesAccents,
    "special_tokens_are_read_only_when_asked": AlwaysReadsControlTokens,
    "tokenization_is_safe_beside_step": TokenizesInTheStepsBuffer,
    "tokens_stream_one_step_at_a_time": StepsTwice,
    "pieces_are_the_tokens_bytes": RepairsPieces,
    "stop_strings_end_it_across_pieces": KeepsSlots,
    "a_full_answer_frees_its_slot": KeepsSlots,
    "the_model_can_end_its_answer": NeverEnds,
    "a_prompt_may_fill_the_context": WantsRoomToSpare,
    "the_context_is_each_slots_own": SharesOneContext,
    "prefill_goes_in_chunks": SwallowsPromptsWhole,
    "cancel_before_the_first_step": CancelsLate,
    "cancel_in_prefill": CancelsLate,
    "cancel_in_decode": CancelsLate,
    "cancel_of_an_unknown_id_is_ignored": KnowsItsIds,
    "a_paused_sequence_waits": NeverPauses,
    "a_sequence_may_pause_in_prefill": NeverPauses,
    "greedy_answers_repeat": NeverTheSame,
    "a_seed_repeats": NeverTheSame,
    "seeds_differ": AlwaysTheSame,
    "logit_bias_bans_and_forces": IgnoresBias,
    "logprobs_are_probabilities": GivesLogits,
    "a_constraint_is_kept_to": SaysWhatItLikes,
    "concurrent_sequences_do_not_mix": MixesNeighbours,
    "equal_prompts_at_once_agree": SharesWhatItShouldCopy,
    "a_known_prefix_is_reused": NeverReuses,
    "a_prefix_that_parts_is_not_trusted": TrustsWhatIsCached,
    "no_reuse_when_not_wanted": AlwaysReuses,
    "embeddings_are_given_or_refused": CutsVectors,
    "long_inputs_are_embedded_whole": EmbedsTheLastChunk,
    "memory_is_accounted": OwesMemory,
    "close_gives_the_memory_back": Leaks,
}


def test_every_check_has_an_engine_that_breaks_its_rule() -> None:
    assert list(BREAKERS) == list(contract_checks())


@pytest.mark.parametrize("name", contract_checks())
def test_each_check_finds_the_engine_that_breaks_its_rule(name: str, files: ModelFiles) -> None:
    contract = EngineContract(BREAKERS[name], files, SETTINGS, memory_margin_bytes=8 * 2**20)

    with contract, pytest.raises(ContractError, match=rf"^engine contract, {name}: "):
        contract.check(name)
    Leaks.leaked.clear()


def test_an_engine_that_keeps_what_it_was_told_not_to_is_found_by_the_next_prompt(files: ModelFiles) -> None:
    contract = EngineContract(KeepsWhatItMustNot, files, SETTINGS)

    with contract, pytest.raises(ContractError, match="a later prompt found"):
        contract.check("no_reuse_when_not_wanted")


# -- near ties --------------------------------------------------------------------------------------------------------


def played(tokens: Sequence[int], *logprobs: tuple[float, int, float]) -> RecordingSequence:
    """A finished answer; of each token its log probability, a rival and the rival's."""
    sequence = RecordingSequence([1], SamplingParams(logprobs=1, max_tokens=9))
    sequence.begin(0)
    sequence.prefilled(1)
    for token, (own, rival, others) in zip(tokens, logprobs, strict=True):
        top = (TopLogprob(token, b"x", own), TopLogprob(rival, b"y", others))
        sequence.push(token, b"x", TokenLogprob(token, b"x", own, top))
    return sequence


def test_a_near_tie_is_let_pass_and_noted_when_it_is_allowed(files: ModelFiles) -> None:
    one = played([5, 6], (-0.1, 9, -3.0), (-0.70, 7, -0.71))
    other = played([5, 7], (-0.1, 9, -3.0), (-0.69, 6, -0.70))

    lenient = EngineContract(EchoEngine, files, SETTINGS, allow_near_tie=0.05)
    lenient.assert_same(one, other, "twice")

    assert lenient.near_ties == ["twice: token 1, log probabilities 0.0100 apart"]
    with pytest.raises(ContractError, match=r"^twice: the answers differ"):
        EngineContract(EchoEngine, files, SETTINGS).assert_same(one, other, "twice")


def test_answers_that_part_where_one_token_was_clearly_better_fail_all_the_same(files: ModelFiles) -> None:
    contract = EngineContract(EchoEngine, files, SETTINGS, allow_near_tie=0.05)

    with pytest.raises(ContractError, match=r"part at token 0, 2\.0000 apart"):
        contract.assert_same(played([5], (-0.1, 7, -2.1)), played([7], (-0.1, 5, -2.1)), "twice")
    with pytest.raises(ContractError, match="part at token 0, neither is among the other's best"):
        contract.assert_same(played([5], (-0.1, 8, -2.1)), played([7], (-0.1, 8, -2.1)), "twice")


def test_an_answer_that_is_shorter_is_no_near_tie(files: ModelFiles) -> None:
    contract = EngineContract(EchoEngine, files, SETTINGS, allow_near_tie=0.05)

    with pytest.raises(ContractError, match="the answers differ"):
        contract.assert_same(played([5], (-0.1, 7, -2.1)), played([]), "twice")
