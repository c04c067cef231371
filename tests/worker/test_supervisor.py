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

from hostler.domain import FinishReason
from hostler.errors import (
    EngineUnavailable,
    InvalidModelFile,
    InvalidRequest,
    ModelLoadFailed,
    PluginError,
    StartCancelled,
    StartTimeout,
)
from hostler.worker.process import SpawnRequest, spawn_process
from hostler.worker.supervisor import Limits
from hostler.worker.wire import PromptSettings
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
                read_on(group, events)

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
        # Each death is told at once, as a restart; whether a pause is due is known a moment later.
        "starting", "running", "starting", "running", "starting", "running", "starting", "backing_off",
        "starting", "running", "stopping", "stopped",
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
            while not text_of(group.drain()):
                group.wait(DEADLINE_S)
            threading.Timer(0.2, os.kill, (supervisor.pid, signal.SIGKILL)).start()
            woken = group.wait(DEADLINE_S)
            with pytest.raises(EngineUnavailable, match="SIGKILL"):
                group.drain()
            assert woken


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
    children = process.children()  # a server that other tests share may be among them
    before = (process.num_fds(), threading.active_count(), shared_memory_mappings())
    for _ in range(50):
        once()
    wait_until(
        lambda: (process.num_fds(), threading.active_count(), shared_memory_mappings()) == before,
        "the return of every descriptor, thread and mapping",
    )
    assert process.children() == children


def shared_memory_mappings() -> int:
    if not sys.platform.startswith("linux"):
        return 0
    return sum("memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())
