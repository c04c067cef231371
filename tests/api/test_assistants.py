"""Assistants: every operation, the one that always exists, and a model that has two names."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.records.store import Records

Client = Any
BETA = {"OpenAI-Beta": "assistants=v2"}


def create(client: Client, **fields: Any) -> dict[str, Any]:
    answer = client.simulate_post("/v1/assistants", json=fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json
    return made


def check_refusal(answer: Any, status: int, code: str, param: str | None) -> None:
    assert (answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]) == (status, code, param), (
        answer.text
    )


# -- the default one ----------------------------------------------------------------------------------------------------


def test_jan_is_there_from_the_beginning(client: Client) -> None:
    listed = client.simulate_get("/v1/assistants").json

    assert [assistant["id"] for assistant in listed["data"]] == ["jan"]
    jan = client.simulate_get("/v1/assistants/jan/").json
    assert jan == listed["data"][0]
    assert (jan["name"], jan["object"], jan["version"]) == ("Jan", "assistant", 1)
    assert jan["created"] == jan["created_at"] > 1_700_000_000


def test_jan_cannot_be_deleted_and_openai_s_clients_do_not_try_again(client: Client) -> None:
    answer = client.simulate_delete("/v1/assistants/jan")

    check_refusal(answer, 409, "default_assistant", None)
    assert answer.headers["x-should-retry"] == "false"
    assert client.simulate_get("/v1/assistants/jan").status_code == 200


def test_jan_can_be_changed(client: Client) -> None:
    changed = client.simulate_post("/v1/assistants/jan", json={"instructions": "Be my grammar corrector"}, headers=BETA)

    assert changed.status_code == 200
    assert client.simulate_get("/v1/assistants/jan").json["instructions"] == "Be my grammar corrector"


# -- creating -----------------------------------------------------------------------------------------------------------


def test_an_assistant_keeps_what_it_is_given_and_is_answered_in_full(client: Client) -> None:
    fields = {
        "name": "Math Tutor",
        "description": "Counts",
        "avatar": "https://pic.png",
        "models": [{"model_id": "zephyr-7b"}, {"model_id": "phi"}],
        "instructions": "Be concise",
        "tools": [
            {"type": "code_interpreter"},
            {"type": "retrieval", "enabled": False, "settings": {"top_k": 2}},
            {"type": "function", "function": {"name": "add", "description": None, "parameters": {"type": "object"}}},
        ],
        "tool_resources": {"file_search": {"vector_store_ids": []}},
        "temperature": "0.5",
        "top_p": 1,
        "response_format": {"type": "json_object"},
        "parameters": {"top_k": "40", "max_tokens": 64, "unknown": 1},
        "events": {"in": ["a"], "out": None},
        "file_ids": ["file-1"],
        "thread_location": "here",
        "metadata": {"n": 1},
    }

    made = create(client, **fields)

    assert made["id"].startswith("asst_")
    assert len(made["id"]) == len("asst_") + 24
    assert client.simulate_get(f"/v1/assistants/{made['id']}").json == made
    known = {name: made[name] for name in fields}
    assert known == {
        **fields,
        "temperature": 0.5,
        "top_p": 1.0,
        "parameters": {"top_k": 40, "token_limit": 64},
        "events": {"in": ["a"], "out": []},
        "metadata": {"n": "1"},
    }
    assert made["model"] == "zephyr-7b"


@pytest.mark.parametrize("body", [None, b"", b"{}", b'{"model": null, "models": null, "name": null}'])
def test_an_assistant_without_a_model_gets_the_default_one(client: Client, body: bytes | None) -> None:
    made = client.simulate_post("/v1/assistants/", body=body).json

    assert (made["model"], made["models"]) == ("zephyr-7b", [{"model_id": "zephyr-7b"}])
    assert (made["tools"], made["metadata"], made["events"]) == ([], {}, {"in": [], "out": []})
    assert (made["name"], made["description"], made["instructions"], made["temperature"]) == (None, None, None, None)


@pytest.mark.parametrize(
    ("fields", "model", "models"),
    [
        ({"model": "a"}, "a", ["a"]),
        ({"models": [{"model_id": "model_0"}]}, "model_0", ["model_0"]),
        ({"models": ["a", "b"]}, "a", ["a", "b"]),
        ({"model": "a", "models": ["a", "b"]}, "a", ["a", "b"]),
    ],
)
def test_model_and_the_first_of_models_are_one(client: Client, fields: dict[str, Any], model: str, models: list[str]) -> None:
    made = create(client, **fields)

    assert (made["model"], [one["model_id"] for one in made["models"]]) == (model, models)


@pytest.mark.parametrize("fields", [{"model": ""}, {"models": [""]}, {"model": "", "models": [{"model_id": ""}]}])
def test_an_empty_model_means_the_server_s_default(client: Client, fields: dict[str, Any]) -> None:
    made = create(client, **fields)
    changed = client.simulate_post("/v1/assistants/jan", json=fields).json

    assert (made["model"], made["models"]) == ("zephyr-7b", [{"model_id": "zephyr-7b"}])
    assert (changed["model"], changed["models"]) == ("", [])


def test_two_names_for_one_model_are_refused(client: Client) -> None:
    answer = client.simulate_post("/v1/assistants", json={"model": "a", "models": [{"model_id": "b"}]})

    check_refusal(answer, 400, "invalid_value", "models[0].model_id")


# -- changing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_a_change_names_is_replaced_and_the_rest_is_left(client: Client, method: str) -> None:
    made = create(client, name="old", models=["a", "b"], metadata={"k": "v"}, temperature=1)
    path = f"/v1/assistants/{made['id']}"

    changed = client.simulate_request(method, path + "/", json={"name": "new", "temperature": None, "id": "x", "object": 7})

    assert changed.status_code == 200
    assert changed.json == {**made, "name": "new"}
    assert client.simulate_request(method, path).json == changed.json == client.simulate_get(path).json


@pytest.mark.parametrize(
    ("change", "model", "models"),
    [
        ({"model": "c"}, "c", ["c", "b"]),
        ({"models": ["c"]}, "c", ["c"]),
        ({"model": "c", "models": ["a", "b"]}, "c", ["c", "b"]),
        ({"model": "a", "models": ["c", "b"]}, "c", ["c", "b"]),
        ({"model": "a", "models": ["a"]}, "a", ["a"]),
        ({"model": "c", "models": ["c", "d"]}, "c", ["c", "d"]),
    ],
)
def test_a_changed_model_counts_under_either_name_also_when_the_whole_object_is_sent_back(
    client: Client, change: dict[str, Any], model: str, models: list[str]
) -> None:
    made = create(client, models=["a", "b"])

    changed = client.simulate_post(f"/v1/assistants/{made['id']}", json={**made, **change}).json
    alone = client.simulate_post(f"/v1/assistants/{create(client, models=['a', 'b'])['id']}", json=change).json

    assert (changed["model"], [one["model_id"] for one in changed["models"]]) == (model, models)
    assert (alone["model"], [one["model_id"] for one in alone["models"]]) == (model, models)


def test_two_new_models_under_two_names_are_refused(client: Client) -> None:
    made = create(client, models=["a"])

    answer = client.simulate_patch(f"/v1/assistants/{made['id']}", json={"model": "b", "models": ["c"]})

    check_refusal(answer, 400, "invalid_value", "models[0].model_id")
    assert client.simulate_get(f"/v1/assistants/{made['id']}").json == made


# -- an id that is not there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"OpenAI-Beta": ""}, {"OpenAI-Beta": "realtime=v1"}], ids=["none", "empty", "other"])
def test_cortex_s_way_makes_an_assistant_of_a_new_id(client: Client, headers: dict[str, str]) -> None:
    answer = client.simulate_post("/v1/assistants/my-assistant", json={"name": "Mine", "model": "m"}, headers=headers)
    again = client.simulate_post("/v1/assistants/my-assistant", json={"name": "Yours"}, headers=headers)

    assert (answer.status_code, answer.json["id"], answer.json["name"]) == (201, "my-assistant", "Mine")
    assert (again.status_code, again.json["name"], again.json["model"]) == (200, "Yours", "m")
    assert client.simulate_get("/v1/assistants/my-assistant").json == again.json


@pytest.mark.parametrize("beta", ["assistants=v2", "realtime=v1, assistants=v2", "assistants=v1"])
def test_openai_s_clients_make_nothing_by_a_change(client: Client, beta: str) -> None:
    answer = client.simulate_post("/v1/assistants/asst_gone", json={"name": "x"}, headers={"OpenAI-Beta": beta})

    check_refusal(answer, 404, "assistant_not_found", None)
    assert client.simulate_get("/v1/assistants/asst_gone").status_code == 404


@pytest.mark.parametrize("id", ["a%20b", "%00", "x" * 129, "-x", "%F0%9F%98%80"])
def test_a_new_id_that_nobody_could_type_is_refused(client: Client, id: str) -> None:
    check_refusal(client.simulate_post(f"/v1/assistants/{id}", json={}), 400, "invalid_value", "assistant_id")


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_every_other_operation_on_an_unknown_id_is_404(client: Client, method: str) -> None:
    body = {} if method == "PATCH" else None

    check_refusal(client.simulate_request(method, "/v1/assistants/nope", json=body), 404, "assistant_not_found", None)


def test_an_assistant_that_somebody_else_makes_meanwhile_is_changed(
    client: Client, records: Records, monkeypatch: Any
) -> None:
    """Two clients send the same new id at once: both were told that it is not there."""
    create_it = records.assistants.create

    def create_second(**fields: Any) -> Any:
        create_it(id="mine", name="theirs", model="m")
        return create_it(**fields)

    monkeypatch.setattr(records.assistants, "create", create_second)

    answer = client.simulate_post("/v1/assistants/mine", json={"name": "ours"})

    assert (answer.status_code, answer.json["name"], answer.json["model"]) == (200, "ours", "m")


# -- deleting -----------------------------------------------------------------------------------------------------------


def test_a_deleted_assistant_is_gone_and_threads_go_on_naming_it(client: Client) -> None:
    made = create(client, name="Tutor")
    thread = client.simulate_post("/v1/threads", json={"assistants": [made["id"]]}).json

    answer = client.simulate_delete(f"/v1/assistants/{made['id']}")

    assert answer.json == {"id": made["id"], "object": "assistant.deleted", "deleted": True}
    assert client.simulate_get(f"/v1/assistants/{made['id']}").status_code == 404
    assert client.simulate_get(f"/v1/threads/{thread['id']}").json == thread


# -- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"name": 7}, "invalid_value", "name"),
        ({"name": "x" * 257}, "invalid_value", "name"),
        ({"description": "x" * 513}, "invalid_value", "description"),
        ({"instructions": "x" * 256_001}, "invalid_value", "instructions"),
        ({"avatar": {}}, "invalid_value", "avatar"),
        ({"model": 7}, "invalid_value", "model"),
        ({"model": "x" * 2049}, "invalid_value", "model"),
        ({"models": []}, "invalid_value", "models"),
        ({"models": "m"}, "invalid_value", "models"),
        ({"models": [{}]}, "missing_required_parameter", "models[0].model_id"),
        ({"models": ["a", {"model_id": 7}]}, "invalid_value", "models[1].model_id"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"temperature": "nan"}, "invalid_value", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"parameters": {"top_k": -1}}, "invalid_value", "parameters.top_k"),
        ({"parameters": [1]}, "invalid_value", "parameters"),
        ({"response_format": "json"}, "invalid_value", "response_format"),
        ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": 7}},
            "invalid_value",
            "response_format.json_schema",
        ),
        ({"tools": {}}, "invalid_value", "tools"),
        ({"tools": [7]}, "invalid_value", "tools[0]"),
        ({"tools": [{}]}, "missing_required_parameter", "tools[0].type"),
        ({"tools": [{"type": "function"}, {"type": "magic"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{"type": "code_interpreter"}, {"type": "magic"}]}, "invalid_value", "tools[1].type"),
        ({"tools": [{"type": ["function"]}]}, "invalid_value", "tools[0].type"),
        ({"tools": [{"type": "function", "function": "f"}]}, "invalid_value", "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "missing_required_parameter", "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "invalid_value", "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "invalid_value",
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "file_search"}] * 129}, "invalid_value", "tools"),
        ({"events": []}, "invalid_value", "events"),
        ({"events": {"in": "x"}}, "invalid_value", "events.in"),
        ({"file_ids": [7]}, "invalid_value", "file_ids[0]"),
        ({"metadata": {"k": []}}, "invalid_value", "metadata.k"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_value", "metadata"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_field_is_400_with_its_path_and_nothing_is_written(
    make_client: Any, fields: dict[str, Any], code: str, param: str
) -> None:
    client = make_client(max_body_bytes=1_000_000)
    made = create(client, name="before")
    path = f"/v1/assistants/{made['id']}"

    for answer in (
        client.simulate_post("/v1/assistants", json=fields),
        client.simulate_post(path, json=fields),
        client.simulate_patch(path, json=fields),
        client.simulate_post("/v1/assistants/new-one", json=fields),
    ):
        check_refusal(answer, 400, code, param)

    assert {one["id"] for one in client.simulate_get("/v1/assistants").json["data"]} == {"jan", made["id"]}
    assert client.simulate_get(path).json == made


def test_a_trailing_comma_is_no_json(client: Client) -> None:
    """F05's own example of modifyAssistant has one."""
    body = b'{"models": [{"model_id": "model_0"}], "name": "Physics Tutor", "instructions": "Be concise!",}'

    check_refusal(client.simulate_post("/v1/assistants/jan", body=body), 400, "invalid_json", None)


def test_assistants_are_listed_the_newest_first_and_paged(client: Client) -> None:
    ids = ["jan", *(create(client, name=str(n))["id"] for n in range(4))]

    first = client.simulate_get("/v1/assistants", params={"limit": 3}).json
    rest = client.simulate_get("/v1/assistants", params={"limit": 3, "after": first["last_id"]}).json

    assert [one["id"] for one in first["data"] + rest["data"]] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
