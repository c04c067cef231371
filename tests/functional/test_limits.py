"""Bad input, full queues, clients that leave or do not read: none of it loses anything or kills the host."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket

import httpx
import pytest

from support.server import DEADLINE_S, add_echo, eventually, serving, text_of

pytestmark = pytest.mark.slow

FLOOD = "[[echo: flood delay_s=0.02]] la "
LONG_PREFILL = "[[echo: delay_s=0.05]]" + "x" * 30000
"""At 512 tokens a chunk, 50 ms each: some three seconds of silence."""


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    add_echo(home)
    return home


def error_of(answer: httpx.Response) -> dict:
    body = answer.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["message"] == body["error"]["message"]
    assert answer.headers["x-request-id"]
    return body["error"]


# -- bad input --------------------------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "nope", "messages": HELLO}, 404, "model_not_found", None),
        ({"messages": HELLO}, 400, "missing_required_parameter", "model"),
        ({"model": "echo"}, 400, "missing_required_parameter", "messages"),
        ({"model": "echo", "messages": []}, 400, "invalid_value", "messages"),
        ({"model": "echo", "messages": [{"role": 7, "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
        ({"model": "echo", "messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
        ({"model": "echo", "messages": HELLO, "temperature": "hot"}, 400, "invalid_value", "temperature"),
        ({"model": "echo", "messages": HELLO, "temperature": 9}, 400, "invalid_value", "temperature"),
        ({"model": "echo", "messages": HELLO, "n": 0}, 400, "invalid_value", "n"),
        ({"model": "echo", "messages": HELLO, "max_tokens": -1}, 400, "invalid_value", "max_tokens"),
        ({"model": "echo", "messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400,
         "unsupported_parameter", "tools"),
        ({"model": "echo", "messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
          {"not": {}}}}}, 400, "unsupported_parameter", "response_format.json_schema.schema"),
        ({"model": "echo", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
         "unsupported_parameter", "messages[0].content[0]"),
    ],
)  # fmt: skip
def test_bad_field_is_refused_with_its_path(echo_server, body, status, code, param):
    answer = echo_server.call("POST", "/v1/chat/completions", body)

    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    if param is not None:
        assert error["param"] is not None
        assert error["param"].startswith(param)


@pytest.mark.parametrize("body", [b"{", b'{"model": }', b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_400(echo_server, body):
    answer = echo_server.call("POST", "/v1/chat/completions", content=body)

    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_json"


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(home):
    add_echo(home, "small", n_ctx=128)
    with serving(home) as server:
        answer = server.chat("small", "x" * 500)

        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "128" in error["message"]
        assert any(str(number) in error["message"] for number in range(500, 560))
        assert server.chat("small", "hi").json()["choices"][0]["message"]["content"] == "hi"


def test_body_over_the_limit_is_413_in_the_error_form_and_the_connection_s_next_user_is_fine(home):
    with serving(home, "--max-body-bytes", "100000") as server:
        for size in (100_001, 5_000_000):
            answer = server.call("POST", "/v1/chat/completions", content=b" " * size)

            assert answer.status_code == 413
            assert error_of(answer)["code"] == "request_too_large"
        assert server.chat("echo", "x" * 1000).status_code == 200


def test_chunked_body_over_the_limit_is_413_too(home):
    with serving(home, "--max-body-bytes", "100000") as server:
        answer = server.call("POST", "/v1/chat/completions", content=iter([b" " * 50_000] * 4))

        assert answer.status_code == 413
        assert error_of(answer)["code"] == "request_too_large"


def test_unknown_path_and_method_answer_in_the_error_form(echo_server):
    assert error_of(echo_server.call("GET", "/v1/nope"))["code"] == "route_not_found"
    answer = echo_server.call("DELETE", "/v1/chat/completions")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    assert error_of(answer)["code"] == "method_not_allowed"


def test_ids_with_slashes_work_percent_encoded_and_raw(home):
    add_echo(home, "plain")
    source = next(home.with_name("home.models").glob("plain.echo"))
    with serving(home, "--allow-file-sources") as server:
        answer = server.call("POST", "/v1/models/import", {"model": "org/name:tag", "modelPath": str(source)})
        assert answer.status_code == 200, answer.text

        for path in ("/v1/models/org%2Fname%3Atag", "/v1/models/org/name:tag", "/v1//models/org/name:tag/"):
            assert server.call("GET", path).json()["id"] == "org/name:tag"
        assert server.call("PUT", "/v1/models/org%2Fname:tag/start").json()["state"] == "running"
        assert server.call("PUT", "/v1/models/org/name:tag/stop").json()["state"] == "stopped"


def test_foreign_host_and_origin_are_refused(echo_server):
    for headers, code in (
        ({"host": "evil.example"}, "host_not_allowed"),
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
    ):
        answer = echo_server.call("GET", "/v1/models", headers=headers)

        assert answer.status_code == 403
        assert error_of(answer)["code"] == code


def test_api_key_is_wanted_everywhere_but_for_health(home):
    with serving(home, "--api-key", "sesame") as server:
        assert server.call("GET", "/healthz").status_code == 200
        assert error_of(server.call("GET", "/v1/models"))["code"] == "invalid_api_key"
        assert server.call("GET", "/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        for header in ({"authorization": "Bearer sesame"}, {"x-api-key": "sesame"}, {"api-key": "sesame"}):
            assert server.call("GET", "/v1/models", headers=header).status_code == 200


def test_file_sources_and_imports_are_refused_over_http_unless_allowed(home):
    with serving(home) as server:
        imported = server.call("POST", "/v1/models/import", {"model": "m", "modelPath": "/etc/passwd"})
        pulled = server.call("POST", "/v1/models", {"source_url": "file:///etc/passwd"})

        assert error_of(imported)["code"] == "unsupported_parameter"
        assert pulled.status_code == 400, pulled.text


# -- full -------------------------------------------------------------------------------------------------------------


def test_queue_past_its_length_is_429_with_retry_after_and_the_waiting_are_served(home):
    with serving(home, "--queue-len", "1") as server, contextlib.ExitStack() as stack:
        server.call("PUT", "/v1/models/echo/start", {"n_parallel": 1})
        running = stack.enter_context(server.stream("echo", FLOOD, max_tokens=20000))
        running.first_text()
        waiting = stack.enter_context(httpx.Client(base_url=server.url, trust_env=False, timeout=DEADLINE_S))
        request = waiting.build_request(
            "POST",
            "/v1/chat/completions",
            json={"model": "echo", "messages": [{"role": "user", "content": "second"}]},
        )
        second = stack.enter_context(Background(lambda: waiting.send(request)))
        server.wait_for_requests("decode", "queued")

        third = server.chat("echo", "third")

        assert third.status_code == 429
        assert error_of(third)["code"] == "queue_full"
        assert int(third.headers["retry-after"]) >= 1
        running.response.close()
        assert second.result().json()["choices"][0]["message"]["content"] == "second"


def test_health_and_lists_answer_while_every_request_place_is_held(home):
    with serving(home, "--max-requests", "3") as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(server.stream("echo", FLOOD, max_tokens=20000)) for _ in range(3)]
        for stream in streams:
            stream.first_text()

        assert server.call("GET", "/healthz").status_code == 200
        assert server.call("GET", "/readyz").status_code == 200
        assert server.call("GET", "/v1/models").status_code == 200
        fourth = server.chat("echo", "hi")
        assert fourth.status_code == 429
        assert error_of(fourth)["code"] == "queue_full"
        for stream in streams:
            assert stream.first_text()


def test_idle_connections_do_not_keep_health_from_answering(home):
    with serving(home, "--max-requests", "2") as server, contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S))

        assert server.call("GET", "/healthz").status_code == 200


# -- clients that leave or do not read --------------------------------------------------------------------------------


def test_disconnect_in_prefill_frees_the_slot(home):
    with serving(home) as server:
        server.call("PUT", "/v1/models/echo/start", {"n_parallel": 1, "ctx_len": 32768})
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": LONG_PREFILL}], "stream": True})
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)) as connection:
            connection.request("POST", "/v1/chat/completions", body)
            server.wait_for_requests("prefill")

        server.wait_for_requests()
        eventually(lambda: "client_gone" in server.log or "cancelled" in server.log, "the log tells how it ended")
        assert server.chat("echo", "next").json()["choices"][0]["message"]["content"] == "next"


def test_disconnect_of_a_waiting_client_takes_it_out_of_the_queue(home):
    with serving(home) as server:
        server.call("PUT", "/v1/models/echo/start", {"n_parallel": 1})
        with server.stream("echo", FLOOD, max_tokens=20000) as running:
            running.first_text()
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)) as connection:
                connection.request("POST", "/v1/chat/completions", json.dumps({"model": "echo", "messages": HELLO}))
                server.wait_for_requests("decode", "queued")

            server.wait_for_requests("decode")


def test_disconnect_in_decode_frees_the_slot(home):
    with serving(home) as server:
        with server.stream("echo", FLOOD, max_tokens=20000) as stream:
            stream.first_text()

        server.wait_for_requests()


def test_cancelled_request_ends_its_stream_and_nothing_else(home):
    with serving(home) as server:
        with server.stream("echo", FLOOD, max_tokens=20000) as stream:
            stream.first_text()
            (request,) = server.requests()

            assert server.call("DELETE", f"/v1/requests/{request['id']}").status_code == 200

            *_, last = stream
            assert "error" in last or last["choices"][0]["finish_reason"] is not None
        server.wait_for_requests()


def test_reader_that_takes_nothing_stops_its_own_stream_only_and_loses_it_after_the_stall_timeout(home):
    with serving(home, "--stall-timeout-s", "1") as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with client:
            client.connect(("127.0.0.1", server.port))
            body = json.dumps(
                {
                    "model": "echo",
                    "messages": [{"role": "user", "content": "[[echo: flood]] la "}],
                    "stream": True,
                    "max_tokens": 30000,
                }
            ).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert client.recv(1) == b"H"

            with server.stream("echo", "meanwhile") as other:
                assert "".join(text_of(event) for event in other) == "meanwhile"
                assert other.is_done
            server.wait_for_requests()


class Background:
    """Runs a function on a thread; `result` waits for what it gave."""

    def __init__(self, function) -> None:
        import concurrent.futures

        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._future = self._pool.submit(function)

    def result(self):
        return self._future.result(DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._pool.shutdown(wait=True)
