"""The structs of bodies and answers as the `components/schemas` of an OpenAPI document.

Floor 5; pure, called once by `openapi.py`. msgspec makes the schemas out of the very types that decode and encode; added is
what holds for all of them and no type can say:

- a body may send numbers and booleans as text, and null for what it leaves out; an answer sends every field;
- the marks of `schema/marks.py`, and the tables of `library/fields.py`;
- what the source says of a field below its annotation.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from hostler.api.schema.marks import RULES
from hostler.api.schema.tables import (
    Schema,
    answer_properties,
    body_properties,
    flag_text,
    number_text,
)
from hostler.library.fields import PARAMETERS, SETTINGS, Field

REF = "#/components/schemas/{name}"
NULL: Schema = {"type": "null"}
TABLES: dict[str, tuple[str, tuple[Field, ...]]] = {
    "settings": ("ModelSettings", SETTINGS),
    "parameters": ("ModelParameters", PARAMETERS),
    "both": ("ModelSettingsAndParameters", (*SETTINGS, *PARAMETERS)),
}
"""Mark -> component and fields."""
INPUT = "Input"
"""Ends the name of a body's component where an answer has one of that name."""


class Components:
    """Schemas of one direction: of what comes in, or of what goes out."""

    def __init__(self, types: Iterable[Any], *, is_body: bool, taken: Iterable[str] = ()) -> None:
        """Make them.

        Args:
            types: Structs, or whatever else msgspec can describe.
            is_body: What comes in.
            taken: Names of components that are there already.
        """
        self._is_body = is_body
        self._types = list(dict.fromkeys(types))
        schemas, components = msgspec.json.schema_components(self._types, ref_template=REF)
        classes = {_component_name(cls): cls for cls in _classes(self._types)}
        names = {name: _free(_readable(name), taken) for name in components}
        self._tables = {mark: _free(name, taken) for mark, (name, _) in TABLES.items()}
        self._refs = {REF.format(name=old): REF.format(name=new) for old, new in names.items()}
        self.schemas: dict[str, Schema] = {}
        """Name -> schema."""
        for name, schema in components.items():
            self.schemas[names[name]] = self._object(schema, classes.get(name))
        self._of_type: dict[Any, Schema] = dict(zip(self._types, map(self._prepared, schemas), strict=True))
        for mark, (_, fields) in TABLES.items():
            properties = body_properties(fields) if is_body else answer_properties(fields)
            self.schemas[self._tables[mark]] = {"type": "object", "properties": properties}

    def of(self, kind: Any) -> Schema:
        """The schema of one of the types: a reference where it is a struct."""
        return self._of_type[kind]

    def add_fields(self, kind: Any, fields: Iterable[Field]) -> None:
        """Rows of a table that stand beside the fields of a body's struct."""
        name = self.of(kind)["$ref"].rpartition("/")[2]
        properties = self.schemas[name]["properties"]
        self.schemas[name]["properties"] = {**properties, **body_properties(fields), **properties}

    # -- inside -----------------------------------------------------------------------------------------------------

    def _object(self, schema: Schema, cls: Any) -> Schema:
        """A struct: its fields explained, and those that are required."""
        schema = {key: value for key, value in schema.items() if key != "title"}
        properties = schema.get("properties")
        if properties is None:
            enumeration: Schema = self._prepared(schema)
            return enumeration
        docs = _field_docs(cls) if cls is not None else {}
        required = list(schema.get("required", ()))
        if not self._is_body and cls is not None:
            required = [*required, *_always_sent(cls)]
        for name, field in properties.items():
            prepared = self._prepared(field)
            if docs.get(name) and "description" not in prepared:
                prepared["description"] = docs[name]
            if any(one.pop("x-required", False) for one in (prepared, *prepared.get("anyOf", ()))):
                required.append(name)
                prepared = _without_null(prepared)
            properties[name] = prepared
        schema["required"] = [name for name in properties if name in required]
        if not schema["required"]:
            del schema["required"]
        if self._is_body and RULES.get(cls):
            schema["allOf"] = RULES[cls]
        return schema

    def _prepared(self, schema: Any) -> Any:
        """One schema, its marks resolved, and lenient where it is a body's."""
        if isinstance(schema, list):
            return [self._prepared(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        if "x-exactly" in schema:
            said = {key: schema[key] for key in ("description", "x-required") if key in schema}
            return {**said, **schema["x-exactly"]}
        if "x-table" in schema:
            return self._table(schema)
        made: Schema = {}
        for key, value in schema.items():
            if key == "$ref":
                made[key] = self._refs.get(value, value)
            elif key == "mapping":
                made[key] = {word: self._refs.get(ref, ref) for word, ref in value.items()}
            elif key == "properties":
                made[key] = {name: self._prepared(one) for name, one in value.items()}
            elif key == "default":
                if value is not None:
                    made[key] = value
            elif key in ("enum", "required", "propertyNames"):
                made[key] = value
            else:
                made[key] = self._prepared(value)
        return _lenient(made) if self._is_body else made

    def _table(self, schema: Schema) -> Schema:
        made: Schema = {"$ref": REF.format(name=self._tables[schema["x-table"]])}
        if NULL in schema.get("anyOf", ()):
            made = {"anyOf": [made, NULL]}
        return made


def _free(name: str, taken: Iterable[str]) -> str:
    return f"{name}{INPUT}" if name in set(taken) else name


def _readable(name: str) -> str:
    """`Page_Thread_`, as msgspec writes Page[Thread], is a ThreadPage."""
    return re.sub(r"^(\w+?)_(\w+)_$", r"\2\1", name)


def _without_null(schema: Schema) -> Schema:
    options = [one for one in schema.get("anyOf", ()) if one != NULL]
    if not options:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest, **options[0]} if len(options) == 1 else {**rest, "anyOf": options}


def _lenient(schema: Schema) -> Schema:
    """Numbers and booleans, or their text: what msgspec's lax mode takes."""
    kind = schema.get("type")
    if kind not in ("integer", "number", "boolean"):
        return _flattened(schema)
    if kind == "boolean":
        text = flag_text()
    else:
        text = number_text(schema.get("minimum"), schema.get("maximum"), is_whole=kind == "integer")
    said: Schema = {key: schema[key] for key in ("description", "default", "x-required") if key in schema}
    native = {key: value for key, value in schema.items() if key not in said}
    return {**said, "anyOf": [native, text]}


def _flattened(schema: Schema) -> Schema:
    """Alternatives of alternatives as one list."""
    if "anyOf" not in schema:
        return schema
    options: list[Schema] = []
    for one in schema["anyOf"]:
        options += one["anyOf"] if one.keys() == {"anyOf"} else [one]
    return {**schema, "anyOf": options}


# -- looking at the structs ---------------------------------------------------------------------------------------------


def _classes(types: Iterable[Any]) -> list[Any]:
    """Every struct among the types, and in their fields."""
    found: dict[Any, None] = {}

    def look(one: Any) -> None:
        if isinstance(one, msgspec.inspect.StructType):
            if one.cls in found:
                return
            found[one.cls] = None
            for field in one.fields:
                look(field.type)
        for inner in ("type", "item_type", "key_type", "value_type"):
            if hasattr(one, inner):
                look(getattr(one, inner))
        for inner in ("types", "item_types"):
            for member in getattr(one, inner, ()):
                look(member)

    for kind in msgspec.inspect.multi_type_info(types):
        look(kind)
    return list(found)


def _component_name(cls: Any) -> str:
    """As msgspec names it."""
    origin = getattr(cls, "__origin__", None)
    name: str = cls.__name__
    if origin is not None:
        name = f"{origin.__name__}[{', '.join(one.__name__ for one in cls.__args__)}]"
    return re.sub(r"[^a-zA-Z0-9.\-_]", "_", name)


def _always_sent(cls: Any) -> list[str]:
    """Names of the fields that every answer has: all but those left out when unset."""
    origin = getattr(cls, "__origin__", cls)
    if origin.__struct_config__.omit_defaults:
        return []
    tag = origin.__struct_config__.tag_field
    fields = [field.encode_name for field in msgspec.structs.fields(origin) if field.default is not UNSET]
    return [tag, *fields] if tag else fields


def _field_docs(cls: Any) -> dict[str, str]:
    """What the source says below the fields of a struct and of those it extends; nothing where there is no source."""
    origin = getattr(cls, "__origin__", cls)
    docs: dict[str, str] = {}
    for ancestor in reversed(origin.__mro__):
        if issubclass(ancestor, msgspec.Struct):
            docs.update(_docs_of_module(ancestor.__module__).get(ancestor.__name__, {}))
    return {field.encode_name: docs[field.name] for field in msgspec.structs.fields(origin) if field.name in docs}


_module_docs: dict[str, dict[str, dict[str, str]]] = {}


def _docs_of_module(name: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the text below it."""
    if name not in _module_docs:
        try:
            tree = ast.parse(inspect.getsource(sys.modules[name]))
        except (KeyError, OSError, TypeError):
            tree = ast.Module([], [])
        _module_docs[name] = {node.name: _docs_of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    return _module_docs[name]


def _docs_of_class(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[field.target.id] = " ".join(value.value.split())
    return docs
