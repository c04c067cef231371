"""/docs: the page and its files, which need no other server and trust no other page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hostler.api.docspage import FILES, PAGE, POLICY, START
from hostler.plugins import Plugins

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def test_everything_the_page_asks_for_is_served_from_here(client: Any) -> None:
    page = client.simulate_get("/docs")
    asked = set(re.findall(r'(?:src|href)="([^"]+)"', page.text))

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert asked == {f"/docs/{name}" for name in (*FILES, "start.js")} | {"/openapi.json"}
    for path in asked:
        assert client.simulate_get(path).status_code == 200, path
    assert not re.search(r"https?://", PAGE + START)


@pytest.mark.parametrize(
    ("name", "content_type", "begins"),
    [
        ("swagger-ui-bundle.js", "text/javascript; charset=utf-8", b"/*! For license"),
        ("swagger-ui.css", "text/css; charset=utf-8", b".swagger-ui"),
        ("favicon-32x32.png", "image/png", b"\x89PNG"),
        ("start.js", "text/javascript; charset=utf-8", b'"use strict"'),
    ],
)
def test_a_file_has_its_type_and_is_asked_for_once_an_hour(client: Any, name: str, content_type: str, begins: bytes) -> None:
    first = client.simulate_get(f"/docs/{name}")
    again = client.simulate_get(f"/docs/{name}", headers={"If-None-Match": first.headers["etag"]})

    assert first.content.startswith(begins)
    assert first.headers["content-type"] == content_type
    assert first.headers["cache-control"] == "max-age=3600"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert (again.status_code, again.content) == (304, b"")


def test_the_page_may_load_nothing_from_elsewhere_and_stand_in_no_frame(client: Any) -> None:
    policy = client.simulate_get("/docs").headers["content-security-policy"]

    assert policy == POLICY
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"script-src[^;]*unsafe", policy)


@pytest.mark.parametrize("name", ["index.html", "oauth2-redirect.html", "swagger-editor.js", "..%2Fcore.py", "%2e%2e/core.py"])
def test_no_other_file_of_the_package_is_served(client: Any, name: str) -> None:
    answer = client.simulate_get(f"/docs/{name}")

    assert (answer.status_code, answer.json["error"]["code"]) == (404, "route_not_found")


def test_the_page_is_open_where_the_document_needs_a_key(make_client: Any) -> None:
    client = make_client(api_key="secret")

    assert client.simulate_get("/docs").status_code == 200
    assert client.simulate_get("/docs/").status_code == 200
    assert client.simulate_get("/docs/swagger-ui.css").status_code == 200
    assert client.simulate_get("/openapi.json").status_code == 401
    assert client.simulate_get("/docsx").status_code == 401


def test_another_site_may_lead_here_but_not_ask_for_the_document(client: Any) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}

    assert client.simulate_get("/docs", headers=headers).status_code == 200
    assert client.simulate_get("/openapi.json", headers=headers).status_code == 403
    assert client.simulate_get("/docs", headers={"Origin": "https://evil.example"}).status_code == 403


def test_a_browser_is_sent_nowhere_where_the_page_is_left_out(client: Any, runtime: Any) -> None:
    runtime.plugins = Plugins()

    assert client.simulate_get("/docs").status_code == 404
    assert client.simulate_get("/", headers={"Accept": BROWSER}).json["docs"] == "/docs"


def test_a_browser_at_the_root_is_sent_to_the_page_and_a_program_gets_json(client: Any) -> None:
    browser = client.simulate_get("/", headers={"Accept": BROWSER})

    assert (browser.status_code, browser.headers["location"]) == (302, "/docs")
    assert browser.headers["vary"] == "Accept"
    for accept in ("*/*", "application/json", None):
        answer = client.simulate_get("/", headers={"Accept": accept} if accept else {})
        assert (answer.status_code, answer.json["docs"]) == (200, "/docs")
