"""The app behind a real waitress, over real sockets: OpenAI's own client, streams, clients that leave, broken requests."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from api.scripted_runtime import DEADLINE_S, Pause, finish, prefill, text
from hostler.errors import EngineUnavailable, ModelExists, ModelLoadFailed, QueueFull

CHAT = {"model": "phi", "messages": [{"role": "user", "content": "Hello!"}]}
Serve = Callable[..., str]


@pytest.fixture
def client(serve: Serve) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="unused", timeout=DEADLINE_S) as made:
        yield made


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=DEADLINE_S)


def read_head(stream: Any) -> tuple[int, dict[str, str]]:
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers


def send_raw(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; the answer to its end."""
    with connect(url) as peer, peer.makefile("rb") as stream:
        with contextlib.suppress(OSError):  # the server may have answered and closed before it took all
            peer.sendall(request)
        status, headers = read_head(stream)
        return status, headers, stream.read(int(headers["content-length"]))


def post_chat(url: str, **fields: Any) -> bytes:
    body = json.dumps({**CHAT, **fields}).encode()
    host = urlsplit(url).netloc.encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


# -- OpenAI's client --------------------------------------------------------------------------------------------------


def test_openais_client_lists_and_retrieves_models_with_slashes_in_their_ids(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["zephyr-7b", "phi", "org/name:Q4@main"]
    assert client.models.retrieve("org/name:Q4@main").id == "org/name:Q4@main"
    url = "https://huggingface.co/TheBloke/zephyr-7B-beta-GGUF/blob/main/zephyr-7b-beta.Q4_K_M.gguf"
    assert client.models.retrieve(url).owned_by == "TheBloke"
    assert client.models.delete("org/name:Q4@main").deleted is True


def test_openais_client_chats_whole_and_streamed(client: openai.OpenAI) -> None:
    messages: Any = CHAT["messages"]

    whole = client.chat.completions.create(model="phi", messages=messages)
    with client.chat.completions.create(
        model="phi", messages=messages, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)

    assert whole.choices[0].message.content == "Hello user."
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.prompt_tokens_details.cached_tokens) == (33, 8)  # type: ignore[union-attr]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello user."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, None, None, "stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 35


def test_openais_client_completes_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="phi", prompt=["a", "b"], max_tokens=3)

    assert [choice.text for choice in answer.choices] == ["Hello user."] * 2


def test_openais_client_raises_its_own_errors_and_does_not_retry_what_will_not_go_away(
    client: openai.OpenAI, runtime: Any
) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("nope")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="phi", messages=[], temperature=3)
    runtime.to_raise = ModelExists("taken")
    with pytest.raises(openai.ConflictError):
        client.models.retrieve("phi")
    runtime.to_raise = None
    runtime.enqueue(ModelLoadFailed("no memory"))
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="phi", messages=CHAT["messages"])  # type: ignore[call-overload]

    assert unknown.value.code == "model_not_found"
    assert (bad.value.code, bad.value.param) == ("invalid_value", "temperature")
    assert bad.value.request_id is not None
    assert len(runtime.asked) == 1


def test_openais_client_waits_and_tries_again_when_the_server_is_full(client: openai.OpenAI, runtime: Any) -> None:
    runtime.enqueue(QueueFull("full", retry_after_s=0.01))

    answer = client.chat.completions.create(model="phi", messages=CHAT["messages"])  # type: ignore[call-overload]

    assert answer.choices[0].message.content == "Hello user."
    assert len(runtime.asked) == 2


def test_openais_client_raises_on_an_error_in_a_stream(client: openai.OpenAI, runtime: Any) -> None:
    runtime.enqueue(text("Hel"), EngineUnavailable("The worker died"))
    seen: list[str] = []

    stream = client.chat.completions.create(model="phi", messages=CHAT["messages"], stream=True)  # type: ignore[call-overload]
    with stream, pytest.raises(openai.APIError) as raised:
        seen.extend(chunk.choices[0].delta.content for chunk in stream)

    assert seen == ["", "Hel"]
    assert raised.value.code == "engine_unavailable"
    assert "The worker died" in raised.value.message


