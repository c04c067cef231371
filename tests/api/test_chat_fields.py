"""The fields of a chat: sampling, forms, messages, options; what is refused, and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from api.answers import error_of
from api.scripted_runtime import view
from hostler.domain import FormatKind, Message

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
