"""The load client: HTTP and SSE taken apart, and whole exchanges with a scripted server."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from answers import parse_http, parse_sse, read_reply
from hypothesis import given
from hypothesis import strategies as st
from streamclient import Address, Pause, Request, Script, fetch, run_clients, run_scripts

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
ASK = Request("/chat/completions", {"model": "m", "messages": []})


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(**fields: Any) -> bytes:
    """One SSE event of a chat stream."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(text: str, finish_reason: str | None = None) -> bytes:
    """A chunk with some text."""
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}])


USAGE = event(
    choices=[],
    usage={"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}},
    timings={"prompt_n": 4, "prompt_ms": 2.0, "predicted_n": 5, "predicted_ms": 8.0},
)
DONE = b"data: [DONE]\n\n"


@contextmanager
def scripted_server(*answers: list[bytes]) -> Iterator[tuple[Address, list[bytes]]]:
    """Serve connections one by one: read a request, send the pieces of the next answer, close. Gives what was asked."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(30)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                asked.append(request)
                for piece in answer:
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1], "/v1", "secret"), asked
    finally:
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


# -- taking answers apart --------------------------------------------------------------------------------------------


@given(st.data())
def test_a_chunked_stream_reads_the_same_wherever_it_is_cut(data: st.DataObject) -> None:
    body = [delta("Hé"), b": keep-alive\n\n", delta("llo", "stop"), USAGE + DONE]
    wire = HEAD + b"".join(chunk(part) for part in body) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=12)))
    pieces = [(float(at), wire[low:high]) for at, (low, high) in enumerate(zip([0, *cuts], [*cuts, len(wire)], strict=True))]

    status, headers, timed = parse_http(pieces)
    events = list(parse_sse(timed))

    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert [payload for _, payload in events] == [
        delta("Hé")[6:-2],
        delta("llo", "stop")[6:-2],
        USAGE[6:-2],
        b"[DONE]",
    ]
    assert [at for at, _ in events] == sorted(at for at, _ in events)


def test_an_event_has_the_time_of_the_read_that_completed_it() -> None:
    first, second = delta("a"), delta("b")

    events = list(parse_sse([(1.0, first[:9]), (2.0, first[9:] + second[:4]), (3.0, second[4:])]))

    assert [at for at, _ in events] == [2.0, 3.0]


def test_sse_accepts_carriage_returns_and_data_over_several_lines() -> None:
    assert list(parse_sse([(1.0, b"event: x\r\ndata: a\r\ndata:b\r\n\r\n")])) == [(1.0, b"a\nb")]


def test_a_body_cut_before_its_last_chunk_is_an_error() -> None:
    with pytest.raises(ValueError, match="cut before its last chunk"):
        parse_http([(1.0, HEAD + chunk(delta("a")))])


def test_a_body_shorter_than_its_content_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="after 2 of 5 bytes"):
        parse_http([(1.0, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), (2.0, b"ab")])


STREAMED = HEAD + chunk(delta("Hé")) + chunk(delta("llo", "stop")) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"
CONTENT = b'{"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(CONTENT), CONTENT)


@pytest.mark.parametrize("wire", [STREAMED, WHOLE], ids=["streamed", "whole"])
def test_an_answer_that_stops_short_is_an_error_unless_its_client_left(wire: bytes) -> None:
    for n_bytes in range(len(wire) - len(b"0\r\n\r\n")):
        pieces = [(1.0, wire[:n_bytes])] if n_bytes else []

        assert read_reply(pieces, 0.0, 2.0, None).error, n_bytes
        assert read_reply(pieces, 0.0, 2.0, None, is_cut=True).error is None, n_bytes
    assert read_reply([(1.0, wire)], 0.0, 2.0, None).error is None


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}",
        b"SMTP\r\n\r\n",
        HEAD + chunk(event(error={"message": "the worker died"})),
        HEAD + chunk(b"data: {]\n\n"),
    ],
    ids=["status", "no HTTP", "error event", "no JSON"],
)
def test_what_had_gone_wrong_before_its_client_left_is_an_error(wire: bytes) -> None:
    assert read_reply([(1.0, wire)], 0.0, 2.0, None, is_cut=True).error


@pytest.mark.parametrize("url", ["127.0.0.1:80", "https://127.0.0.1/v1", "http:///v1"])
def test_a_base_url_that_cannot_be_measured_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no base URL"):
        Address.parse(url)


# -- whole exchanges -------------------------------------------------------------------------------------------------


def test_a_stream_gives_text_usage_timings_and_one_arrival_a_read() -> None:
    wire = HEAD + b"".join(map(chunk, [event(choices=[{"delta": {"role": "assistant", "content": ""}}])]))
    both = chunk(delta("Hel")) + chunk(delta("lo")) + chunk(delta("", "length")) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"

    with scripted_server([wire, both]) as (address, asked):
        ((reply,),) = run_clients(address, [[ASK]])

    assert reply.error is None
    assert (reply.text, reply.finish_reason, reply.n_chunks) == ("Hello", "length", 2)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (7, 5, 3)
    assert reply.is_counted
    assert reply.timings == {"prompt_n": 4, "prompt_ms": 2.0, "predicted_n": 5, "predicted_ms": 8.0}
    assert len(reply.arrival_s) == 1
    assert reply.sent_s <= reply.arrival_s[0] <= reply.ended_s
    assert asked[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer secret\r\n" in asked[0]


def test_without_usage_each_chunk_with_text_counts_as_a_token() -> None:
    wire = HEAD + chunk(delta("a")) + chunk(delta("b")) + chunk(DONE) + b"0\r\n\r\n"

    with scripted_server([wire]) as (address, _):
        ((reply,),) = run_clients(address, [[ASK]])

    assert (reply.completion_tokens, reply.is_counted) == (2, False)


def test_a_plain_answer_is_read_whole() -> None:
    body = json.dumps(
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    )
    wire = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    with scripted_server([wire]) as (address, _):
        ((reply,),) = run_clients(address, [[ASK]])

    assert (reply.text, reply.completion_tokens, reply.error) == ("Hi", 1, None)


def test_clients_go_on_to_their_next_request_after_an_error() -> None:
    refusal = b'HTTP/1.1 429 Too Many Requests\r\nContent-Length: 18\r\n\r\n{"error":{"m":"x"}}'[:-1]
    stream = HEAD + chunk(delta("a")) + chunk(DONE) + b"0\r\n\r\n"

    with scripted_server([refusal], [stream]) as (address, _):
        ((first, second),) = run_clients(address, [[ASK, ASK]])

    assert first.error == 'status 429: {"error":{"m":"x"}'
    assert (second.error, second.text) == (None, "a")


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (chunk(event(error={"message": "the worker died"})) + b"0\r\n\r\n", "the worker died"),
        (b"0\r\n\r\n", r"without \[DONE\]"),
        (b"", "cut before its last chunk"),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(tail: bytes, expected: str) -> None:
    with scripted_server([HEAD + chunk(delta("a")) + tail]) as (address, _):
        ((reply,),) = run_clients(address, [[ASK]])

    assert reply.error is not None
    assert re.search(expected, reply.error)


def test_nobody_listening_is_an_error_for_each_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    ((first, second),) = run_clients(Address("127.0.0.1", port, "/v1"), [[ASK, ASK]])

    assert first.error is not None
    assert first.error.startswith("cannot connect")
    assert second.error is not None


def test_an_answer_that_never_ends_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], "/v1")

        ((reply,),) = run_clients(address, [[ASK]], timeout_s=0.05)

    assert reply.error == "no end after 0.05 s"


def test_fetch_gives_status_and_json() -> None:
    with scripted_server([b'HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\n{"a": 1}']) as (address, asked):
        assert fetch(address, "GET", "/models/x") == (404, {"a": 1})

    assert asked[0].startswith(b"GET /v1/models/x HTTP/1.1\r\n")


# -- scripts ---------------------------------------------------------------------------------------------------------


def answer(text: str) -> list[bytes]:
    """A whole stream with one piece of text."""
    return [HEAD + chunk(delta(text)) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"]


def test_a_script_sees_its_last_reply_before_it_says_what_comes_next() -> None:
    def echo() -> Script:
        exchange = yield ASK
        assert exchange is not None
        yield Request("/chat/completions", {"said": exchange.reply().text})

    with scripted_server(answer("first"), answer("second")) as (address, asked):
        ((first, second),) = run_scripts(address, [echo()])

    assert (first.text, second.text) == ("first", "second")
    assert asked[1].endswith(b'{"said": "first"}')


def test_a_pause_comes_before_what_the_script_sends_next() -> None:
    def waits() -> Script:
        assert (yield Pause(0.05)) is None
        yield ASK

    began_s = time.perf_counter()
    with scripted_server(answer("a")) as (address, _):
        ((reply,),) = run_scripts(address, [waits()])

    assert reply.sent_s - began_s >= 0.05


@contextmanager
def endless_server() -> Iterator[tuple[Address, list[socket.socket]]]:
    """Answer each connection with the beginning of a stream, and leave it open."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            connection.recv(65536)
            connection.sendall(HEAD + chunk(delta("so far")) + b"1f\r\nhalf a chu")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address("127.0.0.1", listener.getsockname()[1], "/v1"), connections
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)
        for connection in connections:
            connection.close()
    assert not thread.is_alive()


