"""The host's end of the rings, with the test in the worker's place."""

from __future__ import annotations

import threading
import time

import pytest

from hostler import errors
from hostler.domain import FinishEvent, FinishReason, PrefillEvent, SamplingParams, TextEvent, Timings, TokenLogprob, Usage
from hostler.errors import EngineUnavailable, HostlerError, InvalidRequest, QueueFull, RequestCancelled
from hostler.ring import RingSegment, RingWriter
from hostler.worker.answers import REST_S, ReaderGroup, RingTable, WorkerSequence, error_of
from hostler.worker.exits import ExitReport
from hostler.worker.wire import (
    ENDED,
    FAILED,
    PREFILL,
    PREFILL_STRUCT,
    TEXT,
    TEXT_HEADER,
    TEXT_LOGPROBS,
    Cancel,
    EndedFrame,
    FailedFrame,
    HostMessage,
    Submit,
    TextFrame,
    encode_payload,
)


class Rig:
    """A table whose messages to the worker are kept, and the worker's writers."""

    def __init__(self, n_rings: int = 2, n_wakes: int = 2) -> None:
        self.segment = RingSegment.create(n_rings, 4096, n_wakes + 1)
        self.sent: list[HostMessage] = []
        self.is_gone = False
        self.table = RingTable(self.segment, self, "tiny")
        self.closed: list[int] = []

    def send(self, message: HostMessage) -> bool:
        if not self.is_gone:
            self.sent.append(message)
        return not self.is_gone

    def submit(self, group: ReaderGroup, index: int = 0) -> WorkerSequence:
        return group.submit(index, SamplingParams(), prompt="x", on_closed=lambda: self.closed.append(index))

    def write(self, sequence: WorkerSequence, kind: int, payload: bytes) -> None:
        writer: RingWriter = self.segment.writer(sequence.ring)
        assert writer.push(kind, sequence.id, payload)

    def text(self, sequence: WorkerSequence, text: str, n_tokens: int = 1) -> None:
        self.write(sequence, TEXT, TEXT_HEADER.pack(n_tokens) + text.encode())

    def end(self, sequence: WorkerSequence, reason: FinishReason = FinishReason.STOP) -> None:
        self.write(sequence, ENDED, encode_payload(EndedFrame(reason, USAGE, TIMINGS, "###")))


USAGE = Usage(3, 2, 1)
TIMINGS = Timings(2, 1.5, 1, 2, 0.5)


def test_consecutive_text_of_one_answer_becomes_one_event() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        first, second = rig.submit(group, 0), rig.submit(group, 1)
        rig.write(first, PREFILL, PREFILL_STRUCT.pack(0, 3))
        for text in ("Grüße", ", ", "world"):
            rig.text(first, text)
        rig.text(first, "!!", n_tokens=300)
        rig.text(second, "other")
        rig.end(first)

        assert group.drain() == [
            PrefillEvent(0, 0, 3),
            TextEvent(0, "Grüße, world!!", 303),
            FinishEvent(0, FinishReason.STOP, USAGE, TIMINGS, "###"),
            TextEvent(1, "other", 1),
        ]
        assert group.drain() == []
        assert not group.is_done


def test_more_frames_than_one_drain_takes_are_all_given() -> None:
    rig = Rig()
    rig.segment = RingSegment.create(1, 1 << 16, 2)
    rig.table = RingTable(rig.segment, rig, "tiny")
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        for number in range(1000):
            rig.text(sequence, str(number % 10))

        assert group.drain() == [TextEvent(0, "0123456789" * 100, 1000)]


