"""Host, Origin, CORS, keys: who gets in."""

from __future__ import annotations

from typing import Any

import pytest


def get(client: Any, path: str = "/v1/models", **headers: str) -> Any:
    return client.simulate_get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


# -- Host -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:1337",
        "LOCALHOST.",
        "app.localhost",
        "127.0.0.1:1337",
        "[::1]:1337",
        "192.168.1.7:80",
        "8.8.8.8",
    ],
)
def test_localhost_names_and_ip_literals_get_in(client: Any, host: str) -> None:
    assert get(client, Host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:1337", "localhost.evil.example", "127.0.0.1.evil.example", "a, localhost"]
)
def test_other_names_in_the_host_header_are_refused_on_every_path(client: Any, host: str) -> None:
    for path in ("/v1/models", "/healthz", "/nothing/here"):
        answer = get(client, path, Host=host)

        assert answer.status_code == 403
        assert answer.json["error"]["code"] == "host_not_allowed"
        assert answer.json["error"]["type"] == "permission_error"


def test_a_configured_host_name_gets_in_whatever_its_case_and_port(make_client: Any) -> None:
    client = make_client(allowed_hosts="my.lan")

    assert get(client, Host="My.LAN:8080").status_code == 200
    assert get(client, Host="your.lan").status_code == 403


def test_every_host_gets_in_when_a_star_is_configured(make_client: Any) -> None:
    assert get(make_client(allowed_hosts="*"), Host="whatever.example").status_code == 200


# -- Origin -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://localhost", "http://127.0.0.1:5173", "http://[::1]:80", "tauri://localhost"]
)
def test_pages_of_localhost_get_in_and_may_read_the_answer(client: Any, origin: str) -> None:
    answer = get(client, Origin=origin)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["vary"] == "Origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://8.8.8.8", "http://["]
)
def test_pages_from_elsewhere_are_refused_and_get_no_cors_headers(client: Any, origin: str) -> None:
    answer = get(client, Origin=origin)

    assert answer.status_code == 403
    assert answer.json["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_that_this_server_served_itself_gets_in_from_any_address(client: Any) -> None:
    assert get(client, Host="192.168.1.7:1337", Origin="http://192.168.1.7:1337").status_code == 200
    assert get(client, Host="192.168.1.7:1337", Origin="http://192.168.1.7:8080").status_code == 403


def test_configured_origins_get_in_and_a_star_opens_for_all(make_client: Any) -> None:
    assert get(make_client(allowed_origins="https://chat.example"), Origin="https://chat.example").status_code == 200
    assert get(make_client(allowed_origins="*"), Origin="https://any.example").status_code == 200


def test_a_foreign_page_that_sends_no_origin_is_told_by_where_the_browser_says_it_comes_from(client: Any) -> None:
    """An <img> of a web page makes a GET without Origin, and GET /models/download has effects."""
    assert get(client, "/v1/models/download/zephyr-7b", Sec_Fetch_Site="cross-site").status_code == 403
    assert get(client, "/v1/models", Sec_Fetch_Site="same-origin").status_code == 200
    assert get(client, "/", Sec_Fetch_Site="cross-site").status_code == 200


def test_errors_carry_cors_headers_so_that_pages_can_read_them(client: Any) -> None:
    answer = get(client, "/v1/models/nope", Origin="http://localhost:3000")

    assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


# -- preflight --------------------------------------------------------------------------------------------------------


def preflight(client: Any, origin: str, **headers: str) -> Any:
    return client.simulate_options(
        "/v1/chat/completions",
        headers={"Origin": origin, "Access-Control-Request-Method": "POST", **headers},
    )


def test_preflight_allows_the_methods_and_headers_that_openais_browser_client_sends(make_client: Any) -> None:
    client = make_client(api_key="secret")

    answer = preflight(
        client,
        "http://localhost:3000",
        **{"Access-Control-Request-Headers": "authorization, Content-Type, x-stainless-os, x-stainless-retry-count, x-evil"},
    )

    assert answer.status_code == 200
    methods = {name.strip() for name in answer.headers["access-control-allow-methods"].split(",")}
    assert methods >= {"GET", "POST", "PUT", "PATCH", "DELETE"}
    names = {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}
    wanted = {"authorization", "content-type", "x-api-key", "openai-beta", "x-stainless-os", "x-stainless-retry-count"}
    assert names >= wanted
    assert "x-evil" not in names
    assert answer.text == ""


def test_preflight_of_a_foreign_page_is_refused(client: Any) -> None:
    assert preflight(client, "https://evil.example").status_code == 403


def test_options_without_a_page_behind_it_lists_the_methods(client: Any) -> None:
    answer = client.simulate_options("/v1/models")

    assert answer.status_code == 200
    assert {name.strip() for name in answer.headers["allow"].split(",")} == {"GET", "HEAD", "POST"}


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"Authorization": "bearer  secret"},
        {"x-api-key": "secret"},
        {"api-key": "other"},
        {"Authorization": "Bearer wrong", "x-api-key": "secret"},
    ],
)
def test_a_right_key_gets_in_by_any_of_the_three_headers(make_client: Any, headers: dict[str, str]) -> None:
    client = make_client(api_key="secret,other")

    assert client.simulate_get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "secret"},
        {"Authorization": "Basic secret"},
        {"x-api-key": "secre"},
        {"api-key": "secret2"},
        {"x-api-key": "s\u00e9cret"},
    ],
)
def test_a_wrong_or_missing_key_is_401_on_known_and_unknown_paths(make_client: Any, headers: dict[str, str]) -> None:
    client = make_client(api_key="secret")

    for path in ("/v1/models", "/v1/nothing", "/readyz"):
        answer = client.simulate_get(path, headers=headers)

        assert answer.status_code == 401
        assert answer.json["error"]["code"] == "invalid_api_key"
        assert answer.json["error"]["type"] == "invalid_request_error"
        assert "secret" not in answer.text.replace("invalid_api_key", "")


def test_health_stays_open_with_a_key_set(make_client: Any) -> None:
    assert make_client(api_key="secret").simulate_get("/healthz").status_code == 200
    assert make_client(api_key="secret").simulate_get("/healthz/").status_code == 200


def test_without_a_key_whatever_authorization_says_is_ignored(client: Any) -> None:
    assert get(client, Authorization="Bearer sk-anything").status_code == 200


def test_the_clis_token_opens_the_door_and_file_sources_and_nothing_else_does(make_client: Any, runtime: Any) -> None:
    client = make_client(api_key="secret", cli_token="token-of-this-home")
    body = {"modelPath": "/models/x.gguf"}

    by_cli = client.simulate_post("/v1/models/import", json=body, headers={"Authorization": "Bearer token-of-this-home"})
    by_key = client.simulate_post("/v1/models/import", json=body, headers={"Authorization": "Bearer secret"})

    assert by_cli.status_code == 200
    assert by_key.status_code == 400
    assert by_key.json["error"]["param"] == "modelPath"
    assert runtime.calls == [("import", "/models/x.gguf", None, None)]


# -- the request id ---------------------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id_of_its_own(client: Any) -> None:
    answers = [
        client.simulate_get("/healthz"),
        client.simulate_get("/nowhere"),
        client.simulate_put("/healthz"),
        client.simulate_get("/v1/models", headers={"Host": "evil.example"}),
        client.simulate_post("/v1/chat/completions", body="{"),
        preflight(client, "http://localhost"),
        client.chat(stream=True),
    ]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(one.startswith("req_") for one in ids)
