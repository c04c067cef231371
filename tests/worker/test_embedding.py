"""Embeds in the worker: in slices and pieces, in turns, dropped in every phase; and over a real worker process."""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hostler.domain import EmbedRequest, EmbedResult
from hostler.engine import EngineInfo, Vectors
from hostler.errors import (
    ContextLengthExceeded,
    EmbeddingsDisabled,
    EngineFailed,
    EngineUnavailable,
    HostlerError,
    InvalidRequest,
    UnsupportedParameter,
)
from hostler.worker.calls import PendingCall
from hostler.worker.embedding import SLICE_CHARACTERS, EmbedJobs, EmbedPreparation, packed_vector
from hostler.worker.preparation import Preparation
from hostler.worker.supervisor import Limits, Supervisor
from hostler.worker.wire import Embed, Embedded, EmbedReply, PromptSettings, Reply
from support.workers import DEADLINE_S, GREEDY, echo_model, next_events, supervised, wait_until

INFO = EngineInfo(n_ctx=1_000_000, n_slots=1, n_vocab=1000, can_embed=True, n_embd=2)


# -- preparation --------------------------------------------------------------------------------------------------------


class Tokenizer:
    """One character is one token."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self.texts.append(text)
        if text == "bug":
            raise RuntimeError("no more ideas")
        return [ord(letter) for letter in text]


class Desk:
    """A preparation thread whose tasks run when the test says so."""

    def __init__(self, *inputs: str | tuple[int, ...]) -> None:
        self.tokenizer = Tokenizer()
        self.tasks: list[Callable[[], None]] = []
        self.prepared: list[list[int]] | None = None
        self.error: HostlerError | None = None
        self.preparation = EmbedPreparation(
            Embed(7, inputs),
            Preparation("tiny", self.tokenizer, INFO, PromptSettings()),
            self.tasks.append,
            on_prepared=self._note_prepared,
            on_failed=self._note_failed,
        )
        self.tasks.append(self.preparation.run)

    def _note_prepared(self, call_id: int, inputs: list[Sequence[int]]) -> None:
        assert call_id == 7
        self.prepared = [list(tokens) for tokens in inputs]

    def _note_failed(self, call_id: int, error: HostlerError) -> None:
        assert call_id == 7
        self.error = error

    def run_next(self) -> None:
        self.tasks.pop(0)()


def test_a_long_preparation_gives_way_after_each_slice_and_keeps_its_order() -> None:
    big = "x" * (SLICE_CHARACTERS // 2)
    desk = Desk(big, big, big, "end")

    desk.run_next()
    assert len(desk.tokenizer.texts) == 2
    assert desk.prepared is None
    desk.run_next()

    assert desk.tasks == []
    assert desk.prepared is not None
    assert [len(tokens) for tokens in desk.prepared] == [len(big), len(big), len(big), 3]


def test_a_dropped_preparation_ends_at_its_next_slice_without_a_word() -> None:
    big = "x" * SLICE_CHARACTERS
    desk = Desk(big, big)
    desk.run_next()

    desk.preparation.drop()
    desk.run_next()

    assert (desk.tasks, desk.prepared, desk.error) == ([], None, None)
    assert len(desk.tokenizer.texts) == 1


@pytest.mark.parametrize(("text", "code"), [("", "invalid_value"), ("bug", "engine_failed")])
def test_an_input_that_cannot_be_prepared_fails_the_whole_request(text: str, code: str) -> None:
    desk = Desk("ok", text, "never reached")

    desk.run_next()

    assert desk.error is not None
    assert desk.error.code == code
    assert desk.tasks == []


# -- jobs -----------------------------------------------------------------------------------------------------------------


class Playing:
    """An engine whose embed does what the inputs say: input (n, v) takes n pieces and has the vector (v, 0)."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.log: list[int] = []

    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        try:
            for n, value in inputs:
                for _ in range(n - 1):
                    self.log.append(value)
                    yield []
                self.log.append(value)
                if value == 13:
                    raise RuntimeError("thirteen")
                yield [(float(value), 0.0)]
        finally:
            self.closed.append(inputs[0][1])


class Rig:
    """Jobs over that engine, or over an `embed` of the test's own."""

    def __init__(self, embed: Callable[[Sequence[Sequence[int]]], Iterator[Vectors]] | None = None) -> None:
        self.engine = Playing()
        if embed is not None:
            self.engine.embed = embed  # type: ignore[method-assign]
        self.sent: list[Any] = []
        self.jobs = EmbedJobs(self.engine, INFO, self.sent.append)  # type: ignore[arg-type]

    def add(self, call_id: int, *inputs: tuple[int, int]) -> None:
        self.jobs.arrived(call_id)
        self.jobs.prepared(call_id, list(inputs))

    def run(self) -> None:
        while self.jobs.has_work:
            self.jobs.advance()

    def replies(self) -> dict[int, Reply]:
        return {message.call_id: message for message in self.sent if isinstance(message, Reply)}

    def n_vectors(self, call_id: int) -> int:
        return sum(len(one.vectors) for one in self.sent if isinstance(one, Embedded) and one.call_id == call_id)


