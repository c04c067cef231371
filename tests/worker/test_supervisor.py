"""Supervision of real worker processes: ready, dead, hung, stopped, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from support.workers import (
    DEADLINE_S,
    GREEDY,
    ask,
    echo_model,
    finish_of,
    next_events,
    read_all,
    supervised,
    text_of,
    user,
    wait_until,
)

from hostler.domain import FinishReason, PrefillEvent, SamplingParams, TextEvent
from hostler.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InvalidModelFile,
    InvalidRequest,
    ModelLoadFailed,
    PluginError,
    QueueFull,
    StartCancelled,
    StartTimeout,
)
from hostler.worker.process import SpawnRequest, spawn_process
from hostler.worker.supervisor import Limits, Supervisor
from hostler.worker.wire import PromptSettings


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One healthy worker for all tests that leave it as they found it."""
    with supervised(echo_model(tmp_path_factory.mktemp("model"))) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        yield supervisor


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
        embedded = running.call("embed", ["ab", [1, 2, 3]])

    assert embedded["n_tokens"] == 5
    assert [len(vector) for vector in embedded["vectors"]] == [64, 64]


def test_a_calls_error_arrives_as_its_class_with_its_parameter(running: Supervisor) -> None:
    with pytest.raises(InvalidRequest) as caught:
        running.call("embed", ["ok", ""])
    assert caught.value.param == "input[1]"
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
            running.submit(group, 0, GREEDY, prompt="[[echo: flood]]x").cancel()
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
    with running.reader_group() as group, pytest.raises(ContextLengthExceeded):
        running.submit(group, 0, GREEDY, prompt="x" * 5000, on_closed=lambda: closed.append("failed"))
        read_all(group)

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
            seen = 0
            with pytest.raises(Exception, match="too slowly"):
                while True:
                    seen += sum(event.n_tokens for event in slow.drain() if isinstance(event, TextEvent))

    assert [finish.usage.completion_tokens for finish in finishes] == [2000, 2000, 2000]
    assert 0 < seen < 100


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


# -- death, hang, refusal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manner", "kind", "reason"),
    [
        ("die=SIGSEGV", "signalled", "was killed by SIGSEGV"),
        ("die=SIGKILL", "signalled", "was killed by SIGKILL"),
        ("exit=7", "exited", "exited with code 7"),
        ("raise='a bug in the engine'", "exited", "the engine raised an exception"),
        ("oom", "out_of_memory", "ran out of memory"),
    ],
)
def test_a_worker_that_dies_mid_stream_fails_its_streams_and_is_started_again(
    tmp_path: Path, manner: str, kind: str, reason: str
) -> None:
    with supervised(echo_model(tmp_path)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        first_pid = supervisor.pid
        with supervisor.reader_group() as group:
            supervisor.submit(group, 0, GREEDY, messages=user(f"[[echo: {manner} at=3]]abcdef"))
            events = []
            with pytest.raises(EngineUnavailable) as caught:
                while True:
                    events += next_events(group)

        assert text_of(events) == "abc"
        assert caught.value.retry_after_s is not None
        supervisor.wait_ready(DEADLINE_S)
        assert supervisor.pid != first_pid
        assert supervisor.exit_report is not None
        assert supervisor.exit_report.kind == kind
        assert reason in supervisor.exit_report.text()
        assert supervisor.crashes == 1
        assert text_of(ask(supervisor, "alive again")) == "alive again"


def test_a_dead_workers_error_carries_its_last_output(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path), log_path=tmp_path / "logs" / "tiny.log") as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with pytest.raises(EngineUnavailable, match="CUDA error: out of fuel"):
            ask(supervisor, "[[echo: print='CUDA error: out of fuel' exit=3 at=1]]abc")

    log = (tmp_path / "logs" / "tiny.log").read_text()
    assert "CUDA error: out of fuel" in log
    assert "exited with code 3" in log


@pytest.mark.parametrize("manner", ["hang", "hang=gil"])
def test_a_hung_worker_is_killed_as_stalled_and_started_again(tmp_path: Path, manner: str) -> None:
    with supervised(echo_model(tmp_path), limits=Limits(step_timeout_s=0.5)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with pytest.raises(EngineUnavailable, match="stood still"):
            ask(supervisor, f"[[echo: {manner} at=1]]abc")

        assert supervisor.exit_report is not None
        assert supervisor.exit_report.kind == "stalled"
        assert "stand_still" in supervisor.exit_report.last_output, "the tracebacks should say where it hung"
        supervisor.wait_ready(DEADLINE_S)
        assert text_of(ask(supervisor, "again")) == "again"


def test_an_idle_worker_is_not_taken_for_a_hung_one(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path), limits=Limits(step_timeout_s=0.05)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        pid = supervisor.pid
        threading.Event().wait(0.5)

        assert text_of(ask(supervisor, "still here")) == "still here"
        assert supervisor.pid == pid


def test_a_refusal_to_load_arrives_with_the_engines_words_and_is_not_tried_again(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path, manners={"load_refuse": "the tensors are upside down"})) as supervisor:
        supervisor.start()
        for _ in range(2):
            with pytest.raises(ModelLoadFailed, match="the tensors are upside down"):
                supervisor.wait_ready(DEADLINE_S)

        assert supervisor.state == "failed"
        assert supervisor.pid is None
        with pytest.raises(EngineUnavailable):
            supervisor.reader_group()


