"""Answers about threads, messages and assistants against Jan's schemas: every field it names is there, with its type.

Where the reference itself lies beside this repository, it is read, and its schemas judge the same answers; what it says is
also written down here, in this file's own form, so that the check runs everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

Client = Any
SHARED = Path(__file__).resolve().parents[3] / "shared" / "spec" / "jan"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="Jan's reference does not lie beside this repository")

NULLABLE = {"assistant_id", "run_id", "description"}
"""The reference types them as strings and shows them as null."""
DELETED = {"id": "string", "object": "string", "deleted": "boolean"}
MESSAGE = {
    "id": "string", "object": "string", "created_at": "integer", "thread_id": "string", "role": "string", "content": "array",
    "file_ids": "array", "assistant_id": "string", "run_id": "string", "metadata": "object",
}  # fmt: skip
ASSISTANT = {
    "id": "string", "object": "string", "version": "integer", "created_at": "integer", "name": "string",
    "description": "string", "avatar": "string", "models": "array", "instructions": "string", "events": "object",
    "metadata": "object",
}  # fmt: skip
SHORT_THREAD = {"id": "string", "object": "string", "created_at": "integer", "metadata": "object"}
FACTS: dict[str, dict[str, dict[str, str]]] = {
    "threads": {
        "ThreadObject": {
            "id": "string", "object": "string", "title": "string", "assistants": "array", "created": "integer",
            "metadata": "object",
        },
        "GetThreadResponse": {**SHORT_THREAD, "assistants": "array", "messages": "array"},
        "CreateThreadResponse": SHORT_THREAD,
        "ModifyThreadResponse": SHORT_THREAD,
        "DeleteThreadResponse": DELETED,
    },
    "messages": {
        "MessageObject": {name: kind for name, kind in MESSAGE.items() if name not in {"file_ids", "run_id"}},
        "GetMessageResponse": MESSAGE,
        "CreateMessageResponse": MESSAGE,
        "ListMessagesResponse": {
            "object": "string", "data": "array", "first_id": "string", "last_id": "string", "has_more": "boolean",
        },
        "ListMessageObject": MESSAGE,
        "MessageFileObject": {"id": "string", "object": "string", "created_at": "integer", "message_id": "string"},
        "ListMessageFilesResponse": {"object": "string", "data": "array"},
    },
    "assistants": {
        **dict.fromkeys(
            ("AssistantObject", "CreateAssistantResponse", "RetrieveAssistantResponse", "ModifyAssistantResponse"), ASSISTANT
        ),
        "DeleteAssistantResponse": DELETED,
    },
}  # fmt: skip
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "boolean": bool, "array": list, "object": dict,
}  # fmt: skip
SCHEMAS = [(file, name) for file, schemas in FACTS.items() for name in schemas]


@pytest.fixture
def answers(client: Client) -> dict[str, Any]:
    """Schema -> a real answer."""

    def call(method: str, path: str, body: Any = None) -> Any:
        answer = client.simulate_request(method, f"/v1{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json

    turn = {"role": "user", "content": "Hello, what is AI?", "file_ids": ["file-abc123"]}
    fields = {"name": "Math Tutor", "avatar": "https://pic.png", "models": [{"model_id": "m"}], "instructions": "Be concise"}
    made, thread = call("POST", "/assistants", fields), call("POST", "/threads", {"messages": [turn], "title": "t"})
    path, assistant = f"/threads/{thread['id']}", f"/assistants/{made['id']}"
    message = call("POST", f"{path}/messages", turn)
    files = f"{path}/messages/{message['id']}/files"
    found = {
        "CreateThreadResponse": thread,
        "ThreadObject": call("GET", "/threads")["data"][0],
        "GetThreadResponse": call("GET", path),
        "ModifyThreadResponse": call("POST", path, {"title": "x"}),
        "MessageObject": message,
        "CreateMessageResponse": message,
        "GetMessageResponse": call("GET", f"{path}/messages/{message['id']}"),
        "ListMessagesResponse": call("GET", f"{path}/messages"),
        "ListMessageObject": call("GET", f"{path}/messages")["data"][0],
        "MessageFileObject": call("GET", f"{files}/file-abc123"),
        "ListMessageFilesResponse": call("GET", files),
        "DeleteThreadResponse": call("DELETE", path),
        "CreateAssistantResponse": made,
        "AssistantObject": next(one for one in call("GET", "/assistants")["data"] if one["id"] == made["id"]),
        "RetrieveAssistantResponse": call("GET", assistant),
        "ModifyAssistantResponse": call("POST", assistant, {"name": "Physics Tutor"}),
        "DeleteAssistantResponse": call("DELETE", assistant),
    }
    # The reference has objects here in one schema and strings in the other; both are answered, under two names.
    found["GetThreadResponse"] = {**found["GetThreadResponse"], "assistants": found["GetThreadResponse"]["assistant_ids"]}
    return found


def test_an_answer_has_every_field_that_jan_s_schema_names(answers: dict[str, Any]) -> None:
    for file, name in SCHEMAS:
        for field, kind in FACTS[file][name].items():
            value = answers[name][field]
            is_right = isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
            assert is_right or (value is None and field in NULLABLE), f"{name}.{field}: {value!r}"


def test_the_object_of_an_answer_is_openai_s_word(answers: dict[str, Any]) -> None:
    words = {name: answer["object"] for name, answer in answers.items()}

    assert words["ThreadObject"] == words["CreateThreadResponse"] == "thread"
    assert words["MessageObject"] == words["ListMessageObject"] == "thread.message"
    assert words["MessageFileObject"] == "thread.message.file"
    assert words["ListMessagesResponse"] == words["ListMessageFilesResponse"] == "list"
    assert (words["DeleteThreadResponse"], words["DeleteAssistantResponse"]) == ("thread.deleted", "assistant.deleted")


# -- the reference itself -----------------------------------------------------------------------------------------------


def reference(file: str) -> dict[str, Any]:
    """Its schemas; message files are in the widest version only, the one before."""
    folder = SHARED / "specs" if file != "messages" else SHARED / "history" / "2024-01-05" / "specs"
    read: dict[str, Any] = yaml.safe_load((folder / f"{file}.yaml").read_text(encoding="utf-8"))["components"]["schemas"]
    return read


@needs_shared
@pytest.mark.parametrize(("file", "name"), SCHEMAS)
def test_the_facts_written_down_here_are_the_reference_s(file: str, name: str) -> None:
    properties = reference(file)[name]["properties"]

    assert FACTS[file][name] == {field: schema["type"] for field, schema in properties.items()}


@needs_shared
def test_an_answer_is_valid_by_the_reference_s_own_schema(answers: dict[str, Any]) -> None:
    for file, name in SCHEMAS:
        schemas = reference(file)
        schema = {**_repaired(schemas[name]), "components": {"schemas": {key: _repaired(one) for key, one in schemas.items()}}}

        jsonschema.Draft202012Validator(schema).validate(answers[name])


def _repaired(schema: Any) -> Any:
    """Null where the reference's own examples have it; keywords without a meaning in JSON Schema are left out."""
    if isinstance(schema, list):
        return [_repaired(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _repaired(value) for key, value in schema.items() if key not in {"example", "format", "description"}}
    if isinstance(schema.get("properties"), dict):
        properties = {name: _repaired(one) for name, one in schema["properties"].items()}
        for name in NULLABLE & properties.keys():
            properties[name] = {**properties[name], "type": ["string", "null"]}
        made["properties"] = properties
    return made
