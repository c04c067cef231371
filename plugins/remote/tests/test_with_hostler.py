"""Remote models as users have them: `hostler serve` in front of another `hostler serve`, with an echo model behind it."""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from support.server import Server, Stream, add_echo, eventually, run_hostler, serving, text_of

from .scripted import ScriptedUpstream, refuse, say

KEY = "sk-upstream-4f9a1c77e2d04b63"
"""What no log, no error and no file may hold."""
ENVIRONMENT = {"UPSTREAM_KEY": KEY}


def add_remote(home: Path, name: str, url: str, model: str, *options: str) -> None:
    """`hostler remote add`, which must go well."""
    done = run_hostler(home, "remote", "add", name, "--url", url, "--model", model, *options, environment=ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("upstream") / "home"
    add_echo(home)
    add_echo(home, "small", n_ctx=256)
    with serving(home, "--api-key", KEY) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: Server) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("front") / "home"
    options = ("--key-env", "UPSTREAM_KEY", "--kind", "hostler")
    add_remote(home, "far", f"{upstream.url}/v1", "echo", *options, "--embeddings")
    add_remote(home, "small", f"{upstream.url}/v1", "small", *options)
    add_echo(home, "near")
    with serving(home, environment=ENVIRONMENT) as server:
        yield server


def upstream_call(upstream: Server, method: str, path: str, body: Any = None) -> Any:
    headers = {"authorization": f"Bearer {KEY}"}
    return upstream.call(method, path, body, headers=headers).json()