def test_a_bad_model_file_keeps_its_error_class(tmp_path: Path) -> None:
    files = echo_model(tmp_path)
    Path(files.primary).write_text("{ not json")
    with supervised(files) as supervisor:
        supervisor.start()
        with pytest.raises(InvalidModelFile, match="no echo model"):
            supervisor.wait_ready(DEADLINE_S)


def test_an_engine_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path), engine="hostler_nowhere.engine:Engine") as supervisor:
        supervisor.start()
        with pytest.raises(PluginError, match="hostler_nowhere"):
            supervisor.wait_ready(DEADLINE_S)


@pytest.mark.parametrize(
    ("manners", "words"),
    [
        ({"load_die": "SIGSEGV", "load_print": "the last words"}, r"(?s)killed by SIGSEGV while it loaded the model"),
        ({"load_exit": 9}, "exited with code 9"),
        ({"load_raise": "index out of range"}, "RuntimeError: index out of range"),
        ({"load_oom": True}, "ran out of memory"),
    ],
)
def test_a_worker_that_dies_while_loading_fails_the_start_with_the_reason(
    tmp_path: Path, manners: dict[str, object], words: str
) -> None:
    with supervised(echo_model(tmp_path, manners=manners)) as supervisor:
        supervisor.start()
        with pytest.raises(ModelLoadFailed, match=words) as caught:
            supervisor.wait_ready(DEADLINE_S)

    if "load_print" in manners:
        assert "the last words" in caught.value.last_output


def test_a_load_without_progress_is_given_up_after_the_start_timeout(tmp_path: Path) -> None:
    clock = FakeClock()
    files = echo_model(tmp_path, manners={"load_hang": True})
    with supervised(files, limits=Limits(start_timeout_s=100.0), clock=clock) as supervisor:
        supervisor.start()
        with pytest.raises(TimeoutError):
            supervisor.wait_ready(0.1)
        clock.now += 101
        supervisor.look()
        with pytest.raises(StartTimeout, match="no progress with loading for 100 s"):
            supervisor.wait_ready(DEADLINE_S)
        assert supervisor.pid is None


def test_progress_renews_the_start_deadline(tmp_path: Path) -> None:
    clock = FakeClock()
    files = echo_model(tmp_path, manners={"load_s": 3.0})
    with supervised(files, limits=Limits(start_timeout_s=100.0), clock=clock) as supervisor:
        supervisor.start()
        for fraction in (0.01, 0.3, 0.6):
            wait_until(lambda fraction=fraction: supervisor.progress > fraction, "progress")
            clock.now += 90
            supervisor.look()

        supervisor.wait_ready(DEADLINE_S)
        assert clock.now > 1000 + 2 * 100


def test_wait_ready_gives_up_for_this_caller_only(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path, manners={"load_s": 1.0})) as supervisor:
        supervisor.start()
        with pytest.raises(TimeoutError):
            supervisor.wait_ready(0.01)
        assert supervisor.wait_ready(DEADLINE_S).n_slots == 4


def test_a_worker_that_keeps_dying_backs_off_and_says_when_it_comes_back(tmp_path: Path) -> None:
    """The clock is ours: the pause ends when we turn it."""
    clock = FakeClock()
    states: list[str] = []
    limits = Limits(first_backoff_s=30.0)
    with supervised(
        echo_model(tmp_path), limits=limits, clock=clock, on_change=lambda it: states.append(it.state)
    ) as supervisor:
        supervisor.start()
        for crash in range(3):
            supervisor.wait_ready(DEADLINE_S)
            with pytest.raises(EngineUnavailable):
                ask(supervisor, "[[echo: exit=1]]abc")
            wait_until(lambda crash=crash: supervisor.crashes == crash + 1, "the crash")

        wait_until(lambda: supervisor.state == "backing_off", "the pause")
        with pytest.raises(EngineUnavailable, match="started again in 30 s") as caught:
            supervisor.wait_ready(DEADLINE_S)
        assert caught.value.retry_after_s == 30.0
        assert supervisor.retry_after_s == 30.0
        assert supervisor.pid is None

        clock.now += 31
        supervisor.look()
        wait_until(lambda: supervisor.state == "running", "the next start")
        assert text_of(ask(supervisor, "back")) == "back"

    assert states == [
        "starting", "running", "starting", "running", "starting", "running", "backing_off", "starting", "running",
        "stopping", "stopped",
    ]  # fmt: skip


