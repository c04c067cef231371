"""The loop with a scripted engine, in this process: slots, order, bugs of an engine, stalled readers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from msgspec import msgpack

from hostler.domain import FinishReason, Priority, SamplingParams
from hostler.engine import EngineSettings, ModelFiles
from hostler.errors import InvalidRequest, UnsupportedParameter
from hostler.ring import RingSegment
from hostler.testing import ScriptedEngine, at_step, raise_error
from hostler.text import StopStrings
from hostler.turns import OVERTAKEN_A_RANK
from hostler.worker import exits
from hostler.worker.loop import Arrived, Cancelled, Inbox, Loop, PreparationFailed, StopAsked, Task
from hostler.worker.preparation import Prepared
from hostler.worker.wire import ENDED, FAILED, TEXT, EndedFrame, FailedFrame, Reply, SequenceClosed, Submit
from support.workers import DEADLINE_S, wait_until


class Rig:
    """A loop in a thread of its own, and the test in the place of all others."""

    def __init__(
        self, engine: ScriptedEngine | None = None, *, n_slots: int = 2, ring_bytes: int = 4096, stall_timeout_s: float = 60.0
    ) -> None:
        self.engine = engine or ScriptedEngine("hello")
        self.segment = RingSegment.create(8, ring_bytes, 8)
        self.inbox = Inbox()
        self.sent: list[object] = []
        info = self.engine.load(ModelFiles("", ""), EngineSettings(10**9, n_slots), lambda _: True)
        self.loop = Loop(
            self.engine, info, self.segment, self.inbox, self.sent.append, stall_timeout_s=stall_timeout_s
        )
        self.code: int | None = None
        self._readers = {}
        self.thread = threading.Thread(target=self._run, daemon=True)
        self._params = {}

    def _run(self) -> None:
        self.code = self.loop.run()

    def arrive(self, sequence_id: int, priority: Priority = Priority.NORMAL) -> None:
        ring = sequence_id % 8
        self._readers[sequence_id] = self.segment.reader(ring)
        self._readers[sequence_id].open(sequence_id, ring)
        self.inbox.put(Arrived(Submit(sequence_id, ring, SamplingParams(), prompt="x", priority=priority)))

    def prepare(self, sequence_id: int, params: SamplingParams | None = None) -> None:
        params = params or SamplingParams(temperature=0.0, seed=1)
        self.inbox.put(Prepared(sequence_id, [1], params, StopStrings(params.stop), True))

    def submit(self, sequence_id: int, params: SamplingParams | None = None) -> None:
        self.arrive(sequence_id)
        self.prepare(sequence_id, params)

    def frames(self, sequence_id: int) -> list[tuple[int, bytes]]:
        found = []
        while frames := self._readers[sequence_id].drain():
            found += frames
        return found

    def closed(self) -> list[int]:
        return [message.sequence_id for message in self.sent if isinstance(message, SequenceClosed)]

    def finish(self) -> int:
        """Start if need be, stop, and give the exit code."""
        self.inbox.put(StopAsked())
        if self.thread.ident is None:
            self.thread.start()
        self.thread.join(DEADLINE_S)
        assert self.code is not None, "the loop did not end"
        return self.code

    def run_until_closed(self, n: int) -> None:
        if self.thread.ident is None:
            self.thread.start()
        wait_until(lambda: len(self.closed()) >= n, f"the end of {n} sequences")


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Rigs whose loops are stopped in the end."""
    made: list[Rig] = []

    def make(*args, **more) -> Rig:
        made.append(Rig(*args, **more))
        return made[-1]

    yield make
    for rig in made:
        rig.finish()


def text_in(frames: list[tuple[int, bytes]]) -> str:
    return b"".join(payload[4:] for kind, payload in frames if kind == TEXT).decode()


def test_every_sequence_is_closed_exactly_once_after_its_last_frame(make_rig: MakeRig) -> None:
    rig = make_rig()
    for sequence_id in range(1, 6):
        rig.submit(sequence_id)
    rig.run_until_closed(5)

    assert rig.finish() == exits.ORDERLY
    assert sorted(rig.closed()) == [1, 2, 3, 4, 5]
    for sequence_id in range(1, 6):
        frames = rig.frames(sequence_id)
        assert text_in(frames) == "hello"
        assert frames[-1][0] == ENDED


