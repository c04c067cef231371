"""Sockets, waitress's settings and log lines; whole servers run in tests/functional."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

import hostler.logs
from hostler.config import load_settings
from hostler.errors import ConfigError
from hostler.server import HttpServer, is_loopback, open_sockets, serve, url_of


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def settings(tmp_path):
    return load_settings(tmp_path, {"max_requests": 2, "max_body_bytes": 1024}, environ={})


def closing(sockets: list[socket.socket]) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for item in sockets:
        stack.enter_context(item)
    return stack


# -- sockets ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_listens_on_both_families_with_one_port_also_when_it_is_chosen(host):
    sockets = open_sockets(host, 0)

    with closing(sockets):
        assert [item.getsockname()[0] for item in sockets] == ["127.0.0.1", "::1"]
        assert sockets[0].getsockname()[1] == sockets[1].getsockname()[1] != 0
        assert url_of(sockets) == f"http://127.0.0.1:{sockets[0].getsockname()[1]}"


def test_missing_ipv6_is_no_error(monkeypatch):
    real = socket.socket

    def without_ipv6(family=socket.AF_INET, *arguments, **keywords):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *arguments, **keywords)

    monkeypatch.setattr("hostler.server.socket.socket", without_ipv6)

    with closing(open_sockets("127.0.0.1", 0)) as _:
        pass


def test_taken_port_is_named_together_with_the_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is taken.*--port 0"):
            open_sockets("127.0.0.1", port)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_port_taken_on_ipv6_alone_counts_as_taken_and_leaves_ipv4_free():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=f"port {port} on ::1 is taken"):
            open_sockets("127.0.0.1", port)

        with socket.create_server(("127.0.0.1", port)):
            pass


def test_host_that_is_no_address_of_this_machine_is_refused():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this machine"):
        open_sockets("192.0.2.1", 0)


def test_wildcard_host_is_shown_as_an_address_that_can_be_opened():
    with closing(sockets := open_sockets("0.0.0.0", 0)):
        assert url_of(sockets).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("my.lan", False)],
)
def test_loopback_is_told_from_what_others_can_reach(host, expected):
    assert is_loopback(host) is expected


def test_open_bind_without_a_key_is_refused_before_anything_is_touched(tmp_path):
    home = tmp_path / "home"

    with pytest.raises(ConfigError, match="--api-key"):
        serve(load_settings(home, {"host": "0.0.0.0", "port": 0}, environ={}))

    assert not home.exists()


# -- waitress ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(app, settings) -> Iterator[tuple[HttpServer, int]]:
    sockets = open_sockets("127.0.0.1", 0)
    with closing(sockets):
        server = HttpServer(app, sockets, settings)
        server.start()
        try:
            yield server, sockets[0].getsockname()[1]
        finally:
            server.close()


def hello(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % len(body)]


def post(port: int, body: bytes, host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_body_of_exactly_the_limit_passes_and_one_byte_more_is_413_in_the_error_form(settings):
    with running(hello, settings) as (_, port):
        assert post(port, b"x" * 1024) == (200, b"1024")

        status, body = post(port, b"x" * 1025)

    assert status == 413
    error = json.loads(body)["error"]
    assert error["code"] == "request_too_large"
    assert "1024" in error["message"]


def send_upload(port: int, body, path: str = "/v1/files") -> tuple[int, bytes]:
    """By httpx, which reads the answer also when the server hangs up before it has taken all."""
    answer = httpx.post(f"http://127.0.0.1:{port}{path}", content=body, timeout=30, trust_env=False)
    return answer.status_code, answer.content


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/", "//v1//files", "/v1/%66iles", "/v1/files?purpose=x"])
def test_upload_may_be_larger_than_other_bodies_announced_and_chunked(tmp_path, path):
    settings = load_settings(tmp_path, {"max_body_bytes": 1024, "max_file_bytes": 4096}, environ={})
    with running(hello, settings) as (_, port):
        assert send_upload(port, b"x" * 4096, path) == (200, b"4096")
        assert send_upload(port, iter([b"x" * 4096] * 8), path) == (200, b"32768")  # what a form has around a file


@pytest.mark.parametrize("size", [4096 + 65537, 300_000])
def test_upload_over_its_own_limit_is_413_and_names_the_setting_announced_and_chunked(tmp_path, size):
    settings = load_settings(tmp_path, {"max_body_bytes": 1024, "max_file_bytes": 4096}, environ={})
    with running(hello, settings) as (_, port):
        announced = send_upload(port, b"x" * size)
        chunked = send_upload(port, iter([b"x" * 20000] * (size // 20000 + 1)))

        for status, body in (announced, chunked):
            assert status == 413
            assert "max_file_bytes" in json.loads(body)["error"]["message"]


def test_small_file_limit_does_not_shrink_other_bodies(tmp_path):
    settings = load_settings(tmp_path, {"max_body_bytes": 200_000, "max_file_bytes": 1024}, environ={})
    with running(hello, settings) as (_, port):
        assert post(port, b"x" * 200_000) == (200, b"200000")
        assert send_upload(port, b"x" * 200_000)[0] == 413
        assert send_upload(port, b"x" * 200_000, "/v1/files/file-1")[0] == 200


def test_client_that_asks_first_is_told_that_its_body_is_too_large_without_sending_it(settings):
    with running(hello, settings) as (_, port), socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1025\r\n\r\n")

        answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 413")


def test_client_that_asks_first_is_told_to_go_on_when_its_body_fits(settings):
    with running(hello, settings) as (_, port), socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")

        assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_both_families_answer(settings):
    with running(hello, settings) as (_, port):
        assert post(port, b"a")[0] == post(port, b"a", host="::1")[0] == 200


def test_broken_request_line_is_answered_in_the_error_form(settings):
    with running(hello, settings) as (_, port), socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nBroken Header\r\n\r\n")

        answer = b"".join(iter(lambda: client.recv(65536), b""))

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_client_that_leaves_is_seen_while_its_request_still_runs(settings):
    is_in = threading.Event()
    seen = threading.Event()

    def wait_for_it(environ, start_response):
        is_in.set()
        is_gone = environ["waitress.client_disconnected"]
        step = threading.Event()
        for _ in range(3000):
            if is_gone():
                seen.set()
                break
            step.wait(0.01)
        start_response("200 OK", [])
        return [b""]

    with running(wait_for_it, settings) as (_, port):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert is_in.wait(30)
        client.close()

        assert seen.wait(30)


def test_reader_that_takes_nothing_blocks_its_own_thread_only_and_early(settings):
    """What is buffered for it is bounded: without the limits waitress swallows 16 MiB, the kernel megabytes more."""
    written = []
    is_over = threading.Event()

    def flood(environ, start_response):
        start_response("200 OK", [])

        def chunks():
            try:
                for _ in range(4096):  # 256 MiB
                    written.append(65536)
                    yield b"x" * 65536
            finally:
                is_over.set()

        return chunks()

    def app(environ, start_response):
        return flood(environ, start_response) if environ["PATH_INFO"] == "/flood" else hello(environ, start_response)

    with running(app, settings) as (_, port):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1) == b"H"

        for _ in range(20):
            assert post(port, b"abc") == (200, b"3")  # others are served meanwhile
        assert not is_over.is_set()
        client.close()

        assert is_over.wait(30)
    assert sum(written) < 16 * 2**20


def test_close_sends_what_an_answer_still_holds(settings):
    is_in = threading.Event()
    may_go = threading.Event()

    def slow(environ, start_response):
        is_in.set()
        may_go.wait(30)
        start_response("200 OK", [])
        return [b"the whole answer"]

    answers = []
    with running(slow, settings) as (server, port):
        client = threading.Thread(target=lambda: answers.append(post(port, b"")))
        client.start()
        assert is_in.wait(30)
        closer = threading.Thread(target=server.close)
        closer.start()
        may_go.set()
        closer.join(30)
        client.join(30)

    assert answers == [(200, b"the whole answer")]


def test_more_connections_than_threads_are_held_open_without_blocking_health(settings):
    with running(hello, settings) as (_, port), contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))

        assert post(port, b"")[0] == 200


def test_dropped_reader_is_given_up_after_the_stall_timeout(tmp_path):
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("Linux only")
    settings = load_settings(tmp_path, {"stall_timeout_s": 1.0, "max_requests": 1}, environ={})
    options = []

    def look(environ, start_response):
        start_response("200 OK", [])
        return [b""]

    with running(look, settings) as (server, port):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        with client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(100)
            (channel,) = server._channels()
            for level, name in (
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            ):
                options.append(channel.socket.getsockopt(level, name))

    assert options == [1000, 1]


# -- logs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def test_json_log_line_carries_the_extra_fields(tmp_path, root_logger, capsys):
    hostler.logs.set_up(load_settings(tmp_path, {"log_json": True}, environ={}))

    logging.getLogger("hostler.request").info("done %d", 3, extra={"request_id": "req_1", "ttft_s": None})

    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "done 3"
    assert line["level"] == "info"
    assert line["logger"] == "hostler.request"
    assert line["request_id"] == "req_1"
    assert line["ttft_s"] is None


def test_log_level_hides_what_lies_below(tmp_path, root_logger, capsys):
    hostler.logs.set_up(load_settings(tmp_path, {"log_level": "warning"}, environ={}))

    logging.getLogger("hostler.request").info("hidden")
    logging.getLogger("hostler.server").warning("shown")

    err = capsys.readouterr().err
    assert "hidden" not in err
    assert "WARNING hostler.server shown" in err


def test_log_line_stays_one_line_and_a_traceback_stays_in_its_object(tmp_path, root_logger, capsys):
    hostler.logs.set_up(load_settings(tmp_path, {"log_json": True}, environ={}))

    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("hostler").exception("it failed")

    (text,) = capsys.readouterr().err.splitlines()
    assert "ValueError: inside" in json.loads(text)["traceback"]
