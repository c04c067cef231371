"""Real answers against the document: each route's, and each event of a stream. What the structs of
`schema/inference_answers.py` describe, the hot path writes by itself; here the two are held together, field by field."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from api.document import answer_schema, check, document
from api.scripted_runtime import HELLO, finish, text
from hostler.api.schema.inference_answers import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from hostler.domain import TokenLogprob, TopLogprob
from hostler.errors import EngineUnavailable

TOKENS = (TokenLogprob(5, b"Hel", -0.5, (TopLogprob(5, b"Hel", -0.5), TopLogprob(6, b"\xe2", float("-inf")))),)
WITH_LOGPROBS = (text("Hel", logprobs=TOKENS), text("lo"), finish())

JSON_ANSWERS = [
    ("getIndex", "GET", "/", None),
    ("HealthController_check", "GET", "/healthz", None),
    ("getReadiness", "GET", "/readyz", None),
    ("listModels", "GET", "/v1/models?all=true&schema=native", None),
    ("getModel", "GET", "/v1/models/org%2Fname:Q4@main?schema=native", None),
    ("startModelPost", "POST", "/v1/models/zephyr-7b/start?wait=false", {"cont_batching": False}),
    ("stopModelPost", "POST", "/v1/models/phi/stop", None),
    ("downloadModelById", "GET", "/v1/models/download/catalogue-only", None),
    ("loadModel", "POST", "/v1/models/load", {"model": "zephyr-7b", "cont_batching": "false"}),
    ("unloadModel", "POST", "/v1/models/unload", {"model": "phi"}),
    ("ModelsController_pullModel", "POST", "/v1/models/pull", {"model": "new"}),
    ("ModelsController_startModel", "POST", "/v1/models/start", {"model": "zephyr-7b"}),
    ("ModelsController_stopModel", "POST", "/v1/models/stop", {"model": "phi"}),
    ("getModelStatus", "GET", "/v1/models/status/phi", None),
    ("ModelsController_update", "PATCH", "/v1/models/phi", {"ctx_len": "512"}),
    ("ModelsController_importModel", "POST", "/v1/models/import", {"modelPath": "/m/x.gguf"}),
    ("listRequests", "GET", "/v1/requests", None),
    ("createChatCompletion", "POST", "/v1/chat/completions", {"model": "phi", "messages": [{"role": "user", "content": "x"}]}),
    ("createCompletion", "POST", "/v1/completions", {"model": "phi", "prompt": ["a", "b"]}),
]


@pytest.mark.parametrize(("name", "method", "path", "body"), JSON_ANSWERS, ids=[row[0] for row in JSON_ANSWERS])
def test_an_answer_is_what_the_document_says(make_client: Any, name: str, method: str, path: str, body: Any) -> None:
    base, _, query = path.partition("?")

    answer = make_client(allow_file_sources=True).simulate_request(method, base, query_string=query, json=body)

    assert answer.status_code == 200, answer.text
    check(answer.json, answer_schema(name))


def test_a_download_s_answers_are_what_the_document_says(client: Any) -> None:
    client.simulate_post("/v1/models", json={"model": "new"})

    progress = client.simulate_get("/v1/download/getDownloadProgress/new")
    cancelled = client.simulate_delete("/v1/models/pull", json={"taskId": "new"})

    check(progress.json, answer_schema("getDownloadProgress"))
    check(cancelled.json, answer_schema("ModelsController_stopModelDownload"))


@pytest.mark.parametrize("status", [400, 404, 409, 429])
def test_an_error_is_what_the_document_says_of_its_status(client: Any, runtime: Any, status: int) -> None:
    runtime.n_free = 0
    path, body = {
        400: ("/v1/models/phi/start", {"ctx_len": 1}),
        404: ("/v1/models/nope/start", {"wait": False}),
        409: ("/v1/models/catalogue-only/start", {"wait": False}),
        429: ("/v1/models/phi/start", {}),
    }[status]

    answer = client.simulate_put(path, json=body)

    assert answer.status_code == status
    check(answer.json, answer_schema("startModel", status))


# -- chats and completions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [HELLO, WITH_LOGPROBS], ids=["plain", "logprobs"])
@pytest.mark.parametrize(("ask", "kind"), [("chat", ChatCompletion), ("complete", Completion)])
def test_a_whole_answer_has_the_struct_s_fields_and_no_others(
    client: Any, runtime: Any, ask: str, kind: Any, script: Any
) -> None:
    runtime.enqueue(*script)
    fields = (
        {"chat": {"logprobs": True, "top_logprobs": 2}, "complete": {"logprobs": 2}}[ask] if script is WITH_LOGPROBS else {}
    )

    answer = getattr(client, ask)(**fields)

    decoded = msgspec.json.decode(answer.content, type=kind)
    assert msgspec.to_builtins(decoded) == answer.json
    assert (decoded.choices[0].logprobs is not None) == bool(fields)


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("script", [HELLO, WITH_LOGPROBS], ids=["plain", "logprobs"])
@pytest.mark.parametrize(("ask", "kind"), [("chat", ChatCompletionChunk), ("complete", CompletionChunk)])
def test_each_event_of_a_stream_has_the_struct_s_fields_and_no_others(
    client: Any, runtime: Any, ask: str, kind: Any, script: Any, include_usage: bool
) -> None:
    runtime.enqueue(*script)
    fields = (
        {"chat": {"logprobs": True, "top_logprobs": 2}, "complete": {"logprobs": 2}}[ask] if script is WITH_LOGPROBS else {}
    )

    answer = getattr(client, ask)(stream=True, stream_options={"include_usage": include_usage}, **fields)

    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    assert len(events) >= 3
    for event in events:
        assert msgspec.to_builtins(msgspec.json.decode(event, type=kind)) == json.loads(event)
        check(json.loads(event), kind.__name__)


@pytest.mark.parametrize(("ask", "name"), [("chat", "createChatCompletion"), ("complete", "createCompletion")])
def test_an_error_in_a_stream_is_one_of_the_events_that_the_document_names(
    client: Any, runtime: Any, ask: str, name: str
) -> None:
    runtime.enqueue(text("Hel"), EngineUnavailable("The worker died"))

    answer = getattr(client, ask)(stream=True)

    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    path = "/chat/completions" if ask == "chat" else "/completions"
    events = document()["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["x-itemSchema"]
    assert {"$ref": "#/components/schemas/ErrorResponse"} in events["anyOf"]
    check(last, "ErrorResponse")