class FakeClock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_restart_that_cannot_spawn_backs_off_instead_of_giving_up(tmp_path: Path) -> None:
    spawned: list[SpawnRequest] = []

    def spawn(request: SpawnRequest) -> subprocess.Popen[bytes]:
        spawned.append(request)
        if len(spawned) > 1:
            raise OSError(12, "Cannot allocate memory")
        return spawn_process(request)

    limits = Limits(first_backoff_s=1000.0)
    with supervised(echo_model(tmp_path), limits=limits, spawn=spawn) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with pytest.raises(EngineUnavailable):
            ask(supervisor, "[[echo: exit=1]]abc")

        wait_until(lambda: supervisor.state == "backing_off", "the pause")
        assert supervisor.exit_report is not None
        assert "Cannot allocate memory" in supervisor.exit_report.text()


# -- stop --------------------------------------------------------------------------------------------------------------


def test_stop_ends_the_worker_in_order(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        pid = supervisor.pid
        assert pid is not None
        supervisor.stop()

        assert supervisor.state == "stopped"
        assert supervisor.exit_report is not None
        assert (supervisor.exit_report.kind, supervisor.exit_report.code) == ("stopped", 0)
        assert not psutil.pid_exists(pid)


def test_stop_while_loading_cancels_the_start(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path, manners={"load_s": 60.0})) as supervisor:
        supervisor.start()
        wait_until(lambda: supervisor.progress > 0, "progress")
        supervisor.stop()
        with pytest.raises(StartCancelled):
            supervisor.wait_ready(DEADLINE_S)
        assert supervisor.exit_report is not None
        assert supervisor.exit_report.code == 0


@pytest.mark.parametrize(
    ("manners", "ending_signal"),
    [({"close_hang": True}, "SIGTERM"), ({"close_hang": True, "ignore_sigterm": True}, "SIGKILL")],
)
def test_stop_goes_on_to_sigterm_and_sigkill_when_the_worker_will_not(
    tmp_path: Path, manners: dict[str, object], ending_signal: str
) -> None:
    with supervised(echo_model(tmp_path, manners=manners), limits=Limits(stop_timeout_s=0.3)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        supervisor.stop()

        assert supervisor.exit_report is not None
        assert (supervisor.exit_report.kind, supervisor.exit_report.signal) == ("stopped", ending_signal)


def test_stop_cancels_what_runs(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with supervisor.reader_group() as group:
            supervisor.submit(group, 0, GREEDY, prompt="[[echo: flood delay_s=0.001]]x")
            next_events(group)
            supervisor.stop()
            events = read_all(group)

    assert finish_of(events).reason is FinishReason.CANCELLED


def test_a_stopped_supervisor_starts_again(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path)) as supervisor:
        for _ in range(2):
            supervisor.start()
            supervisor.wait_ready(DEADLINE_S)
            assert text_of(ask(supervisor, "hello")) == "hello"
            supervisor.stop()
            assert supervisor.state == "stopped"


def test_a_reader_is_woken_by_the_workers_death(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path), limits=Limits(step_timeout_s=1000.0)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        with supervisor.reader_group() as group:
            supervisor.submit(group, 0, GREEDY, messages=user("[[echo: hang at=1]]abc"))
            next_events(group)
            threading.Timer(0.2, os.kill, (supervisor.pid, signal.SIGKILL)).start()
            with pytest.raises(EngineUnavailable, match="SIGKILL"):
                while True:
                    assert group.wait(DEADLINE_S), "nobody woke the reader"
                    group.drain()


# -- a hostile template --------------------------------------------------------------------------------------------------

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_an_endless_template_costs_its_request_and_nobody_elses(tmp_path: Path) -> None:
    files = echo_model(tmp_path, chat_template="{% if messages[0].content == 'evil' %}" + ENDLESS + "{% endif %}fine")
    with supervised(files, prompt=PromptSettings(render_timeout_s=0.5)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        pid = supervisor.pid
        with supervisor.reader_group() as bystander:
            supervisor.submit(bystander, 0, GREEDY, prompt="[[echo: flood delay_s=0.001]]x")
            with pytest.raises(InvalidRequest, match="chat template did not come to an end"):
                ask(supervisor, "evil")
            assert text_of(next_events(bystander))

        assert text_of(ask(supervisor, "good")) == "fine"
        assert supervisor.pid == pid


# -- leaks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_starts_and_stops_leave_no_descriptor_thread_or_memory_behind(tmp_path: Path) -> None:
    files = echo_model(tmp_path)

    def once() -> None:
        with supervised(files) as supervisor:
            supervisor.start()
            supervisor.wait_ready(DEADLINE_S)
            assert text_of(ask(supervisor, "hi")) == "hi"

    once()
    process = psutil.Process()
    before = (process.num_fds(), threading.active_count(), shared_memory_mappings())
    for _ in range(50):
        once()
    wait_until(
        lambda: (process.num_fds(), threading.active_count(), shared_memory_mappings()) == before,
        "the return of every descriptor, thread and mapping",
    )
    assert process.children() == []


def shared_memory_mappings() -> int:
    if not sys.platform.startswith("linux"):
        return 0
    return sum("memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())