def test_a_group_that_gathers_sleeps_through_tokens_and_wakes_for_an_end() -> None:
    rig = Rig()
    with rig.table.reader_group(gathers=True) as group:
        sequence = rig.submit(group)
        group.wait(0.0)  # the submission itself
        rig.text(sequence, "some")
        started = time.monotonic()
        assert group.wait(30.0)
        assert REST_S <= time.monotonic() - started < 30.0
        assert group.drain() == [TextEvent(0, "some", 1)]
        assert not group.wait(0.0)

        rig.end(sequence)
        rig.table.sequence_closed(sequence.id)
        assert rig.segment.wait(group.wake_index, (), 0.0)
        assert [type(event) for event in group.drain()] == [FinishEvent]


def test_text_with_log_probabilities_is_joined_with_them() -> None:
    rig = Rig()
    entries = [TokenLogprob(number, b"x", -0.5) for number in range(2)]
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        for entry in entries:
            rig.write(sequence, TEXT_LOGPROBS, encode_payload(TextFrame("x", 1, (entry,))))

        assert group.drain() == [TextEvent(0, "xx", 2, tuple(entries))]


def test_the_submitted_message_names_ring_and_sequence_and_ids_rise() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        first, second = rig.submit(group, 0), rig.submit(group, 1)

    submits = [message for message in rig.sent if isinstance(message, Submit)]
    assert [(message.sequence_id, message.ring) for message in submits] == [(1, first.ring), (2, second.ring)]
    assert first.ring != second.ring


def test_a_ring_is_free_again_only_when_the_worker_has_closed_it_and_its_reader_is_done() -> None:
    rig = Rig(n_rings=1)
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        rig.end(sequence)
        rig.table.sequence_closed(sequence.id)
        assert rig.table.free_rings == 0, "its last frame has not been read"
        assert rig.table.active_count == 0
        with pytest.raises(QueueFull):
            rig.submit(group, 1)

        group.drain()
        assert rig.table.free_rings == 1
        assert rig.closed == [0]

        sequence = rig.submit(group, 1)
        rig.end(sequence)
        group.drain()
        assert rig.table.free_rings == 0, "the worker may still write"
        rig.table.sequence_closed(sequence.id)
        rig.table.sequence_closed(sequence.id)
        assert rig.table.free_rings == 1
        assert rig.closed == [0, 1]


def test_a_deserters_frames_are_not_seen_by_the_next_reader_of_the_ring() -> None:
    rig = Rig(n_rings=1)
    with rig.table.reader_group() as group:
        deserter = rig.submit(group)
        rig.text(deserter, "old")
    assert rig.sent[-1] == Cancel(deserter.id)
    rig.table.sequence_closed(deserter.id)

    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        rig.text(deserter, "late")
        rig.text(sequence, "new")

        assert group.drain() == [TextEvent(0, "new", 1)]


def test_a_group_takes_a_sequence_while_its_thread_waits() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        seen: list[object] = []

        def read() -> None:
            while not seen:
                assert group.wait(60)
                seen.extend(group.drain())

        thread = threading.Thread(target=read)
        thread.start()
        rig.text(rig.submit(group), "hello")
        thread.join(60)

        assert seen == [TextEvent(0, "hello", 1)]


def test_a_sequence_submitted_to_a_closed_group_is_cancelled_and_its_ring_comes_back() -> None:
    rig = Rig()
    group = rig.table.reader_group()
    group.close()
    sequence = rig.submit(group)

    assert rig.sent[-1] == Cancel(sequence.id)
    rig.table.sequence_closed(sequence.id)
    assert rig.table.free_rings == 2


def test_wake_words_run_out_and_come_back() -> None:
    rig = Rig(n_wakes=2)
    groups = [rig.table.reader_group() for _ in range(2)]
    with pytest.raises(QueueFull, match="2 readers"):
        rig.table.reader_group()

    groups[0].close()
    groups[0].close()

    rig.table.reader_group()
    with pytest.raises(QueueFull):
        rig.table.reader_group()


