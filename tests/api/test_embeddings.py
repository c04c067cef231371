"""Embeddings over a scripted runtime: what the body may be, what the answer is, what is refused by which path."""

from __future__ import annotations

import base64
import socket
import struct
from typing import Any
from urllib.parse import urlsplit

import msgspec
import openai
import pytest

from api.scripted_runtime import DEADLINE_S, Pause
from hostler.api.schema.embeddings import EmbeddingList
from hostler.errors import (
    ContextLengthExceeded,
    EmbeddingsDisabled,
    EngineUnavailable,
    InsufficientMemory,
    InvalidRequest,
    QueueFull,
    UnsupportedParameter,
)


def error_of(answer: Any) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]


def test_an_answer_has_openais_shape(client: Any, runtime: Any) -> None:
    answer = client.embed(input=["ab", "cde"], user="me")

    assert answer.json == {
        "object": "list",
        "model": "phi",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 1.0]},
        ],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    msgspec.json.decode(answer.content, type=EmbeddingList)
    assert answer.headers["x-hostler-model"] == "phi"
    assert runtime.embeddings[0].closed.is_set()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Once", ("Once",)),
        (["Once"], ("Once",)),
        (["12", "true"], ("12", "true")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["x"] * 2048, ("x",) * 2048),
        (list(range(5000)), (tuple(range(5000)),)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_inputs_are_text_or_token_ids_one_or_several(make_client: Any, runtime: Any, value: Any, expected: Any) -> None:
    answer = make_client(max_body_bytes=100_000).embed(input=value)

    assert runtime.embeds[0].inputs == expected
    assert [item["index"] for item in answer.json["data"]] == list(range(len(expected)))


def test_base64_is_little_endian_float32(client: Any) -> None:
    answer = client.embed(input=["a", "b"], encoding_format="base64")

    vectors = [struct.unpack("<2f", base64.b64decode(item["embedding"])) for item in answer.json["data"]]
    assert vectors == [(1.0, 0.0), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": [[]]}, "invalid_value", "input[0]"),
        ({"input": ["a", "b", "c", ""]}, "invalid_value", "input[3]"),
        ({"input": [[1], []]}, "invalid_value", "input[1]"),
        ({"input": ["a", 1]}, "invalid_value", "input"),
        ({"input": ["a", [1]]}, "invalid_value", "input"),
        ({"input": [1, -2]}, "invalid_value", "input[1]"),
        ({"input": [[1, 2**40]]}, "invalid_value", "input[0][1]"),
        ({"input": [[1, "x"]]}, "invalid_value", "input[0][1]"),
        ({"input": {"text": "x"}}, "invalid_value", "input"),
        ({"input": 5}, "invalid_value", "input"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"dimensions": 0}, "invalid_value", "dimensions"),
        ({"dimensions": "many"}, "invalid_value", "dimensions"),
        ({"dimensions": 2**64}, "invalid_value", "dimensions"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_is_400_with_its_path(
    make_client: Any, runtime: Any, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = make_client(max_body_bytes=100_000).embed(**fields)

    assert error_of(answer) == (400, code, param)
    assert runtime.embeds == []


def test_more_inputs_than_openai_takes_are_counted_in_the_error(make_client: Any) -> None:
    answer = make_client(max_body_bytes=100_000).embed(input=["a"] * 2049)

    assert "2049" in answer.json["error"]["message"]
    assert "2048" in answer.json["error"]["message"]


def test_dimensions_reach_the_model_which_knows_its_own(client: Any, runtime: Any) -> None:
    runtime.enqueue(UnsupportedParameter("dimensions is 8; the vectors have 2", param="dimensions"))

    assert error_of(client.embed(dimensions="8")) == (400, "unsupported_parameter", "dimensions")
    assert runtime.embeds[0].dimensions == 8


@pytest.mark.parametrize(
    ("value", "reported", "shown"),
    [
        ("a", "input[0]", "input"),
        ([1, 2], "input[0][1]", "input[1]"),
        (["a", "b"], "input[1]", "input[1]"),
        (["a"], "input[0]", "input[0]"),
        ([[1, 2]], "input[0][1]", "input[0][1]"),
    ],
)
def test_an_error_names_the_input_by_the_path_its_client_wrote(
    client: Any, runtime: Any, value: Any, reported: str, shown: str
) -> None:
    runtime.enqueue(InvalidRequest(f"{reported} is not in the vocabulary", param=reported))

    answer = client.embed(input=value)

    assert error_of(answer) == (400, "invalid_value", shown)
    assert answer.json["error"]["message"] == f"{shown} is not in the vocabulary"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ContextLengthExceeded("maximum 512, input[0] has 600", param="input[0]"), 400),
        (EmbeddingsDisabled("phi has the setting embedding: false"), 400),
        (QueueFull("full", retry_after_s=2.0), 429),
        (EngineUnavailable("died", retry_after_s=1.0), 503),
        (InsufficientMemory("too long", needed_bytes=2, available_bytes=1), 507),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_goes_wrong_has_its_status_and_code(client: Any, runtime: Any, error: Any, status: int) -> None:
    runtime.enqueue(error)

    answer = client.embed()

    assert (answer.status_code, answer.json["error"]["code"]) == (status, error.code)
    assert ("retry-after" in answer.headers) == (status in {429, 503})


def test_an_unknown_model_is_404_and_one_without_files_too(client: Any) -> None:
    assert error_of(client.embed(model="nope"))[:2] == (404, "model_not_found")
    assert error_of(client.embed(model="catalogue-only"))[:2] == (404, "model_not_downloaded")


def test_an_alias_is_answered_with_the_registered_id(client: Any) -> None:
    assert client.embed(model="phi-alias").json["model"] == "phi"


def test_a_client_that_leaves_cancels_its_request(serve: Any, runtime: Any) -> None:
    pause = Pause()
    runtime.enqueue(pause)
    url = urlsplit(serve())
    body = b'{"model":"phi","input":"x"}'
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=DEADLINE_S) as connection:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
        assert pause.reached.wait(DEADLINE_S)

    assert runtime.embeddings[0].closed.wait(DEADLINE_S)


@pytest.mark.parametrize("encoding", ["float", None])
def test_the_official_client_reads_both_encodings(serve: Any, encoding: Any) -> None:
    """Unless told otherwise, it asks for base64 and decodes it."""
    fields = {} if encoding is None else {"encoding_format": encoding}
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="unused", max_retries=0) as client:
        answer = client.embeddings.create(model="phi", input=["a", "b"], **fields)

    assert [item.embedding for item in answer.data] == [[1.0, 0.0], [1.0, 1.0]]
    assert answer.usage.total_tokens == 2