def test_slots_go_to_the_higher_priority_and_then_to_the_earlier_request(make_rig: MakeRig) -> None:
    rig = make_rig(n_slots=1)
    priorities = {1: Priority.BATCH, 2: Priority.NORMAL, 3: Priority.INTERACTIVE, 4: Priority.NORMAL}
    for sequence_id, priority in priorities.items():
        rig.arrive(sequence_id, priority)
    for sequence_id in (4, 1, 2, 3):  # prepared in another order than they came
        rig.prepare(sequence_id)
    rig.run_until_closed(4)

    assert rig.closed() == [3, 2, 4, 1]


def test_a_batch_sequence_gets_a_slot_after_so_many_later_ones(make_rig: MakeRig) -> None:
    rig = make_rig(n_slots=1)
    rig.arrive(1, Priority.BATCH)
    rig.prepare(1)
    for sequence_id in range(2, 50):
        rig.arrive(sequence_id, Priority.INTERACTIVE)
        rig.prepare(sequence_id)
    rig.run_until_closed(49)

    assert rig.closed().index(1) == 2 * OVERTAKEN_A_RANK


def test_a_sequence_cancelled_before_it_is_prepared_is_closed_and_its_preparation_ignored(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.arrive(1)
    rig.inbox.put(Cancelled(1))
    rig.prepare(1)
    rig.run_until_closed(1)

    assert rig.finish() == exits.ORDERLY
    assert rig.closed() == [1]
    assert [kind for kind, _ in rig.frames(1)] == [ENDED]
    assert rig.engine.cancelled == [], "the engine never had it"


def test_a_cancelled_active_sequence_is_taken_from_the_engine(make_rig: MakeRig) -> None:
    rig = make_rig(ScriptedEngine("on and on "))
    rig.submit(1, SamplingParams(ignore_eos=True, max_tokens=10_000_000, seed=1))
    rig.thread.start()
    wait_until(lambda: rig.engine.n_steps > 5, "some steps")
    rig.inbox.put(Cancelled(1))
    rig.run_until_closed(1)

    assert rig.engine.cancelled == [1]
    rig.inbox.put(Cancelled(1))
    rig.inbox.put(Cancelled(77))
    assert rig.finish() == exits.ORDERLY, "unknown ids are ignored"


def test_a_failed_preparation_arrives_as_its_error(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.arrive(1)
    rig.inbox.put(PreparationFailed(1, InvalidRequest("no such role", param="messages[0].role")))
    rig.run_until_closed(1)

    ((kind, payload),) = rig.frames(1)
    assert kind == FAILED
    assert msgpack.decode(payload, type=FailedFrame) == FailedFrame("invalid_value", "no such role", "messages[0].role")


class RefusingEngine(ScriptedEngine):
    """Refuses every second sequence."""

    def __init__(self, error: Exception) -> None:
        super().__init__("hello")
        self._error = error

    def add(self, sequence) -> None:
        if sequence.id % 2 == 0:
            raise self._error
        super().add(sequence)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UnsupportedParameter("mirostat is not for this engine", param="mirostat"), "unsupported_parameter", "mirostat is"),
        (ZeroDivisionError("division by zero"), "engine_failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_engine_that_refuses_one_sequence_goes_on_with_the_others(
    make_rig: MakeRig, error: Exception, code: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig(RefusingEngine(error))
    for sequence_id in (1, 2, 3):
        rig.submit(sequence_id)
    rig.run_until_closed(3)

    assert rig.finish() == exits.ORDERLY
    failed = msgpack.decode(rig.frames(2)[-1][1], type=FailedFrame)
    assert failed.code == code
    assert words in failed.message
    assert text_in(rig.frames(1)) == text_in(rig.frames(3)) == "hello"
    assert ("Traceback" in capfd.readouterr().err) == (code == "engine_failed")


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("oops"), exits.ENGINE_BUG), (MemoryError(), exits.OUT_OF_MEMORY)])
def test_an_exception_out_of_step_ends_the_loop_with_its_code_and_a_traceback(
    make_rig: MakeRig, error: Exception, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig(ScriptedEngine("hello", before_step=at_step(2, raise_error(error))))
    rig.submit(1)
    rig.thread.start()
    rig.thread.join(DEADLINE_S)

    assert rig.code == code
    assert "Traceback" in capfd.readouterr().err


def test_a_stalled_reader_loses_its_sequence_and_the_other_goes_on(make_rig: MakeRig) -> None:
    rig = make_rig(ScriptedEngine("on and on "), ring_bytes=1024, stall_timeout_s=0.2)
    endless = SamplingParams(ignore_eos=True, max_tokens=10_000_000, seed=1)
    rig.submit(1, endless)
    rig.submit(2, endless)
    rig.thread.start()
    n_read = 0

    def flows() -> bool:
        nonlocal n_read
        n_read += len(rig.frames(2))
        return 1 in rig.closed()

    wait_until(flows, "the end of the stalled one")

    assert rig.closed() == [1]
    assert rig.engine.cancelled == [1]
    assert ENDED not in [kind for kind, _ in rig.frames(1)], "there was no room for a last frame"
    assert n_read > 100
    assert rig.finish() == exits.ORDERLY


def test_a_loop_whose_sequences_are_all_paused_waits_instead_of_spinning(make_rig: MakeRig) -> None:
    rig = make_rig(ScriptedEngine("on and on "), ring_bytes=256)
    rig.submit(1, SamplingParams(ignore_eos=True, max_tokens=10_000_000, seed=1))
    rig.thread.start()
    wait_until(lambda: rig.segment.beats > 20, "the pause")
    steps, beats = rig.engine.n_steps, rig.segment.beats
    threading.Event().wait(0.5)

    assert rig.engine.n_steps == steps
    assert rig.segment.beats - beats < 100, "2 to 50 ms between looks"
    assert len(rig.frames(1)) > 5
    wait_until(lambda: rig.engine.n_steps > steps, "the next step")
    rig.finish()


def test_an_idle_loop_does_not_turn_and_one_that_waits_for_preparation_beats(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.thread.start()
    wait_until(lambda: rig.segment.beats >= 1, "the first turn")
    threading.Event().wait(0.1)
    idle = rig.segment.beats
    threading.Event().wait(1.2)
    assert rig.segment.beats == idle

    rig.arrive(1)
    wait_until(lambda: rig.segment.beats >= idle + 2, "beats while something is open")
    rig.finish()


def test_a_question_is_answered_on_the_engine_thread_and_its_error_told(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.inbox.put(Task(5, lambda engine: threading.current_thread() is rig.thread))
    rig.inbox.put(Task(6, lambda engine: engine.embed([[1]])))
    rig.inbox.put(Task(7, lambda engine: engine.memory()))

    assert rig.finish() == exits.ORDERLY
    first, second, third = [message for message in rig.sent if isinstance(message, Reply)]
    assert (first.call_id, first.value) == (5, True)
    assert (second.call_id, second.code) == (6, "unsupported_parameter")
    assert third.value == {"weights_bytes": 0, "kv_bytes": 0, "compute_bytes": 0, "cache_bytes": 0}


def test_stop_ends_open_sequences_as_cancelled_in_every_phase(make_rig: MakeRig) -> None:
    rig = make_rig(ScriptedEngine("on and on "), n_slots=1, ring_bytes=1 << 20)
    endless = SamplingParams(ignore_eos=True, max_tokens=10_000_000, seed=1)
    rig.submit(1, endless)
    rig.submit(2, endless)
    rig.arrive(3)
    rig.thread.start()
    wait_until(lambda: rig.engine.n_steps > 2, "some steps")

    assert rig.finish() == exits.ORDERLY
    assert sorted(rig.closed()) == [1, 2, 3]
    for sequence_id in (1, 2, 3):
        kind, payload = rig.frames(sequence_id)[-1]
        assert kind == ENDED
        assert msgpack.decode(payload, type=EndedFrame).reason is FinishReason.CANCELLED
