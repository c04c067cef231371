"""Threads: what is kept of them, and what goes with them."""

from __future__ import annotations

import pytest

from hostler.errors import InvalidRequest, MessageNotFound, RecordExists, RunNotFound, ThreadNotFound
from hostler.records.objects import MAX_MESSAGE_IDS, PageRequest, Run, ThreadAssistant, ThreadModel
from support.records import run_of, says, words_of

EVERYTHING = {
    "title": "On \0 and 🐎 and \ud7ff",
    "assistants": [
        ThreadAssistant("jan", "Jan", "Be brief", ThreadModel("zephyr-7b", {"ctx_len": 512}, {"top_k": 3}), [{"type": "x"}]),
        ThreadAssistant("asst_1", "Tutor"),
    ],
    "metadata": {"a": "1", "ключ": "\0"},
    "tool_resources": {"file_search": {"vector_store_ids": []}},
}


def test_a_thread_comes_back_as_it_was_made(records):
    made = records.threads.create(**EVERYTHING, messages=[says("one"), says("two")])

    found = records.threads.get(made.id)

    assert found == made
    assert {name: getattr(found, name) for name in EVERYTHING} == EVERYTHING
    assert found.assistant_ids == ["jan", "asst_1"]
    assert found.messages == [message.id for message in records.messages.all(made.id)]
    assert made.id.startswith("thread_")
    assert len(made.id) == len("thread_") + 24
    assert made.created == made.created_at == made.updated


def test_a_thread_without_assistants_gets_the_default_one(records):
    assert records.threads.create().assistants == [ThreadAssistant("jan", "Jan")]


def test_an_imported_thread_keeps_its_id_and_its_time(records):
    made = records.threads.create(id="jan_1700123404", created_at=1700123404, messages=[says("old", created_at=1700123500)])

    found = records.threads.get("jan_1700123404")

    assert found == made
    assert (found.created_at, found.updated) == (1700123404, 1700123500)


def test_an_id_that_is_taken_is_refused_and_the_thread_stays_as_it_was(records):
    made = records.threads.create(id="t", title="first")

    with pytest.raises(RecordExists, match="There is a thread t already"):
        records.threads.create(id="t", title="second", messages=[says("lost")])

    assert records.threads.get("t") == made
    assert list(records.messages.all("t")) == []


def test_two_messages_with_one_id_make_no_thread(records):
    with pytest.raises(RecordExists, match="m1, m1"):
        records.threads.create(id="t", messages=[says("one", id="m1"), says("two", id="m1")])

    with pytest.raises(ThreadNotFound):
        records.threads.get("t")


@pytest.mark.parametrize("id", ["thread_nope", "", "a\0b", "🐎", "\udcff"])
def test_an_unknown_thread_is_not_found_by_any_of_its_questions(records, id):
    for ask in (
        lambda: records.threads.get(id),
        lambda: records.threads.modify(id, title="x"),
        lambda: records.threads.delete(id),
        lambda: records.messages.list(id, PageRequest()),
        lambda: records.messages.all(id),
        lambda: records.messages.get(id, "msg_1"),
        lambda: records.messages.append(id, [says("x")]),
        lambda: records.runs.list(id, PageRequest()),
        lambda: records.runs.get(id, "run_1"),
        lambda: records.runs.active(id),
    ):
        with pytest.raises(ThreadNotFound, match="does not exist"):
            ask()


def test_modify_replaces_what_is_given_and_leaves_the_rest(records):
    made = records.threads.create(**EVERYTHING)

    changed = records.threads.modify(made.id, title="new", tool_resources=None)

    assert changed == records.threads.get(made.id)
    assert (changed.title, changed.tool_resources) == ("new", None)
    assert (changed.metadata, changed.assistants) == (made.metadata, made.assistants)
    assert records.threads.modify(made.id, assistants=[ThreadAssistant("a")], metadata={}).assistant_ids == ["a"]


