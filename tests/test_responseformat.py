"""Every way in which a client may ask for a form, and what is no such way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.domain import FormatKind, OutputFormat
from hostler.errors import InvalidRequest, MissingParameter
from hostler.responseformat import read_output_format, read_response_format

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
NAMED = {"name": "thing", "schema": SCHEMA}
GBNF = 'root ::= "a"'
LARK = 'start: "a"'


@pytest.mark.parametrize("value", [None, "auto", {"type": "text"}])
def test_text_is_no_form(value: Any) -> None:
    assert read_response_format(value) is None


def test_a_schema_comes_with_its_name_and_its_place() -> None:
    value = {"type": "json_schema", "json_schema": {**NAMED, "description": "d", "strict": True}}

    assert read_response_format(value) == OutputFormat(
        FormatKind.JSON_SCHEMA, TEXT, "response_format.json_schema.schema", "thing", "d", True
    )


@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json_schema", TEXT, "response_format.schema"),
        ({"grammar": GBNF}, "gbnf", GBNF, "grammar"),
        ({"grammar": LARK}, "lark", LARK, "grammar"),
        ({"grammar": f"%llguidance {{}}\n{LARK}"}, "lark", f"%llguidance {{}}\n{LARK}", "grammar"),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        ({"json_schema": TEXT}, "json_schema", TEXT, "json_schema"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "json_object", "", "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a+", "json": None}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", '["a"]', "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": GBNF}}, "gbnf", GBNF, "structured_outputs.grammar"),
        ({"guided_json": TEXT}, "json_schema", TEXT, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a","b"]', "guided_choice"),
        ({"guided_grammar": LARK}, "lark", LARK, "guided_grammar"),
        ({"response_format": {"type": "text"}, "grammar": GBNF}, "gbnf", GBNF, "grammar"),
    ],
)
def test_each_way_to_ask(fields: dict[str, Any], kind: str, source: str, param: str) -> None:
    form = read_output_format(fields.pop("response_format", None), fields)

    assert form == OutputFormat(FormatKind(kind), source, param)


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"response_format": "json"}, InvalidRequest, "response_format"),
        ({"response_format": {}}, MissingParameter, "response_format.type"),
        ({"response_format": {"type": "xml"}}, InvalidRequest, "response_format.type"),
        ({"response_format": {"type": ["text"]}}, InvalidRequest, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, MissingParameter, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 7}}, InvalidRequest, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, MissingParameter,
         "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, InvalidRequest,
         "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, MissingParameter,
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}}, InvalidRequest,
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": "yes"}}}, InvalidRequest,
         "response_format.json_schema.strict"),
        ({"response_format": {"type": "json_schema", "json_schema": {**NAMED, "description": 1}}}, InvalidRequest,
         "response_format.json_schema.description"),
        ({"grammar": ""}, InvalidRequest, "grammar"),
        ({"grammar": {"type": "regex"}}, InvalidRequest, "grammar"),
        ({"json_schema": "{"}, InvalidRequest, "json_schema"),
        ({"json_schema": "[" * 5000}, InvalidRequest, "json_schema"),
        ({"json_schema": "true"}, InvalidRequest, "json_schema"),
        ({"structured_outputs": {}}, InvalidRequest, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, InvalidRequest, "structured_outputs"),
        ({"structured_outputs": []}, InvalidRequest, "structured_outputs"),
        ({"guided_choice": []}, InvalidRequest, "guided_choice"),
        ({"guided_choice": ["a", ""]}, InvalidRequest, "guided_choice[1]"),
        ({"guided_choice": ["a", 1]}, InvalidRequest, "guided_choice[1]"),
        ({"response_format": {"type": "json_object"}, "grammar": GBNF}, InvalidRequest, "grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, InvalidRequest, "guided_choice"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused_with_its_path(fields: dict[str, Any], error: type[InvalidRequest], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_output_format(fields.pop("response_format", None), fields)

    assert (type(caught.value), caught.value.param) == (error, param)
