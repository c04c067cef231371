"""The kit for plugin authors: it passes a sound engine, and each of its checks finds the engine that breaks its rule."""

from __future__ import annotations

import subprocess
import sys
import threading
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
    EOS,
    ContractError,
    Driver,
    EngineContract,
    RecordingSequence,
    ScriptedEngine,
    at_step,
    check_engine_contract,
    contract_checks,
    die,
    drive,
    hang,
    raise_error,
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
        self.leaked.append(bytearray(b"\x01") * (64 * 2**20))


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


# -- the recording ----------------------------------------------------------------------------------------------------


def begun(params: SamplingParams | None = None, **options: Any) -> RecordingSequence:
    sequence = RecordingSequence([1, 2, 3], params, **options)
    sequence.begin(0)
    sequence.prefilled(3)
    return sequence


def test_a_recording_keeps_what_the_engine_did() -> None:
    sequence = begun()

    assert sequence.push(240, b"\xf0")
    assert sequence.text == ""
    assert sequence.push(241, b"\x9f\xa6\x99!")
    sequence.end(FinishReason.STOP)

    assert (sequence.n_cached, sequence.prefilled_counts) == (0, [3])
    assert (sequence.token_ids, sequence.pieces, sequence.text) == ([240, 241], [b"\xf0", b"\x9f\xa6\x99!"], "🦙!")
    assert (sequence.reason, sequence.is_ended_by_engine, sequence.violations) == (FinishReason.STOP, True, [])


def test_a_recording_adds_up_what_was_guessed_and_refuses_more_right_than_tried() -> None:
    sequence = begun()

    sequence.drafted(4, 1)
    sequence.drafted(2, 2)
    assert (sequence.n_drafted, sequence.n_accepted, sequence.violations) == (6, 3, [])
    sequence.drafted(1, 2)

    assert "drafted(1, 2)" in sequence.violations[0]


def test_a_recording_ends_at_a_stop_string_across_pieces() -> None:
    sequence = begun(SamplingParams(stop=("lo w", "zzz")))

    answers = [sequence.push(0, piece) for piece in (b"hel", b"lo", b" wor")]

    assert answers == [True, True, False]
    assert (sequence.text, sequence.stop_string, sequence.reason) == ("hel", "lo w", FinishReason.STOP)
    assert not sequence.is_ended_by_engine


@pytest.mark.parametrize(
    ("options", "n_tokens"),
    [
        ({"params": SamplingParams(max_tokens=2)}, 2),
        ({"n_ctx": 7}, 4),
        ({"stop_after": 3}, 3),
        ({"params": SamplingParams(max_tokens=6), "n_ctx": 8, "stop_after": 9}, 5),
    ],
)
def test_a_recording_ends_at_the_first_limit(options: dict[str, Any], n_tokens: int) -> None:
    sequence = begun(**options)

    answers = [sequence.push(0, b"x") for _ in range(n_tokens)]

    assert answers == [True] * (n_tokens - 1) + [False]
    assert sequence.reason is FinishReason.LENGTH


def test_a_character_that_never_comes_whole_ends_as_a_replacement() -> None:
    sequence = begun(SamplingParams(max_tokens=1))

    sequence.push(240, b"a\xf0\x9f")

    assert sequence.text == "a\ufffd"


def test_a_request_without_a_seed_gets_a_fixed_one() -> None:
    assert RecordingSequence([1]).params.seed == RecordingSequence([1], SamplingParams()).params.seed != -1


@pytest.mark.parametrize(
    ("misuse", "violation"),
    [
        (lambda s: s.prefilled(1), "prefilled(1) came before begin()"),
        (lambda s: (s.begin(0), s.begin(0)), "begin() was called twice"),
        (lambda s: s.begin(4), "begin(4) of a prompt of 3 tokens"),
        (lambda s: (s.begin(2), s.prefilled(1)), "prefilled(1) after prefilled(0), 2 cached, of a prompt of 3 tokens"),
        (lambda s: (s.begin(0), s.prefilled(4)), "prefilled(4) after prefilled(0), 0 cached, of a prompt of 3 tokens"),
        (lambda s: (s.begin(0), s.prefilled(2), s.push(5, b"x")), "push() came when 2 of 3 prompt tokens were prefilled"),
        (lambda s: (s.begin(0), s.prefilled(3), s.push(5, "x")), "push() got a piece of type str; it must be bytes"),
        (
            lambda s: (s.begin(0), s.prefilled(3), s.push(5, b"x"), s.prefilled(3)),
            "prefilled(3) came after the first push()",
        ),
        (
            lambda s: (s.begin(0), s.prefilled(3), s.end(FinishReason.LENGTH)),
            "end('length'): an engine ends a sequence with 'stop' or 'error' only",
        ),
        (lambda s: (s.begin(0), s.end(FinishReason.ERROR)), "end('error') came without a message"),
        (lambda s: s.end(FinishReason.STOP), "end('stop') came before begin()"),
        (
            lambda s: (s.begin(0), s.end(FinishReason.STOP), s.end(FinishReason.STOP)),
            "end() was called after the sequence was over (stop)",
        ),
        (lambda s: (s.mark_cancelled(), s.begin(0)), "begin() was called after the sequence was over (cancelled)"),
    ],
)
def test_a_recording_notes_each_breach(misuse: Callable[[RecordingSequence], object], violation: str) -> None:
    sequence = RecordingSequence([1, 2, 3], sequence_id=7)

    misuse(sequence)

    assert f"sequence 7: {violation}" in sequence.violations


