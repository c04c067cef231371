"""Threads: every operation, what they refuse, and pages that give every item once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

Client = Any
HELLO = {"role": "user", "content": "Hello, what is AI?"}


def create(client: Client, **body: Any) -> dict[str, Any]:
    answer = client.simulate_post("/v1/threads", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json
    return made


def create_assistant(client: Client, **body: Any) -> str:
    return str(client.simulate_post("/v1/assistants", json=body).json["id"])


def contents(client: Client, thread_id: str) -> list[str]:
    listed = client.simulate_get(f"/v1/threads/{thread_id}/messages", params={"order": "asc", "limit": 100}).json
    return [message["content"][0]["text"]["value"] for message in listed["data"]]


def check_refusal(answer: Any, status: int, code: str, param: str | None) -> str:
    assert (answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]) == (status, code, param), (
        answer.text
    )
    return str(answer.json["error"]["message"])


# -- creating -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [None, b"", b"{}", b'{"title": null, "messages": null, "metadata": null, "assistants": null}']
)
def test_a_thread_needs_no_body_and_gets_the_default_assistant(client: Client, body: bytes | None) -> None:
    answer = client.simulate_post("/v1/threads", body=body, headers={"Content-Type": "application/json"})

    thread = answer.json
    assert answer.status_code == 200
    assert thread["id"].startswith("thread_")
    assert len(thread["id"]) == len("thread_") + 24
    assert thread["object"] == "thread"
    assert thread["created"] == thread["created_at"] > 1_700_000_000
    assert (thread["title"], thread["metadata"], thread["messages"], thread["tool_resources"]) == ("", {}, [], None)
    assert thread["assistant_ids"] == ["jan"]
    (assistant,) = thread["assistants"]
    assert (assistant["assistant_id"], assistant["assistant_name"]) == ("jan", "Jan")
    assert assistant["model"] == {"id": "", "settings": {}, "parameters": {}, "engine": None}


def test_a_thread_keeps_what_it_is_given(client: Client) -> None:
    made = create(
        client,
        title="funny physics joke",
        metadata={"a": "b", "n": 1, "x": 0.5, "yes": True, "none": None},
        tool_resources={"code_interpreter": {"file_ids": ["file-1"]}},
        messages=[{**HELLO, "file_ids": ["file-abc123"]}, {"role": "assistant", "content": "Software."}],
    )

    thread = client.simulate_get(f"/v1/threads/{made['id']}").json
    assert thread == made
    assert thread["title"] == "funny physics joke"
    assert thread["metadata"] == {"a": "b", "n": "1", "x": "0.5", "yes": "true"}
    assert thread["tool_resources"] == {"code_interpreter": {"file_ids": ["file-1"]}}
    messages = client.simulate_get(f"/v1/threads/{made['id']}/messages", params={"order": "asc"}).json["data"]
    assert [message["id"] for message in messages] == thread["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["file_ids"] == ["file-abc123"]


def test_assistants_are_taken_as_ids_and_as_objects_in_both_spellings(client: Client) -> None:
    tutor = create_assistant(client, name="Math Tutor", model="m")

    thread = create(
        client,
        assistants=[
            tutor,
            "assistant-001",
            {"instructions": "Be brief"},
            {
                "assistant_id": "one",
                "assistant_name": "One",
                "model": {
                    "id": "phi",
                    "settings": {"ctx_len": "2048"},
                    "parameters": {"temperature": "0.5"},
                    "engine": "nitro",
                },
                "tools": [{"type": "retrieval", "enabled": False}],
            },
            {"id": "two", "name": "Two", "model": "mistral"},
        ],
    )

    named = [(one["assistant_id"], one["assistant_name"]) for one in thread["assistants"]]
    assert named == [(tutor, "Math Tutor"), ("assistant-001", "assistant-001"), ("jan", "Jan"), ("one", "One"), ("two", "Two")]
    assert thread["assistant_ids"] == [tutor, "assistant-001", "jan", "one", "two"]
    assert thread["assistants"][2]["instructions"] == "Be brief"
    one, two = thread["assistants"][3:]
    assert one["model"] == {"id": "phi", "settings": {"ctx_len": 2048}, "parameters": {"temperature": 0.5}, "engine": "nitro"}
    assert one["tools"] == [{"type": "retrieval", "enabled": False}]
    assert two["model"]["id"] == "mistral"


def test_what_a_thread_answers_can_be_sent_back(client: Client) -> None:
    made = create(client, title="t", assistants=["jan"], messages=[HELLO], metadata={"k": "v"})

    sent_back = {name: value for name, value in made.items() if name != "messages"}
    changed = client.simulate_post(f"/v1/threads/{made['id']}", json=sent_back)

    assert changed.status_code == 200
    assert {**changed.json, "updated": 0} == {**made, "updated": 0}


# -- reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["{id}", "{id}/", "{id}/assistants", "{id}/assistants/"])
def test_all_four_ways_to_ask_give_the_whole_thread(client: Client, path: str) -> None:
    made = create(client, messages=[HELLO])

    answer = client.simulate_get("/v1/threads/" + path.format(id=made["id"]))

    assert (answer.status_code, answer.json) == (200, made)


def test_threads_are_listed_the_newest_first_in_the_envelope(client: Client) -> None:
    ids = [create(client)["id"] for _ in range(3)]

    listed = client.simulate_get("/v1/threads").json

    assert [thread["id"] for thread in listed["data"]] == ids[::-1]
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (ids[2], ids[0])


def test_an_empty_list_has_no_first_and_last(client: Client) -> None:
    listed = client.simulate_get("/v1/threads/").json

    assert listed == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_only_the_newest_hundred_messages_are_named(make_client: Any) -> None:
    client = make_client(max_body_bytes=100_000)
    made = create(client, messages=[HELLO] * 101)

    listed = client.simulate_get(f"/v1/threads/{made['id']}/messages", params={"order": "asc", "limit": 1}).json

    assert len(made["messages"]) == 100
    assert listed["first_id"] not in made["messages"]
    assert listed["has_more"] is True


# -- changing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_a_change_names_is_replaced_and_the_rest_is_left(client: Client, method: str) -> None:
    made = create(client, title="old", metadata={"a": "1", "b": "2"}, messages=[HELLO])
    path = f"/v1/threads/{made['id']}"

    first = client.simulate_request(
        method, path, json={"id": "other", "object": "x", "metadata": {"c": "3"}, "title": None}
    ).json
    second = client.simulate_request(method, path + "/", json={"title": "new"}).json
    third = client.simulate_request(method, path, json={}).json

    assert (first["id"], first["title"], first["metadata"]) == (made["id"], "old", {"c": "3"})
    assert (second["title"], second["metadata"]) == ("new", {"c": "3"})
    assert third["title"] == "new"
    assert third["messages"] == made["messages"]
    assert client.simulate_get(path).json["title"] == "new"


def test_a_message_with_a_known_id_is_changed_and_others_are_appended(client: Client) -> None:
    made = create(client, messages=[HELLO, {"role": "assistant", "content": "Hm."}])
    known = made["messages"][1]

    changed = client.simulate_post(
        f"/v1/threads/{made['id']}",
        json={"messages": [{"id": known, "role": "assistant", "content": "Software."}, {"role": "user", "content": "How?"}]},
    ).json

    assert changed["messages"][:2] == made["messages"]
    assert len(changed["messages"]) == 3
    assert contents(client, made["id"]) == ["Hello, what is AI?", "Software.", "How?"]


def test_a_thread_that_loses_its_assistants_gets_the_default_one(client: Client) -> None:
    made = create(client, assistants=["other"])

    changed = client.simulate_patch(f"/v1/threads/{made['id']}", json={"assistants": []}).json

    assert changed["assistant_ids"] == ["jan"]


def test_an_assistant_s_entry_is_merged_field_by_field(client: Client) -> None:
    entry = {"assistant_id": "jan", "model": {"id": "a", "settings": {"ngl": 1}, "parameters": {"top_k": 1, "seed": 2}}}
    made = create(client, assistants=[entry, "other"])

    answer = client.simulate_post(
        f"/v1/threads/{made['id']}/assistants/jan",
        json={
            "assistant_id": "ignored",
            "instructions": "Be kind",
            "model": {"parameters": {"top_k": "5"}, "engine": "nitro"},
        },
    )

    jan, other = answer.json["assistants"]
    assert jan["assistant_name"] == "Jan"
    assert jan["instructions"] == "Be kind"
    assert jan["model"] == {"id": "a", "settings": {"ngl": 1}, "parameters": {"top_k": 5, "seed": 2}, "engine": "nitro"}
    assert other["assistant_id"] == "other"
    assert client.simulate_get(f"/v1/threads/{made['id']}").json["assistants"] == answer.json["assistants"]


def test_an_assistant_is_added_to_a_thread_that_does_not_have_it(client: Client) -> None:
    tutor = create_assistant(client, name="Math Tutor")
    made = create(client)

    answer = client.simulate_post(f"/v1/threads/{made['id']}/assistants/{tutor}/", json={"instructions": "Count"})

    assert answer.json["assistant_ids"] == ["jan", tutor]
    assert (answer.json["assistants"][1]["assistant_name"], answer.json["assistants"][1]["instructions"]) == (
        "Math Tutor",
        "Count",
    )


def test_an_assistant_that_exists_nowhere_is_not_added(client: Client) -> None:
    made = create(client, assistants=["gone"])
    path = f"/v1/threads/{made['id']}/assistants"

    check_refusal(client.simulate_post(f"{path}/nope", json={}), 404, "assistant_not_found", None)
    assert client.simulate_post(f"{path}/gone", json={"instructions": "x"}).json["assistants"][0]["instructions"] == "x"


def test_many_who_change_one_thread_s_assistants_at_once_lose_nothing(client: Client) -> None:
    made = create(client)
    path = f"/v1/threads/{made['id']}/assistants/jan"
    names = ["top_k", "seed", "min_keep", "repeat_last_n", "n_probs", "token_limit", "min_p", "typ_p"]

    def change(name: str) -> None:
        assert client.simulate_post(path, json={"model": {"parameters": {name: 1}}}).status_code == 200

    writers = [threading.Thread(target=change, args=(name,)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert client.simulate_get(f"/v1/threads/{made['id']}").json["assistants"][0]["model"]["parameters"].keys() == set(names)


# -- deleting -----------------------------------------------------------------------------------------------------------


def test_a_deleted_thread_is_gone_with_its_messages(client: Client) -> None:
    made = create(client, messages=[HELLO])
    path = f"/v1/threads/{made['id']}"

    answer = client.simulate_delete(path + "/")

    assert answer.json == {"id": made["id"], "object": "thread.deleted", "deleted": True}
    for method, tail in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", ""),
        ("GET", "/messages"),
        ("GET", f"/messages/{made['messages'][0]}"),
    ):
        body = {} if method == "POST" else None
        check_refusal(client.simulate_request(method, path + tail, json=body), 404, "thread_not_found", None)
    assert client.simulate_get("/v1/threads").json["data"] == []


# -- bad input ----------------------------------------------------------------------------------------------------------

UNKNOWN = [
    ("GET", "/v1/threads/nope", None, "thread_not_found"),
    ("POST", "/v1/threads/nope", {"title": "x"}, "thread_not_found"),
    ("PATCH", "/v1/threads/nope", {}, "thread_not_found"),
    ("DELETE", "/v1/threads/nope", None, "thread_not_found"),
    ("GET", "/v1/threads/nope/assistants", None, "thread_not_found"),
    ("POST", "/v1/threads/nope/assistants/jan", {}, "thread_not_found"),
    ("GET", "/v1/threads/%00%ff%F0%9F%98%80", None, "thread_not_found"),
    ("GET", "/v1/threads/" + "x" * 5000, None, "thread_not_found"),
]


@pytest.mark.parametrize(("method", "path", "body", "code"), UNKNOWN, ids=lambda value: str(value)[:40])
def test_an_unknown_id_is_404_with_its_kind(client: Client, method: str, path: str, body: Any, code: str) -> None:
    message = check_refusal(client.simulate_request(method, path, json=body), 404, code, None)

    assert "does not exist" in message


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"title": 3}, "invalid_value", "title"),
        ({"title": "x" * 513}, "invalid_value", "title"),
        ({"metadata": "x"}, "invalid_value", "metadata"),
        ({"metadata": {"k": {"deep": 1}}}, "invalid_value", "metadata.k"),
        ({"metadata": {"k": ["x"]}}, "invalid_value", "metadata.k"),
        ({"metadata": {"k": "x" * 513}}, "invalid_value", "metadata.k"),
        ({"metadata": {"k" * 65: "x"}}, "invalid_value", "metadata." + "k" * 64),
        ({"metadata": {"": "x"}}, "invalid_value", "metadata."),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value", "metadata"),
        ({"tool_resources": []}, "invalid_value", "tool_resources"),
        ({"assistants": "jan"}, "invalid_value", "assistants"),
        ({"assistants": [7]}, "invalid_value", "assistants[0]"),
        ({"assistants": [""]}, "invalid_value", "assistants[0]"),
        ({"assistants": ["a", "a"]}, "invalid_value", "assistants[1]"),
        ({"assistants": ["jan", {}]}, "invalid_value", "assistants[1]"),
        ({"assistants": [{"assistant_id": 7}]}, "invalid_value", "assistants[0].assistant_id"),
        ({"assistants": [{"assistant_name": "x" * 257}]}, "invalid_value", "assistants[0].assistant_name"),
        ({"assistants": [{"model": 7}]}, "invalid_value", "assistants[0].model"),
        ({"assistants": [{"model": {"settings": {"ngl": -1}}}]}, "invalid_value", "assistants[0].model.settings.ngl"),
        (
            {"assistants": ["a", {"model": {"parameters": {"temperature": 3}}}]},
            "invalid_value",
            "assistants[1].model.parameters.temperature",
        ),
        ({"assistants": [{"tools": [{"type": "magic"}]}]}, "invalid_value", "assistants[0].tools[0].type"),
        ({"assistants": [{"tools": [{}]}]}, "missing_required_parameter", "assistants[0].tools[0].type"),
        ({"messages": {}}, "invalid_value", "messages"),
        ({"messages": [HELLO, "x"]}, "invalid_value", "messages[1]"),
        ({"messages": [HELLO, {**HELLO, "role": "system"}]}, "invalid_value", "messages[1].role"),
        ({"messages": [HELLO, {"content": "x"}]}, "missing_required_parameter", "messages[1].role"),
        ({"messages": [HELLO, {"role": "user"}]}, "missing_required_parameter", "messages[1].content"),
        ({"messages": [HELLO, {"role": "user", "content": None}]}, "missing_required_parameter", "messages[1].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{**HELLO, "metadata": {"k": None, "l": "x" * 513}}]}, "invalid_value", "messages[0].metadata.l"),
        ({"messages": [{**HELLO, "file_ids": ["", "x"]}]}, "invalid_value", "messages[0].file_ids[0]"),
        ({"messages": [HELLO] * 1001}, "invalid_value", "messages"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
@pytest.mark.parametrize("is_new", [True, False], ids=["create", "modify"])
def test_a_bad_field_is_400_with_its_path_and_nothing_is_written(
    client: Client, make_client: Any, body: dict[str, Any], code: str, param: str, is_new: bool
) -> None:
    client = make_client(max_body_bytes=1_000_000)
    made = create(client, title="before")
    path = "/v1/threads" if is_new else f"/v1/threads/{made['id']}"

    check_refusal(client.simulate_post(path, json=body), 400, code, param)

    assert [thread["id"] for thread in client.simulate_get("/v1/threads").json["data"]] == [made["id"]]
    assert client.simulate_get(f"/v1/threads/{made['id']}").json == made


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"instructions": 7}, "instructions"),
        ({"model": {"parameters": {"top_p": 2}}}, "model.parameters.top_p"),
        ({"tools": [{"type": "function", "function": {"name": "no blanks"}}]}, "tools[0].function.name"),
    ],
)
def test_a_bad_entry_is_400_with_its_path(client: Client, body: dict[str, Any], param: str) -> None:
    made = create(client)

    check_refusal(client.simulate_post(f"/v1/threads/{made['id']}/assistants/jan", json=body), 400, "invalid_value", param)


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b'{"title": "\xff"}'])
def test_what_is_no_json_object_is_400(client: Client, body: bytes) -> None:
    assert client.simulate_post("/v1/threads", body=body).status_code == 400


def test_threads_take_no_put(client: Client) -> None:
    answer = client.simulate_put("/v1/threads/x", json={})

    assert answer.status_code == 405
    assert {"GET", "POST", "PATCH", "DELETE"} <= set(answer.headers["allow"].split(", "))