# -- streams ----------------------------------------------------------------------------------------------------------


def test_text_leaves_the_server_when_it_comes_and_not_at_the_end(serve: Serve, runtime: Any) -> None:
    pause = Pause()
    runtime.enqueue(text("first"), pause, text("second"), finish())

    with httpx.stream("POST", f"{serve()}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=DEADLINE_S) as answer:
        lines = answer.iter_lines()
        seen = [line for _, line in zip(range(4), lines, strict=False) if line]
        assert "first" in seen[1]
        assert not runtime.generations[0].is_finished
        pause.go_on.set()
        rest = [line for line in lines if line]

    assert "second" in rest[0]
    assert rest[-1] == "data: [DONE]"


def test_silence_is_kept_alive_by_comments_and_the_first_starts_the_response(serve: Serve, runtime: Any) -> None:
    before, between = Pause(), Pause()
    runtime.enqueue(prefill(), before, text("Hello"), between, finish())
    url = serve(keep_alive_s=0.05)

    with connect(url) as peer, peer.makefile("rb") as stream:
        peer.sendall(post_chat(url, stream=True))
        status, headers = read_head(stream)
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        frames = chunks_of(stream)
        assert next(frames) == b": keep-alive\n\n"
        assert next(frames) == b": keep-alive\n\n"
        before.go_on.set()
        first = next(frame for frame in frames if frame != b": keep-alive\n\n")
        assert next(frames) == b": keep-alive\n\n"
        between.go_on.set()
        last = next(frame for frame in frames if frame != b": keep-alive\n\n")

    assert first.count(b"data: ") == 2
    assert b'"role":"assistant"' in first
    assert b"Hello" in first
    assert last.endswith(b"data: [DONE]\n\n")


def chunks_of(stream: Any) -> Iterator[bytes]:
    """The chunks of a chunked body."""
    while size := int(stream.readline(), 16):
        data = stream.read(size)
        assert stream.readline() == b"\r\n"
        yield data


def test_an_error_after_a_comment_travels_in_the_stream(serve: Serve, runtime: Any) -> None:
    pause = Pause()
    runtime.enqueue(pause, EngineUnavailable("It did not load"))
    with httpx.stream(
        "POST", f"{serve(keep_alive_s=0.05)}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=DEADLINE_S
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": keep-alive"
        pause.go_on.set()
        data = [line for line in lines if line.startswith("data: ")]

    assert answer.status_code == 200
    assert len(data) == 1
    assert json.loads(data[0][len("data: ") :])["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_a_silent_prefill_frees_its_slot(serve: Serve, runtime: Any, stream: bool) -> None:
    pause = Pause()
    runtime.enqueue(prefill(), pause, text("never seen"), finish())
    url = serve()

    with connect(url) as peer:
        peer.sendall(post_chat(url, stream=stream))
        assert pause.reached.wait(DEADLINE_S)
        (generation,) = runtime.generations

    assert generation.closed.wait(DEADLINE_S)
    assert not generation.is_finished


def test_a_client_that_leaves_during_decode_frees_its_slot(serve: Serve, runtime: Any) -> None:
    pause = Pause()
    runtime.enqueue(text("first"), pause, *(text("x" * 1000) for _ in range(5000)), finish())
    url = serve()

    with connect(url) as peer, peer.makefile("rb") as stream:
        peer.sendall(post_chat(url, stream=True))
        read_head(stream)
        assert b"first" in next(chunks_of(stream))
        (generation,) = runtime.generations
    pause.go_on.set()

    assert generation.closed.wait(DEADLINE_S)
    assert not generation.is_finished


def test_a_request_cancelled_by_id_ends_its_stream_with_an_error(serve: Serve, runtime: Any) -> None:
    pause = Pause()
    runtime.enqueue(text("first"), pause, finish())
    url = serve()

    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=DEADLINE_S) as answer:
        lines = answer.iter_lines()
        next(lines)
        (running,) = httpx.get(f"{url}/v1/requests").json()["data"]
        assert httpx.delete(f"{url}/v1/requests/{running['id']}").status_code == 200
        last = [line for line in lines if line][-1]

    assert json.loads(last[len("data: ") :])["error"]["code"] == "request_cancelled"


def test_health_answers_while_all_other_places_are_taken(serve: Serve, runtime: Any) -> None:
    """max_requests is 4 in these tests; each open stream holds one thread."""
    url = serve()
    with contextlib.ExitStack() as stack:
        pauses = [Pause() for _ in range(4)]
        for pause in pauses:
            stack.callback(pause.go_on.set)
            runtime.enqueue(text("first"), pause, finish())
            peer = stack.enter_context(connect(url))
            peer.sendall(post_chat(url, stream=True))
            assert pause.reached.wait(DEADLINE_S)

        assert httpx.get(f"{url}/healthz", timeout=DEADLINE_S).status_code == 200


# -- paths and headers over a real server -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/models/", "//v1//models", "/v1/models/org%2Fname:Q4@main", "/v1/models/org/name:Q4@main/"]
)
def test_paths_arrive_decoded_once(serve: Serve, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(serve()).netloc, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        assert connection.getresponse().status == 200


def test_ids_beyond_ascii_arrive_whole(serve: Serve) -> None:
    answer = httpx.get(f"{serve()}/v1/models/m%C3%BCll%25C3")

    assert answer.json()["error"]["message"] == "The model m\u00fcll%C3 does not exist"


def test_a_name_that_was_rebound_and_a_foreign_page_are_refused(serve: Serve) -> None:
    url = serve()

    assert httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}).json()["error"]["code"] == "host_not_allowed"
    foreign = httpx.get(f"{url}/v1/models", headers={"Origin": "https://evil.example"})
    assert foreign.json()["error"]["code"] == "origin_not_allowed"


