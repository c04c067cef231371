"""Runs: one at a time in a thread, ended together with their answer, and failed when a crash interrupts them."""

from __future__ import annotations

import msgspec
import pytest

from hostler.errors import InvalidRequest, RecordExists, RunInProgress, RunNotFound, StepNotFound, ThreadNotFound
from hostler.records.objects import ACTIVE_RUN, PageRequest, RunError, RunStep
from hostler.records.store import Records
from support.records import run_of, says, words_of


@pytest.fixture
def thread(records):
    return records.threads.create().id


def step_of(run, **fields):
    details = {"type": "message_creation", "message_creation": {"message_id": "msg_1"}}
    known = {"status": "in_progress", "step_details": details}
    return RunStep("step_1", 1, 1, run.id, run.thread_id, run.assistant_id, **{**known, **fields})


def test_a_run_comes_back_as_it_was_made_and_brings_its_messages(records, thread):
    run = run_of(
        thread,
        tools=[{"type": "function"}],
        metadata={"k": "v"},
        expires_at=9,
        temperature=0.5,
        max_completion_tokens=10**15,
        tool_choice={"type": "function"},
        truncation_strategy={"type": "last_messages", "last_messages": 3},
        left_out=["msg_1"],
        parameters={"seed": 3},
    )

    records.runs.create(run, [says("one"), says("two")])

    assert records.runs.get(thread, run.id) == run
    assert records.runs.active(thread) == run
    assert words_of(records.messages.all(thread)) == ["one", "two"]


def test_a_thread_and_its_first_run_are_there_together_or_not_at_all(records, thread):
    records.runs.create(run_of(thread))

    with pytest.raises(RecordExists, match="There is a run run_1 already"):
        records.runs.create_with_thread(run_of("lost", "run_1"), [says("?")], title="Lost")
    made, run = records.runs.create_with_thread(run_of("kept", "run_2"), [says("one"), says("two")], title="Kept")

    with pytest.raises(ThreadNotFound):
        records.threads.get("lost")
    assert (records.threads.get("kept"), records.runs.get("kept", "run_2")) == (made, run)
    assert (made.title, made.assistant_ids) == ("Kept", ["jan"])
    assert words_of(records.messages.all("kept")) == ["one", "two"]
    told = [event.name for event in records.events.after(0, 100) if event.subject in ("kept", "lost")]
    assert told == ["thread.created", "message.created", "message.created"]


@pytest.mark.parametrize("status", sorted(ACTIVE_RUN))
def test_a_thread_with_an_active_run_takes_messages_and_no_second_run(records, thread, status):
    records.runs.create(run_of(thread, status=status))

    with pytest.raises(RunInProgress, match=f"{thread} already has an active run run_1, which is {status}"):
        records.runs.create(run_of(thread, "run_2"), [says("lost")])
    records.messages.append(thread, [says("kept")])

    assert words_of(records.messages.all(thread)) == ["kept"]
    records.runs.create(run_of(records.threads.create().id, "run_2"))


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "incomplete", "expired"])
def test_a_thread_takes_the_next_run_when_the_last_is_over(records, thread, status):
    records.runs.create(run_of(thread))
    ended, _ = records.runs.finish("run_1", status=status)
    assert records.runs.active(thread) is None
    records.runs.create(run_of(thread, "run_2", created_at=2))

    assert ended.status == status
    assert [run.id for run in records.runs.list(thread, PageRequest()).data] == ["run_2", "run_1"]


def test_the_database_itself_refuses_a_second_active_run(records, thread):
    """Should the code forget to ask, no other program may make one either."""
    from sqlalchemy import insert
    from sqlalchemy.exc import IntegrityError

    from hostler.records.tables import runs

    records.runs.create(run_of(thread))
    row = {"id": "run_2", "thread_id": thread, "created_at": 1, "status": "in_progress", "home": "", "body": {}}
    with pytest.raises(IntegrityError), records.database.write() as connection:
        connection.execute(insert(runs).values(row))
    with records.database.write() as connection:
        connection.execute(insert(runs).values({**row, "status": "failed"}))


def test_the_answer_and_the_end_of_a_run_come_together(records, thread):
    run = records.runs.create(run_of(thread), [says("?")])
    records.runs.set_status(run.id, "in_progress", started_at=5)
    step = records.runs.add_step(step_of(run))
    answer = says("!", "assistant", id="msg_1", chat_completion_id="chatcmpl-1")
    done_step = msgspec.structs.replace(step, status="completed", completed_at=7)

    ended, message = records.runs.finish(
        run.id, status="completed", message=answer, step=done_step, usage={"total_tokens": 3}, left_out=["msg_0"]
    )

    assert records.runs.get(thread, run.id) == ended
    assert (ended.status, ended.started_at, ended.usage, ended.left_out) == (
        "completed", 5, {"total_tokens": 3}, ["msg_0"],
    )  # fmt: skip
    assert ended.completed_at is not None
    assert message == records.messages.get(thread, "msg_1")
    assert (message.run_id, message.assistant_id, message.chat_completion_id) == (run.id, "jan", "chatcmpl-1")
    assert records.runs.step(thread, run.id, "step_1") == done_step
    assert records.runs.steps(thread, run.id, PageRequest()).data == [done_step]
    assert words_of(records.messages.list(thread, PageRequest(), run_id=run.id).data) == ["!"]


