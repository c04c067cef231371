"""Embeddings over a real server: with echo, which counts letters, and with the real model through the official client."""

from __future__ import annotations

import math
import threading
import time

import openai
import pytest

from support.server import DEADLINE_S, Server, add_echo, eventually, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with an echo model that is small, and one that does not embed."""
    home = tmp_path_factory.mktemp("embeddings") / "home"
    add_echo(home, "echo", n_ctx=1024)
    add_echo(home, "mute", embedding=False)
    with serving(home) as server:
        yield server


def embed(server: Server, **fields):
    return server.call("POST", "/v1/embeddings", {"model": "echo", "input": "Hello", **fields})


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0, timeout=DEADLINE_S)


def test_vectors_come_from_a_model_that_was_not_running(server):
    answer = embed(server, input=["abc", "cba", "xyz"])

    vectors = [item["embedding"] for item in answer.json()["data"]]
    assert answer.status_code == 200
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1, 1])
    assert dot(vectors[0], vectors[1]) == pytest.approx(1)
    assert dot(vectors[0], vectors[2]) == pytest.approx(0)
    assert answer.json()["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert server.model("echo")["lifecycle"] == "running"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"input": "x" * 1025}, 400, "context_length_exceeded", "input"),
        ({"input": ["ok", "x" * 1025]}, 400, "context_length_exceeded", "input[1]"),
        ({"input": [10**6]}, 400, "invalid_value", "input[0]"),
        ({"dimensions": 63}, 400, "unsupported_parameter", "dimensions"),
        ({"model": "mute"}, 400, "embeddings_disabled", "model"),
        ({"model": "nope"}, 404, "model_not_found", None),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(server, fields, status, code, param):
    answer = embed(server, **fields)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    if code == "context_length_exceeded":
        assert "1024" in error["message"]
        assert "1025" in error["message"]


def test_the_models_own_number_of_dimensions_is_taken(server):
    assert embed(server, dimensions=64).status_code == 200


def test_the_official_client_gets_the_same_vectors_in_both_encodings(server):
    with client_of(server) as client:
        packed = client.embeddings.create(model="echo", input=["one", "two"])
        plain = client.embeddings.create(model="echo", input=["one", "two"], encoding_format="float")

    assert len(packed.data[0].embedding) == 64
    assert [item.embedding for item in packed.data] == [pytest.approx(item.embedding) for item in plain.data]
    assert [item.index for item in packed.data] == [0, 1]


def test_as_many_inputs_as_openai_takes_are_answered(server):
    answer = embed(server, input=[f"input {number}" for number in range(2048)], encoding_format="base64")

    assert len(answer.json()["data"]) == 2048


def test_a_client_that_leaves_ends_its_job_and_the_next_one_does_not_wait(server):
    with server.client() as client, pytest.raises(Exception, match="timed out"):
        client.post("/v1/embeddings", json={"model": "echo", "input": ["[[echo: delay_s=0.05]]"] * 2000}, timeout=1.0)

    eventually(lambda: server.requests() == [], "the end of the job")
    started = time.monotonic()
    assert embed(server).status_code == 200
    assert time.monotonic() - started < 20  # the job was one of 100 s


def test_a_job_is_listed_and_cancelled_by_id(server):
    answers = []
    job = threading.Thread(target=lambda: answers.append(embed(server, input=["[[echo: delay_s=0.05]]"] * 2000)))
    job.start()
    server.wait_for_requests("embed")

    cancelled = server.call("DELETE", f"/v1/requests/{server.requests()[0]['id']}")
    job.join(DEADLINE_S)

    assert cancelled.status_code == 200
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (499, "request_cancelled")


def test_an_answer_flows_while_a_long_job_is_under_way(server):
    job = threading.Thread(target=lambda: embed(server, input=["[[echo: delay_s=0.01]]"] * 300))
    with server.stream("echo", "[[echo: flood]] on and on ", max_tokens=200) as stream:
        stream.first_text()
        job.start()
        n_events = sum(1 for _ in stream)
        is_still_embedding = job.is_alive()

    job.join(DEADLINE_S)
    assert n_events > 0
    assert is_still_embedding, "200 tokens were to come before 3 s of embedding were over"


# -- the real model -------------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_the_real_model_tells_what_is_alike_from_what_is_not(smollm2_server):
    texts = ["The cat sat on the mat.", "A kitten is lying on a rug.", "The firm's quarterly profits rose by nine percent."]
    with client_of(smollm2_server) as client:
        answer = client.embeddings.create(model="smol", input=texts)
        alone = client.embeddings.create(model="smol", input=texts[1], encoding_format="float")

    cat, kitten, profits = (item.embedding for item in answer.data)
    assert len(cat) == 576
    assert math.hypot(*cat) == pytest.approx(1, abs=1e-5)
    assert dot(cat, kitten) > dot(cat, profits)
    assert dot(kitten, alone.data[0].embedding) > 0.9999
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20


@pytest.mark.weights
def test_a_chat_streams_while_the_real_model_embeds_many_texts(smollm2_server):
    texts = [f"Sentence number {number} is about trains and rivers." for number in range(80)]
    answers = []
    job = threading.Thread(
        target=lambda: answers.append(smollm2_server.call("POST", "/v1/embeddings", {"model": "smol", "input": texts}))
    )
    with smollm2_server.stream("smol", "Tell a long story.", max_tokens=20, ignore_eos=True) as stream:
        stream.first_text()
        job.start()
        for _ in stream:
            pass
        is_still_embedding = job.is_alive()

    job.join(DEADLINE_S)
    assert is_still_embedding, "20 tokens were to come before 80 texts were embedded"
    assert len(answers[0].json()["data"]) == 80
