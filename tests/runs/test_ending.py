"""Runs over real workers with echo, and over real records: one at a time, and how each of them can end."""

from __future__ import annotations

import sqlite3
import threading

import pytest

import hostler.liverun
from hostler.errors import (
    EngineUnavailable,
    HostlerError,
    InvalidRequest,
    RunInProgress,
    RunNotFound,
    StorageUnavailable,
    ThreadNotFound,
)
from hostler.liverun import LiveRun, TextDelta
from hostler.records.objects import ACTIVE_RUN
from hostler.runtime import Runtime
from support.runs import (
    DEADLINE_S,
    EVERYTHING,
    FLOOD,
    MakeRuntime,
    answer,
    ended,
    events,
    new_thread,
    newest,
    request,
    said,
    start,
    steps,
    text_of,
    texts,
    wait_for_text,
    wait_until,
)

# -- one run at a time --------------------------------------------------------------------------------------------------


def test_a_thread_with_a_run_takes_messages_but_no_second_run(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)

    with pytest.raises(RunInProgress, match=str(live.run and live.run.id)):
        runtime.runs.start(thread_id, request("Second"))
    runtime.records.messages.append(thread_id, [said("Meanwhile")])

    assert live.run is not None
    runtime.runs.cancel(thread_id, live.run.id)
    assert texts(runtime, thread_id)[:2] == [FLOOD, "Meanwhile"]
    assert answer(runtime, thread_id, "Now").status == "completed"


def test_of_many_who_ask_at_once_exactly_one_gets_its_run(runtime: Runtime) -> None:
    runtime.start_model("parrot")
    thread_id = new_thread(runtime, "Hello")
    barrier = threading.Barrier(6)
    outcomes: list[LiveRun | HostlerError] = []

    def ask(number: int) -> None:
        barrier.wait(DEADLINE_S)
        try:
            live = runtime.runs.start(thread_id, request(f"{FLOOD} {number}"))
            live.wait_recorded(DEADLINE_S)
            outcomes.append(live)
        except HostlerError as error:
            outcomes.append(error)

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(DEADLINE_S)

    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, LiveRun)]
    assert sum(isinstance(outcome, RunInProgress) for outcome in outcomes) == 5
    assert len(texts(runtime, thread_id)) == 2
    assert winner.run is not None
    runtime.runs.cancel(thread_id, winner.run.id)
    wait_until(lambda: runtime.requests() == [], "the end of what the others had begun")
    assert runtime.budget.n_held == 0


def test_runs_on_postgresql_are_the_same(make_runtime: MakeRuntime, cleared_postgresql: str) -> None:
    runtime = make_runtime(database=cleared_postgresql)
    runtime.start_model("parrot", {"ctx_len": 128})
    thread_id = new_thread(runtime, *("x" * 18 for _ in range(9)))
    ids = [message.id for message in runtime.records.messages.all(thread_id)]

    run = answer(runtime, thread_id)

    assert (run.status, run.left_out, run.left_out_count) == ("completed", ids[:6], 6)
    assert run == runtime.records.runs.get(thread_id, run.id)
    assert newest(runtime, thread_id).run_id == run.id
    live = start(runtime, thread_id, FLOOD)
    wait_for_text(runtime)
    with pytest.raises(RunInProgress):
        runtime.runs.start(thread_id, request("Second"))
    runtime.records.threads.delete(thread_id)
    runtime.runs.thread_deleted(thread_id)
    with pytest.raises(ThreadNotFound):
        events(live)


# -- cancel -------------------------------------------------------------------------------------------------------------


