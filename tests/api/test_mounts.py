"""Routes of plugins: who may ask them, what they are given, and what they cost when they misbehave."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import threading
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.scripted_runtime import ScriptedRuntime
from hostler.errors import InvalidRequest
from hostler.hookspecs import hookimpl
from hostler.mounts import RESERVED, RoutesContext, RoutesSpec
from hostler.plugins import Plugins

from .test_routes import ROUTES

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Mount = Callable[..., None]
_names = itertools.count()


class RoutesPlugin:
    def __init__(self, *specs: RoutesSpec) -> None:
        self.specs = specs

    @hookimpl
    def register_routes(self) -> Iterable[RoutesSpec]:
        return self.specs


@pytest.fixture
def mount(runtime: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch) -> Mount:
    """Gives the host a plugin with an application."""

    def mount(app: Any, prefix: str = "/toy", *, is_factory: bool = False, **more: Any) -> None:
        name = f"made_up_routes_{next(_names)}"
        module = types.ModuleType(name)
        module.__dict__["make"] = app if is_factory else lambda context: app
        monkeypatch.setitem(sys.modules, name, module)
        plugins = Plugins()
        plugins.register(RoutesPlugin(RoutesSpec(prefix, f"{name}:make", **more)), "toy")
        assert prefix in plugins.routes, plugins.problems
        runtime.plugins = plugins

    return mount


def show(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers with what it was given."""
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Toy", "1"), ("X-Toy", "2")])
    names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "HTTP_X_MINE")
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return [json.dumps({name: environ.get(name) for name in names} | {"body": body.decode()}).encode()]


# -- what it is given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("/toy", ""),
        ("/toy/", ""),
        ("/toy/a/b", "/a/b"),
        ("//toy//a", "/a"),
        ("/toy/a%20b", "/a b"),
        ("/toy/%C3%BC", "/\u00c3\u00bc"),  # UTF-8's bytes as latin-1
    ],
)
def test_a_plugin_gets_what_is_asked_below_its_prefix(client: Any, mount: Mount, path: str, rest: str) -> None:
    mount(show)

    answer = client.simulate_get(path, query_string="x=1&y=2", headers={"X-Mine": "yes"})

    assert answer.status_code == 200
    assert answer.json == {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "/toy", "PATH_INFO": rest, "QUERY_STRING": "x=1&y=2", "HTTP_X_MINE": "yes",
        "body": "",
    }  # fmt: skip


def test_a_plugin_gets_every_method_and_the_body_and_sets_status_and_headers(client: Any, mount: Mount) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        write = start_response("201 Made", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Connection", "close")])
        write(environ["REQUEST_METHOD"].encode())
        yield b" "
        yield environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))

    mount(app)

    answer = client.simulate_request("PUT", "/toy/x", body="hello")

    assert (answer.status_code, answer.text) == (201, "PUT hello")
    assert {name: cookie.value for name, cookie in answer.cookies.items()} == {"a": "1", "b": "2"}
    assert "connection" not in answer.headers
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-request-id"].startswith("req_")


def test_what_stands_beside_the_prefix_is_not_the_plugins(client: Any, mount: Mount) -> None:
    mount(show)

    for path in ("/toyx", "/to", "/v1/toy", "/"):
        answer = client.simulate_get(path)
        assert "PATH_INFO" not in answer.text
    assert client.simulate_get("/toyx").json["error"]["code"] == "route_not_found"


def test_an_application_is_made_once_by_the_first_request(client: Any, mount: Mount, settings: Any) -> None:
    made: list[RoutesContext] = []

    def make(context: RoutesContext) -> App:
        made.append(context)
        return show

    mount(make, is_factory=True)
    assert made == []

    client.simulate_get("/toy")
    client.simulate_get("/toy")

    assert [(context.prefix, context.home) for context in made] == [("/toy", settings.home)]


