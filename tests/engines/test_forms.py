"""Answers in a form, of each engine over HTTP: streamed or not, whatever draws the tokens, and refused where they cannot be.

Every engine here holds to forms. What one truly cannot is a 400; see docs/structured-output.md.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest

SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "size": {"enum": ["small", "large"]},
        "rooms": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "minItems": 1, "maxItems": 2},
    },
    "required": ["ok", "size", "rooms"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "house", "schema": SCHEMA, "strict": True}}
MANNERS = [
    {"temperature": 0},
    {"temperature": 1.5, "top_p": 1, "min_p": 0, "seed": 3},
    {"temperature": 1, "top_k": 7, "frequency_penalty": 1.0},
    {"temperature": 1, "mirostat": 2},
    {"temperature": 0, "ignore_eos": True},
]


def ask(http: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": "A house: ", "max_tokens": 200, **fields}
    return http.post("/v1/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


@pytest.mark.parametrize("manner", MANNERS, ids=str)
def test_an_answer_is_valid_by_its_schema_however_it_is_drawn(http: httpx.Client, model: str, manner: dict[str, Any]) -> None:
    answer = ask(http, model, response_format=FORMAT, **manner)

    jsonschema.validate(json.loads(text_of(answer)), SCHEMA)
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


def test_a_stream_is_held_to_its_form_as_the_whole_answer_is(http: httpx.Client, model: str) -> None:
    whole = text_of(ask(http, model, response_format=FORMAT, temperature=0))

    with http.stream(
        "POST",
        "/v1/completions",
        json={
            "model": model,
            "prompt": "A house: ",
            "max_tokens": 200,
            "response_format": FORMAT,
            "temperature": 0,
            "stream": True,
        },
    ) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: {")]

    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines if json.loads(line)["choices"]) == whole


def test_a_seed_draws_the_same_answer_in_its_form_again(http: httpx.Client, model: str) -> None:
    drawn = {text_of(ask(http, model, response_format=FORMAT, temperature=1.2, seed=11)) for _ in range(3)}

    assert len(drawn) == 1


def test_several_answers_each_keep_to_the_form(http: httpx.Client, model: str) -> None:
    answer = ask(http, model, response_format=FORMAT, temperature=1, n=4)

    for choice in answer.json()["choices"]:
        jsonschema.validate(json.loads(choice["text"]), SCHEMA)


def test_log_probabilities_are_of_the_tokens_that_the_form_allows(http: httpx.Client, model: str) -> None:
    answer = ask(http, model, guided_choice=["ab", "cd"], logprobs=5, temperature=0)

    logprobs = answer.json()["choices"][0]["logprobs"]
    assert text_of(answer) in ("ab", "cd")
    assert set(logprobs["top_logprobs"][0]) <= {"a", "c", "ab", "cd"}
    assert all(value <= 1e-4 for value in logprobs["token_logprobs"])


@pytest.mark.parametrize(
    ("fields", "is_right"),
    [
        ({"grammar": 'root ::= "x" [0-9] [0-9] "!"\n'}, lambda text: len(text) == 4 and text[1:3].isdigit()),
        ({"grammar": 'start: "x" /[0-9]{2}/'}, lambda text: len(text) == 3 and text[1:].isdigit()),
        ({"guided_regex": r"\d{3}-\d{2}"}, lambda text: len(text) == 6 and text[3] == "-"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"json_schema": {"type": "boolean"}}, lambda text: text in ("true", "false")),
    ],
)  # fmt: skip
def test_other_languages_say_what_an_answer_may_be(
    http: httpx.Client, model: str, fields: dict[str, Any], is_right: Any
) -> None:
    assert is_right(text_of(ask(http, model, temperature=1, **fields)))


def test_an_answer_that_is_cut_short_says_so(http: httpx.Client, model: str) -> None:
    answer = ask(http, model, response_format=FORMAT, max_tokens=3)

    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert text_of(answer).startswith("{")


def test_a_stop_string_ends_an_answer_inside_its_form(http: httpx.Client, model: str) -> None:
    answer = ask(http, model, response_format=FORMAT, stop=['"ok"'], temperature=0)

    assert '"ok"' not in text_of(answer)
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


REFUSED = [
    ({"not": {"type": "string"}}, "not"),
    ({"$ref": "https://example.com/x.json"}, "example.com"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"$ref": "#"}, "no answer"),
]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=str)
def test_a_schema_that_cannot_be_enforced_is_refused_and_never_dropped(
    http: httpx.Client, model: str, schema: dict[str, Any], said: str, is_stream: bool
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = ask(http, model, response_format=form, stream=is_stream)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == "response_format.json_schema.schema"
    assert said in error["message"]


def test_an_answer_in_a_form_leaves_the_others_alone(http: httpx.Client, client: openai.OpenAI, model: str) -> None:
    def free() -> Any:
        return client.completions.create(
            model=model, prompt="Once", max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
        )

    before = free()
    text_of(ask(http, model, response_format=FORMAT, n=2))

    assert free().choices[0].text == before.choices[0].text


def test_a_run_is_held_to_its_response_format(client: openai.OpenAI, http: httpx.Client, model: str) -> None:
    thread = http.post("/v1/threads", json={"messages": [{"role": "user", "content": "A house"}]}).json()
    body = {"model": model, "assistant_id": "jan", "response_format": FORMAT, "max_completion_tokens": 200, "stream": True}

    with http.stream("POST", f"/v1/threads/{thread['id']}/runs", json=body) as stream:
        assert stream.status_code == 200, stream.read()
        text = stream.read().decode()

    assert "event: thread.run.completed" in text
    messages = http.get(f"/v1/threads/{thread['id']}/messages").json()["data"]
    said = next(one for one in messages if one["role"] == "assistant")["content"][0]["text"]["value"]
    jsonschema.validate(json.loads(said), SCHEMA)


def test_a_model_whose_engine_cannot_hold_to_forms_refuses_them_by_name(http: httpx.Client) -> None:
    """Echo with three bytes a token has too many tokens for masks."""
    answer = ask(http, "wide", response_format={"type": "json_object"})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "response_format")
    assert "echo" in error["message"]