def test_an_end_that_fails_leaves_the_run_active_and_no_answer(records, thread):
    records.messages.append(thread, [says("taken", id="msg_1")])
    run = records.runs.create(run_of(thread))

    with pytest.raises(RecordExists):
        records.runs.finish(run.id, status="completed", message=says("!", "assistant", id="msg_1"))

    assert records.runs.get(thread, run.id) == run
    assert words_of(records.messages.all(thread)) == ["taken"]


def test_a_run_that_is_over_stays_over(records, thread):
    run = records.runs.create(run_of(thread))
    ended, _ = records.runs.finish(run.id, status="failed", last_error=RunError("server_error", "because"))

    for change in (
        lambda: records.runs.set_status(run.id, "cancelling"),
        lambda: records.runs.finish(run.id, status="completed", message=says("late", "assistant")),
    ):
        with pytest.raises(InvalidRequest, match="The run run_1 is over: it is failed"):
            change()

    assert records.runs.get(thread, run.id) == ended
    assert ended.failed_at is not None
    assert list(records.messages.all(thread)) == []
    assert records.runs.modify(thread, run.id, {"k": "v"}).metadata == {"k": "v"}


def test_a_run_whose_thread_is_deleted_is_told_so_and_writes_nothing(records, thread):
    run = records.runs.create(run_of(thread))
    records.threads.delete(thread)

    with pytest.raises(RunNotFound):
        records.runs.finish(run.id, status="completed", message=says("!", "assistant"), step=step_of(run))

    for ask in (lambda: records.runs.get(thread, run.id), lambda: records.messages.all(thread)):
        with pytest.raises(ThreadNotFound):
            ask()


def test_unknown_runs_and_steps_are_not_found(records, thread):
    run = records.runs.create(run_of(thread))
    other = records.threads.create().id

    for ask in (
        lambda: records.runs.get(other, run.id),
        lambda: records.runs.modify(other, run.id, {}),
        lambda: records.runs.steps(other, run.id, PageRequest()),
        lambda: records.runs.step(thread, "nope", "step_1"),
        lambda: records.runs.set_status("nope", "in_progress"),
        lambda: records.runs.add_step(step_of(run_of(thread, "nope"))),
    ):
        with pytest.raises(RunNotFound, match=r"The run \w+ does not exist"):
            ask()
    with pytest.raises(StepNotFound, match="The run run_1 has no step step_9"):
        records.runs.step(thread, run.id, "step_9")


def test_a_run_of_an_unknown_thread_or_with_a_taken_id_is_refused(records, thread):
    records.runs.create(run_of(thread))

    with pytest.raises(ThreadNotFound):
        records.runs.create(run_of("nope", "run_2"))
    with pytest.raises(RecordExists, match="There is a run run_1 already"):
        records.runs.create(run_of(records.threads.create().id))


# -- after a crash ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["queued", "in_progress", "cancelling"])
def test_a_run_that_a_crash_interrupted_is_found_failed_with_its_step(home, url, records, thread, status):
    run = records.runs.create(run_of(thread, status=status), [says("?")])
    records.runs.add_step(step_of(run))
    records.close()  # a crash looks the same to the database

    again = Records(home, url)
    try:
        found, step = again.runs.get(thread, run.id), again.runs.step(thread, run.id, "step_1")
        error = RunError("server_error", "hostler was stopped while this run was going on")
        assert (found.status, found.last_error, found.completed_at) == ("failed", error, None)
        assert (step.status, step.last_error, step.failed_at) == ("failed", error, found.failed_at)
        assert found.failed_at is not None
        assert words_of(again.messages.all(thread)) == ["?"]
        again.runs.create(run_of(thread, "run_2"))
    finally:
        again.close()


def test_a_run_that_waits_for_its_tools_goes_on_waiting(home, url, records, thread):
    run = records.runs.create(run_of(thread, status="requires_action", required_action={"type": "submit_tool_outputs"}))
    records.close()

    again = Records(home, url)
    try:
        assert again.runs.active(thread) == run
    finally:
        again.close()


def test_a_process_that_does_not_own_the_home_leaves_its_runs_alone(home, url, records, thread):
    run = records.runs.create(run_of(thread))

    reader = Records(home, url)
    reader.is_owner = False
    try:
        assert reader.runs.get(thread, run.id) == run
    finally:
        reader.close()


@pytest.mark.parametrize("shared", ["sqlite", "postgresql"])
def test_homes_that_share_a_database_leave_each_others_runs_alone(tmp_path, request, shared):
    url = f"sqlite:///{tmp_path / 'shared.db'}" if shared == "sqlite" else request.getfixturevalue("empty_postgresql")
    one, two = (Records(tmp_path / name, url) for name in ("one", "two"))
    try:
        thread = one.threads.create().id
        run = one.runs.create(run_of(thread))

        assert two.runs.get(thread, run.id) == run  # opening it failed nothing

        one.close()
        again = Records(tmp_path / "one", url)
        assert again.runs.get(thread, run.id).status == "failed"
        again.close()
    finally:
        one.close()
        two.close()
