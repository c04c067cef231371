"""What Jan's data folder means here, form by form, and that nothing in it is fatal."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.api.schema.records import read_units
from hostler.cli.janfolder import JanFolder, is_jan_folder
from support.jan import (
    MESSAGES,
    THREAD_ID,
    jan_folder,
    message,
    text_part,
    thread,
    write_assistant,
    write_json,
    write_model,
    write_thread,
)
from support.tiny_gguf import tiny_gguf


class Reading:
    """A folder that is read, with what was said about it."""

    def __init__(self, path):
        self.problems = []
        self.folder = JanFolder(path, lambda place, reason: self.problems.append((place, reason)))

    def threads(self):
        return [item.value for item in self.folder.threads()]

    def messages(self):
        return [value for value in self.threads() if value["object"] == "thread.message"]

    def assistants(self):
        return [item.value for item in self.folder.assistants()]

    @property
    def places(self):
        return [place for place, _ in self.problems]


@pytest.fixture
def reading(tmp_path):
    return Reading(tmp_path)


def one_message(reading, raw):
    write_thread(reading.folder.path, thread(), raw)
    (found,) = reading.messages()
    return found


# -- threads --------------------------------------------------------------------------------------------------------------


def test_a_thread_keeps_id_title_times_and_what_it_says_of_its_assistant(reading):
    write_thread(reading.folder.path, thread())

    (found,) = reading.threads()

    assert (found["id"], found["title"]) == (THREAD_ID, "Rome in three days")
    assert (found["created_at"], found["updated"]) == (1700123404, 1700123500)
    assert found["metadata"] == {"lastMessage": "Bring water.", "nested": '{"a":[1]}'}
    (assistant,) = found["assistants"]
    assert assistant == {
        "assistant_id": "jan",
        "assistant_name": "Jan",
        "instructions": "Be brief.",
        # What no run would take is left out, and nitro was no choice.
        "model": {
            "id": "tinyllama-1.1b",
            "settings": {"ctx_len": 4096},
            "parameters": {"temperature": 0.5, "token_limit": 2048, "stop": ["</s>"]},
            "engine": None,
        },
    }
    assert reading.problems == []


@pytest.mark.parametrize(
    ("assistants", "more", "expected"),
    [
        (["jan", "poet", "jan"], {}, [("jan", ""), ("poet", "")]),
        (
            [{"id": "poet", "name": "Poet", "model": "*"}],
            {"model": {"id": "qwen", "provider": "llamacpp"}},
            [("poet", "qwen")],
        ),
        ([{"assistant_id": "x", "model": {"id": "*"}}], {}, [("x", "")]),
        ([{}], {}, [("jan", "")]),
        ([7, None, ""], {}, []),
        ("jan", {}, []),
        (None, {}, []),
    ],
)
def test_assistants_of_a_thread_come_in_every_form(reading, assistants, more, expected):
    write_thread(reading.folder.path, thread(assistants=assistants, **more))

    (found,) = reading.threads()

    assert [(one["assistant_id"], one.get("model", {"id": ""})["id"]) for one in found["assistants"]] == expected
    assert reading.problems == []


def test_a_thread_without_an_id_has_the_name_of_its_folder_and_without_a_time_that_of_its_file(reading):
    write_json(reading.folder.path / "threads" / "by_hand" / "thread.json", {"summary": "Old name of a title"})

    (found,) = reading.threads()

    assert (found["id"], found["title"]) == ("by_hand", "Old name of a title")
    assert found["created_at"] > 1_700_000_000


def test_threads_come_oldest_first_each_before_its_messages(reading):
    jan_folder(reading.folder.path)

    found = reading.threads()

    assert [value["id"] for value in found if value["object"] == "thread"] == [THREAD_ID, "jan_1700200000"]
    assert [value["id"] for value in found[1:5]] == [raw["id"] for raw in MESSAGES]
    assert {value["thread_id"] for value in found[1:5]} == {THREAD_ID}


def test_titles_and_metadata_over_the_limits_are_cut_or_left_out_and_noted(reading):
    long = {f"key{number}": "v" for number in range(17)}
    write_thread(reading.folder.path, thread(title="t" * 600, metadata=long))
    write_thread(reading.folder.path, thread("other", metadata={"assistant": {"instructions": "i" * 600}, "k": 1}))

    first, second = sorted(reading.threads(), key=lambda value: value["id"])

    assert len(first["title"]) == 512
    assert len(first["metadata"]) == 16
    assert second["metadata"] == {"k": "1"}
    assert sorted(reading.folder.notes.values()) == [1, 2]


# -- messages -------------------------------------------------------------------------------------------------------------


def test_a_message_keeps_id_role_text_and_time_in_seconds(reading):
    write_thread(reading.folder.path, thread(), *MESSAGES)

    first, second, third, fourth = reading.messages()

    assert first["id"] == "01HF9ZQ4C0A"
    assert (first["role"], first["created_at"], first["status"]) == ("user", 1700123405, "completed")
    assert first["content"] == [text_part("What should I see in Rome?")]
    assert (first["assistant_id"], second["assistant_id"]) == (None, "jan")
    assert second["completed_at"] == 1700123405
    assert third["content"] == [text_part("An old plain text")]
    assert (fourth["status"], fourth["incomplete_details"]) == ("incomplete", {"reason": "run_cancelled"})


@pytest.mark.parametrize(
    ("word", "status", "reason"),
    [
        ("ready", "completed", None),
        ("completed", "completed", None),
        (None, "completed", None),
        ("pending", "incomplete", "run_failed"),
        ("in_progress", "incomplete", "run_failed"),
        ("error", "incomplete", "run_failed"),
        ("stopped", "incomplete", "run_cancelled"),
    ],
)
def test_statuses_become_what_they_mean_now_that_nothing_runs(reading, word, status, reason):
    found = one_message(reading, message("m", "assistant", "text", 1700123405001, status=word))

    assert found["status"] == status
    assert (found["incomplete_details"] or {}).get("reason") == reason
    assert (found["incomplete_at"] is None) == (status == "completed")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("plain", [text_part("plain")]),
        ([text_part("a"), text_part(""), text_part("b")], [text_part("a"), text_part("b")]),
        ([{"type": "text", "text": "bare"}], [text_part("bare")]),
        (["bare"], [text_part("bare")]),
        ({"type": "text", "text": {"value": "no list"}}, [text_part("no list")]),
        (
            [{"type": "reasoning", "text": {"value": "hm"}}, text_part("a")],
            [text_part("<think>\nhm\n</think>\n"), text_part("a")],
        ),
        (
            [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "auto"}}],
            [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "auto"}}],
        ),
        (
            [{"type": "image", "text": {"value": "", "annotations": ["/home/u/jan/cat.png"]}}],
            [{"type": "image_url", "image_url": {"url": "/home/u/jan/cat.png"}}],
        ),
        ([text_part("a"), {"type": "tool_call", "tool_name": "t", "output": 1}], [text_part("a")]),
    ],
)
def test_content_comes_in_every_form(reading, content, expected):
    assert one_message(reading, message("m", "user", content, 1700123405001))["content"] == expected
    assert reading.problems == []


def test_what_has_no_form_here_is_counted(reading):
    pdf = {"type": "pdf", "text": {"value": "", "annotations": ["a.pdf"]}}
    lines = [
        message("a", "user", [text_part("x"), pdf], 1700123405001),
        message("b", "assistant", [], 1700123405002, status="error"),
        message("c", "assistant", [text_part("")], 1700123405003),
    ]
    write_thread(reading.folder.path, thread(), *lines)

    assert [value["id"] for value in reading.messages()] == ["a"]
    assert reading.folder.notes == {
        "parts of messages of the kind pdf were left out": 1,
        "messages without any content were left out": 2,
    }


def test_messages_stand_by_their_times_to_the_millisecond_and_equal_ones_as_they_stood(reading):
    times = {"c": 1700123405003, "a": 1700123405001, "b1": 1700123405002, "b2": 1700123405.002}
    write_thread(reading.folder.path, thread(), *(message(id, "user", id, created) for id, created in times.items()))

    assert [value["id"] for value in reading.messages()] == ["a", "b1", "b2", "c"]


def test_messages_of_which_one_has_no_time_stay_as_they_stood(reading):
    lines = [message("z", "user", "1", 1700123409000), message("y", "user", "2", None), message("x", "user", "3", 1)]
    write_thread(reading.folder.path, thread(), *lines)

    found = reading.messages()

    assert [value["id"] for value in found] == ["z", "y", "x"]
    assert found[1]["created_at"] == 1700123404  # its thread's


def test_a_message_that_was_written_twice_is_there_once_as_it_was_last(reading):
    lines = [
        message("a", "assistant", "Hal", 1700123405001, status="pending"),
        message("b", "user", "x", 1700123405002),
        message("a", "assistant", "Half", 1700123405001),
    ]
    write_thread(reading.folder.path, thread(), *lines)

    assert [(value["id"], value["content"][0]["text"]["value"]) for value in reading.messages()] == [("a", "Half"), ("b", "x")]


def test_a_message_without_an_id_gets_the_same_one_every_time(reading):
    line = message("", "user", "hello", 1700123405001)
    write_thread(reading.folder.path, thread(), line, line)

    first, second = (value["id"] for value in reading.messages())

    assert first != second
    assert [first, second] == [value["id"] for value in reading.messages()]
    assert first.startswith("msg_")


def test_broken_lines_and_files_are_reported_with_their_place_and_the_rest_is_read(reading):
    write_thread(
        reading.folder.path,
        thread(),
        MESSAGES[0],
        '{"id": "cut of',
        "[]",
        message("s", "system", "Be kind.", 1700123405001),
        message("bad/id", "user", "x", 1700123405001),
        MESSAGES[1],
    )
    (reading.folder.path / "threads" / "cut").mkdir()
    (reading.folder.path / "threads" / "cut" / "thread.json").write_bytes(b'{"id": "cut", "title": "\xff')
    (reading.folder.path / "threads" / "empty").mkdir()
    (reading.folder.path / "threads" / ".DS_Store").write_bytes(b"\0")
    write_json(reading.folder.path / "threads" / "list" / "thread.json", [])

    found = reading.threads()

    assert [value["id"] for value in found] == [THREAD_ID, "01HF9ZQ4C0A", "01HF9ZQ4C0B"]
    assert reading.places == [
        "threads/cut/thread.json",
        "threads/list/thread.json",
        *(f"threads/{THREAD_ID}/messages.jsonl:{line}" for line in (2, 3, 4, 5)),
    ]
    assert "role 'system'" in reading.problems[-2][1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files and names")
def test_what_is_no_file_and_names_that_are_no_text_are_reported_and_the_rest_is_read(reading):
    root = reading.folder.path
    for id in ("device", "loop", "pipe", "whole"):
        write_thread(root, thread(id), message(f"m-{id}", "user", "Hi", 1700000000000))
    for id, make in (
        ("device", lambda path: path.symlink_to("/dev/zero")),
        ("loop", lambda path: path.symlink_to(path)),
        ("pipe", os.mkfifo),
    ):
        (root / "threads" / id / "messages.jsonl").unlink()
        make(root / "threads" / id / "messages.jsonl")
    strange = root / "threads" / os.fsdecode(b"\xff\x1b[31m")
    write_json(strange / "thread.json", {"title": "no id"})
    (strange / "messages.jsonl").write_text("{")

    found = reading.threads()

    assert {value["id"] for value in found} == {"device", "loop", "pipe", "whole", "m-whole", "\ufffd\ufffd[31m"}
    assert sorted(reading.places) == [
        "threads/device/messages.jsonl", "threads/loop/messages.jsonl", "threads/pipe/messages.jsonl",
        "threads/\ufffd\ufffd[31m/messages.jsonl:1",
    ]  # fmt: skip


def test_a_thread_that_no_path_could_name_is_left_out_with_its_messages(reading):
    home = write_thread(reading.folder.path, thread("fine"), MESSAGES[0])
    write_json(home / "thread.json", thread("a/b"))

    assert reading.threads() == []
    assert reading.places == ["threads/fine/thread.json"]


# -- assistants -------------------------------------------------------------------------------------------------------------


def test_an_assistant_keeps_its_words_and_any_model_means_the_default(reading):
    write_assistant(reading.folder.path, parameters={"temperature": 0.2, "top_k": "x"})

    (found,) = reading.assistants()

    assert (found["id"], found["created_at"], found["model"]) == ("jan", 1750945742, "")
    assert (found["name"], found["instructions"], found["avatar"]) == ("Jan", "Answer in verse.", "👋")
    assert found["parameters"] == {"temperature": 0.2}
    assert found["tools"] == []
    assert list(reading.folder.notes) == ["tools for retrieval were left out: hostler has none"]


@pytest.mark.parametrize(
    ("said", "model"),
    [({"model": "m"}, "m"), ({"model": None, "models": [{"model_id": "m"}]}, "m"), ({"model": None}, ""), ({"model": 7}, "")],
)
def test_an_assistant_s_model_is_found_in_both_spellings(reading, said, model):
    write_assistant(reading.folder.path, "a", **said)

    assert [value["model"] for value in reading.assistants()] == [model]


def test_function_tools_are_kept_and_unknown_ones_leave_the_assistant_out(reading):
    tool = {"type": "function", "function": {"name": "f"}}
    write_assistant(reading.folder.path, "a", tools=[tool, {"type": "retrieval", "enabled": False}])
    write_assistant(reading.folder.path, "b", tools=[{"type": "telepathy"}])

    assert [value["tools"] for value in reading.assistants()] == [[tool]]
    assert reading.places == ["assistants/b/assistant.json"]
    assert "telepathy" in reading.problems[0][1]


# -- models -----------------------------------------------------------------------------------------------------------------


def test_models_are_their_folder_or_nothing_where_their_weights_are_missing(reading):
    home = write_model(reading.folder.path, "tiny")
    write_model(reading.folder.path, "offered", has_weights=False)
    (reading.folder.path / "models" / "broken").mkdir()
    (reading.folder.path / "models" / "broken" / "model.json").write_text("{")

    offered, tiny = reading.folder.models()

    assert (tiny.id, tiny.name, tiny.paths) == ("tiny", "Tiny", (home, home / "tiny.gguf"))
    assert (tiny.settings, tiny.parameters) == ({"ctx_len": 2048}, {"temperature": 0.3})
    assert (offered.id, offered.paths, offered.source_url) == ("offered", (), "https://example.test/offered.gguf")
    assert reading.places == ["models/broken/model.json"]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_model_that_jan_was_told_the_path_of_is_found_there(reading, tmp_path, form):
    weights = tmp_path / "elsewhere" / "my model.gguf"
    weights.parent.mkdir()
    weights.write_bytes(tiny_gguf())
    source = {"filename": weights.name, "url": form.format(weights)}
    write_model(reading.folder.path, "mine", has_weights=False, sources=[source])

    (found,) = reading.folder.models()

    assert found.paths == (weights,)


# -- anything at all --------------------------------------------------------------------------------------------------------

NAMES = """
    id object title assistants assistant_id model models model_id settings parameters created created_at updated metadata role
    content type text value annotations image_url url status tools tool enabled events in file_ids attachments version files
    sources name engine
