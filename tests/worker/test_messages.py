"""Engines that take messages, in the loop and in a worker process: who waits for whom, what goes through, what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack

from hostler.domain import EmbedRequest, FinishReason, MemoryUse, Message, SamplingParams, TextEvent
from hostler.engine import EngineInfo, RawPrompt, SequenceSink, Vectors
from hostler.errors import InvalidRequest, UnsupportedParameter
from hostler.ring import RingSegment
from hostler.text import StopStrings
from hostler.worker.loop import Arrived, Inbox, Loop, StopAsked
from hostler.worker.preparation import Prepared
from hostler.worker.supervisor import Supervisor
from hostler.worker.wire import ENDED, TEXT, Counting, EndedFrame, SequenceClosed, Submit
from support.workers import DEADLINE_S, ask, echo_model, finish_of, read_all, supervised, text_of, user, wait_until

ENGINE = "support.messages:MessageEcho"
TESTS = Path(__file__).parents[1]


# -- the loop ---------------------------------------------------------------------------------------------------------


class Waiting:
    """An engine whose pieces the test hands in from another thread."""

    def __init__(self) -> None:
        self.pieces: dict[int, list[bytes | FinishReason]] = {}
        self.sequences: dict[int, SequenceSink] = {}
        self.wake = lambda: None
        self.n_steps = 0

    def say(self, sequence_id: int, *pieces: bytes | FinishReason) -> None:
        self.pieces.setdefault(sequence_id, []).extend(pieces)
        self.wake()

    def add(self, sequence: SequenceSink) -> None:
        self.sequences[sequence.id] = sequence

    def cancel(self, sequence_id: int) -> None:
        self.sequences.pop(sequence_id, None)

    def step(self) -> bool:
        self.n_steps += 1
        has_worked = False
        for sequence in list(self.sequences.values()):
            waiting = self.pieces.get(sequence.id)
            while waiting and not sequence.is_paused:
                has_worked = True
                piece = waiting.pop(0)
                if isinstance(piece, FinishReason):
                    sequence.end(piece)
                elif sequence.push(-1, piece):
                    continue
                del self.sequences[sequence.id]
                break
        return has_worked

    def embed(self, inputs: Sequence[Any]) -> Iterator[Vectors]:
        raise UnsupportedParameter("no embeddings")

    def memory(self) -> MemoryUse:
        return MemoryUse()


class Rig:
    """A loop in a thread of its own over that engine."""

    def __init__(self, ring_bytes: int = 4096) -> None:
        self.engine = Waiting()
        self.segment = RingSegment.create(8, ring_bytes, 8)
        self.inbox = Inbox()
        self.engine.wake = self.inbox.wake
        self.sent: list[object] = []
        self.readers = {}
        info = EngineInfo(n_ctx=0, n_slots=4, n_vocab=0)
        loop = Loop(
            self.engine, info, self.segment, self.inbox, self.sent.append, stall_timeout_s=60.0, takes_messages=True
        )  # type: ignore[arg-type]
        self.thread = threading.Thread(target=loop.run, daemon=True)
        self.thread.start()

    def submit(self, sequence_id: int) -> None:
        self.readers[sequence_id] = self.segment.reader(sequence_id)
        self.readers[sequence_id].open(sequence_id, sequence_id)
        self.inbox.put(Arrived(Submit(sequence_id, sequence_id, SamplingParams(), prompt="x")))
        raw = RawPrompt(prompt="x")
        self.inbox.put(Prepared(sequence_id, (), SamplingParams(), StopStrings(()), True, raw))
        wait_until(lambda: sequence_id in self.engine.sequences, "the engine to have it")

    def frames(self, sequence_id: int) -> list[tuple[int, bytes]]:
        found = []
        while frames := self.readers[sequence_id].drain():
            found += frames
        return found

    def has_closed(self, sequence_id: int) -> bool:
        return SequenceClosed(sequence_id) in self.sent

    def finish(self) -> None:
        self.inbox.put(StopAsked())
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.finish()


def test_a_loop_whose_engine_waits_sleeps_until_it_is_woken(rig: Rig) -> None:
    rig.submit(1)
    wait_until(lambda: rig.engine.n_steps >= 1, "the first step")
    n_steps = rig.engine.n_steps
    threading.Event().wait(0.5)

    assert rig.engine.n_steps - n_steps <= 2, "one beat a second"
    rig.engine.say(1, b"hello", FinishReason.STOP)
    wait_until(lambda: rig.has_closed(1), "the end")
    frames = rig.frames(1)
    assert b"".join(payload[4:] for kind, payload in frames if kind == TEXT) == b"hello"
    assert (frames[-1][0], msgpack.decode(frames[-1][1], type=EndedFrame).reason) == (ENDED, FinishReason.STOP)


def test_a_slow_reader_beside_an_engine_that_waits_goes_on_when_it_reads_again() -> None:
    rig = Rig(ring_bytes=1024)
    rig.submit(1)
    rig.submit(2)
    rig.engine.say(1, *[b"x" * 50] * 200, FinishReason.STOP)
    wait_until(lambda: rig.engine.sequences[1].is_paused, "the pause")

    n_read = 0

    def read() -> bool:
        nonlocal n_read
        n_read += sum(len(payload) - 4 for kind, payload in rig.frames(1) if kind == TEXT)
        return rig.has_closed(1)

    wait_until(read, "the end of the slow one, while the other waits")
    assert n_read == 200 * 50
    rig.finish()


# -- a worker process -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    files = echo_model(tmp_path_factory.mktemp("model"))
    environment = {"PYTHONPATH": str(TESTS)}
    with supervised(files, engine=ENGINE, ctx_len=0, environment=environment, takes_messages=True) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        yield supervisor


def test_a_chat_goes_to_the_engine_as_it_came_and_its_own_count_comes_back(running: Supervisor) -> None:
    events = ask(running, "Grüße, 世界! 🦙")

    finish = finish_of(events)
    assert text_of(events) == "Grüße, 世界! 🦙"
    assert finish.reason is FinishReason.STOP
    assert finish.usage.prompt_tokens == len("Grüße, 世界! 🦙".encode())
    assert finish.usage.completion_tokens == sum(event.n_tokens for event in events if isinstance(event, TextEvent))


def test_a_stop_string_is_found_whoever_renders(running: Supervisor) -> None:
    events = ask(running, "one two END three", SamplingParams(temperature=0.0, stop=("END",)))

    assert text_of(events) == "one two "
    assert finish_of(events).stop_string == "END"


def test_length_is_what_the_engine_says(running: Supervisor) -> None:
    events = ask(running, "abcdef", SamplingParams(temperature=0.0, max_tokens=3))

    assert (text_of(events), finish_of(events).reason) == ("abc", FinishReason.LENGTH)


def test_plain_prompts_go_through_as_text_and_as_token_ids(running: Supervisor) -> None:
    for prompt in ("plain", tuple(b"plain")):
        with running.reader_group() as group:
            running.submit(group, 0, SamplingParams(temperature=0.0), prompt=prompt)
            assert text_of(read_all(group)) == "plain"


def test_messages_are_counted_by_an_estimate(running: Supervisor) -> None:
    size = running.call("count", Counting((Message("user", "x" * 300),)))

    assert 100 <= size["n_tokens"] < 120
    assert size["n_ctx"] > 2**30
    with pytest.raises(InvalidRequest, match="shows no tokens"):
        running.call("tokenize", "text")


def test_texts_are_embedded_and_counted_by_the_engine(running: Supervisor) -> None:
    with_texts = running.embed(EmbedRequest("1", "tiny", ("one", "three")))
    assert with_texts.wait(DEADLINE_S)

    result = with_texts.embedded()
    assert len(result.vectors) == 2
    assert result.n_tokens == len("onethree")


def test_several_answers_run_side_by_side(running: Supervisor) -> None:
    with running.reader_group() as group:
        for index in range(4):
            running.submit(group, index, SamplingParams(temperature=0.0), messages=user(f"answer {index} " * 20))
        events = read_all(group)

    assert [text_of(events, index) for index in range(4)] == [f"answer {index} " * 20 for index in range(4)]


def test_a_worker_with_a_prompt_setting_does_not_start(tmp_path: Path) -> None:
    from hostler.worker.wire import PromptSettings

    environment = {"PYTHONPATH": str(TESTS)}
    with supervised(
        echo_model(tmp_path),
        engine=ENGINE,
        environment=environment,
        prompt=PromptSettings(prompt_template="{prompt}"),
        takes_messages=True,
    ) as supervisor:
        supervisor.start()
        with pytest.raises(InvalidRequest, match="makes prompts by itself"):
            supervisor.wait_ready(DEADLINE_S)


def test_an_engine_with_tokens_must_still_say_how_many_it_knows(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(TESTS)}
    with supervised(echo_model(tmp_path), engine=ENGINE, ctx_len=64, environment=environment) as supervisor:
        supervisor.start()
        with pytest.raises(Exception, match="n_vocab must be at least 1"):
            supervisor.wait_ready(DEADLINE_S)
