"""Downloads: what to get and how it is named, who may say so, and how far they are."""

from __future__ import annotations

from typing import Any

import pytest

from api.scripted_runtime import ScriptedRuntime
from api.seed_shapes import CHANGED_STATE, check
from hostler.api import shapes
from hostler.domain import Lifecycle
from hostler.errors import ModelExists
from hostler.views import PullView


def pull_of(runtime: ScriptedRuntime) -> Any:
    (call,) = [call for call in runtime.calls if call[0] == "pull"]
    return call[1]


def test_a_download_without_a_body_means_the_default_model(client: Any, runtime: Any) -> None:
    answer = client.simulate_post("/v1/models")

    assert answer.status_code == 200
    check(answer.json, CHANGED_STATE)
    assert pull_of(runtime).reference == "zephyr-7b"
    assert answer.json["state"] == "downloaded"
    assert answer.json["message"] == "The model zephyr-7b is downloaded"


def test_a_download_without_a_body_is_400_when_no_default_is_configured(make_client: Any) -> None:
    answer = make_client(default_model="").simulate_post("/v1/models")

    assert answer.status_code == 400
    assert answer.json["error"]["code"] == "missing_required_parameter"
    assert answer.json["error"]["param"] == "source_url"


def test_a_download_answers_with_its_task(client: Any) -> None:
    answer = client.simulate_post("/v1/models", json={"model": "new"}).json

    assert answer == {
        "id": "new",
        "object": "model",
        "state": "downloading",
        "message": "Starting download new",
        "task": {
            "id": "new",
            "type": "Model",
            "items": [
                {
                    "id": "new",
                    "downloadUrl": "https://example.test/zephyr.gguf",
                    "localPath": "new/zephyr.gguf",
                    "checksum": "N/A",
                    "bytes": 100,
                    "downloadedBytes": 42,
                }
            ],
        },
    }


@pytest.mark.parametrize(
    ("body", "query", "reference", "model_id"),
    [
        ({"source_url": "https://host/a.gguf"}, "", "https://host/a.gguf", None),
        ({"source_url": "https:/host/a.gguf", "id": "mine"}, "", "https://host/a.gguf", "mine"),
        ({"source_url": "https://host/a.gguf", "model": "mine"}, "", "https://host/a.gguf", "mine"),
        ({}, "source_url=https%3A%2F%2Fhost%2Fa.gguf", "https://host/a.gguf", None),
        ({"model": "org:repo:file.gguf", "id": "mine"}, "", "org:repo:file.gguf", "mine"),
        ({"id": "zephyr-7b"}, "", "zephyr-7b", None),
        ({"sources": [{"filename": "a", "url": "https://host/a.gguf"}], "id": "mine"}, "", "https://host/a.gguf", "mine"),
        ({"model": "pypi:llm-x", "source_url": None}, "", "pypi:llm-x", None),
    ],
)
def test_what_to_download_may_be_named_in_several_ways(
    client: Any, runtime: Any, body: dict[str, Any], query: str, reference: str, model_id: str | None
) -> None:
    assert client.simulate_post("/v1/models", json=body, query_string=query).status_code == 200

    assert (pull_of(runtime).reference, pull_of(runtime).id) == (reference, model_id)


def test_settings_of_a_download_are_stored_native_under_any_of_their_names(client: Any, runtime: Any) -> None:
    body = {
        "model": "new",
        "name": "New",
        "settings": {"ctx_len": "4096"},
        "engine_parameters": {"ngl": "5", "ctx_len": 2048},
        "parameters": {"temperature": "0.5"},
        "model_parameters": {"max_tokens": "7"},
        "metadata": {"author": "me"},
    }

    client.simulate_post("/v1/models", json=body)

    request = pull_of(runtime)
    assert request.settings == {"ctx_len": 4096, "ngl": 5}
    assert request.parameters == {"temperature": 0.5, "token_limit": 7}
    assert (request.name, request.metadata, request.is_from_cli) == ("New", {"author": "me"}, False)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"source_url": 5}, "source_url"),
        ({"model": "new", "settings": {"ctx_len": 5}}, "settings.ctx_len"),
        ({"model": "new", "parameters": {"temperature": 5}}, "parameters.temperature"),
        ({"model": "new", "sources": {"url": "x"}}, "sources"),
        ({"model": "new", "wait": "maybe"}, "wait"),
    ],
)
def test_a_bad_field_of_a_download_is_400_with_its_path(client: Any, body: dict[str, Any], param: str) -> None:
    answer = client.simulate_post("/v1/models", json=body)

    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize(("body", "query"), [({"model": "new", "wait": True}, ""), ({"model": "new"}, "wait=true")])
