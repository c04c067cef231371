"""What the log says of chats and of other requests."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from api.scripted_runtime import prefill, text
from hostler.errors import ContextLengthExceeded, EngineUnavailable


def lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "hostler.request" and record.levelno == logging.INFO]


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_has_one_line_with_its_numbers(
    client: Any, runtime: Any, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG, "hostler.request")

    answer = client.chat(stream=stream)

    (line,) = lines(caplog)
    assert line.request_id == answer.headers["x-request-id"]
    assert line.generation_id == runtime.asked[0].id
    assert (line.model, line.prompt_tokens, line.completion_tokens, line.cached_tokens) == ("phi", 33, 2, 8)
    assert (line.end_reason, line.tok_s, line.is_stream) == ("stop", 250.0, stream)
    assert 0 <= line.ttft_s <= line.duration_s
    for word in (runtime.asked[0].id, "phi", "33+2 tokens", "250.0 tok/s", "stop"):
        assert word in line.getMessage()
    assert len([record for record in caplog.records if record.name == "hostler.request"]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_line_of_a_failed_generation_says_why(
    client: Any, runtime: Any, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO, "hostler.request")
    runtime.enqueue(prefill(), text("Hel", n_tokens=3), EngineUnavailable("died"))
    runtime.enqueue(ContextLengthExceeded("too long"))

    client.chat(stream=stream)
    client.chat(stream=stream)

    first, second = lines(caplog)
    assert (first.end_reason, first.prompt_tokens, first.completion_tokens) == ("engine_unavailable", 33, 3)
    assert (second.end_reason, second.ttft_s) == ("context_length_exceeded", None)


def test_a_chat_that_asked_no_model_has_a_line_like_any_other_request(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "hostler.request")

    client.chat(temperature=9)
    client.chat(model="nope")

    found = [(record.levelno, record.error_code) for record in caplog.records if record.name == "hostler.request"]
    assert found == [(logging.DEBUG, "invalid_value"), (logging.DEBUG, "model_not_found")]


def test_other_requests_have_a_line_at_debug_only(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "hostler.request")

    answer = client.simulate_get("/v1/models/no%0Ape")

    (line,) = [record for record in caplog.records if record.name == "hostler.request"]
    assert line.levelno == logging.DEBUG
    assert (line.request_id, line.error_code) == (answer.headers["x-request-id"], "model_not_found")
    assert "\n" not in line.getMessage()
