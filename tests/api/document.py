"""The served document as tests use it: read once, and its schemas as validators."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from api.scripted_runtime import ScriptedRuntime
from hostler.api.openapi import make_document
from hostler.api.routes import Route, make_routes
from hostler.config import load_settings

METHODS = ("get", "put", "post", "delete", "patch")


@cache
def routes() -> tuple[Route, ...]:
    return make_routes(ScriptedRuntime(), load_settings(Path("unused"), environ={}))  # type: ignore[arg-type]


@cache
def document() -> dict[str, Any]:
    """As /openapi.json has it."""
    return make_document(routes())


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of each."""
    for path, item in document()["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def operation(name: str) -> dict[str, Any]:
    """By its operationId."""
    return next(found for _, _, found in operations() if found["operationId"] == name)


def validator(schema: dict[str, Any] | str) -> jsonschema.Draft202012Validator:
    """Of a schema of the document, or of the component of that name."""
    if isinstance(schema, str):
        schema = {"$ref": f"#/components/schemas/{schema}"}
    return jsonschema.Draft202012Validator({**schema, "components": document()["components"]})


def check(value: Any, schema: dict[str, Any] | str) -> None:
    """Hold a value to a schema."""
    errors = [f"{error.json_path}: {error.message[:200]}" for error in validator(schema).iter_errors(value)]
    assert not errors, errors


def answer_schema(name: str, status: int = 200, media: str = "application/json") -> dict[str, Any]:
    """What an operation's answer is held to."""
    response = operation(name)["responses"][str(status)]
    if "$ref" in response:
        response = document()["components"]["responses"][response["$ref"].rpartition("/")[2]]
    schema: dict[str, Any] = response["content"][media]["schema"]
    return schema


def body_schema(name: str) -> dict[str, Any]:
    """What an operation takes."""
    (content,) = operation(name)["requestBody"]["content"].values()
    schema: dict[str, Any] = content["schema"]
    return schema


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)
