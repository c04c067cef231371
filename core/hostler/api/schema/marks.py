"""What /openapi.json says of a field beside its type: notes on structs' annotations, read by `api/openapi.py`.

Floor 5; pure values. They change nothing in how a body is decoded: every field stays optional there, so that an error can
name the path of what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Meta

T = TypeVar("T", bound=type)

REQUIRED = Meta(extra_json_schema={"x-required": True})
"""`required()` asks for the field later; null is no value for it."""
SETTINGS_GROUP = Meta(extra_json_schema={"x-table": "settings"})
"""An object with the settings of library/fields.py."""
PARAMETERS_GROUP = Meta(extra_json_schema={"x-table": "parameters"})
"""An object with the parameters of library/fields.py."""
BOTH_GROUPS = Meta(extra_json_schema={"x-table": "both"})
"""An object with either."""


RULES: dict[type, list[dict[str, Any]]] = {}
"""Struct -> what must hold of its fields together."""


def rule(*alternatives: dict[str, Any]) -> Callable[[T], T]:
    """Decorate a struct of a body: one of these schemas must hold beside those of its fields."""

    def note(kind: T) -> T:
        RULES.setdefault(kind, []).insert(0, {"anyOf": list(alternatives)})
        return kind

    return note


def exactly(schema: dict[str, Any]) -> Meta:
    """A field whose type says less than is true of it: this schema stands in the document instead."""
    return Meta(extra_json_schema={"x-exactly": schema})
