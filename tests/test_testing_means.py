"""The kit's means: recordings of what an engine did, engines that play a script, and the driver that steps them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hostler.domain import FinishReason, MemoryUse, SamplingParams
from hostler.engine import Engine, EngineSettings, ModelFiles, Progress, SequenceSink
from hostler.errors import EngineFailed
from hostler.testing import (
    EOS,
    ContractError,
    Driver,
    RecordingSequence,
    ScriptedEngine,
    at_step,
    die,
    drive,
    hang,
    raise_error,
)

SETTINGS = EngineSettings(ctx_len=512, n_parallel=3, n_batch=64)
FILES = ModelFiles("/nowhere/script", "scripted")


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