def test_a_run_is_cancelled_while_it_waits_for_a_slot(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"n_parallel": 1})
    first = start(runtime, new_thread(runtime, FLOOD))
    wait_for_text(runtime)
    fillers = [start(runtime, new_thread(runtime, FLOOD)) for _ in range(9)]  # prepared ahead in the worker
    thread_id = new_thread(runtime, "Hello")
    live = start(runtime, thread_id, is_followed=True)
    assert live.run is not None
    assert live.run.status == "queued"

    run = runtime.runs.cancel(thread_id, live.run.id)

    assert (run.status, run.started_at) == ("cancelled", None)
    assert run.cancelled_at is not None
    assert texts(runtime, thread_id) == ["Hello"]
    assert steps(runtime, run) == []
    names = [event.name for event in events(live)]
    assert names == ["thread.run.created", "thread.run.queued", "thread.run.cancelling", "thread.run.cancelled"]
    for other in (first, *fillers):
        assert other.run is not None
        runtime.runs.cancel(other.thread_id, other.run.id)


def test_a_run_is_cancelled_in_its_prefill(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"delay_s": 0.05}}')
    runtime.library.update("parrot", settings={"n_batch": 1})
    thread_id = new_thread(runtime, "x" * 2000)
    live = start(runtime, thread_id)
    assert live.run is not None
    wait_until(lambda: [view.state for view in runtime.requests()] == ["prefill"], "the prefill")

    run = runtime.runs.cancel(thread_id, live.run.id)

    assert run.status == "cancelled"
    assert run.started_at is not None
    assert (texts(runtime, thread_id), steps(runtime, run)) == (["x" * 2000], [])


def test_a_run_is_cancelled_in_its_answer_and_keeps_what_there_is(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id, is_followed=True)
    assert live.run is not None
    wait_for_text(runtime)

    run = runtime.runs.cancel(thread_id, live.run.id)

    assert run.status == "cancelled"
    message = newest(runtime, thread_id)
    assert text_of(message).startswith("x")
    assert (message.status, message.incomplete_details) == ("incomplete", {"reason": "run_cancelled"})
    assert [step.status for step in steps(runtime, run)] == ["cancelled"]
    told = events(live)
    assert [event.name for event in told][-4:] == [
        "thread.run.cancelling",
        "thread.message.incomplete",
        "thread.run.step.cancelled",
        "thread.run.cancelled",
    ] or told[-4].name == "thread.message.delta"  # a piece that was on its way when the cancel came
    shown = "".join(event.data.text for event in told if isinstance(event.data, TextDelta))
    assert shown == text_of(message)


def test_a_cancelled_request_ends_its_run_as_cancelled(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)
    (view,) = runtime.requests()

    runtime.cancel_request(view.id)

    assert ended(live).status == "cancelled"
    assert newest(runtime, thread_id).chat_completion_id == view.id


def test_what_is_over_cannot_be_cancelled(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "Hello")
    run = answer(runtime, thread_id)

    with pytest.raises(InvalidRequest, match="it is completed"):
        runtime.runs.cancel(thread_id, run.id)
    with pytest.raises(RunNotFound):
        runtime.runs.cancel(thread_id, "run_none")


