"""Messages: their order, their fields, their files."""

from __future__ import annotations

import pytest

from hostler.errors import MessageNotFound, RecordExists, UploadNotFound
from hostler.records.messages import BATCH
from hostler.records.objects import ImageFilePart, ImageUrlPart, NewMessage, PageRequest, Text, TextPart
from support.records import says, words_of


@pytest.fixture
def thread(records):
    return records.threads.create().id


def test_a_message_comes_back_as_it_was_written(records, thread):
    new = NewMessage(
        role="assistant",
        content=[
            TextPart(Text("Hi \0 🐎", [{"type": "file_citation"}])),
            ImageUrlPart({"url": "https://example.com/a.png"}),
            ImageFilePart({"file_id": "file-1"}),
        ],
        file_ids=["file-abc123"],
        attachments=[{"file_id": "file-2", "tools": [{"type": "code_interpreter"}]}],
        metadata={"k": "v"},
        assistant_id="jan",
        run_id="run_1",
        chat_completion_id="chatcmpl-1",
        status="incomplete",
        incomplete_details={"reason": "max_tokens"},
    )

    (made,) = records.messages.append(thread, [new])

    assert records.messages.get(thread, made.id) == made
    assert all(getattr(made, name) == getattr(new, name) for name in ("role", "content", "file_ids", "attachments", "run_id"))
    assert (made.thread_id, made.metadata, made.chat_completion_id) == (thread, {"k": "v"}, "chatcmpl-1")
    assert (made.status, made.incomplete_at, made.completed_at) == ("incomplete", made.created_at, None)
    assert made.created == made.created_at


def test_an_answer_is_completed_when_it_is_created(records, thread):
    question, answer = records.messages.append(thread, [says("?"), says("!", "assistant")])

    assert (question.status, question.completed_at) == ("completed", None)
    assert (answer.status, answer.completed_at) == ("completed", answer.created_at)


def test_messages_keep_the_order_in_which_they_were_written(records, thread):
    for number in range(5):
        records.messages.append(thread, [says(f"{number}a", created_at=1000 - number), says(f"{number}b")])
    expected = [f"{number}{letter}" for number in range(5) for letter in "ab"]

    assert words_of(records.messages.all(thread)) == expected
    assert words_of(records.messages.list(thread, PageRequest(order="asc")).data) == expected
    assert words_of(records.messages.list(thread, PageRequest()).data) == expected[::-1]


def test_a_place_is_not_used_again_when_the_last_message_is_deleted(records, thread):
    first, last = records.messages.append(thread, [says("1"), says("2")])
    deleted = records.messages.delete(thread, last.id)
    records.messages.append(thread, [says("3")])

    assert (deleted.id, deleted.object) == (last.id, "thread.message.deleted")
    assert words_of(records.messages.all(thread)) == ["1", "3"]
    assert records.threads.get(thread).messages[0] == first.id


def test_a_list_can_be_limited_to_one_run(records, thread):
    records.messages.append(thread, [says(str(number), run_id=run_id) for number, run_id in enumerate(("a", None, "a", "b"))])

    assert words_of(records.messages.list(thread, PageRequest(order="asc"), run_id="a").data) == ["0", "2"]
    assert records.messages.list(thread, PageRequest(), run_id="c").data == []


def test_all_reads_a_long_thread_in_order_and_from_its_end(records, thread):
    expected = [str(number) for number in range(2 * BATCH + 3)]
    records.messages.append(thread, [says(words) for words in expected])

    assert words_of(records.messages.all(thread)) == expected
    assert words_of(records.messages.all(thread, order="desc")) == expected[::-1]


def test_older_gives_the_ids_before_a_message_and_how_many_there_are(records, thread):
    ids = [message.id for message in records.messages.append(thread, [says(str(number)) for number in range(6)])]

    assert records.messages.older(thread, ids[4], 2) == (ids[2:4], 4)
    assert records.messages.older(thread, None, 2) == (ids[4:], 6)
    assert records.messages.older(thread, ids[0], 2) == ([], 0)


def test_an_id_is_taken_in_its_own_thread_only(records, thread):
    other = records.threads.create().id
    records.messages.append(thread, [says("one", id="m1")])
    records.messages.append(other, [says("two", id="m1")])

    with pytest.raises(RecordExists, match=f"{thread} already has a message of one of these ids"):
        records.messages.append(thread, [says("new"), says("again", id="m1")])

    assert words_of(records.messages.all(thread)) == ["one"]
    assert words_of(records.messages.all(other)) == ["two"]


def test_modify_changes_content_and_metadata_and_nothing_else(records, thread):
    (made,) = records.messages.append(thread, [says("one", metadata={"a": "1"}, file_ids=["f"])])

    changed = records.messages.modify(thread, made.id, content=[TextPart(Text("two"))])
    again = records.messages.modify(thread, made.id, metadata={})

    assert words_of([changed]) == ["two"]
    assert (changed.metadata, again.metadata, again.file_ids) == ({"a": "1"}, {}, ["f"])
    assert records.messages.get(thread, made.id) == again


@pytest.mark.parametrize("id", ["msg_nope", "", "a\0b"])
def test_an_unknown_message_is_not_found(records, thread, id):
    for ask in (
        lambda: records.messages.get(thread, id),
        lambda: records.messages.modify(thread, id, metadata={}),
        lambda: records.messages.delete(thread, id),
        lambda: records.messages.files(thread, id, PageRequest()),
    ):
        with pytest.raises(MessageNotFound, match=f"The thread {thread} has no message"):
            ask()


def test_the_files_of_a_message_are_what_it_names_in_either_way(records, thread):
    (made,) = records.messages.append(
        thread,
        [says("x", file_ids=["file-1", "file-2"], attachments=[{"file_id": "file-2"}, {"file_id": "file-3"}, {"tools": []}])],
    )

    page = records.messages.files(thread, made.id, PageRequest(order="asc"))

    assert [file.id for file in page.data] == ["file-1", "file-2", "file-3"]
    assert {(file.message_id, file.created_at) for file in page.data} == {(made.id, made.created_at)}
    assert records.messages.file(thread, made.id, "file-3").id == "file-3"
    with pytest.raises(UploadNotFound, match=f"The message {made.id} names no file file-4"):
        records.messages.file(thread, made.id, "file-4")
