"""Cortex's spellings of the model operations: pull, start, stop, status, import."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.errors import InvalidModelFile, InvalidRequest


def test_cortex_pull_and_its_end(client: Any, runtime: Any) -> None:
    started = client.simulate_post("/v1/models/pull", json={"model": "org:repo:file.gguf", "id": "new"})
    stopped = client.simulate_delete("/v1/models/pull", json={"taskId": "new"})
    again = client.simulate_delete("/v1/models/pull", json={"taskId": "new"})

    assert started.json["message"] == "Model start downloading!"
    assert started.json["task"]["id"] == started.json["id"] == "new"
    assert stopped.json == {"message": "Download stopped successfully", "taskId": "new"}
    assert again.status_code == 404


@pytest.mark.parametrize(("method", "param"), [("POST", "model"), ("DELETE", "taskId")])
def test_cortex_pull_needs_a_name(client: Any, method: str, param: str) -> None:
    answer = client.simulate_request(method, "/v1/models/pull", json={})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/models/start", "/v1/models/load"])
def test_cortex_start_takes_the_model_and_its_settings_in_the_body(client: Any, runtime: Any, path: str) -> None:
    answer = client.simulate_post(path, json={"model": "zephyr-7b", "ctx_size": 512, "timeout": 5})

    assert answer.json == {
        "id": "zephyr-7b",
        "object": "model",
        "state": "running",
        "message": "Started successfully!",
        "modelId": "zephyr-7b",
        "success": True,
        "model": "zephyr-7b",
    }
    assert runtime.calls == [("start", "zephyr-7b", {"ctx_len": 512}, True)]


def test_cortex_stop_is_idempotent_and_unload_is_not(client: Any) -> None:
    expected = {
        "id": "phi",
        "object": "model",
        "state": "stopped",
        "message": "Stopped successfully!",
        "success": True,
        "model": "phi",
    }

    assert client.simulate_post("/v1/models/unload", json={"model": "phi"}).json == expected
    assert client.simulate_post("/v1/models/stop", json={"model": "phi"}).json == expected
    assert client.simulate_post("/v1/models/unload", json={"model": "phi"}).status_code == 404


@pytest.mark.parametrize("path", ["start", "stop", "load", "unload"])
def test_cortex_actions_need_a_model(client: Any, path: str) -> None:
    answer = client.simulate_post(f"/v1/models/{path}")

    assert (answer.status_code, answer.json["error"]["param"]) == (400, "model")


def test_cortex_status_is_200_for_a_running_model_400_for_another_404_for_none(client: Any) -> None:
    assert client.simulate_get("/v1/models/status/phi").json == {"message": "Model is running"}
    assert client.simulate_get("/v1/models/status/org/name:Q4@main").status_code == 400
    assert client.simulate_get("/v1/models/status/nope").status_code == 404


def test_cortex_import_links_a_path_when_that_is_allowed(make_client: Any, runtime: Any) -> None:
    client = make_client(allow_file_sources=True)

    answer = client.simulate_post("/v1/models/import", json={"model": "mine", "modelPath": "/m/x.gguf", "name": "Mine"})

    assert answer.json == {
        "result": "OK",
        "modelHandle": "mine",
        "message": "Model is imported successfully!",
        "id": "mine",
        "object": "model",
        "state": "downloaded",
    }
    assert runtime.calls == [("import", "/m/x.gguf", "mine", "Mine")]


def test_the_command_line_may_hand_a_folder_over(make_client: Any, runtime: Any) -> None:
    client = make_client(cli_token="token-of-this-home")

    answer = client.simulate_post(
        "/v1/models/import",
        json={"model": "mine", "modelPath": "/m/x", "option": "move"},
        headers={"authorization": "Bearer token-of-this-home"},
    )

    assert answer.json["modelHandle"] == "mine"
    assert runtime.calls == [("move", "/m/x", "mine", None)]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "modelPath"),
        ({"modelPath": "/m/x.gguf", "option": "copy"}, "unsupported_parameter", "option"),
        ({"modelPath": "/m/x.gguf", "option": "burn"}, "invalid_value", "option"),
        ({"modelPath": "/m/x", "option": "move"}, "unsupported_parameter", "option"),
    ],
)
def test_cortex_import_refuses_what_it_cannot_do(make_client: Any, body: dict[str, Any], code: str, param: str) -> None:
    answer = make_client(allow_file_sources=True).simulate_post("/v1/models/import", json=body)

    assert (answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]) == (400, code, param)


def test_import_of_a_broken_file_is_the_requests_fault(make_client: Any, runtime: Any) -> None:
    client = make_client(allow_file_sources=True)
    runtime.to_raise = InvalidModelFile("/m/x.gguf is truncated")

    answer = client.simulate_post("/v1/models/import", json={"modelPath": "/m/x.gguf"})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, "modelPath")
    assert "truncated" in answer.json["error"]["message"]


def test_import_blames_the_fields_that_the_request_has(make_client: Any, runtime: Any) -> None:
    client = make_client(allow_file_sources=True)

    for blamed, param in {"path": "modelPath", "id": "model"}.items():
        runtime.to_raise = InvalidRequest("no", param=blamed)
        answer = client.simulate_post("/v1/models/import", json={"modelPath": "/m/x.gguf"})

        assert (answer.status_code, answer.json["error"]["param"]) == (400, param)
