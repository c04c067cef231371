"""The served document against the seed, Jan's reference of 2023-11-21: every path, method, operationId, tag and response
schema of it is there, and real answers are valid by its schemas.

Where the reference itself lies beside this repository, it is read; what it says is also written down here as facts, in this
file's own form, so that the check runs everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from api.document import check, document, operation, operations

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "spec" / "jan"

OPERATIONS = {
    ("get", "/models"): ("listModels", "Models", "ListModelsResponse"),
    ("post", "/models"): ("downloadModel", "Models", "DownloadModelResponse"),
    ("get", "/models/{model_id}"): ("getModel", "Models", "GetModelResponse"),
    ("delete", "/models/{model_id}"): ("deleteModel", "Models", "DeleteModelResponse"),
    ("put", "/models/{model_id}/start"): ("startModel", "Models", "StartModelResponse"),
    ("put", "/models/{model_id}/stop"): ("stopModel", "Models", "StopModelResponse"),
}
TAGS = ["Models", "Chat Completion", "Messages", "Threads", "Assistants"]
TAG_GROUPS = {"Endpoints": ["Models", "Chat Completion"], "Chat": ["Assistants", "Messages", "Threads"]}
WEBHOOKS = {"ModelObject": ("ModelObject", "Models", "ModelObject")}

STRING, INTEGER, BOOLEAN, OBJECT = ({"type": kind} for kind in ("string", "integer", "boolean", "object"))
CHANGED = {
    "type": "object",
    "required": ["id", "object", "state"],
    "properties": dict.fromkeys(("id", "object", "state"), STRING),
}


def strings(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, STRING)


SCHEMAS: dict[str, dict[str, Any]] = {
    "ListModelsResponse": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"type": "string", "enum": ["list"]}, "data": {"type": "array", "items": {"$ref": "Model"}}},
    },
    "Model": {
        "type": "object",
        "required": [
            "type", "version", "id", "name", "created", "state", "format", "source_url", "settings", "parameters",
        ],
        "properties": {
            **strings("type", "version", "id", "name", "owned_by", "description", "format", "source_url"),
            "created": INTEGER,
            "state": {"type": "string", "enum": [None, "downloading", "available"]},
            "settings": {
                "type": "object",
                "properties": strings("ctx_len", "ngl", "embedding", "n_parallel"),
                "additionalProperties": False,
            },
            "parameters": {
                "type": "object",
                "properties": strings("temperature", "token_limit", "top_k", "top_p", "stream"),
                "additionalProperties": False,
            },
            "metadata": OBJECT,
            "assets": {"type": "array", "items": STRING},
        },
    },
    "ModelObject": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {**strings("id", "object", "owned_by"), "created": INTEGER},
    },
    "GetModelResponse": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by", "state", "source_url", "parameters", "metadata"],
        "properties": {
            **strings("id", "object", "owned_by", "source_url"),
            "created": INTEGER,
            "state": {"type": "string", "enum": ["not_downloaded", "downloaded", "running", "stopped"]},
            "parameters": {
                "type": "object",
                "properties": {
                    "ctx_len": INTEGER, "ngl": INTEGER, "embedding": BOOLEAN, "n_parallel": INTEGER,
                    **strings("temperature", "token_limit", "top_k", "top_p"),
                },
            },
            "metadata": {"type": "object", "properties": strings("engine", "quantization", "size")},
        },
    },
    "DeleteModelResponse": {
        "type": "object",
        "required": ["id", "object", "deleted"],
        "properties": {**strings("id", "object"), "deleted": BOOLEAN},
    },
    "StartModelResponse": CHANGED,
    "StopModelResponse": CHANGED,
    "DownloadModelResponse": CHANGED,
}  # fmt: skip

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="Jan's reference does not lie beside this repository")


# -- the document -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "facts"), OPERATIONS.items(), ids=lambda one: " ".join(one))
def test_an_operation_of_the_seed_is_there_with_its_id_tag_and_response(
    key: tuple[str, str], facts: tuple[str, str, str]
) -> None:
    name, tag, answer = facts
    method, path = key

    found = {(method, path): one for path, method, one in operations()}[method, path]

    assert found["operationId"] == name
    assert found["tags"] == [tag]
    assert found["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{answer}"}
    if "{model_id}" in path:
        assert [(one["name"], one["in"], one["required"]) for one in found["parameters"] if one["in"] == "path"] == [
            ("model_id", "path", True)
        ]


def test_the_webhook_of_the_seed_is_there() -> None:
    for key, (name, tag, body) in WEBHOOKS.items():
        found = document()["webhooks"][key]["post"]
        assert (found["operationId"], found["tags"]) == (name, [tag])
        schema = found["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{body}"}


def test_the_tags_and_groups_of_the_seed_are_there() -> None:
    names = [tag["name"] for tag in document()["tags"]]
    groups = {group["name"]: group["tags"] for group in document()["x-tagGroups"]}

    assert set(TAGS) <= set(names)
    for group, tags in TAG_GROUPS.items():
        assert set(tags) <= set(groups[group])


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_of_the_seed_is_there_with_its_fields_and_types(name: str) -> None:
    compare(document()["components"]["schemas"][name], SCHEMAS[name], name)


def compare(ours: dict[str, Any], theirs: dict[str, Any], place: str) -> None:
    """What the seed says of a place is said there, too: its fields, which of them are required, its types."""
    if "$ref" in theirs:
        assert ours == {"$ref": f"#/components/schemas/{theirs['$ref'].rpartition('/')[2]}"}, place
        return
    ours = resolved(ours)
    assert theirs["type"] in types_of(ours), f"{place} is no {theirs['type']}"
    if "enum" in theirs:
        assert set(theirs["enum"]) == values_of(ours), place
    if theirs["type"] == "array":
        compare(ours["items"], theirs["items"], f"{place}[]")
    if theirs["type"] == "object":
        assert set(theirs.get("required", ())) <= set(ours.get("required", ())), place
        for field, schema in theirs.get("properties", {}).items():
            assert field in ours["properties"], f"{place}.{field} is missing"
            compare(ours["properties"][field], schema, f"{place}.{field}")
        if theirs.get("additionalProperties") is False:
            assert ours["additionalProperties"] is False, place
            assert ours["properties"].keys() == theirs["properties"].keys(), place


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    ref = schema.get("$ref")
    if ref is None:
        return schema
    target: dict[str, Any] = document()["components"]["schemas"][ref.rpartition("/")[2]]
    return target


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [resolved(one) for one in schema.get("anyOf", [schema])]


def types_of(schema: dict[str, Any]) -> set[str]:
    names = {str: "string", int: "integer", bool: "boolean"}
    found = set()
    for one in alternatives(schema):
        kinds = one.get("type", [names[type(value)] for value in one.get("enum", ()) if value is not None])
        found |= {kinds} if isinstance(kinds, str) else set(kinds)
    return found


def values_of(schema: dict[str, Any]) -> set[Any]:
    found: set[Any] = set()
    for one in alternatives(schema):
        found |= set(one.get("enum", ())) | ({None} if one.get("type") == "null" else set())
    return found


# -- real answers -------------------------------------------------------------------------------------------------------


def seeds_validator(name: str, schemas: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """Of one of the seed's schemas, with the one defect that it has put right: the null among the strings of `state`."""
    prepared = {key: _with_null_where_it_is_listed(value) for key, value in schemas.items()}
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": prepared}})