def test_jobs_take_turns_but_never_in_the_middle_of_an_input() -> None:
    rig = Rig()
    rig.add(1, (3, 10), (2, 11))
    rig.add(2, (1, 20), (1, 21), (2, 22))

    rig.run()

    assert rig.engine.log == [10, 10, 10, 20, 11, 11, 21, 22, 22]
    assert {call_id: reply.value for call_id, reply in rig.replies().items()} == {1: EmbedReply(4), 2: EmbedReply(6)}
    assert (rig.n_vectors(1), rig.n_vectors(2)) == (2, 3)
    assert not rig.jobs.is_open


def test_a_dropped_job_is_closed_at_once_and_says_nothing_more() -> None:
    rig = Rig()
    rig.add(1, (5, 10))
    rig.add(2, (1, 20))
    rig.jobs.advance()

    rig.jobs.drop(1)
    rig.jobs.drop(99)
    rig.run()

    assert rig.engine.closed == [10, 20]
    assert list(rig.replies()) == [2]


def test_a_job_may_be_dropped_before_it_is_prepared() -> None:
    rig = Rig()
    rig.jobs.arrived(1)
    assert rig.jobs.is_open
    assert not rig.jobs.has_work

    rig.jobs.drop(1)
    rig.jobs.prepared(1, [(1, 10)])

    assert not rig.jobs.is_open
    assert not rig.jobs.has_work


def test_an_engines_bug_costs_its_job_only() -> None:
    rig = Rig()
    rig.add(1, (1, 10), (1, 13))
    rig.add(2, (1, 20), (1, 21))

    rig.run()

    replies = rig.replies()
    assert (replies[1].code, "thirteen" in replies[1].message) == ("engine_failed", True)
    assert replies[2].value == EmbedReply(4)


def test_running_out_of_memory_is_the_workers_end() -> None:
    def embed(inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        raise MemoryError

    rig = Rig(embed)
    rig.add(1, (1, 10))

    with pytest.raises(MemoryError):
        rig.run()


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ([[1.0, 2.0], [1.0, 2.0]], "more than 1 vectors"),
        ([[1.0]], "1 numbers"),
        ([[1.0, math.nan]], "no valid vector"),
        ([[1.0, math.inf]], "no valid vector"),
        (None, "ended after 0 vectors"),
    ],
)
def test_an_engine_that_gives_what_it_must_not_is_found_out(vectors: Any, text: str) -> None:
    rig = Rig(lambda _inputs: iter([] if vectors is None else [vectors]))
    rig.add(1, (1, 10))

    rig.run()

    assert rig.replies()[1].code == "engine_failed"
    assert text in rig.replies()[1].message


def test_a_packed_vector_has_the_length_1_and_one_without_direction_stays_zero() -> None:
    assert struct.unpack("<2f", packed_vector([3e20, 4e20], 2, 0)) == pytest.approx((0.6, 0.8))
    assert struct.unpack("<2f", packed_vector([0.0, 0.0], 2, 0)) == (0.0, 0.0)


# -- an engine that waits for others ------------------------------------------------------------------------------------


