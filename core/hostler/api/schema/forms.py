"""The fields that ask for an answer in a form, as chats and completions share them. Floor 5; pure.

What they mean stands in `responseformat.py`, for runs and assistants, too.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct, structs

from hostler.api.schema.marks import exactly
from hostler.domain import OutputFormat
from hostler.responseformat import FURTHER, MAX_CHOICES, NAME, TYPES, read_output_format

_TEXT = {"type": "string", "minLength": 1}
_SCHEMA = {"anyOf": [{"type": "object"}, {"type": "string", "description": "The object as JSON text."}]}
_CHOICES = {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": _TEXT}
_WITH_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": NAME},
        "description": {"type": ["string", "null"]},
        "schema": {"type": "object", "description": "A JSON Schema. What of it cannot be enforced is refused."},
        "strict": {"type": ["boolean", "null"], "description": "Changes nothing: every schema is enforced."},
    },
    "required": ["name", "schema"],
}
FORM = {
    "type": "object",
    "properties": {"type": {"enum": list(TYPES)}, "json_schema": _WITH_SCHEMA},
    "required": ["type"],
    "anyOf": [{"properties": {"type": {"enum": ["text", "json_object"]}}}, {"required": ["json_schema"]}],
}
"""An object that says which form, in the document."""
ResponseFormat = Annotated[dict[str, Any] | None, exactly({"anyOf": [FORM, {"type": "null"}]})]


def _or_null(schema: dict[str, Any], description: str) -> Any:
    return exactly({"anyOf": [schema, {"type": "null"}], "description": description})


_STRUCTURED = {
    "type": "object",
    "properties": {"json": _SCHEMA, "regex": _TEXT, "choice": _CHOICES, "grammar": _TEXT},
    "minProperties": 1,
}


class FormFields(Struct):
    """Beside response_format: what llama-server and vLLM call it."""

    response_format: ResponseFormat = None
    grammar: Annotated[Any, _or_null(_TEXT, "As llama-server takes it: a grammar in GBNF, or in llguidance's Lark.")] = None
    json_schema: Annotated[Any, _or_null(_SCHEMA, "A JSON Schema, as llama-server takes it.")] = None
    structured_outputs: Annotated[Any, _or_null(_STRUCTURED, "One of four, as vLLM takes it.")] = None
    guided_json: Annotated[Any, _or_null(_SCHEMA, "structured_outputs.json of older clients.")] = None
    guided_regex: Annotated[Any, _or_null(_TEXT, "structured_outputs.regex of older clients.")] = None
    guided_choice: Annotated[Any, _or_null(_CHOICES, "structured_outputs.choice of older clients.")] = None
    guided_grammar: Annotated[Any, _or_null(_TEXT, "structured_outputs.grammar of older clients.")] = None


def read_form(body: FormFields) -> OutputFormat | None:
    """The one form that a body asks for.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    fields = structs.asdict(body)
    return read_output_format(body.response_format, {name: fields[name] for name in FURTHER})
