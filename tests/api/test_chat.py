"""Chats, whole and streamed: shapes, errors before and in a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.answers import error_of
from api.scripted_runtime import finish, prefill, text
from hostler.domain import FinishReason, Timings, TokenLogprob, TopLogprob, Usage
from hostler.errors import ContextLengthExceeded, EngineFailed, EngineUnavailable, ModelLoadFailed, QueueFull

ANSWER_TIMINGS = {
    "prompt_n": 25, "prompt_ms": 12.5, "cached_n": 8, "predicted_n": 2, "predicted_ms": 4.0, "draft_n": 0,
    "draft_accepted_n": 0,
}  # fmt: skip
USAGE = {
    "prompt_tokens": 33, "completion_tokens": 2, "total_tokens": 35, "prompt_tokens_details": {"cached_tokens": 8},
}  # fmt: skip


def frames(answer: Any) -> list[Any]:
    """The data of each frame, parsed; comments and `[DONE]` as they stand. Fails on anything that is no frame."""
    found: list[Any] = []
    body = answer.text
    assert body.endswith("\n\n")
    for frame in body[:-2].split("\n\n"):
        assert "\n" not in frame
        if frame.startswith(":") or frame == "data: [DONE]":
            found.append(frame)
        else:
            assert frame.startswith("data: "), frame
            found.append(json.loads(frame[len("data: ") :]))
    return found


# -- whole answers ----------------------------------------------------------------------------------------------------


def test_an_answer_has_exactly_the_contracts_shape(client: Any, runtime: Any) -> None:
    answer = client.chat()

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-hostler-model"] == "phi"
    body = answer.json
    assert body["id"].startswith("chatcmpl-")
    assert body == {
        "id": runtime.asked[0].id,
        "object": "chat.completion",
        "created": 1700193928,
        "model": "phi",
        "system_fingerprint": "fp_hostler",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello user.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "timings": ANSWER_TIMINGS,
    }
    assert runtime.generations[0].closed.is_set()


def test_the_answer_names_the_registered_id_of_a_model_asked_for_by_alias(client: Any) -> None:
    assert client.chat(model="phi-alias").json["model"] == "phi"


def test_several_answers_come_in_order_and_their_prompt_counts_once(client: Any, runtime: Any) -> None:
    runtime.enqueue(
        prefill(index=1),
        text("b1", 1),
        text("a1", 0),
        text("b2", 1),
        finish(1, FinishReason.LENGTH, Usage(10, 4, 9), Timings(1, 2.0, 9, 4, 30.0)),
        finish(0, FinishReason.STOP, Usage(10, 3, 0), Timings(10, 5.0, 0, 3, 20.0)),
    )

    body = client.chat(n=2).json

    assert [(one["index"], one["message"]["content"], one["finish_reason"]) for one in body["choices"]] == [
        (0, "a1", "stop"),
        (1, "b1b2", "length"),
    ]
    assert body["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (body["timings"]["predicted_n"], body["timings"]["predicted_ms"]) == (7, 30.0)
    assert runtime.asked[0].n == 2


def test_log_probabilities_have_openais_form(client: Any, runtime: Any) -> None:
    euro = TokenLogprob(
        7, "\u20ac".encode()[:2], -0.5, (TopLogprob(7, b"\xe2\x82", -0.5), TopLogprob(8, b" b", float("-inf")))
    )
    runtime.enqueue(text("", logprobs=(euro,)), text("\u20ac", logprobs=(TokenLogprob(9, b"\xac", -1.0),)), finish())

    logprobs = client.chat(logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]

    assert runtime.asked[0].params.logprobs == 2
    assert logprobs["refusal"] is None
    assert logprobs["content"] == [
        {
            "token": "\ufffd",
            "logprob": -0.5,
            "bytes": [226, 130],
            "top_logprobs": [
                {"token": "\ufffd", "logprob": -0.5, "bytes": [226, 130]},
                {"token": " b", "logprob": -9999.0, "bytes": [32, 98]},
            ],
        },
        {"token": "\ufffd", "logprob": -1.0, "bytes": [172], "top_logprobs": []},
    ]


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_has_exactly_the_contracts_frames(client: Any, runtime: Any) -> None:
    answer = client.chat(stream=True)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    head = {
        "id": runtime.asked[0].id,
        "object": "chat.completion.chunk",
        "created": 1700193928,
        "model": "phi",
        "system_fingerprint": "fp_hostler",
    }

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[Any]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    assert frames(answer) == [
        {**head, "choices": choice({"role": "assistant", "content": ""})},
        {**head, "choices": choice({"content": "Hello"})},
        {**head, "choices": choice({"content": " user."})},
        {**head, "choices": choice({}, "stop"), "timings": ANSWER_TIMINGS},
        "data: [DONE]",
    ]
    assert runtime.generations[0].closed.is_set()


def test_the_usage_chunk_comes_last_when_asked_for_and_all_others_say_null(client: Any) -> None:
    *chunks, last, done = frames(client.chat(stream=True, stream_options={"include_usage": True}))

    assert done == "data: [DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert all("timings" not in chunk for chunk in chunks)
    assert (last["choices"], last["usage"], last["timings"]) == ([], USAGE, ANSWER_TIMINGS)


def test_text_that_json_must_escape_arrives_unchanged_in_one_line(client: Any, runtime: Any) -> None:
    strange = 'a"b\\c\nd\r\te\u2028\u00e9\U0001f600\x00\x1f data: [DONE]\n\n'
    runtime.enqueue(text(strange), finish())

    chunks = frames(client.chat(stream=True))

    assert chunks[1]["choices"][0]["delta"]["content"] == strange


def test_each_choice_has_one_role_chunk_and_one_finish_chunk(client: Any, runtime: Any) -> None:
    runtime.enqueue(text("b", 1), text("a", 0), finish(0), text("c", 1), finish(1, FinishReason.LENGTH))

    chunks = frames(client.chat(stream=True, n=2))[:-1]

    seen = [
        (chunk["choices"][0]["index"], chunk["choices"][0]["delta"], chunk["choices"][0]["finish_reason"]) for chunk in chunks
    ]
    role = {"role": "assistant", "content": ""}
    assert seen == [
        (0, role, None),
        (1, role, None),
        (1, {"content": "b"}, None),
        (0, {"content": "a"}, None),
        (0, {}, "stop"),
        (1, {"content": "c"}, None),
        (1, {}, "length"),
    ]
    assert "timings" not in chunks[4]
    assert chunks[6]["timings"]["predicted_n"] == 4


def test_an_answer_without_text_still_has_role_and_finish_chunks(client: Any, runtime: Any) -> None:
    runtime.enqueue(prefill(), finish())

    deltas = [chunk["choices"][0]["delta"] for chunk in frames(client.chat(stream=True))[:-1]]

    assert deltas == [{"role": "assistant", "content": ""}, {}]


def test_log_probabilities_travel_with_their_text(client: Any, runtime: Any) -> None:
    token = TokenLogprob(1, b"Hi", -0.25)
    runtime.enqueue(text("Hi", logprobs=(token,)), finish())

    chunk = frames(client.chat(stream=True, logprobs=True))[1]

    assert runtime.asked[0].params.logprobs == 0
    content = [{"token": "Hi", "logprob": -0.25, "bytes": [72, 105], "top_logprobs": []}]
    assert chunk["choices"][0]["logprobs"] == {"content": content, "refusal": None}


def test_an_accept_header_of_json_does_not_switch_streaming_off(client: Any) -> None:
    body = {"model": "phi", "messages": [{"role": "user", "content": "x"}], "stream": "true"}
    answer = client.simulate_post("/v1/chat/completions", json=body, headers={"Accept": "application/json"})

    assert frames(answer)[-1] == "data: [DONE]"


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFull("full", retry_after_s=3), 429),
        (ContextLengthExceeded("too long", param="messages"), 400),
        (ModelLoadFailed("no"), 500),
        (EngineUnavailable("died"), 503),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_before_the_first_text_keeps_its_status_streamed_or_not(
    client: Any, runtime: Any, error: Exception, status: int, stream: bool
) -> None:
    runtime.enqueue(None, prefill(), error)

    answer = client.chat(stream=stream)

    assert error_of(answer)[:2] == (status, error.code)  # type: ignore[attr-defined]
    assert runtime.generations[0].closed.is_set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_server_is_429_at_once(client: Any, runtime: Any, stream: bool) -> None:
    runtime.enqueue(QueueFull("full", retry_after_s=3))

    answer = client.chat(stream=stream)

    assert error_of(answer) == (429, "queue_full", None)
    assert answer.headers["retry-after"] == "3"


def test_an_error_in_a_stream_is_its_last_frame_and_no_done_follows(client: Any, runtime: Any) -> None:
    runtime.enqueue(text("Hel"), EngineUnavailable("The worker died: signal 9"))

    answer = client.chat(stream=True)

    assert answer.status_code == 200
    assert frames(answer)[-1] == {
        "error": {"message": "The worker died: signal 9", "type": "server_error", "param": None, "code": "engine_unavailable"},
        "message": "The worker died: signal 9",
    }
    assert runtime.generations[0].closed.is_set()


def test_a_bug_in_a_stream_ends_it_with_an_error_that_tells_nothing(
    client: Any, runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.enqueue(text("Hel"), ZeroDivisionError("secret"))

    answer = client.chat(stream=True)

    assert frames(answer)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert any(record.exc_info and "secret" in str(record.exc_info[1]) for record in caplog.records)


@pytest.mark.parametrize(
    ("reason", "code", "status"),
    [(FinishReason.CANCELLED, "request_cancelled", 499), (FinishReason.ERROR, EngineFailed.code, 500)],
)
def test_an_answer_that_was_cut_off_is_an_error_and_never_a_short_answer(
    client: Any, runtime: Any, reason: FinishReason, code: str, status: int
) -> None:
    for _ in range(2):
        runtime.enqueue(text("Hel"), finish(reason=reason))

    whole, streamed = client.chat(), client.chat(stream=True)

    assert error_of(whole)[:2] == (status, code)
    assert frames(streamed)[-1]["error"]["code"] == code


def test_events_that_end_too_early_are_an_error(client: Any, runtime: Any) -> None:
    for _ in range(3):
        runtime.enqueue(text("Hel"))
    runtime.enqueue(prefill())

    assert error_of(client.chat())[0] == 500
    assert frames(client.chat(stream=True))[-1]["error"]["code"] == "internal_error"
    assert error_of(client.chat(n=2))[0] == 500
    assert error_of(client.chat(stream=True))[0] == 500


def test_an_unknown_model_is_404_streamed_or_not(client: Any) -> None:
    for stream in (False, True):
        answer = client.chat(model="nope", stream=stream)

        assert error_of(answer) == (404, "model_not_found", None)
        assert answer.json["message"] == "The model nope does not exist"


def test_a_stream_that_is_closed_before_it_was_read_gives_its_generation_back(runtime: Any, settings: Any) -> None:
    """A server closes the body of a client that left between the headers and the first read."""
    from falcon.testing import create_environ

    from hostler.api.app import create_app

    body = json.dumps({"model": "phi", "messages": [{"role": "user", "content": "x"}], "stream": True})
    app = create_app(runtime, settings)
    stream = app(
        create_environ(path="/v1/chat/completions", method="POST", body=body, host="localhost"), lambda status, headers: None
    )
    assert not runtime.generations[0].closed.is_set()

    stream.close()  # type: ignore[attr-defined]

    assert runtime.generations[0].closed.is_set()