def test_modify_changes_messages_it_names_and_appends_the_others(records):
    made = records.threads.create(messages=[says("one", id="m1", metadata={"k": "v"}, file_ids=["f"]), says("two", id="m2")])

    changed = records.threads.modify(made.id, messages=[says("new one", id="m1"), says("three", id="m3"), says("four")])

    assert words_of(records.messages.all(made.id)) == ["new one", "two", "three", "four"]
    assert changed.messages[:3] == ["m1", "m2", "m3"]
    first = records.messages.get(made.id, "m1")
    assert (first.metadata, first.file_ids) == ({"k": "v"}, ["f"])


def test_a_thread_names_its_newest_messages_only(records):
    short, long = records.threads.create(messages=[says("x")]), records.threads.create()
    messages = records.messages.append(long.id, [says(str(number)) for number in range(MAX_MESSAGE_IDS + 5)])

    listed = {thread.id: thread for thread in records.threads.list(PageRequest()).data}

    assert listed[long.id].messages == [message.id for message in messages[5:]]
    assert listed[short.id].messages == short.messages
    assert records.threads.get(long.id).messages == listed[long.id].messages


def test_deleting_a_thread_takes_its_messages_and_runs_and_no_others(records):
    gone, kept = records.threads.create(messages=[says("gone")]), records.threads.create(messages=[says("kept")])
    records.runs.create(Run("run_1", 1, 1, gone.id, "jan", "queued", "m", ""))

    deleted = records.threads.delete(gone.id)

    assert (deleted.id, deleted.object, deleted.deleted) == (gone.id, "thread.deleted", True)
    with pytest.raises(ThreadNotFound):
        records.messages.list(gone.id, PageRequest())
    with pytest.raises(MessageNotFound, match=f"The thread {kept.id} has no message {gone.messages[0]}"):
        records.messages.get(kept.id, gone.messages[0])
    with pytest.raises(RunNotFound):
        records.runs.set_status("run_1", "in_progress")
    assert words_of(records.messages.all(kept.id)) == ["kept"]
    again = records.threads.create(id=gone.id)
    assert again.messages == []


def test_update_gives_the_thread_as_it_is_and_keeps_what_it_gets(records):
    made = records.threads.create(title="a")

    def rename(thread):
        import msgspec

        return msgspec.structs.replace(thread, title=thread.title + "b", assistants=[ThreadAssistant("x")])

    changed = records.threads.update(made.id, rename)

    assert (changed.title, changed.assistant_ids) == ("ab", ["x"])


@pytest.mark.parametrize("change", ["append", "modify", "delete", "rename", "run"])
def test_a_thread_says_when_it_or_what_is_in_it_was_last_changed(records, change, monkeypatch):
    records.threads.create(id="t", created_at=100, messages=[says("x", id="m", created_at=200)])
    changes = {
        "append": lambda: records.messages.append("t", [says("y")]),
        "modify": lambda: records.messages.modify("t", "m", metadata={"k": "v"}),
        "delete": lambda: records.messages.delete("t", "m"),
        "rename": lambda: records.threads.modify("t", title="new"),
        "run": lambda: records.runs.create(run_of("t")),
    }
    assert records.threads.get("t").updated == 200
    monkeypatch.setattr("hostler.records.messages.now", lambda: 300)

    changes[change]()

    assert records.threads.get("t").updated == 300


def test_threads_are_listed_by_the_time_they_were_created(records):
    newest = records.threads.create(created_at=300)
    oldest = records.threads.create(created_at=100)
    middle = [records.threads.create(created_at=200) for _ in range(3)]
    ids = [oldest.id, *(thread.id for thread in middle), newest.id]

    assert [thread.id for thread in records.threads.list(PageRequest(order="asc")).data] == ids
    assert [thread.id for thread in records.threads.list(PageRequest()).data] == ids[::-1]


@pytest.mark.parametrize("param", ["after", "before"])
def test_a_cursor_that_the_list_does_not_have_is_an_error_that_names_it(records, param):
    with pytest.raises(InvalidRequest, match=f"{param} is 'nope', and this list has no thread of that id") as caught:
        records.threads.list(PageRequest(**{param: "nope"}))

    assert caught.value.param == param