def _with_null_where_it_is_listed(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_null_where_it_is_listed(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {key: _with_null_where_it_is_listed(one) for key, one in value.items()}
    if None in made.get("enum", ()):
        made["type"] = ["string", "null"]
    if isinstance(made.get("$ref"), str) and "/" not in made["$ref"]:
        made["$ref"] = f"#/components/schemas/{made['$ref']}"
    return made


ANSWERS = [
    ("listModels", "GET", "/v1/models", "ListModelsResponse"),
    ("listModels", "GET", "/v1/models?all=true", "ListModelsResponse"),
    ("downloadModel", "POST", "/v1/models", "DownloadModelResponse"),
    ("getModel", "GET", "/v1/models/zephyr-7b", "GetModelResponse"),
    ("getModel", "GET", "/v1/models/phi", "GetModelResponse"),
    ("getModel", "GET", "/v1/models/catalogue-only", "GetModelResponse"),
    ("startModel", "PUT", "/v1/models/zephyr-7b/start", "StartModelResponse"),
    ("stopModel", "PUT", "/v1/models/phi/stop", "StopModelResponse"),
    ("deleteModel", "DELETE", "/v1/models/phi", "DeleteModelResponse"),
]


@pytest.mark.parametrize(("name", "method", "path", "schema"), ANSWERS)
def test_a_real_answer_is_valid_by_the_seed_s_schema_and_by_ours(
    client: Any, name: str, method: str, path: str, schema: str
) -> None:
    base, _, query = path.partition("?")

    answer = client.simulate_request(method, base, query_string=query)

    assert answer.status_code == 200
    errors = [error.message for error in seeds_validator(schema, SCHEMAS).iter_errors(answer.json)]
    assert not errors
    check(answer.json, operation(name)["responses"]["200"]["content"]["application/json"]["schema"])


# -- the reference itself, where it is ------------------------------------------------------------------------------------


def read(path: str) -> Any:
    return yaml.safe_load((SHARED / path).read_text(encoding="utf-8"))


def name_in(reference: str) -> str:
    return reference.rpartition("/")[2]


@needs_shared
def test_the_facts_written_down_here_are_the_reference_s() -> None:
    seed, schemas = read("seed-jan.yaml"), read("specs/models/models.yaml")["components"]["schemas"]

    found = {
        (method, path): (
            one["operationId"],
            *one["tags"],
            name_in(one["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]),
        )
        for path, item in seed["paths"].items()
        for method, one in item.items()
    }
    hooks = {
        key: (
            item["post"]["operationId"],
            *item["post"]["tags"],
            name_in(item["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]),
        )
        for key, item in seed["x-webhooks"].items()
    }

    assert found == OPERATIONS
    assert hooks == WEBHOOKS
    assert [tag["name"] for tag in seed["tags"]] == TAGS
    assert {group["name"]: group["tags"] for group in seed["x-tagGroups"]} == TAG_GROUPS
    assert {name: facts_of(schema) for name, schema in schemas.items()} == {
        name: facts_of(schema) for name, schema in SCHEMAS.items()
    }


def facts_of(schema: Any) -> Any:
    """A schema without prose."""
    if isinstance(schema, list):
        return [facts_of(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: facts_of(one) for name, one in value.items()}
        elif key == "required":
            made[key] = sorted(value)
        elif key == "$ref":
            made[key] = name_in(value)
        elif key in ("type", "enum", "items", "additionalProperties"):
            made[key] = facts_of(value)
    return made


@needs_shared
@pytest.mark.parametrize(("name", "method", "path", "schema"), ANSWERS)
def test_a_real_answer_is_valid_by_the_reference_s_own_schema(
    client: Any, name: str, method: str, path: str, schema: str
) -> None:
    schemas = read("specs/models/models.yaml")["components"]["schemas"]
    base, _, query = path.partition("?")

    answer = client.simulate_request(method, base, query_string=query)

    errors = [error.message for error in seeds_validator(schema, schemas).iter_errors(answer.json)]
    assert not errors


@needs_shared
@pytest.mark.parametrize("path", ["jan-full.yaml", "history/2024-01-05/jan.yaml"])
def test_every_path_of_the_later_references_is_there(path: str) -> None:
    """Their tag for chats and some ids differ from the seed's, which wins; test_openapi.py has the ids that are kept."""
    reference = read(path)
    ours = {(method, shape(path)) for path, method, _ in operations()}

    theirs = {
        (method, shape(one))
        for one, item in reference["paths"].items()
        for method in item
        if method in {"get", "put", "post", "delete", "patch"}
    }

    assert not theirs - ours


def shape(path: str) -> str:
    """A path without a slash at its end and without the names of its parameters."""
    return "/".join("{}" if part.startswith("{") else part for part in path.rstrip("/").split("/"))