# -- what waitress refuses by itself ----------------------------------------------------------------------------------


def check_refusal(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> str:
    assert answer[0] == status
    assert answer[1]["content-type"] == "application/json"
    assert answer[1]["x-request-id"].startswith("req_")
    body = json.loads(answer[2])
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert body["message"] == body["error"]["message"]
    return str(body["message"])


def test_a_body_that_announces_too_much_is_413_in_the_error_form(serve: Serve) -> None:
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4097\r\n\r\n" + b" " * 4097

    message = check_refusal(send_raw(serve(), request), 413, "request_too_large")

    assert "4096" in message


def test_a_chunked_body_that_grows_too_large_is_413_in_the_error_form(serve: Serve) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

    check_refusal(send_raw(serve(), head + chunk * 5 + b"0\r\n\r\n"), 413, "request_too_large")


def test_a_body_of_the_limit_is_read_announced_or_chunked(serve: Serve) -> None:
    """waitress counts the lengths of chunks, too: 19 bytes for two chunks and the end."""
    url = serve()
    body = json.dumps(CHAT).encode().ljust(4096)

    announced = httpx.post(f"{url}/v1/chat/completions", content=body)
    chunked = httpx.post(f"{url}/v1/chat/completions", content=iter([body[:1000], body[1000:4077]]))

    assert (announced.status_code, chunked.status_code) == (200, 200)


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "invalid_value"),
        (b"GET /v1/models HTTP/1.1\r\nHost localhost\r\n\r\n", 400, "invalid_value"),
        (b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n", 400, "invalid_value"),
        (b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000 + b"\r\n\r\n", 431, "request_too_large"),
        (b"BREW /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid_value"),
    ],
    ids=["request line", "header", "content length", "transfer encoding", "header size", "method"],
)
def test_what_is_no_http_is_refused_in_the_error_form(serve: Serve, request_bytes: bytes, status: int, code: str) -> None:
    check_refusal(send_raw(serve(), request_bytes), status, code)