"""
names = st.sampled_from(NAMES.split())
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "ready", "image"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
    max_leaves=12,
)
objects = st.dictionaries(names, anything, max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(objects, st.lists(objects | anything, max_size=3), objects, objects)
def test_whatever_stands_in_the_files_nothing_is_fatal_and_all_that_comes_can_be_imported(thread, lines, assistant, model):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_thread(path, {"id": "plain"})
        write_json(path / "threads" / "plain" / "thread.json", thread)
        (path / "threads" / "plain" / "messages.jsonl").write_text("\n".join(map(json.dumps, lines)))
        write_json(path / "assistants" / "a" / "assistant.json", assistant)
        write_json(path / "models" / "m" / "model.json", model)
        reading = Reading(path)

        found = [*reading.assistants(), *reading.threads()]
        models = list(reading.folder.models())

    assert [unit.error for unit in read_units(found, 1)] == [None] * len(list(read_units(found, 1)))
    assert len(models) <= 1


# -- recognising it ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_jan_s_when_it_holds_what_jan_keeps(tmp_path):
    assert not is_jan_folder(tmp_path)
    (tmp_path / "threads").mkdir()
    (tmp_path / "threads" / "notes.txt").write_text(json.dumps({}))
    assert not is_jan_folder(tmp_path)

    write_assistant(tmp_path)

    assert is_jan_folder(tmp_path)
