"""Assistants: the default one, and that `model` and `models` say the same."""

from __future__ import annotations

import msgspec
import pytest

from hostler.errors import AssistantNotFound, DefaultAssistant, RecordExists
from hostler.records.objects import Assistant, AssistantEvents, AssistantModel, PageRequest
from hostler.records.store import Records

EVERYTHING = {
    "version": 2,
    "name": "Math Tutor",
    "description": "Counts \0",
    "avatar": "https://pic.png",
    "model": "zephyr-7b",
    "instructions": "Be concise",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_resources": {"file_search": {}},
    "temperature": 0.5,
    "top_p": 1.0,
    "response_format": {"type": "json_object"},
    "parameters": {"top_k": 3, "stream": True},
    "events": AssistantEvents(["thread.created"], ["message.created"]),
    "file_ids": ["file-1"],
    "thread_location": "ROOT/threads",
    "metadata": {"k": "v"},
}


def test_the_default_assistant_is_there_with_the_words_of_jan(records):
    jan = records.assistants.get("jan")

    assert (jan.name, jan.instructions, jan.avatar) == ("Jan", "", "")
    assert jan.description == "A default assistant that can use all downloaded models"
    assert (jan.model, jan.models, jan.tools, jan.metadata) == ("", [], [], {})


def test_the_default_assistant_cannot_be_deleted_but_changed_for_good(home, url, records):
    with pytest.raises(DefaultAssistant, match="jan is the default one and cannot be deleted"):
        records.assistants.delete("jan")
    changed = records.assistants.modify("jan", instructions="Be brief", model="zephyr-7b")
    records.close()

    again = Records(home, url)
    try:
        assert again.assistants.get("jan") == changed
        assert len(again.assistants.list(PageRequest()).data) == 1
    finally:
        again.close()


def test_an_assistant_comes_back_as_it_was_made(records):
    made = records.assistants.create(**EVERYTHING)

    assert records.assistants.get(made.id) == made
    assert {name: getattr(made, name) for name in EVERYTHING} == EVERYTHING
    assert made.id.startswith("asst_")
    assert made.created == made.created_at


def test_an_assistant_without_a_model_gets_the_servers(records):
    made = records.assistants.create(name="x")

    assert (made.model, made.models) == ("smollm2", [AssistantModel("smollm2")])


@pytest.mark.parametrize(
    ("said", "model", "models"),
    [
        ({"model": "a"}, "a", ["a"]),
        ({"models": [AssistantModel("a"), AssistantModel("b")]}, "a", ["a", "b"]),
        ({"model": "a", "models": [AssistantModel("x"), AssistantModel("b")]}, "a", ["a", "b"]),
        ({"model": ""}, "", []),
        ({"models": []}, "", []),
    ],
)
def test_model_and_models_follow_each_other(records, said, model, models):
    changed = records.assistants.modify(records.assistants.create(model="before").id, **said)

    assert (changed.model, [one.model_id for one in changed.models]) == (model, models)


def test_modify_leaves_what_is_not_said(records):
    made = records.assistants.create(**EVERYTHING)

    changed = records.assistants.modify(made.id, name="New", temperature=None)

    assert changed == msgspec.structs.replace(made, name="New", temperature=None)
    assert records.assistants.get(made.id) == changed


def test_a_taken_id_is_refused_by_create_and_written_over_by_put(records):
    made = records.assistants.create(id="a", created_at=5, model="m", name="first")

    with pytest.raises(RecordExists, match="There is an assistant a already"):
        records.assistants.create(id="a", model="m")
    put = records.assistants.put(Assistant("a", 7, 7, name="second", models=[AssistantModel("n")]))
    new = records.assistants.put(Assistant("b", 6, 6, model="m"))

    assert (made.created_at, put.created_at, put.model) == (5, 7, "n")
    assert records.assistants.get("a") == put
    assert new.models == [AssistantModel("m")]
    assert [one.id for one in records.assistants.list(PageRequest(order="asc")).data] == ["b", "a", "jan"]


def test_a_deleted_assistant_is_gone(records):
    made = records.assistants.create(model="m")

    deleted = records.assistants.delete(made.id)

    assert (deleted.id, deleted.object) == (made.id, "assistant.deleted")
    for ask in (records.assistants.get, records.assistants.delete, lambda id: records.assistants.modify(id, name="x")):
        with pytest.raises(AssistantNotFound, match=f"The assistant {made.id} does not exist"):
            ask(made.id)
