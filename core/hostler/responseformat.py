"""What clients write where they want an answer in a form -> OutputFormat. Pure.

Floor 0, in the host. Chats, runs and assistants say `response_format`, as OpenAI's do; the further fields are those of
llama-server (`grammar`, `json_schema`) and of vLLM (`structured_outputs`, and before it `guided_*`). What the schema or
grammar itself means is found out in the worker, by guidance.py; here is only what needs no tokens.

Source: https://platform.openai.com/docs/guides/structured-outputs, tools/server/README.md of llama.cpp, vLLM's
"Structured Outputs".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hostler.domain import FormatKind, OutputFormat
from hostler.errors import InvalidRequest, MissingParameter

TYPES = ("text", "json_object", "json_schema")
NAME = "^[a-zA-Z0-9_-]{1,64}$"
MAX_CHOICES = 10_000
_LARK = re.compile(r"^\s*(?:%llguidance\b|start\s*:)", re.MULTILINE)


def read_response_format(value: Any) -> OutputFormat | None:
    """An object, or `auto`; None for text.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    path = "response_format"
    if value is None or value == "auto":
        return None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} is {_shown(value)}; allowed: auto, or an object with a type", param=path)
    kind = value.get("type")
    if kind is None:
        raise MissingParameter(f"{path}.type is missing; allowed: {', '.join(TYPES)}", param=f"{path}.type")
    if kind not in TYPES:
        raise InvalidRequest(f"{path}.type is {_shown(kind)}; allowed: {', '.join(TYPES)}", param=f"{path}.type")
    if kind == "text":
        return None
    if kind == "json_object":
        # llama-server's and llama-cpp-python's way to give a schema.
        if value.get("schema") is not None:
            return _schema(value["schema"], f"{path}.schema")
        return OutputFormat(FormatKind.JSON_OBJECT)
    return _named_schema(value.get("json_schema"), f"{path}.json_schema")


def read_output_format(response_format: Any, further: Mapping[str, Any]) -> OutputFormat | None:
    """The one form that a request asks for, whatever it calls it.

    Args:
        further: Fields in FURTHER that the request may have.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    wanted = {"response_format": read_response_format(response_format)}
    for name, read in FURTHER.items():
        if further.get(name) is not None:
            wanted[name] = read(further[name], name)
    forms = {name: form for name, form in wanted.items() if form is not None}
    if len(forms) > 1:
        names = list(forms)
        raise InvalidRequest(
            f"{' and '.join(names)} each ask for a form; an answer can have one, so send one of them", param=names[1]
        )
    return next(iter(forms.values()), None)


def _named_schema(value: Any, path: str) -> OutputFormat:
    if value is None:
        raise MissingParameter(f"{path} is missing; it holds the name and the schema", param=path)
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} is {_shown(value)}; expected an object", param=path)
    name = value.get("name")
    if name is None:
        raise MissingParameter(f"{path}.name is missing", param=f"{path}.name")
    if not (isinstance(name, str) and re.match(NAME, name)):
        raise InvalidRequest(
            f"{path}.name is {_shown(name)}; it has 1 to 64 letters, digits, underscores and dashes", param=f"{path}.name"
        )
    description, is_strict = value.get("description"), value.get("strict")
    if not isinstance(description, str | None):
        raise InvalidRequest(
            f"{path}.description is {_shown(description)}; expected a string", param=f"{path}.description"
        )
    if not isinstance(is_strict, bool | None):
        raise InvalidRequest(f"{path}.strict is {_shown(is_strict)}; expected true or false", param=f"{path}.strict")
    if value.get("schema") is None:
        raise MissingParameter(
            f"{path}.schema is missing; for any JSON object send the type json_object", param=f"{path}.schema"
        )
    form = _schema(value["schema"], f"{path}.schema")
    return msgspec.structs.replace(form, name=name, description=description or "", is_strict=is_strict)


def _schema(value: Any, path: str) -> OutputFormat:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest(f"{path} is no JSON: {error}", param=path) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} is {_shown(value)}; expected an object", param=path)
    try:
        return OutputFormat(FormatKind.JSON_SCHEMA, msgspec.json.encode(value).decode(), path)
    except RecursionError:
        raise InvalidRequest(f"{path} is nested too deeply", param=path) from None


def _text(kind: Callable[[str], FormatKind]) -> Callable[[Any, str], OutputFormat]:
    def read(value: Any, path: str) -> OutputFormat:
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"{path} is {_shown(value)}; expected a text that is not empty", param=path)
        return OutputFormat(kind(value), value, path)

    return read


def _choice(value: Any, path: str) -> OutputFormat:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHOICES:
        raise InvalidRequest(f"{path} is {_shown(value)}; expected an array of 1 to {MAX_CHOICES} strings", param=path)
    for index, text in enumerate(value):
        if not isinstance(text, str) or not text:
            raise InvalidRequest(
                f"{path}[{index}] is {_shown(text)}; expected a text that is not empty", param=f"{path}[{index}]"
            )
    return OutputFormat(FormatKind.CHOICE, msgspec.json.encode(value).decode(), path)


def _structured_outputs(value: Any, path: str) -> OutputFormat | None:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} is {_shown(value)}; expected an object", param=path)
    wanted = {name: one for name, one in value.items() if one is not None and name in _STRUCTURED}
    if not wanted and value.get("json_object") is True:
        return OutputFormat(FormatKind.JSON_OBJECT, param=f"{path}.json_object")
    if len(wanted) != 1:
        raise InvalidRequest(f"{path} needs one of {', '.join(_STRUCTURED)}", param=path)
    ((name, one),) = wanted.items()
    return _STRUCTURED[name](one, f"{path}.{name}")


def _grammar_kind(text: str) -> FormatKind:
    return FormatKind.LARK if _LARK.search(text) else FormatKind.GBNF


_grammar = _text(_grammar_kind)
_regex = _text(lambda _: FormatKind.REGEX)
_STRUCTURED: dict[str, Callable[[Any, str], OutputFormat]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
FURTHER: dict[str, Callable[[Any, str], OutputFormat | None]] = {
    "grammar": _grammar,
    "json_schema": _schema,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}
"""Field -> what reads it, given its value and its path."""


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, bytes) else msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
