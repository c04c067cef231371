"""The route table: what exists, what is refused, and how paths find their responder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from api.scripted_runtime import ScriptedRuntime
from hostler.api.routes import Route, make_routes
from hostler.config import load_settings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "openai-compat.md"


def table() -> tuple[Route, ...]:
    return make_routes(ScriptedRuntime(), load_settings(Path("unused"), environ={}))  # type: ignore[arg-type]


ROUTES = table()


def test_no_route_is_there_twice() -> None:
    keys = [(route.method, route.path) for route in ROUTES]

    assert len(set(keys)) == len(keys)


def test_the_document_has_a_line_for_every_route_and_says_which_are_not_there_yet() -> None:
    documented = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\| `(GET|POST|PUT|PATCH|DELETE) ([^`]+)` \| (\w+) \|", line)
        if match:
            documented[match[1], match[2]] = match[3]

    assert documented == {(route.method, route.path): "yes" if route.responder else "later" for route in ROUTES}


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.responder is None], ids=lambda route: f"{route.method} {route.path}"
)
def test_documented_operations_of_later_releases_are_501(client: Any, route: Route) -> None:
    path = re.sub(r"\{\w+\}", "some-id", route.path)

    answer = client.simulate_request(route.method, path)

    assert answer.status_code == 501
    assert answer.json["error"]["code"] == "not_implemented"
    assert answer.json["error"]["type"] == "server_error"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/phi", "/healthz", "/v1/requests", "/"])
def test_routes_answer_with_and_without_a_trailing_slash_and_with_doubled_ones(client: Any, path: str) -> None:
    for variant in (path, f"{path}/", f"/{path}", path.replace("/v1", "/v1/")):
        assert client.simulate_get(variant).status_code == 200, variant


@pytest.mark.parametrize("path", ["/v1", "/v2/models", "/v1/modelsx", "/models", "/v1/chat", "/favicon.ico"])
def test_unknown_paths_are_404_in_the_error_form(client: Any, path: str) -> None:
    answer = client.simulate_get(path)

    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "route_not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/models", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("GET", "/v1/chat/completions", {"POST", "OPTIONS"}),
        ("POST", "/v1/models/phi", {"GET", "HEAD", "DELETE", "PATCH", "OPTIONS"}),
        ("GET", "/v1/models/phi/start", {"PUT", "POST", "OPTIONS"}),
        ("DELETE", "/v1/models/org/name/stop", {"PUT", "POST", "OPTIONS"}),
        ("GET", "/v1/models/pull", {"POST", "DELETE", "OPTIONS"}),
        ("POST", "/v1/models/status/phi", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_known_path_with_another_method_is_405_and_says_what_is_allowed(
    client: Any, method: str, path: str, allowed: set[str]
) -> None:
    answer = client.simulate_request(method, path)

    assert answer.status_code == 405
    assert answer.json["error"]["code"] == "method_not_allowed"
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", {"GET", "POST", "HEAD"}),
        ("/v1/models/phi", {"GET", "HEAD", "DELETE", "PATCH", "OPTIONS"}),
        ("/v1/models/org/name/start", {"PUT", "POST", "OPTIONS"}),
        ("/v1/models/status/phi", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_options_says_what_a_path_takes(client: Any, path: str, allowed: set[str]) -> None:
    answer = client.simulate_options(path)

    assert (answer.status_code, answer.content) == (200, b"")
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed


def test_head_is_get_without_a_body(client: Any) -> None:
    answer = client.simulate_head("/v1/models/phi")

    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) > 100
    assert answer.text == ""


# -- model ids in paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/org/name:Q4@main",
        "/v1/models/org%2Fname%3AQ4%40main",
        "/v1//models//org/name:Q4@main/",
    ],
)
def test_an_id_with_slashes_colon_and_at_is_found_raw_and_encoded(client: Any, path: str) -> None:
    assert client.simulate_get(path).json["id"] == "org/name:Q4@main"


@pytest.mark.parametrize("scheme", ["https://", "https:/", "https:%2F%2F", "https%3A%2F%2F"])
def test_a_model_is_found_by_its_url_raw_encoded_and_with_a_lost_slash(client: Any, runtime: Any, scheme: str) -> None:
    url = runtime.views["phi"].manifest.source_url

    answer = client.simulate_get("/v1/models/" + url.replace("https://", scheme))

    assert answer.status_code == 200


def test_actions_win_over_ids(client: Any, runtime: Any) -> None:
    client.simulate_put("/v1/models/org%2Fname:Q4@main/start")
    client.simulate_post("/v1/models/phi/stop/")

    assert [call[:2] for call in runtime.calls] == [("start", "org/name:Q4@main"), ("stop", "phi")]


def test_a_path_is_percent_decoded_once_and_never_again(client: Any, runtime: Any) -> None:
    answer = client.simulate_get("/v1/models/a%252Fb")

    assert answer.status_code == 404
    assert answer.json["error"]["message"] == "The model a%2Fb does not exist"


def test_a_query_string_is_no_part_of_the_id(client: Any) -> None:
    assert client.simulate_get("/v1/models/phi", query_string="download=true").json["id"] == "phi"


# -- the server itself ------------------------------------------------------------------------------------------------


def test_readiness_goes_down_while_the_server_drains_and_health_does_not(client: Any, runtime: Any) -> None:
    assert client.simulate_get("/readyz").status_code == 200

    runtime.is_ready = False

    answer = client.simulate_get("/readyz")
    assert answer.status_code == 503
    assert answer.json["error"]["code"] == "engine_unavailable"
    assert answer.headers["retry-after"] == "1"
    assert client.simulate_get("/healthz").status_code == 200


# -- requests ---------------------------------------------------------------------------------------------------------


def test_running_requests_are_listed_and_cancelled_by_id(client: Any, runtime: Any) -> None:
    from api.scripted_runtime import Pause
    from hostler.domain import GenerateRequest

    runtime.enqueue(Pause())
    generation = runtime.generate(GenerateRequest("chatcmpl-1", "phi"))

    listed = client.simulate_get("/v1/requests").json
    cancelled = client.simulate_delete("/v1/requests/chatcmpl-1")

    assert listed["has_more"] is False
    assert [(one["id"], one["model"], one["state"]) for one in listed["data"]] == [("chatcmpl-1", "phi", "decode")]
    assert cancelled.json == {"id": "chatcmpl-1", "object": "request", "cancelled": True, "deleted": True}
    assert list(generation.events(0.01))[-1].reason.value == "cancelled"


def test_cancelling_an_unknown_request_is_404(client: Any) -> None:
    answer = client.simulate_delete("/v1/requests/nope")

    assert (answer.status_code, answer.json["error"]["code"]) == (404, "request_not_found")