def test_a_request_that_is_told_to_leaves_and_keeps_what_had_come() -> None:
    request = Request("/chat/completions", {}, cut_after_s=0.2)

    with endless_server() as (address, connections):
        ((reply,),) = run_clients(address, [[request]])
        connections[0].settimeout(30)
        left = connections[0].recv(1)

    assert (reply.error, reply.is_cut, reply.text, reply.status) == (None, True, "so far", 200)
    assert left == b""


def test_a_request_that_leaves_before_anything_came_is_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], "/v1")

        ((reply,),) = run_clients(address, [[Request("/chat/completions", {}, cut_after_s=0.01)]])

    assert (reply.error, reply.is_cut, reply.status) == (None, True, 0)


def test_an_answer_that_ends_before_its_client_would_leave_is_whole() -> None:
    with scripted_server(answer("a")) as (address, _):
        ((reply,),) = run_clients(address, [[Request("/chat/completions", {}, cut_after_s=30)]])

    assert (reply.error, reply.is_cut, reply.text) == (None, False, "a")


def test_what_runs_in_the_background_is_cut_when_the_others_have_ended() -> None:
    def pauses() -> Script:
        yield Pause(0.2)

    def asks() -> Script:
        yield ASK
        raise AssertionError("the background goes on after its end")

    with endless_server() as (address, _):
        nothing, (reply,) = run_scripts(address, [pauses(), asks()], n_background=1)

    assert nothing == []
    assert (reply.error, reply.is_cut, reply.text) == (None, True, "so far")