def upstream_requests(upstream: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = upstream_call(upstream, "GET", "/v1/requests")["data"]
    return found


def ask_directly(upstream: Server, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = upstream_call(upstream, "POST", "/v1/chat/completions", {"model": "echo", **body})
    return found


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_upstreams_word_for_word(server: Server, upstream: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Grüße, 世界! 🦙"}], "temperature": 0.9, "seed": 5, "max_tokens": 12}

    far = server.call("POST", "/v1/chat/completions", {"model": "far", **body}).json()
    direct = ask_directly(upstream, **body)

    assert far["choices"] == direct["choices"]
    assert far["model"] == "far"
    assert far["usage"]["prompt_tokens"] == direct["usage"]["prompt_tokens"]
    assert far["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"] == 12


def test_a_stream_has_the_text_the_end_and_the_usage(server: Server) -> None:
    with server.stream("far", "one two three", stream_options={"include_usage": True}) as stream:
        events = list(stream)

    assert "".join(map(text_of, events)) == "one two three"
    assert stream.is_done
    assert events[-1]["usage"]["completion_tokens"] == len("one two three")
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


def test_openais_client_is_served(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    with client, client.chat.completions.create(
        model="far", messages=[{"role": "user", "content": "Hello!"}], stream=True, temperature=0
    ) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "Hello!"


def test_log_probabilities_are_the_upstreams(server: Server, upstream: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hey"}], "temperature": 0, "logprobs": True, "top_logprobs": 3}

    far = server.call("POST", "/v1/chat/completions", {"model": "far", **body}).json()

    assert far["choices"][0]["logprobs"] == ask_directly(upstream, **body)["choices"][0]["logprobs"]
    assert len(far["choices"][0]["logprobs"]["content"]) == 3


@pytest.mark.parametrize("more", [{"logprobs": 2}, {"echo": True}])
def test_completions_go_through(server: Server, upstream: Server, more: dict[str, Any]) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 5, "temperature": 0, **more}

    far = server.call("POST", "/v1/completions", {"model": "far", **body}).json()
    direct = upstream_call(upstream, "POST", "/v1/completions", {"model": "echo", **body})

    assert far["choices"] == direct["choices"]
    assert far["usage"]["total_tokens"] == direct["usage"]["total_tokens"]


def test_several_answers_are_several_requests(server: Server) -> None:
    answer = server.chat("far", "again", n=3).json()

    assert [choice["message"]["content"] for choice in answer["choices"]] == ["again"] * 3
    assert answer["usage"]["completion_tokens"] == 3 * len("again")


def test_stop_strings_stop_it(server: Server) -> None:
    answer = server.chat("far", "one two END three", stop=["END"]).json()

    assert answer["choices"][0]["message"]["content"] == "one two "
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_embeddings_are_the_upstreams(server: Server, upstream: Server) -> None:
    body = {"input": ["one", "two three"], "encoding_format": "float"}

    far = server.call("POST", "/v1/embeddings", {"model": "far", **body}).json()
    direct = upstream_call(upstream, "POST", "/v1/embeddings", {"model": "echo", **body})

    for one, other in zip(far["data"], direct["data"], strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-6)
    assert far["usage"] == direct["usage"]


def test_a_run_of_a_thread_is_answered_by_a_remote_model(server: Server) -> None:
    body = {
        "assistant_id": "jan", "model": "far", "temperature": 0,
        "thread": {"messages": [{"role": "user", "content": "Say it again."}]},
    }  # fmt: skip
    run = server.call("POST", "/v1/threads/runs", body).json()

    def is_over() -> bool:
        return server.call("GET", f"/v1/threads/{run['thread_id']}/runs/{run['id']}").json()["status"] == "completed"

    eventually(is_over, "the end of the run")
    messages = server.call("GET", f"/v1/threads/{run['thread_id']}/messages").json()["data"]
    assert messages[0]["content"][0]["text"]["value"] == "Say it again."


def test_the_model_shows_the_upstreams_context_and_takes_no_memory(server: Server) -> None:
    server.chat("far", "hello")

    model = server.model("far")

    assert model["settings"]["ctx_len"] == 8192
    assert (model["hostler"]["memory_bytes"], model["hostler"]["device"]) == (0, "remote")


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_prompt_beyond_the_upstreams_context_is_the_clients_400(server: Server) -> None:
    response = server.chat("small", "word " * 400)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 256 tokens" in response.json()["error"]["message"]


def test_an_upstream_that_fails_in_a_stream_ends_it_with_an_error_and_is_left_at_that(server: Server) -> None:
    with server.stream("far", "[[echo: delay_s=0.01 fail='the fire is out' at=3]] Long enough") as stream:
        events = list(stream)

    assert "".join(map(text_of, events)) == "Lon"
    assert "the fire is out" in events[-1]["error"]["message"]
    assert not stream.is_done
    assert server.chat("far", "well").status_code == 200


def test_a_model_of_itself_is_found_out(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        add_remote(tmp_path / "home", "loop", f"{server.url}/v1", "loop", "--no-check")

        response = server.call("PUT", "/v1/models/loop/start", {})

    assert response.status_code == 500
    assert "this very server and loop this very model" in response.json()["error"]["message"]


# -- cancellation -----------------------------------------------------------------------------------------------------


def talking(upstream: Server, stream: Stream) -> None:
    """Wait until an answer is under way on both sides."""
    stream.first_text()
    eventually(lambda: [one["state"] for one in upstream_requests(upstream)] == ["decode"], "an answer upstream")


def test_a_client_that_leaves_ends_the_upstreams_work(server: Server, upstream: Server) -> None:
    with server.stream("far", "[[echo: flood delay_s=0.01]] on and on", max_tokens=100_000) as stream:
        talking(upstream, stream)

    eventually(lambda: not upstream_requests(upstream), "the end upstream")
    eventually(lambda: not server.requests(), "the end here")


def test_a_request_that_is_deleted_ends_the_upstreams_work(server: Server, upstream: Server) -> None:
    with server.stream("far", "[[echo: flood delay_s=0.01]] on and on", max_tokens=100_000) as stream:
        talking(upstream, stream)
        (request,) = server.requests()
        assert server.call("DELETE", f"/v1/requests/{request['id']}").status_code == 200
        events = list(stream)

    assert events[-1]["error"]["code"] == "request_cancelled"
    eventually(lambda: not upstream_requests(upstream), "the end upstream")


def test_a_request_that_is_deleted_upstream_is_a_cancelled_one_here(server: Server, upstream: Server) -> None:
    with server.stream("far", "[[echo: flood delay_s=0.01]] on and on", max_tokens=100_000) as stream:
        talking(upstream, stream)
        (request,) = upstream_requests(upstream)
        upstream_call(upstream, "DELETE", f"/v1/requests/{request['id']}")
        events = list(stream)

    assert events[-1]["error"]["code"] == "request_cancelled"


# -- an upstream that dies --------------------------------------------------------------------------------------------


def test_an_upstream_that_is_killed_costs_its_streams_and_nothing_else(tmp_path: Path) -> None:
    add_echo(tmp_path / "upstream")
    with serving(tmp_path / "upstream") as upstream:
        add_remote(tmp_path / "home", "far", f"{upstream.url}/v1", "echo")
        add_echo(tmp_path / "home", "near")
        with serving(tmp_path / "home") as server:
            assert server.chat("far", "hello").status_code == 200
            pid = server.worker_pid("far")
            with server.stream("far", "[[echo: flood delay_s=0.01]] on and on", max_tokens=100_000) as stream:
                stream.first_text()
                upstream.signal(signal.SIGKILL)
                events = list(stream)

            assert events[-1]["error"]["code"] == "engine_unavailable"
            refused = server.chat("far", "hello")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            assert server.chat("near", "hello").status_code == 200
            assert server.worker_pid("far") == pid, "the worker died of it"
            server.call("PUT", "/v1/models/far/stop", {})
            start = server.call("PUT", "/v1/models/far/start", {})
            assert start.status_code == 500
            assert start.json()["error"]["code"] == "model_load_failed"
            assert "cannot be reached" in start.json()["error"]["message"]


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_the_key_is_in_no_log_no_error_and_no_file(tmp_path: Path) -> None:
    """Whatever the upstream does with it: it quotes the key in every refusal, and in text that is no error."""
    home = tmp_path / "home"
    said: list[str] = []
    with ScriptedUpstream() as scripted:
        quoting = f"Incorrect API key provided: {KEY}. Bearer {KEY} is not it"
        options = ("--key-env", "UPSTREAM_KEY")
        add_remote(home, "far", scripted.url, "far-model", *options)
        with serving(home, "--log-level", "debug", environment=ENVIRONMENT) as server:
            for status in (400, 401, 403, 404, 429, 500, 503):
                scripted.manner = refuse(status, quoting, retry_after="1")
                said.append(server.chat("far", "hello").text)
            scripted.manner = lambda exchange: exchange.answer(200, {"error": quoting})
            said.append(server.chat("far", "hello").text)
            scripted.manner = lambda exchange: exchange.answer(200, quoting.encode(), content_type="text/event-stream")
            said.append(server.chat("far", "hello").text)
            scripted.manner = say("well")
            assert scripted.got[-1].headers["authorization"] == f"Bearer {KEY}"
            said.append(json.dumps(server.model("far")))
            server.call("PUT", "/v1/models/far/stop", {})
            scripted.on_get = refuse(401, quoting)
            said.append(server.call("PUT", "/v1/models/far/start", {}).text)
            said.append(server.call("GET", "/v1/models/far").text)
            assert server.stop() == 0
            said.append(server.log)
        checked = run_hostler(home, "remote", "check", "far", environment=ENVIRONMENT)
        listed = run_hostler(home, "remote", "list", environment=ENVIRONMENT)
        said += [checked.stdout, checked.stderr, listed.stdout, listed.stderr]
    assert checked.returncode == 1
    assert "***" in checked.stderr
    assert "UPSTREAM_KEY" in listed.stdout

    assert not [text for text in said if KEY in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "far.log" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_wrong_key_is_this_servers_fault_and_not_its_clients(tmp_path: Path, upstream: Server) -> None:
    home = tmp_path / "home"
    options = ("--key-env", "UPSTREAM_KEY", "--no-check")
    add_remote(home, "far", f"{upstream.url}/v1", "echo", *options)
    with serving(home, environment={"UPSTREAM_KEY": "sk-wrong-0000000000"}) as server:
        response = server.chat("far", "hello")

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "model_load_failed"
    assert "check the key in the environment variable UPSTREAM_KEY" in response.json()["error"]["message"]
    assert "sk-wrong" not in response.text


# -- many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clients_that_come_and_go_leave_nothing_behind(server: Server, upstream: Server) -> None:
    """Sixteen clients leave at once, in the middle, or stay to the end; some are cancelled. Afterwards all is as before."""
    problems: list[str] = []

    def come_and_go(number: int) -> None:
        choose = random.Random(number)
        for index in range(12):
            n_read = choose.choice((0, 1, 5, 10_000))
            text = f"client {number} says {index} " * 3
            with server.stream("far", f"[[echo: delay_s=0.002]] {text}") as stream:
                if n_read == 0:
                    continue
                said = ""
                for count, event in enumerate(stream, start=1):
                    if "error" in event:
                        problems.append(json.dumps(event))
                        break
                    said += text_of(event)
                    if count == n_read:
                        break
                if stream.is_done and said.strip() != text.strip():
                    problems.append(f"{said!r} is not {text!r}")
                elif not text.lstrip().startswith(said.lstrip()):
                    problems.append(f"{said!r} is no beginning of {text!r}")

    server.chat("far", "warm up")
    worker = psutil.Process(server.worker_pid("far"))
    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    eventually(lambda: not upstream_requests(upstream), "the end of all upstream")
    eventually(lambda: not server.requests(), "the end of all here")
    assert server.model("far")["hostler"]["pid"] == worker.pid
    assert len(worker.net_connections()) <= 2 * 16 + 8
    assert server.chat("far", "still here").json()["choices"][0]["message"]["content"] == "still here"
