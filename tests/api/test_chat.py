"""Chats, whole and streamed: shapes, sampling fields, refusals, errors before and in a stream."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from api.scripted_runtime import finish, prefill, text, view
from hostler.domain import FinishReason, FormatKind, Message, Timings, TokenLogprob, TopLogprob, Usage
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


def error_of(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]


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


# -- sampling fields --------------------------------------------------------------------------------------------------


def test_the_request_wins_over_the_model_and_the_model_over_the_server(client: Any, runtime: Any) -> None:
    stored = {"temperature": 0.2, "top_k": 40, "token_limit": 100, "stop": ["END"], "stream": True, "tfs_z": 0.5}
    runtime.views["phi"] = view("phi", manifest={"parameters": stored})

    client.chat(temperature="1.5", stop=None)
    client.chat(max_tokens=7, stop="\n", top_k=None)

    first, second = (request.params for request in runtime.asked)
    assert (first.temperature, first.top_k, first.max_tokens, first.stop, first.top_p) == (1.5, 40, 100, ("END",), 0.95)
    assert (second.temperature, second.top_k, second.max_tokens, second.stop) == (0.2, 40, 7, ("\n",))


def test_a_stored_stream_parameter_does_not_make_a_stream(client: Any, runtime: Any) -> None:
    runtime.views["phi"] = view("phi", manifest={"parameters": {"stream": True}})

    assert client.chat().headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6, "token_limit": 7}, 6),
        ({"max_tokens": 5, "token_limit": 7}, 5),
        ({"token_limit": "7"}, 7),
        ({}, 2048),
        ({"max_tokens": 10**12}, 2**31 - 1),
    ],
)
def test_of_several_token_limits_openais_newest_name_wins(
    client: Any, runtime: Any, fields: dict[str, Any], expected: int
) -> None:
    client.chat(**fields)

    assert runtime.asked[0].params.max_tokens == expected


def test_all_sampling_fields_arrive(client: Any, runtime: Any) -> None:
    fields = {
        "temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": "0.1", "typ_p": 0.9, "min_keep": 1, "frequency_penalty": -2,
        "presence_penalty": 2, "repeat_penalty": 1.1, "repeat_last_n": -1, "dynatemp_range": 0.2, "dynatemp_exponent": 2,
        "mirostat_tau": 4, "mirostat_eta": 0.2, "ignore_eos": "true",
    }  # fmt: skip

    client.chat(**fields, mirostat=True, seed=5, stop=["a", "", "b"], logit_bias={"50256": "-100", "7": 1.5})

    params = runtime.asked[0].params
    expected = {**fields, "min_p": 0.1, "ignore_eos": True}
    assert {name: getattr(params, name) for name in fields} == expected
    assert (params.mirostat, params.seed, params.stop) == (1, 5, ("a", "b"))
    assert params.logit_bias == {50256: -100.0, 7: 1.5}


@pytest.mark.parametrize(("seed", "expected"), [(None, -1), (-1, -1), ("12", 12), (2**31 + 3, 3), (0, 0)])
def test_seeds_fit_what_engines_hold_and_minus_one_stays_random(client: Any, runtime: Any, seed: Any, expected: int) -> None:
    client.chat(seed=seed)

    assert runtime.asked[0].params.seed == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": []}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "x"}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"mirostat": 3}, "mirostat"),
        ({"stream": "perhaps"}, "stream"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": "two"}, "n"),
        ({"logprobs": "x"}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"abc": 1}}, "logit_bias.abc"),
        ({"logit_bias": {"-5": 1}}, "logit_bias.-5"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"5": None}}, "logit_bias.5"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"cache_prompt": "maybe"}, "cache_prompt"),
        ({"priority": "urgent"}, "priority"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"response_format": "json"}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"model": 5}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}, "messages[1].role"),
        ({"messages": [{"role": 5, "content": "b"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["text"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "smell", "text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x", "name": {}}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x", "cache": "forever"}]}, "messages[0].cache"),
        ({"messages": [{"role": "user", "content": "x", "cache": True}]}, "messages[0].cache"),
    ],
    ids=str,
)
def test_a_bad_field_is_400_with_its_path_and_asks_no_engine(
    client: Any, runtime: Any, fields: dict[str, Any], param: str
) -> None:
    answer = client.chat(**fields)

    assert error_of(answer) == (400, "invalid_value", param)
    assert param.split(".")[0].split("[")[0] in answer.json["error"]["message"]
    assert runtime.asked == []


def test_an_error_names_the_value_and_what_would_be_accepted(client: Any) -> None:
    assert client.chat(temperature=3).json["error"]["message"] == "temperature is 3; allowed: a number from 0 to 2"
    assert client.chat(n=9).json["error"]["message"] == "n is 9; expected a whole number of at most 8"
    messages = [{"role": "user", "content": 5}]
    expected = "messages[0].content is 5; expected a string or an array"
    assert client.chat(messages=messages).json["error"]["message"] == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
    ],
    ids=str,
)
def test_a_missing_field_is_400_with_its_path(client: Any, fields: dict[str, Any], param: str) -> None:
    assert error_of(client.chat(**fields)) == (400, "missing_required_parameter", param)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        (
            {
                "messages": [
                    {"role": "user", "content": "look"},
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
                ]
            },
            "messages[1].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}]},
            "messages[0].content[1]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "doc_url"}]}]}, "messages[0].content[0]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_refused_by_name_streamed_or_not(
    client: Any, runtime: Any, fields: dict[str, Any], param: str, stream: bool
) -> None:
    assert error_of(client.chat(**fields, stream=stream)) == (400, "unsupported_parameter", param)
    assert runtime.asked == []


@pytest.mark.parametrize("route", ["chat", "complete"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_reaches_the_model_whatever_a_request_calls_it(client: Any, runtime: Any, route: str, stream: bool) -> None:
    schema = {"type": "object"}

    getattr(client, route)(response_format={"type": "json_object"}, stream=stream)
    getattr(client, route)(guided_json=schema, stream=stream)

    forms = [request.params.output_format for request in runtime.asked]
    assert [form.kind for form in forms] == [FormatKind.JSON_OBJECT, FormatKind.JSON_SCHEMA]
    assert [form.param for form in forms] == ["response_format", "guided_json"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": [TOOL], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {
            "user": "me",
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "reasoning_effort": "low",
            "engine": "x",
        },
        {"stream_options": {"include_usage": True}},
        {"logprobs": False, "top_logprobs": 0},
        {"nonsense": {"deep": [1, 2]}},
        dict.fromkeys(("stream", "n", "stop", "tools", "logit_bias", "seed", "max_tokens", "response_format")),
    ],
    ids=str,
)
def test_fields_that_mean_nothing_here_are_accepted(client: Any, fields: dict[str, Any]) -> None:
    assert client.chat(**fields).status_code == 200


# -- messages ---------------------------------------------------------------------------------------------------------


def test_messages_become_plain_text_turns(client: Any, runtime: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    client.chat(
        messages=[
            {"role": "developer", "content": "Be brief.", "cache": "pin"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "3", "tool_call_id": "call_1"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": ""},
        ]
    )

    assert runtime.asked[0].messages == (
        Message("system", "Be brief.", is_pinned=True),
        Message("user", "one\ntwo", "ann"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "3", tool_call_id="call_1"),
        Message("assistant", "No."),
        Message("user", ""),
    )


def test_options_of_cache_and_template_arrive(client: Any, runtime: Any) -> None:
    client.chat(cache_prompt=False, chat_template_kwargs={"enable_thinking": False})

    assert runtime.asked[0].cache_prompt is False
    assert runtime.asked[0].template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({}, "normal"),
        ({"priority": "interactive"}, "interactive"),
        ({"service_tier": "flex"}, "batch"),
        ({"service_tier": "priority"}, "interactive"),
        ({"service_tier": "auto"}, "normal"),
        ({"service_tier": "flex", "priority": "normal"}, "normal"),
    ],
)
def test_the_priority_arrives_under_either_name(client: Any, runtime: Any, fields: dict[str, str], priority: str) -> None:
    client.chat(**fields)
    client.complete(**fields)

    assert [request.priority for request in runtime.asked] == [priority] * 2


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


# -- the log ----------------------------------------------------------------------------------------------------------


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


# -- numbers ------------------------------------------------------------------------------------------------------------


def test_whole_numbers_beyond_64_bits_travel_as_floats_and_what_is_no_float_is_400(client: Any, runtime: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}, "note": 2**70}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "y"}]

    taken = client.chat(messages=messages, chat_template_kwargs={"n": -(2**70)})
    call["note"] = 10**400
    refused = client.chat(messages=messages)

    assert taken.status_code == 200
    assert runtime.asked[0].messages[0].tool_calls[0]["note"] == 2.0**70
    assert isinstance(runtime.asked[0].template_kwargs["n"], float)
    assert error_of(refused) == (400, "invalid_value", "messages[0].tool_calls")