class Asking:
    """Gives a job's vector when its event is set, and says that its inputs had 40 tokens."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Vectors]] = {}

    def embed(self, inputs: Sequence[str]) -> Iterator[Vectors]:
        self.answers[inputs[0]] = []
        for _ in inputs:
            while not self.answers[inputs[0]]:
                yield []
            yield self.answers[inputs[0]].pop(0)
        return 40


def test_jobs_of_an_engine_that_waits_are_all_under_way_and_answered_as_they_come() -> None:
    engine, sent = Asking(), []
    jobs = EmbedJobs(engine, INFO, sent.append, takes_messages=True)  # type: ignore[arg-type]
    for call_id, text in ((1, "first"), (2, "second")):
        jobs.arrived(call_id)
        jobs.prepared(call_id, [text])

    assert not jobs.advance(), "nothing has come yet"
    assert set(engine.answers) == {"first", "second"}
    engine.answers["second"].append([(1.0, 0.0)])
    assert jobs.advance()
    assert not jobs.advance()
    engine.answers["first"].append([(0.0, 1.0)])
    assert jobs.advance()

    assert [message.call_id for message in sent if isinstance(message, Reply)] == [2, 1]
    assert {message.value.n_tokens for message in sent if isinstance(message, Reply)} == {40}
    assert not jobs.has_work


def test_an_engine_that_waits_and_goes_on_after_its_last_vector_is_found_out() -> None:
    sent: list[Any] = []
    rig = Rig()
    rig.engine.embed = lambda _inputs: iter([[(1.0, 0.0)], []])  # type: ignore[method-assign,assignment]
    jobs = EmbedJobs(rig.engine, INFO, sent.append, takes_messages=True)  # type: ignore[arg-type]
    jobs.arrived(1)
    jobs.prepared(1, ["text"])

    jobs.advance()

    assert "went on after the last vector" in sent[-1].message


# -- a worker process -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """One healthy worker for all tests that leave it as they found it."""
    with started(tmp_path_factory.mktemp("model")) as supervisor:
        yield supervisor


@contextmanager
def started(folder: Path, *, model: dict[str, Any] | None = None, **more: Any) -> Iterator[Supervisor]:
    """A worker that is ready."""
    with supervised(echo_model(folder, **(model or {})), **more) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        yield supervisor


def ask(supervisor: Supervisor, *inputs: str | tuple[int, ...], dimensions: int | None = None) -> PendingCall:
    return supervisor.embed(EmbedRequest("e", "tiny", inputs, dimensions))


def embed(supervisor: Supervisor, *inputs: str | tuple[int, ...], dimensions: int | None = None) -> EmbedResult:
    call = ask(supervisor, *inputs, dimensions=dimensions)
    try:
        assert call.wait(DEADLINE_S), "no vectors came"
        return call.embedded()
    finally:
        call.close()


def test_vectors_come_in_the_order_of_their_inputs_with_the_length_1(running: Supervisor) -> None:
    result = embed(running, *(chr(64 + number) * (number % 7 + 1) for number in range(40)), (5, 6))

    vectors = [struct.unpack("<64f", vector) for vector in result.vectors]
    assert [vector.index(max(vector)) for vector in vectors[:40]] == list(range(40))
    assert all(math.hypot(*vector) == pytest.approx(1.0) for vector in vectors)
    assert result.n_tokens == sum(number % 7 + 1 for number in range(40)) + 2


def test_errors_arrive_as_their_class_with_their_parameter(running: Supervisor) -> None:
    with pytest.raises(InvalidRequest) as caught:
        embed(running, "ok", "")
    assert caught.value.param == "input[1]"
    with pytest.raises(UnsupportedParameter, match="64 dimensions"):
        embed(running, "ok", dimensions=3)
    with pytest.raises(ContextLengthExceeded, match=r"4096 tokens.*input\[1\] has 4097"):
        embed(running, "ok", "x" * 4097)
    with pytest.raises(EngineFailed, match="no more ideas"):
        embed(running, "ok", "[[echo: fail='no more ideas']]")


def test_a_running_answer_gets_tokens_between_the_pieces_of_a_long_job(running: Supervisor) -> None:
    with running.reader_group() as group:
        running.submit(group, 0, GREEDY, prompt="[[echo: flood delay_s=0.001]]x")
        next_events(group)
        call = ask(running, *(["[[echo: delay_s=0.01]]x"] * 100))
        n_tokens = 0
        while not call.wait(0):
            n_tokens += sum(getattr(event, "n_tokens", 0) for event in next_events(group))
        call.close()

    assert n_tokens >= 50


def test_a_dropped_job_makes_room_for_the_next(running: Supervisor) -> None:
    call = ask(running, *(["[[echo: delay_s=0.05]]x"] * 2000))  # 100 s
    wait_until(lambda: call.n_vectors > 0, "the first vector")

    call.close()

    assert embed(running, "quick").n_tokens == 5
    n_vectors = call.n_vectors
    embed(running, "quick")
    assert call.n_vectors == n_vectors


def test_a_short_job_does_not_wait_for_the_end_of_a_long_one(running: Supervisor) -> None:
    long = ask(running, *(["[[echo: delay_s=0.05]]x"] * 2000))
    wait_until(lambda: long.n_vectors > 0, "the first vector")

    assert embed(running, "quick").n_tokens == 5
    assert long.n_vectors < 100
    long.close()


def test_a_worker_that_dies_while_it_embeds_tells_who_waits_and_starts_again(tmp_path: Path) -> None:
    with started(tmp_path) as supervisor:
        with pytest.raises(EngineUnavailable, match="SIGKILL"):
            embed(supervisor, "[[echo: die=SIGKILL]]")
        supervisor.wait_ready(DEADLINE_S)

        assert embed(supervisor, "ab").n_tokens == 2


def test_a_worker_that_hangs_in_a_piece_is_killed(tmp_path: Path) -> None:
    """Although no sequence is open: whoever waits for vectors keeps the watch awake, too."""
    with (
        started(tmp_path, limits=Limits(step_timeout_s=2.0)) as supervisor,
        pytest.raises(EngineUnavailable, match="nothing happened for 2 s"),
    ):
        embed(supervisor, "[[echo: hang]]")


def test_a_stop_ends_a_job(tmp_path: Path) -> None:
    with started(tmp_path) as supervisor:
        call = ask(supervisor, *(["[[echo: delay_s=0.05]]x"] * 2000))
        wait_until(lambda: call.n_vectors > 0, "the first vector")

        threading.Thread(target=supervisor.stop).start()

        assert call.wait(DEADLINE_S)
        with pytest.raises(EngineUnavailable):
            call.embedded()


def test_a_model_that_cannot_embed_says_so(tmp_path: Path) -> None:
    with started(tmp_path, model={"embedding": False}) as supervisor, pytest.raises(EmbeddingsDisabled):
        embed(supervisor, "x")