def test_a_plugin_can_hand_a_request_to_the_api(client: Any, mount: Mount) -> None:
    def make(context: RoutesContext) -> App:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            return context.api({**environ, "SCRIPT_NAME": "", "PATH_INFO": "/v1/models/phi"}, start_response)

        return app

    mount(make, is_factory=True)

    assert client.simulate_get("/toy").json["id"] == "phi"


def test_other_plugins_take_the_place_without_a_new_start(client: Any, mount: Mount) -> None:
    mount(show)
    assert client.simulate_get("/toy").status_code == 200

    mount(show, "/other")

    assert client.simulate_get("/toy").status_code == 404
    assert client.simulate_get("/other").status_code == 200


# -- who may ask ------------------------------------------------------------------------------------------------------


def test_routes_need_a_key_unless_they_are_open_and_even_then_to_change_something(make_client: Any, mount: Mount) -> None:
    client = make_client(api_key="secret")
    key = {"Authorization": "Bearer secret"}

    mount(show)
    assert client.simulate_get("/toy").status_code == 401
    assert client.simulate_get("/toy", headers=key).status_code == 200

    mount(show, is_open=True)
    assert client.simulate_get("/toy/page").status_code == 200
    assert client.simulate_head("/toy/page").status_code == 200
    assert client.simulate_post("/toy/page").status_code == 401
    assert client.simulate_post("/toy/page", headers=key).status_code == 200
    assert client.simulate_get("/toyx").status_code == 401


