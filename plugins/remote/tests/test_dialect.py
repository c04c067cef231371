"""Requests in the words of each kind of upstream."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hostler import FormatKind, Message, OutputFormat, Priority, RawPrompt, SamplingParams, UnsupportedParameter
from hostler_remote.description import Description, Kind
from hostler_remote.dialect import FURTHER, NAMES, call_of

CHAT = RawPrompt(messages=(Message("user", "Hi."),))
PLAIN = RawPrompt(prompt="Once")


def body(raw: RawPrompt = CHAT, *, kind: Kind = "other", **fields: Any) -> dict[str, Any]:
    tuning = {name: fields.pop(name) for name in ("strict", "max_tokens_field") if name in fields}
    wishes = {name: fields.pop(name) for name in ("cache_prompt", "priority") if name in fields}
    description = Description(url="https://api.example/v1", model="m", kind=kind, **tuning)
    call = call_of(raw, SamplingParams(**fields), description, **wishes)
    found: dict[str, Any] = msgspec.json.decode(call.encoded())
    return found


def test_every_parameter_that_openai_does_not_have_is_known_here() -> None:
    openais = {
        "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "logit_bias", "logprobs", "stop",
        "max_tokens", "output_format",
    }  # fmt: skip

    assert set(FURTHER) == set(SamplingParams.__struct_fields__) - openais
    assert all(set(names) <= set(FURTHER) for names in NAMES.values())


def test_defaults_are_sent_where_openais_differ_and_left_out_where_nobodys_do() -> None:
    sent = body()

    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.7, 0.95, 2048)
    assert set(sent) == {"model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens"}


def test_openais_own_parameters_go_under_its_names() -> None:
    sent = body(frequency_penalty=0.5, presence_penalty=-1, seed=7, logit_bias={5: -100.0}, stop=("a", "b"), logprobs=2)

    assert sent["frequency_penalty"] == 0.5
    assert sent["presence_penalty"] == -1
    assert (sent["seed"], sent["logit_bias"], sent["stop"]) == (7, {"5": -100.0}, ["a", "b"])
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)
    assert body(PLAIN, logprobs=0)["logprobs"] == 0
    assert "top_logprobs" not in body(logprobs=0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("other", {"top_k": 9, "repeat_penalty": 1.2, "typ_p": 0.9}),
        ("hostler", {"top_k": 9, "repeat_penalty": 1.2, "typ_p": 0.9}),
        ("llamacpp", {"top_k": 9, "repeat_penalty": 1.2, "typical_p": 0.9}),
    ],
)
def test_each_kind_gets_its_own_names(kind: Kind, expected: dict[str, Any]) -> None:
    sent = body(kind=kind, top_k=9, repeat_penalty=1.2, typ_p=0.9)

    assert expected.items() <= sent.items()
    assert not {"typ_p", "typical_p"} - expected.keys() & sent.keys()


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_servers_for_gpus_take_some_under_other_names_and_the_rest_is_refused(kind: Kind) -> None:
    sent = body(kind=kind, top_k=9, min_p=0.1, repeat_penalty=1.2, ignore_eos=True)

    assert {"top_k": 9, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True}.items() <= sent.items()
    with pytest.raises(UnsupportedParameter, match=f"mirostat is 2, and .* kind {kind}, which does not take it") as caught:
        body(kind=kind, mirostat=2)
    assert caught.value.param == "mirostat"


@pytest.mark.parametrize(
    "fields", [{"kind": "openai"}, {"kind": "ollama"}, {"strict": True}, {"kind": "vllm", "strict": True}]
)
def test_a_strict_upstream_gets_what_openai_knows_and_nothing_else(fields: dict[str, Any]) -> None:
    for name, value in {"top_k": 5, "min_p": 0.2, "repeat_penalty": 1.1, "ignore_eos": True}.items():
        with pytest.raises(UnsupportedParameter) as caught:
            body(**fields, **{name: value})
        assert caught.value.param == name

    off = body(**fields, top_k=0, min_p=0.0, typ_p=1.0, repeat_penalty=1.0)
    assert set(off) == set(body(**fields)), "a value that changes nothing is no reason to refuse"


def test_templates_variables_and_the_cache_go_where_they_are_known() -> None:
    raw = msgspec.structs.replace(CHAT, template_kwargs={"enable_thinking": False})

    assert body(raw, kind="vllm")["chat_template_kwargs"] == {"enable_thinking": False}
    assert body(cache_prompt=False, kind="hostler")["cache_prompt"] is False
    with pytest.raises(UnsupportedParameter, match="chat_template_kwargs"):
        body(raw, kind="openai")
    with pytest.raises(UnsupportedParameter, match="cache_prompt"):
        body(cache_prompt=False, kind="vllm")


FORM = OutputFormat(FormatKind.JSON_SCHEMA, '{"type":"object"}', "guided_json", is_strict=True)


@pytest.mark.parametrize("fields", [{"kind": "openai"}, {"kind": "ollama"}, {"kind": "vllm"}, {"strict": True}, {}])
def test_a_schema_goes_to_every_upstream_of_a_chat_as_openai_has_it(fields: dict[str, Any]) -> None:
    sent = body(**fields, output_format=FORM)

    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert sent["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert body(**fields, output_format=OutputFormat(FormatKind.JSON_OBJECT))["response_format"] == {"type": "json_object"}


def test_other_forms_go_where_they_are_known_and_are_refused_elsewhere() -> None:
    choice = OutputFormat(FormatKind.CHOICE, '["a","b"]', "guided_choice")
    grammar = OutputFormat(FormatKind.GBNF, 'root ::= "a"', "grammar")

    assert body(kind="vllm", output_format=choice)["structured_outputs"] == {"choice": ["a", "b"]}
    assert body(kind="llamacpp", output_format=grammar)["grammar"] == 'root ::= "a"'
    for fields in ({"kind": "openai"}, {"kind": "llamacpp"}, {"kind": "other"}, {"kind": "vllm", "strict": True}):
        with pytest.raises(UnsupportedParameter) as caught:
            body(**fields, output_format=choice)
        assert caught.value.param == "guided_choice"


def test_a_plain_prompt_in_a_form_is_refused_where_only_chats_have_forms() -> None:
    plain = RawPrompt(prompt="Once")

    assert "response_format" in body(plain, kind="vllm", output_format=FORM)
    with pytest.raises(UnsupportedParameter) as caught:
        body(plain, kind="openai", output_format=FORM)
    assert caught.value.param == "guided_json"


def test_openai_gets_four_stop_strings_at_most() -> None:
    stops = ("a", "b", "c", "d", "e")

    assert body(kind="openai", stop=stops)["stop"] == ["a", "b", "c", "d"]
    assert body(kind="vllm", stop=stops)["stop"] == list(stops)


def test_max_tokens_goes_under_the_name_that_a_chat_wants() -> None:
    sent = body(max_tokens=5, max_tokens_field="max_completion_tokens")

    assert sent["max_completion_tokens"] == 5
    assert "max_tokens" not in sent
    assert body(PLAIN, max_tokens=5, max_tokens_field="max_completion_tokens")["max_tokens"] == 5


def test_messages_keep_their_names_and_tool_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    raw = RawPrompt(messages=(Message("assistant", None, tool_calls=(call,)), Message("tool", "4", tool_call_id="1")))

    assert body(raw)["messages"] == [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize("kind", [*NAMES])
def test_wishes_about_time_go_to_another_hostler_and_to_nobody_who_might_refuse_them(kind: Kind) -> None:
    raw = RawPrompt(messages=(Message("system", "Rules.", is_pinned=True), Message("user", "Hi.")))

    sent = body(raw, kind=kind, priority=Priority.BATCH)
    strict = body(raw, kind=kind, priority=Priority.BATCH, strict=True)

    is_hostler = kind == "hostler"
    assert sent["messages"][0] == {"role": "system", "content": "Rules.", **({"cache": "pin"} if is_hostler else {})}
    assert sent.get("priority") == ("batch" if is_hostler else None)
    assert strict["messages"] == [{"role": "system", "content": "Rules."}, {"role": "user", "content": "Hi."}]
    assert "priority" not in strict
