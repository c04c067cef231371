"""Requests to a healthy worker process: answers, calls, cancellation in every phase, slow readers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hostler.domain import FinishReason, GenerationEvent, PrefillEvent, SamplingParams, TextEvent
from hostler.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    QueueFull,
    RequestCancelled,
)
from hostler.worker.supervisor import Limits, Supervisor
from support.workers import (
    DEADLINE_S,
    GREEDY,
    ask,
    echo_model,
    finish_of,
    next_events,
    read_all,
    read_on,
    supervised,
    text_of,
    user,
    wait_until,
)


@pytest.fixture(scope="module")
def shared_supervisor(tmp_path_factory):
    """One healthy worker for all tests that leave it as they found it."""
    with supervised(echo_model(tmp_path_factory.mktemp("model"))) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        yield supervisor


@pytest.fixture
def running(shared_supervisor: Supervisor) -> Supervisor:
    """That worker with nothing to do: the news that a ring is free comes after the last event of its answer."""
    wait_until(lambda: shared_supervisor.free_rings == shared_supervisor.n_rings, "the return of all rings")
    return shared_supervisor


# -- a healthy worker -------------------------------------------------------------------------------------------------


def test_an_answer_comes_as_prefill_text_and_finish_with_usage_and_timings(running: Supervisor) -> None:
    events = ask(running, "Grüße, 世界! 🦙")

    finish = finish_of(events)
    assert text_of(events) == "Grüße, 世界! 🦙"
    assert isinstance(events[0], PrefillEvent)
    assert (events[0].n_done, events[0].n_total) == (0, finish.usage.prompt_tokens)
    assert finish.reason is FinishReason.STOP
    assert sum(event.n_tokens for event in events if isinstance(event, TextEvent)) == finish.usage.completion_tokens
    assert finish.timings.predicted_n == finish.usage.completion_tokens
    assert finish.timings.prompt_n + finish.timings.cached_n == finish.usage.prompt_tokens
    assert finish.timings.prompt_ms > 0
    assert finish.timings.predicted_ms > 0


def test_max_tokens_ends_an_answer_with_length(running: Supervisor) -> None:
    events = ask(running, "abcdef", SamplingParams(temperature=0.0, max_tokens=3))

    assert text_of(events) == "abc"
    assert finish_of(events).reason is FinishReason.LENGTH
    assert finish_of(events).usage.completion_tokens == 3


def test_a_full_context_ends_an_answer_with_length(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path), ctx_len=64) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with supervisor.reader_group() as group:
            supervisor.submit(group, 0, GREEDY, prompt="[[echo: flood]]abc")
            finish = finish_of(read_all(group))

    assert finish.reason is FinishReason.LENGTH
    assert finish.usage.prompt_tokens + finish.usage.completion_tokens == 64


def test_a_stop_string_across_tokens_ends_an_answer_before_it(running: Supervisor) -> None:
    events = ask(running, "one two END three", SamplingParams(temperature=0.0, stop=("END", "four")))

    assert text_of(events) == "one two "
    assert finish_of(events).reason is FinishReason.STOP
    assert finish_of(events).stop_string == "END"


def test_log_probabilities_arrive_with_the_text_of_their_tokens(running: Supervisor) -> None:
    events = ask(running, "añb", SamplingParams(temperature=0.0, logprobs=2))

    texts = [event for event in events if isinstance(event, TextEvent)]
    entries = [entry for event in texts for entry in event.logprobs]
    assert b"".join(entry.token for entry in entries).decode() == text_of(events) == "añb"
    assert len(entries) == sum(event.n_tokens for event in texts)
    assert all(len(entry.top) == 2 for entry in entries)


def test_several_answers_of_one_request_arrive_over_one_wake_word(running: Supervisor) -> None:
    with running.reader_group() as group:
        for index in range(4):
            running.submit(group, index, GREEDY, messages=user(f"answer number {index}"))
        events = read_all(group)

    assert [text_of(events, index) for index in range(4)] == [f"answer number {index}" for index in range(4)]


def test_more_sequences_than_slots_wait_in_the_worker_and_all_are_answered(running: Supervisor) -> None:
    assert running.n_rings == 12
    with running.reader_group() as group:
        for index in range(running.n_rings):
            running.submit(group, index, GREEDY, messages=user(f"text {index}"))
        with pytest.raises(QueueFull):
            running.submit(group, 99, GREEDY, messages=user("one too many"))
        events = read_all(group)

    assert [text_of(events, index) for index in range(12)] == [f"text {index}" for index in range(12)]
    wait_until(lambda: running.free_rings == 12, "the return of all rings")
    assert running.active_count == 0


def test_sixteen_threads_read_their_own_answers_only(running: Supervisor) -> None:
    wrong: list[str] = []

    def read(number: int) -> None:
        for turn in range(5):
            text = f"thread {number} turn {turn} " * 10
            got = text_of(ask_when_free(running, text))
            if got != text:
                wrong.append(got)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def ask_when_free(supervisor: Supervisor, text: str):
    """Ask, with the simplest of admissions: try until a ring is free."""
    with supervisor.reader_group() as group:
        for _ in range(100_000):
            try:
                supervisor.submit(group, 0, GREEDY, messages=user(text))
                break
            except QueueFull:
                threading.Event().wait(0.001)
        return read_all(group)


def test_calls_are_answered_beside_running_answers(running: Supervisor) -> None:
    with running.reader_group() as group:
        running.submit(group, 0, GREEDY, prompt="[[echo: flood delay_s=0.001]]x")
        next_events(group)

        assert running.call("tokenize", "hi") == list(b"hi")
        assert running.call("memory")["kv_bytes"] > 0


def test_a_calls_error_arrives_as_its_class(running: Supervisor) -> None:
    with pytest.raises(InvalidRequest, match="tokenize takes a text"):
        running.call("tokenize", 5)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(running: Supervisor) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"maximum context length is 4096 tokens.* resulted in \d{4} tokens"):
        ask(running, "x" * 5000)


def test_an_engine_that_gives_up_on_one_sequence_fails_that_one_only(running: Supervisor) -> None:
    with running.reader_group() as bystander:
        running.submit(bystander, 0, SamplingParams(temperature=0.0, max_tokens=300), prompt="[[echo: flood]]x")
        with pytest.raises(EngineFailed, match="no more ideas"):
            ask(running, "[[echo: fail='no more ideas' at=2]]abcdef")

        assert finish_of(read_all(bystander)).usage.completion_tokens == 300


def test_events_before_a_failure_are_given_before_it_is_raised(running: Supervisor) -> None:
    with running.reader_group() as group:
        running.submit(group, 0, GREEDY, messages=user("[[echo: fail=oops at=3]]abcdef"))
        wait_until(lambda: running.active_count == 0, "the failure")
        events = group.drain()

        assert text_of(events) == "abc"
        assert group.wait(0)
        with pytest.raises(EngineFailed):
            group.drain()


# -- cancel in every phase ---------------------------------------------------------------------------------------------


def test_cancel_in_decode_ends_the_answer_and_frees_the_slot(running: Supervisor) -> None:
    with running.reader_group() as group:
        sequence = running.submit(group, 0, GREEDY, prompt="[[echo: flood delay_s=0.001]]x")
        events = next_events(group)
        sequence.cancel()
        events += read_all(group)

    assert finish_of(events).reason is FinishReason.CANCELLED
    wait_until(lambda: running.active_count == 0, "the slot's return")


def test_cancel_while_waiting_for_a_slot_ends_the_sequence_without_output(running: Supervisor) -> None:
    with running.reader_group() as busy, running.reader_group() as group:
        for index in range(4):
            running.submit(busy, index, GREEDY, prompt="[[echo: flood delay_s=0.001]]x")
        next_events(busy)
        sequence = running.submit(group, 0, GREEDY, messages=user("never"))
        sequence.cancel()
        events = read_all(group)

    assert [type(event).__name__ for event in events] == ["FinishEvent"]
    assert finish_of(events).reason is FinishReason.CANCELLED
    assert finish_of(events).usage.completion_tokens == 0


def test_cancel_right_after_submit_ends_the_sequence_whatever_it_is_doing(running: Supervisor) -> None:
    for _ in range(20):
        with running.reader_group() as group:
            # Slowed: all of an undelayed flood can be written before the worker's reading thread gets a turn.
            running.submit(group, 0, GREEDY, prompt="[[echo: flood delay_s=0.005]]x").cancel()
            assert finish_of(read_all(group)).reason is FinishReason.CANCELLED


def test_cancel_in_prefill_ends_the_sequence_before_its_first_token(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path), ctx_len=32768) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with supervisor.reader_group() as group:
            # 512 tokens a step, each step slowed by the other answer: the prompt takes 40 steps.
            supervisor.submit(group, 0, GREEDY, prompt="[[echo: flood delay_s=0.02]]x")
            next_events(group)
            sequence = supervisor.submit(group, 1, GREEDY, prompt="y" * 20_000)
            events = next_events(group)
            while not any(isinstance(event, PrefillEvent) and event.index == 1 for event in events):
                events = next_events(group)
            sequence.cancel()
            while not any(event.index == 1 and hasattr(event, "reason") for event in events):
                events = next_events(group)

    assert finish_of(events, 1).reason is FinishReason.CANCELLED
    assert finish_of(events, 1).usage.completion_tokens == 0


def test_a_group_that_is_closed_leaves_nothing_to_the_next_reader_of_its_rings(running: Supervisor) -> None:
    for _ in range(10):
        with running.reader_group() as deserter:
            for index in range(4):
                running.submit(deserter, index, GREEDY, prompt="[[echo: flood]]leftovers ")
            next_events(deserter)
        wait_until(lambda: running.free_rings == running.n_rings, "the return of the rings")

        with running.reader_group() as group:
            for index in range(running.n_rings):
                running.submit(group, index, GREEDY, messages=user("clean"))
            events = read_all(group)

        assert {text_of(events, index) for index in range(running.n_rings)} == {"clean"}
        wait_until(lambda: running.free_rings == running.n_rings, "the return of the rings")


def test_on_closed_is_called_once_for_each_sequence_however_it_ends(running: Supervisor) -> None:
    closed: list[str] = []

    with running.reader_group() as group:
        running.submit(group, 0, GREEDY, messages=user("a"), on_closed=lambda: closed.append("finished"))
        read_all(group)
        running.submit(group, 1, GREEDY, prompt="[[echo: flood]]x", on_closed=lambda: closed.append("left"))
        next_events(group)
    with pytest.raises(ContextLengthExceeded):
        ask(running, "x" * 5000, on_closed=lambda: closed.append("failed"))

    wait_until(lambda: running.free_rings == running.n_rings, "the return of the rings")
    assert sorted(closed) == ["failed", "finished", "left"]


# -- slow readers -------------------------------------------------------------------------------------------------------


def test_a_slow_reader_is_paused_and_dropped_while_another_stream_flows(tmp_path: Path) -> None:
    limits = Limits(ring_bytes=1024, stall_timeout_s=0.5)
    with supervised(echo_model(tmp_path), limits=limits, ctx_len=1_000_000) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with supervisor.reader_group() as slow, supervisor.reader_group() as fast:
            supervisor.submit(slow, 0, SamplingParams(temperature=0.0, max_tokens=900_000), prompt="[[echo: flood]]x")
            for round_number in range(3):
                supervisor.submit(fast, round_number, GREEDY, prompt="[[echo: flood]]y")
            finishes = [event for event in read_all(fast) if hasattr(event, "reason")]
            wait_until(lambda: supervisor.active_count == 0, "the end of the slow stream")
            seen: list[GenerationEvent] = []
            with pytest.raises(RequestCancelled, match="too slowly"):
                read_on(slow, seen)

    assert [finish.usage.completion_tokens for finish in finishes] == [2000, 2000, 2000]
    assert 0 < len(text_of(seen)) < 100


def test_a_slow_reader_that_reads_on_misses_nothing(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path, script="0123456789" * 300), limits=Limits(ring_bytes=512)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with supervisor.reader_group() as group:
            supervisor.submit(group, 0, SamplingParams(temperature=0.0, max_tokens=3000), messages=user("x"))
            events = []
            while not group.is_done:
                threading.Event().wait(0.002)
                events += group.drain()

    assert text_of(events) == "0123456789" * 300
