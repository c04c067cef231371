"""The document at /openapi.json: valid, whole, true to the route table and to the types that decode and encode."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import schemathesis

from api.document import body_schema, check, document, nodes, operation, operations, routes, validator
from hostler.api.errors import TABLE
from hostler.api.openapi import make_document
from hostler.api.schema.convert import convert
from hostler.api.schema.models import DownloadBody, StartNamedBody, UpdateBody
from hostler.errors import InvalidRequest

#: spec/API.md section 14, priorities 1 and 2, /responses apart: operationId, method, path; the ids of hostler's aliases are
#: those of section 1. A `-` there is no id here.
CHECKLIST = """
listModels GET /models
downloadModel POST /models
getModel GET /models/{model_id}
deleteModel DELETE /models/{model_id}
startModel PUT /models/{model_id}/start
stopModel PUT /models/{model_id}/stop
startModelPost POST /models/{model_id}/start
stopModelPost POST /models/{model_id}/stop
createChatCompletion POST /chat/completions
downloadModelById GET /models/download/{model_id}
createThread POST /threads
listThreads GET /threads
getThread GET /threads/{thread_id}
listThreadMessage GET /threads/{thread_id}/
modifyThread POST /threads/{thread_id}
patchThread PATCH /threads/{thread_id}
deleteThread DELETE /threads/{thread_id}
getThreadAssistants GET /threads/{thread_id}/assistants
postThreadAssistants POST /threads/{thread_id}/assistants/{assistants_id}
listMessages GET /threads/{thread_id}/messages
createMessage POST /threads/{thread_id}/messages
retrieveMessage GET /threads/{thread_id}/messages/{message_id}
listMessageFiles GET /threads/{thread_id}/messages/{message_id}/files
retrieveMessageFile GET /threads/{thread_id}/messages/{message_id}/files/{file_id}
listAssistants GET /assistants
createAssistant POST /assistants
getAssistant GET /assistants/{assistant_id}
modifyAssistant POST /assistants/{assistant_id}
deleteAssistant DELETE /assistants/{assistant_id}
- GET /download/getDownloadProgress/{model_id}
listAvailableModels GET /models/available
loadModel POST /models/load
unloadModel POST /models/unload
- POST /completions
- POST /embeddings
- POST /threads/{thread_id}/messages/{message_id}
- DELETE /threads/{thread_id}/messages/{message_id}
- POST /threads/{thread_id}/runs
- GET /threads/{thread_id}/runs
- GET /threads/{thread_id}/runs/{run_id}
- POST /threads/{thread_id}/runs/{run_id}
- POST /threads/{thread_id}/runs/{run_id}/cancel
- POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs
- GET /threads/{thread_id}/runs/{run_id}/steps
- GET /threads/{thread_id}/runs/{run_id}/steps/{step_id}
- POST /threads/runs
- POST /files
- GET /files
- GET /files/{file_id}
- GET /files/{file_id}/content
- DELETE /files/{file_id}
ModelsController_pullModel POST /models/pull
ModelsController_stopModelDownload DELETE /models/pull
ModelsController_startModel POST /models/start
ModelsController_stopModel POST /models/stop
- GET /models/status/{model_id}
ModelsController_update PATCH /models/{model_id}
ModelsController_importModel POST /models/import
AssistantsController_update PATCH /assistants/{assistant_id}
- PATCH /threads/{thread_id}/messages/{message_id}
- GET /engines
EnginesController_listInstalledEngines GET /engines/{name}
- GET /hardware
HealthController_check GET /healthz
"""


def test_the_document_is_valid_openapi() -> None:
    schemathesis.openapi.from_dict(document()).validate()

    assert document()["openapi"] == "3.1.0"
    for schema in document()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_checklist_of_the_contract_is_in_it() -> None:
    found = {(method.upper(), path): one for path, method, one in operations()}

    for line in CHECKLIST.split("\n")[1:-1]:
        name, method, path = line.split()
        assert (method, path) in found, line
        assert name in ("-", found[method, path]["operationId"]), line
        assert any(status.startswith("2") for status in found[method, path]["responses"]), f"{line} only answers 501"
    assert {name: hook["post"]["operationId"] for name, hook in document()["webhooks"].items()} == {
        "ModelObject": "ModelObject",
        "AssistantObject": "AssistantObjects",
        "MessageObject": "MessageObject",
        "ThreadObject": "ThreadObject",
    }


def test_every_route_is_in_it_but_the_one_that_http_cannot_have() -> None:
    documented = {(method.upper(), path) for path, method, _ in operations()}

    missing = {
        (route.method, route.path)
        for route in routes()
        if (route.method, route.path.removeprefix("/v1")) not in documented or route.operation is None
    }

    assert missing == {("GET", "/events")}  # a WebSocket; /v1/events is the stream


def test_operation_ids_are_unique_and_tags_are_explained() -> None:
    names = [one["operationId"] for _, _, one in operations()]
    tags = {tag["name"] for tag in document()["tags"]}

    assert len(names) == len(set(names))
    assert {tag for _, _, one in operations() for tag in one["tags"]} == tags
    assert {tag for group in document()["x-tagGroups"] for tag in group["tags"]} == tags
    assert all(tag["description"] for tag in document()["tags"])


def test_every_reference_leads_somewhere_and_every_component_is_led_to() -> None:
    refs = {node["$ref"] for node in nodes(document()) if isinstance(node.get("$ref"), str)}
    components = document()["components"]

    for ref in refs:
        _, _, kind, name = ref.split("/")
        assert name in components[kind], ref
    assert {name for ref in refs for name in [ref.rpartition("/")[2]]} >= components["schemas"].keys()


def test_component_names_are_plain_words_and_no_mark_is_left() -> None:
    """Two structs of one name would be told apart by their modules: give one of them another name."""
    assert all(re.fullmatch(r"[A-Za-z]+", name) for name in document()["components"]["schemas"])
    for node in nodes(document()):
        assert not {"x-required", "x-table", "x-exactly"} & node.keys()


def test_each_link_names_an_operation_and_parameters_that_it_has() -> None:
    by_name = {one["operationId"]: (path, one) for path, _, one in operations()}
    links = [
        link for _, _, one in operations() for answer in one["responses"].values() for link in answer.get("links", {}).values()
    ]

    assert len(links) > 5
    for link in links:
        path, target = by_name[link["operationId"]]
        assert set(re.findall(r"\{(\w+)\}", path)) == link["parameters"].keys(), target["operationId"]


def test_rows_without_a_responder_are_documented_as_501_and_no_others() -> None:
    later = {route.operation.id for route in routes() if route.responder is None and route.operation is not None}

    for _, _, one in operations():
        assert ("501" in one["responses"]) == (one["operationId"] in later)
        assert any(status.startswith("2") for status in one["responses"]) == (one["operationId"] not in later)


def test_the_error_responses_name_every_code_of_their_status() -> None:
    responses = document()["components"]["responses"]

    for kind, row in TABLE.items():
        if f"Error{row.status}" in responses:
            assert kind.code in responses[f"Error{row.status}"]["description"]
    assert "retry-after" in responses["Error429"]["headers"]
    check({"error": {"message": "m", "type": "t", "param": None, "code": "c"}, "message": "m"}, "ErrorResponse")


def test_a_server_with_keys_says_so() -> None:
    open_one, closed = document()["security"], make_document(routes(), needs_key=True)["security"]

    assert {} in open_one
    assert {} not in closed
    assert [*open_one][1:] == closed


def test_what_lies_outside_of_v1_names_its_own_server() -> None:
    assert document()["servers"][0]["url"] == "/v1"
    assert operation("HealthController_check")["servers"] == [{"url": "/"}]
    assert operation("getDownloadProgress")["servers"] == [{"url": "/v1"}, {"url": "/"}]
    assert "servers" not in operation("listModels")


# -- served -------------------------------------------------------------------------------------------------------------


def test_it_is_served_as_it_is_made_once_for_all(client: Any) -> None:
    first = client.simulate_get("/openapi.json")
    again = client.simulate_get("/openapi.json", headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["content-type"] == "application/json"
    assert first.json == json.loads(json.dumps(document()))
    assert (again.status_code, again.content) == (304, b"")


def test_with_a_key_set_the_document_needs_it(make_client: Any) -> None:
    client = make_client(api_key="secret")

    assert client.simulate_get("/openapi.json").status_code == 401
    assert client.simulate_get("/openapi.json", headers={"Authorization": "Bearer secret"}).status_code == 200


# -- bodies: what the document says is what is taken ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("createChatCompletion", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
        ("createChatCompletion", {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": "2", "stream": "true"}),
        ("createChatCompletion", {"model": "m", "messages": [{"role": "assistant", "tool_calls": [{}]}], "max_tokens": "5"}),
        ("createChatCompletion", {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": "0.7"}),
        ("createCompletion", {"model": "m", "prompt": ["a", "b"], "logprobs": 5, "stop": "x"}),
        ("createCompletion", {"model": "m", "prompt": [1, 2], "seed": None}),
        ("startModel", {}),
        ("startModel", {"ctx_len": "auto", "n_parallel": "4", "settings": {"ngl": 0}, "wait": "false"}),
        ("ModelsController_update", {"parameters": {"ctx_len": "2048", "temperature": "0.7"}, "stop": None, "name": "x"}),
        ("downloadModel", {"source_url": "https://host/a.gguf", "sources": [{"url": "x"}, "y"]}),
    ],
)
def test_what_is_taken_is_valid(name: str, body: dict[str, Any]) -> None:
    check(body, body_schema(name))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("createChatCompletion", {}),
        ("createChatCompletion", {"model": "m"}),
        ("createChatCompletion", {"model": "m", "messages": []}),
        ("createChatCompletion", {"model": "m", "messages": [{"content": "x"}]}),
        ("createChatCompletion", {"model": "m", "messages": [{"role": "robot", "content": "x"}]}),
        ("createChatCompletion", {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": "9"}),
        ("createCompletion", {"model": "m", "prompt": ["a", 1]}),
        ("createCompletion", {"model": "m", "prompt": []}),
        ("startModel", {"ctx_len": "64"}),
        ("startModel", {"n_parallel": 257}),
        ("ModelsController_startModel", {"model": None}),
        ("ModelsController_update", {"temperature": "2.1"}),
        ("ModelsController_update", {"parameters": {"ctx_len": 1}}),
        ("ModelsController_importModel", {"modelPath": "/x", "option": "copy"}),
    ],
)
def test_what_is_refused_is_not_valid(name: str, body: dict[str, Any]) -> None:
    assert not validator(body_schema(name)).is_valid(body)


@pytest.mark.parametrize(
    ("kind", "name"), [(DownloadBody, "DownloadBody"), (StartNamedBody, "StartNamedBody"), (UpdateBody, "UpdateBody")]
)
@pytest.mark.parametrize("value", [True, 1, 0, "1", "true", 1.5, "1.5", "yes", [], {}, "x", None])
def test_a_struct_decodes_just_what_its_schema_takes(kind: Any, name: str, value: Any) -> None:
    for field in kind.__struct_fields__:
        body = {field: value}
        try:
            convert(body, kind)
        except InvalidRequest:
            is_taken = False
        else:
            is_taken = True
        properties = document()["components"]["schemas"][name]["properties"]
        is_valid = validator(properties[field]).is_valid(value)
        # A required field is optional when it is decoded: its absence has an error of its own.
        assert is_valid == is_taken or (value is None and "model" in field), (field, value)