def test_a_download_that_waits_says_so_to_the_runtime(client: Any, runtime: Any, body: dict[str, Any], query: str) -> None:
    answer = client.simulate_post("/v1/models", json=body, query_string=query)

    assert runtime.calls[-1][2] is True
    assert answer.json["state"] == "downloaded"
    assert runtime.held == ["download"]


def test_an_id_bound_to_another_source_is_409(client: Any, runtime: Any) -> None:
    runtime.to_raise = ModelExists("zephyr-7b is already here, from another source")

    answer = client.simulate_post("/v1/models", json={"id": "zephyr-7b", "source_url": "https://host/b.gguf"})

    assert (answer.status_code, answer.json["error"]["code"]) == (409, "model_exists")


def test_download_by_get_takes_known_ids_only(client: Any, runtime: Any) -> None:
    known = client.simulate_get("/v1/models/download/catalogue-only", query_string="ignoreSSL=true&proxy=http://p")
    unknown = client.simulate_get("/v1/models/download/https://host/a.gguf")

    assert (known.status_code, known.json["state"]) == (200, "downloading")
    assert pull_of(runtime).reference == "catalogue-only"
    assert (unknown.status_code, unknown.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("is_allowed", [False, True])
def test_proxy_and_ignore_ssl_are_honoured_only_where_the_settings_allow_them(
    make_client: Any, runtime: Any, is_allowed: bool
) -> None:
    client = make_client(allow_insecure_downloads=is_allowed)

    client.simulate_get("/v1/models/download/catalogue-only", query_string="ignoreSSL=true&proxy=http://p")

    request = pull_of(runtime)
    assert (request.proxy, request.verify_tls) == (("http://p", False) if is_allowed else (None, True))


@pytest.mark.parametrize("base", ["", "/v1"])
def test_progress_has_jans_shape(client: Any, base: str) -> None:
    client.simulate_post("/v1/models", json={"model": "org/new"})

    answer = client.simulate_get(f"{base}/download/getDownloadProgress/org%2Fnew")

    assert answer.json == {
        "modelId": "org/new",
        "fileName": "zephyr.gguf",
        "percent": 0.42,
        "speed": 10,
        "time": {"elapsed": 12.0, "remaining": 5.8},
        "size": {"total": 100, "transferred": 42},
        "downloadState": "downloading",
        "error": None,
    }


@pytest.mark.parametrize(
    ("lifecycle", "error", "total", "expected", "percent"),
    [
        (Lifecycle.DOWNLOADED, None, 100, "end", 1.0),
        (Lifecycle.RUNNING, None, 100, "end", 1.0),
        (Lifecycle.NOT_DOWNLOADED, "connection lost", 100, "error", 0.42),
        (Lifecycle.DOWNLOADING, None, None, "downloading", 0.0),
    ],
)
def test_progress_tells_running_ended_and_failed_downloads_apart(
    lifecycle: Lifecycle, error: str | None, total: int | None, expected: str, percent: float
) -> None:
    progress = shapes.download_progress(PullView("new", lifecycle, (), total, 42, 0.0, 1.0, error))

    assert (progress.downloadState, progress.percent, progress.time.remaining) == (expected, percent, None)


def test_progress_of_nothing_is_404(client: Any) -> None:
    assert client.simulate_get("/download/getDownloadProgress/phi").status_code == 404