def test_a_cancelled_sequence_without_room_for_a_last_frame_still_ends_as_cancelled() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        rig.write(sequence, PREFILL, PREFILL_STRUCT.pack(3, 3))
        rig.text(sequence, "ab", n_tokens=2)
        sequence.cancel()
        rig.table.sequence_closed(sequence.id)

        assert group.wait(60)
        *_, finish = group.drain()

    assert isinstance(finish, FinishEvent)
    assert (finish.reason, finish.usage) == (FinishReason.CANCELLED, Usage(3, 2))


def test_a_sequence_that_the_worker_dropped_for_slowness_says_so_after_its_text() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        rig.text(sequence, "ab")
        rig.table.sequence_closed(sequence.id)

        assert group.drain() == [TextEvent(0, "ab", 1)]
        with pytest.raises(RequestCancelled, match="too slowly"):
            group.drain()


def test_a_failure_is_raised_after_the_events_before_it() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        rig.text(sequence, "ab")
        rig.write(sequence, FAILED, encode_payload(FailedFrame("invalid_value", "too hot", "temperature")))

        assert group.drain() == [TextEvent(0, "ab", 1)]
        assert group.wait(0)
        with pytest.raises(InvalidRequest, match="too hot") as caught:
            group.drain()
        assert caught.value.param == "temperature"


def test_the_workers_end_is_told_after_what_it_wrote_and_settles_everything() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        rig.text(sequence, "last words")
        rig.table.worker_ended(ExitReport("signalled", signal="SIGSEGV", last_output="ggml: oops"))

        assert rig.closed == [0]
        assert group.wait(0)
        assert group.drain() == [TextEvent(0, "last words", 1)]
        assert group.wait(0)
        with pytest.raises(EngineUnavailable, match=r"(?s)killed by SIGSEGV.*ggml: oops"):
            group.drain()
        with pytest.raises(EngineUnavailable):
            rig.submit(group, 1)
        with pytest.raises(EngineUnavailable):
            rig.table.reader_group()
        assert (rig.table.free_rings, rig.table.active_count) == (0, 0)
    assert rig.closed == [0]


def test_a_finished_answer_is_not_touched_by_the_workers_end() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        sequence = rig.submit(group)
        rig.end(sequence)
        rig.table.worker_ended(ExitReport("exited", 1))

        assert [type(event) for event in group.drain()] == [FinishEvent]
        assert group.is_done
        assert group.drain() == []


def test_a_cancelled_answer_ends_as_cancelled_even_when_the_worker_dies_of_it() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        rig.submit(group)
        group.cancel()
        rig.table.worker_ended(ExitReport("exited", 1))

        (finish,) = group.drain()
        assert isinstance(finish, FinishEvent)
        assert finish.reason is FinishReason.CANCELLED


def test_a_submit_that_cannot_be_sent_raises_and_calls_nobody_back() -> None:
    rig = Rig()
    group = rig.table.reader_group()
    rig.is_gone = True

    with pytest.raises(EngineUnavailable):
        rig.submit(group)

    rig.table.worker_ended(ExitReport("exited", 1))
    assert rig.closed == []
    assert rig.table.active_count == 0


def test_nonsense_in_a_ring_fails_its_sequence() -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        rig.write(rig.submit(group), ENDED, b"\xc1\xc1")

        with pytest.raises(EngineUnavailable, match="nonsense"):
            group.drain()


def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    with rig.table.reader_group() as group:
        sequence = group.submit(0, SamplingParams(), prompt="x", on_closed=lambda: 1 / 0)
        rig.end(sequence)
        group.drain()
        rig.table.sequence_closed(sequence.id)

    assert rig.table.free_rings == 2
    assert "ZeroDivisionError" in caplog.text


def test_every_error_class_with_a_code_comes_back_from_its_code() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, HostlerError) and "code" in vars(value) and value is not HostlerError
    ]
    assert len(classes) > 20

    for kind in classes:
        error = error_of(kind.code, "the text", "a.path", 3.0)
        assert (type(error), error.message, error.param, error.retry_after_s) == (kind, "the text", "a.path", 3.0)
    assert type(error_of("a code of a later version", "the text")) is errors.InternalError