def test_a_recording_notes_a_missing_logprob_and_a_foreign_thread() -> None:
    sequence = begun(SamplingParams(logprobs=0))

    thread = threading.Thread(target=sequence.push, args=(5, b"x"))
    thread.start()
    thread.join()

    assert [text.partition(": ")[2] for text in sequence.violations] == [
        "push() was called from another thread than the engine's",
        "push() came without logprob although params.logprobs is set",
    ]


def test_a_recording_and_a_scripted_engine_are_what_the_contract_names() -> None:
    assert isinstance(RecordingSequence([1]), SequenceSink)
    engine: Engine = ScriptedEngine()
    assert engine.memory() == MemoryUse()


# -- the scripted engine and its driver -------------------------------------------------------------------------------


def loaded(engine: ScriptedEngine, **changes: Any) -> ScriptedEngine:
    engine.load(FILES, msgspec.structs.replace(SETTINGS, **changes), lambda _: True)
    return engine


def test_a_scripted_engine_plays_its_script_to_each_sequence() -> None:
    engine = loaded(ScriptedEngine("Grüße"))
    sequences = [RecordingSequence([1, 2]) for _ in range(5)]

    drive(engine, sequences, n_slots=3)

    assert [sequence.text for sequence in sequences] == ["Grüße"] * 5
    assert {sequence.reason for sequence in sequences} == {FinishReason.STOP}


def test_a_scripted_engine_without_a_script_echoes_and_goes_on_if_told() -> None:
    engine = loaded(ScriptedEngine())
    ending, going_on = RecordingSequence(b"ab"), RecordingSequence(b"ab", SamplingParams(ignore_eos=True, max_tokens=5))

    drive(engine, [ending, going_on])

    assert (ending.text, going_on.text) == ("ab", "ababa")


def test_a_scripted_engine_takes_token_ids_and_ends_where_they_say() -> None:
    sequence = RecordingSequence([1])

    drive(loaded(ScriptedEngine([72, 105, EOS, 33])), [sequence])

    assert sequence.text == "Hi"


def test_a_manner_shows_in_its_step() -> None:
    engine = loaded(ScriptedEngine("abc", before_step=at_step(2, raise_error(OSError("the wheel is off")))))
    sequence = RecordingSequence([1])

    with pytest.raises(OSError, match="the wheel is off"):
        drive(engine, [sequence])

    assert sequence.text == "a"


def test_a_hanging_engine_goes_on_when_its_event_is_set() -> None:
    event = threading.Event()
    engine = loaded(ScriptedEngine("abc", before_step=at_step(1, hang(event))))
    sequence = RecordingSequence([1])
    timer = threading.Thread(target=event.set)
    timer.start()

    drive(engine, [sequence])
    timer.join()

    assert sequence.text == "abc"


def test_an_engine_can_die_by_a_signal() -> None:
    script = (
        "from hostler.testing import *\nfrom hostler import EngineSettings, ModelFiles\n"
        "engine = ScriptedEngine('abc', before_step=at_step(1, die(9)))\n"
        "engine.load(ModelFiles('', ''), EngineSettings(ctx_len=64), lambda _: True)\n"
        "drive(engine, [RecordingSequence([1])])\n"
    )

    assert die  # the script's own
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == -9


def test_a_load_can_be_made_to_refuse() -> None:
    def refuse(progress: Progress) -> None:
        progress(0.5)
        raise EngineFailed("not today")

    seen: list[float] = []
    with pytest.raises(EngineFailed, match="not today"):
        ScriptedEngine(before_load=refuse).load(FILES, SETTINGS, lambda fraction: not seen.append(fraction))

    assert seen == [0.5]


def test_a_driver_notices_an_engine_that_says_it_has_nothing_to_do() -> None:
    class Lazy(ScriptedEngine):
        def step(self) -> bool:
            return False

    with pytest.raises(ContractError, match="nothing to do"):
        drive(loaded(Lazy("abc")), [RecordingSequence([1])])


def test_a_driver_notices_an_engine_that_is_busy_without_end() -> None:
    class Busy(ScriptedEngine):
        def step(self) -> bool:
            return True

    driver = Driver(loaded(Busy("abc")), n_slots=1, max_idle_steps=20)

    with pytest.raises(ContractError, match="20 steps in a row did nothing"):
        driver.run([RecordingSequence([1])])


def test_a_driver_stops_an_answer_that_has_no_end() -> None:
    sequence = RecordingSequence([1], SamplingParams(ignore_eos=True, max_tokens=10**9))

    with pytest.raises(ContractError, match="not over after 50 steps"):
        drive(loaded(ScriptedEngine("abc")), [sequence], max_steps=50)


def test_a_driver_cancels_what_it_is_told_to_and_waits_for_what_it_is_told_to() -> None:
    engine = loaded(ScriptedEngine("abcdef"))
    driver = Driver(engine, n_slots=2)
    staying, leaving = RecordingSequence([1]), RecordingSequence([1])
    driver.add(staying)
    driver.add(leaving)

    driver.step_until(lambda: leaving.text == "abc")
    driver.cancel(leaving)
    driver.run()

    assert engine.cancelled == [leaving.id]
    assert (staying.text, leaving.text, leaving.reason) == ("abcdef", "abc", FinishReason.CANCELLED)
    with pytest.raises(ContractError, match="what the test waits for did not happen"):
        driver.step_until(lambda: leaving.text == "abcd")
