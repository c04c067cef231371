"""The log of events: committed with what it tells of, in an order that never changes, and heard of at once."""

from __future__ import annotations

import threading

import msgspec
import pytest

from hostler.errors import RecordExists
from hostler.records.objects import Text, TextPart
from hostler.records.store import Records
from support.records import run_of, says

DEADLINE_S = 20.0


@pytest.fixture
def told(records):
    """What was logged since the test began, as (name, subject, body)."""
    start = records.events.last_id()
    return lambda: [
        (event.name, event.subject, msgspec.json.decode(event.body)) for event in records.events.after(start, 1000)
    ]


def test_a_thread_and_its_messages_tell_of_themselves(records, told):
    made = records.threads.create(title="a", messages=[says("one", id="m1")])
    records.messages.append(made.id, [says("two", id="m2")])
    changed = records.messages.modify(made.id, "m1", content=[TextPart(Text("new"))])
    renamed = records.threads.modify(made.id, title="b")
    bodies = [body for _, _, body in told()]
    records.messages.delete(made.id, "m2")
    records.threads.delete(made.id)

    events = told()

    assert [(name, subject) for name, subject, _ in events] == [
        ("thread.created", made.id),
        ("message.created", made.id),
        ("message.created", made.id),
        ("message.updated", made.id),
        ("thread.updated", made.id),
        ("message.deleted", made.id),
        ("thread.deleted", made.id),
    ]
    assert bodies[0] == msgspec.to_builtins(made)
    assert bodies[3] == msgspec.to_builtins(changed)
    assert bodies[4] == msgspec.to_builtins(renamed)
    assert [body.get("deleted", False) for _, _, body in events] == [False] * 5 + [True] * 2


def test_what_was_said_is_not_told_again_once_it_is_deleted(records, told):
    made = records.threads.create(title="secret", messages=[says("secret one", id="m1"), says("secret two", id="m2")])
    other = records.threads.create(title="stays", messages=[says("stays", id="m1")])

    records.messages.delete(made.id, "m1")

    assert [body["content"] == [] for name, subject, body in told() if name == "message.created"] == [True, False, False]

    records.threads.delete(made.id)

    logged = told()
    assert len(logged) == 7
    assert not any("secret" in msgspec.json.encode(body).decode() for _, _, body in logged)
    assert [body["id"] for _, subject, body in logged if subject == made.id] == [made.id, "m1", "m2", "m1", made.id]
    assert [body.get("title") for _, subject, body in logged if subject == other.id] == ["stays", None]


def test_assistants_and_the_answers_of_runs_tell_of_themselves(records, told):
    made = records.assistants.create(model="m")
    records.assistants.modify(made.id, name="x")
    records.assistants.modify(made.id, name="x")  # changes nothing
    records.assistants.delete(made.id)
    thread = records.threads.create()
    records.runs.create(run_of(thread.id), [says("?")])
    records.runs.finish("run_1", status="completed", message=says("!", "assistant"))

    assert [name for name, _, _ in told()] == [
        "assistant.created", "assistant.updated", "assistant.deleted", "thread.created", "message.created", "message.created",
    ]  # fmt: skip


def fail_after_telling(records):
    with records.database.write() as connection:
        records.events.append(connection, "lost", "x", b"{}")
        1 / 0  # noqa: B018


def test_what_is_undone_tells_nothing_not_even_with_the_next(records, told):
    made = records.threads.create(messages=[says("one", id="m1")])

    with pytest.raises(RecordExists):
        records.threads.modify(made.id, title="lost", messages=[says("new"), says("x", id="m2"), says("y", id="m2")])
    with pytest.raises(ZeroDivisionError):
        fail_after_telling(records)
    records.events.publish("model.running", "zephyr-7b", b'{"id":"zephyr-7b"}')

    assert [name for name, _, _ in told()] == ["thread.created", "message.created", "model.running"]


def test_ids_rise_and_are_never_used_again(home, url, records):
    for number in range(5):
        records.events.publish("a", str(number), b"{}")
    last = records.events.last_id()
    n_gone = records.events.prune(0)
    records.close()

    again = Records(home, url)
    try:
        again.events.publish("b", "x", b"{}")
        (event,) = again.events.after(0, 10)
    finally:
        again.close()

    assert n_gone >= 5
    assert event.id > last


def test_prune_keeps_the_newest_and_what_comes_after_an_id(records):
    start = records.events.last_id()
    for number in range(10):
        records.events.publish("a", str(number), b"{}")
    ids = [event.id for event in records.events.after(start, 100)]

    records.events.prune(3, but_after=ids[4])
    assert [event.id for event in records.events.after(start, 100)] == ids[5:]
    records.events.prune(3)
    assert [event.id for event in records.events.after(start, 100)] == ids[7:]
    assert records.events.prune(3) == 0
    assert [event.id for event in records.events.after(ids[7], 1)] == [ids[8]]


def test_a_waiter_wakes_when_a_transaction_is_committed(records):
    last = records.events.last_id()
    woken = threading.Event()
    heard: list[int] = []

    def wait():
        if records.events.wait(last, DEADLINE_S):
            heard.extend(event.id for event in records.events.after(last, 10))
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    records.threads.create()

    assert woken.wait(DEADLINE_S)
    thread.join()
    assert len(heard) == 1


def test_a_wait_ends_at_once_for_what_is_there_and_in_time_for_what_is_not(records):
    records.events.publish("a", "x", b"{}")
    last = records.events.last_id()

    assert records.events.wait(last - 1, 0.0)
    assert not records.events.wait(last, 0.01)


def test_a_wait_ends_with_what_another_process_wrote(home, url, records):
    last = records.events.last_id()
    other = Records(home, url)
    other.is_owner = False
    try:
        other.events.publish("a", "x", b"{}")
    finally:
        other.close()

    assert records.events.wait(last, 0.01)


def test_listeners_hear_of_each_commit_with_its_newest_id(home, url):
    records = Records(home, url)
    heard: list[int] = []
    records.on_event.append(heard.append)
    try:
        records.open()
        heard.clear()
        records.threads.create(messages=[says("a"), says("b")])
        with records.database.write():
            pass  # tells nothing

        assert heard == [records.events.last_id()]
    finally:
        records.close()