def test_two_cancels_at_once_end_it_once(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    run_id = live.run.id if live.run is not None else ""
    wait_for_text(runtime)
    results: list[str] = []

    def cancel() -> None:
        try:
            results.append(runtime.runs.cancel(thread_id, run_id).status)
        except InvalidRequest:
            results.append("too late")

    cancels = [threading.Thread(target=cancel) for _ in range(4)]
    for thread in cancels:
        thread.start()
    for thread in cancels:
        thread.join(DEADLINE_S)

    assert "cancelled" in results
    assert set(results) <= {"cancelled", "too late"}
    assert len(texts(runtime, thread_id)) == 2


# -- failures -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_fails_its_run_and_leaves_no_half_message(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "[[echo: die=SIGSEGV at=5]] Hello there")
    live = start(runtime, thread_id, is_followed=True)

    run = ended(live)

    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "server_error"
    assert "SIGSEGV" in run.last_error.message
    assert run.failed_at is not None
    assert len(texts(runtime, thread_id)) == 1
    (step,) = steps(runtime, run)
    assert (step.status, step.last_error) == ("failed", run.last_error)
    assert [event.name for event in events(live)][-2:] == ["thread.run.step.failed", "thread.run.failed"]
    assert answer(runtime, new_thread(runtime, "Still here")).status == "completed"


def test_an_engine_that_gives_up_on_a_run_fails_it(runtime: Runtime) -> None:
    run = answer(runtime, new_thread(runtime, "[[echo: fail='no more ideas' at=2]] Hello"))

    assert (run.status, run.last_error and run.last_error.message) == ("failed", "no more ideas")


def test_a_model_that_is_stopped_fails_its_runs(runtime: Runtime) -> None:
    live = start(runtime, new_thread(runtime, FLOOD))
    wait_for_text(runtime)

    runtime.stop_model("parrot")

    run = ended(live)
    assert run.status == "failed"
    assert "was stopped" in str(run.last_error)


def test_a_thread_deleted_during_its_run_ends_it_and_nothing_is_written(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id, is_followed=True)
    wait_for_text(runtime)

    runtime.records.threads.delete(thread_id)
    runtime.runs.thread_deleted(thread_id)

    with pytest.raises(ThreadNotFound, match="was deleted"):
        events(live)
    assert runtime.requests() == []
    with pytest.raises(ThreadNotFound):
        runtime.records.messages.list(thread_id, EVERYTHING)
    with pytest.raises(ThreadNotFound):
        runtime.runs.cancel(thread_id, live.run.id if live.run else "")


@pytest.mark.parametrize("asked", ["get", "start"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_database_that_is_busy_at_the_end_of_a_run_is_waited_for_or_made_up_for(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, is_lost: bool, asked: str
) -> None:
    """The end is tried several times; one that is lost all the same does not block its thread, or who polls it, for ever."""
    monkeypatch.setattr(hostler.liverun, "RETRIES_S", (0.01,) * (2 if is_lost else 1000))
    runtime.records.database.busy_timeout_s = 0.05
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)
    path = runtime.records.database.location.path
    assert path is not None
    assert live.run is not None
    blocker = sqlite3.connect(path, isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        live.cancel()
        if is_lost:
            assert live.wait_over(DEADLINE_S)
        else:
            assert not live.wait_over(0.5)
        blocker.execute("ROLLBACK")
    finally:
        blocker.close()

    if not is_lost:
        assert ended(live).status == "cancelled"
        return
    with pytest.raises(StorageUnavailable):
        events(live)
    assert runtime.records.runs.get(thread_id, live.run.id).status in ACTIVE_RUN
    if asked == "get":
        assert runtime.runs.get(thread_id, live.run.id).status == "failed"
    assert answer(runtime, thread_id, "Hello").status == "completed"
    lost = runtime.records.runs.get(thread_id, live.run.id)
    assert (lost.status, "lost" in str(lost.last_error)) == ("failed", True)


# -- stopping -----------------------------------------------------------------------------------------------------------


def test_a_stop_lets_a_run_finish_within_the_drain_time(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "[[echo: delay_s=0.02]] Hello there")
    live = start(runtime, thread_id)
    wait_for_text(runtime)

    runtime.close(DEADLINE_S)

    assert live.run is not None
    assert live.run.status == "completed"


def test_what_a_stop_cuts_is_failed_in_the_records_and_after_a_restart_the_thread_goes_on(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)
    assert live.run is not None

    again = make_runtime()  # closes the first at once

    run = again.records.runs.get(thread_id, live.run.id)
    assert (run.status, run.last_error and run.last_error.code) == ("failed", "server_error")
    assert texts(again, thread_id) == [FLOOD]
    assert [step.status for step in steps(again, run)] == ["failed"]
    assert answer(again, thread_id, "Hello").status == "completed"


def test_no_run_begins_while_hostler_stops(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "Hello")
    runtime.is_ready = False

    with pytest.raises(EngineUnavailable, match="stopping"):
        runtime.runs.start(thread_id, request())