def test_other_web_sites_may_lead_to_an_open_page_and_nowhere_else_and_cannot_frame_it(client: Any, mount: Mount) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site"}

    mount(show)
    assert client.simulate_get("/toy", headers=foreign).status_code == 403
    assert "x-frame-options" not in client.simulate_get("/toy").headers

    mount(show, is_open=True)
    assert client.simulate_get("/toy", headers=foreign).status_code == 200
    assert client.simulate_get("/toy/deeper", headers=foreign).status_code == 403
    assert client.simulate_get("/toy", headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.simulate_get("/toy").headers["x-frame-options"] == "DENY"


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_a_request_holds_a_place_for_as_long_as_its_answer_is_sent(
    client: Any, mount: Mount, runtime: ScriptedRuntime
) -> None:
    closed: list[str] = []

    class Chunks:
        def __iter__(self) -> Iterable[bytes]:
            yield b"one"
            assert runtime.n_free == 7
            yield b"two"

        def close(self) -> None:
            closed.append("closed")

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        return Chunks()  # type: ignore[return-value]

    mount(app)

    assert client.simulate_get("/toy").text == "onetwo"
    assert client.simulate_head("/toy").text == ""
    assert (closed, runtime.n_free, runtime.held) == (["closed"] * 2, 8, ["plugin toy"] * 2)


def test_where_all_places_are_taken_a_plugin_is_not_asked_but_the_docs_are(
    client: Any, mount: Mount, runtime: ScriptedRuntime
) -> None:
    builtin = runtime.plugins
    mount(lambda environ, start_response: pytest.fail("asked"))
    runtime.n_free = 0

    assert client.simulate_get("/toy").status_code == 429
    runtime.plugins = builtin
    assert client.simulate_get("/docs").status_code == 200


@pytest.mark.parametrize(
    "app",
    [
        lambda environ, start_response: 1 / 0,
        lambda environ, start_response: [b"no head"],
        lambda environ, start_response: (start_response("200 OK", []) and None) or (1 / 0 for _ in "x"),
        lambda environ, start_response: None,
    ],
    ids=["raises", "never begins", "raises before its first piece", "gives nothing"],
)
def test_a_plugin_that_fails_is_named_in_the_error_and_in_the_log(
    client: Any, mount: Mount, runtime: ScriptedRuntime, caplog: pytest.LogCaptureFixture, app: App
) -> None:
    mount(app)

    answer = client.simulate_get("/toy/x")

    request_id = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert answer.json["error"]["message"] == (
        f"The plugin toy failed on this request; the server's log has the reason under {request_id}"
    )
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"plugin 'toy' failed on GET /toy/x ({request_id})"
    assert record.exc_info
    assert runtime.n_free == 8


def test_a_plugin_whose_application_cannot_be_made_fails_each_request(client: Any, mount: Mount) -> None:
    def make(context: RoutesContext) -> App:
        raise ImportError("no such library")

    mount(make, is_factory=True)

    assert client.simulate_get("/toy").status_code == 500
    assert client.simulate_get("/toy").status_code == 500
    assert client.simulate_get("/healthz").status_code == 200


def test_an_error_of_hostler_that_a_plugin_raises_is_the_answer(client: Any, mount: Mount) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise InvalidRequest("no toys today", param="toy")

    mount(app)

    answer = client.simulate_get("/toy")
    error = answer.json["error"]
    assert (answer.status_code, error["message"], error["param"]) == (400, "no toys today", "toy")


def test_over_sockets_an_answer_arrives_piece_by_piece_and_one_that_breaks_off_is_seen_to(
    serve: Callable[..., str], mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        yield b"first"
        assert go_on.wait(30)
        yield b"second"
        if environ["PATH_INFO"] == "/broken":
            raise RuntimeError("the third was lost")

    mount(app)
    url = serve()

    with httpx.stream("GET", f"{url}/toy", trust_env=False) as response:
        pieces = response.iter_raw()
        assert next(pieces) == b"first"
        go_on.set()
        assert b"".join(pieces) == b"second"
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{url}/toy/broken", trust_env=False)
    assert "plugin 'toy' broke off the answer to req_" in caplog.text


# -- what may be registered -------------------------------------------------------------------------------------------


def test_every_first_segment_of_hostlers_own_routes_is_reserved() -> None:
    assert {route.path.split("/")[1] for route in ROUTES} - {""} <= RESERVED


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([RoutesSpec("/v1/toy", "a.b:c")], "brings routes that cannot be served: /v1/toy is hostler's own"),
        ([RoutesSpec("/healthz", "a.b:c")], "brings routes that cannot be served: /healthz is hostler's own"),
        ([RoutesSpec("toy", "a.b:c")], "brings routes that cannot be served: its prefix is 'toy'; it must look like '/toy', "),
        ([RoutesSpec("/toy/", "a.b:c")], "brings routes that cannot be served: its prefix is '/toy/'"),
        ([RoutesSpec("/", "a.b:c")], "brings routes that cannot be served: its prefix is '/'"),
        ([RoutesSpec("/a/../b", "a.b:c")], "brings routes that cannot be served: its prefix is '/a/../b'"),
        ([RoutesSpec("/toy", "no path")], "brings routes with app='no path'; it must look like 'package.module:name'"),
        (
            [RoutesSpec("/toy", "a.b:c"), RoutesSpec("/toy/x", "a.b:c")],
            "brings the routes below '/toy', which plugin 'odd' has brought already; this one is skipped",
        ),
        (
            [RoutesSpec("/toy/x", "a.b:c"), RoutesSpec("/toy", "a.b:c")],
            "brings the routes below '/toy/x', which plugin 'odd' has brought already; this one is skipped",
        ),
    ],
)
def test_routes_that_cannot_be_served_are_reported(specs: list[RoutesSpec], reason: str) -> None:
    plugins = Plugins()
    plugins.register(RoutesPlugin(*specs), "odd")

    assert list(plugins.routes) == [spec.prefix for spec in specs[:-1]]
    (problem,) = plugins.problems
    assert problem.message.startswith(f"plugin 'odd' {reason}")


def test_the_page_of_the_api_comes_in_by_the_hook_a_plugin_uses(tmp_path: Path) -> None:
    from hostler.plugins import get_plugins

    plugin, spec = get_plugins(tmp_path).routes["/docs"]

    assert (plugin, spec.is_open) == ("docspage", True)
