"""What /openapi.json says of a field beside its type: notes on structs' annotations, read by `api/openapi.py`.

Floor 5; pure values. They change nothing in how a body is decoded: every field stays optional there, so that an error can
name the path of what is missing.
"""

from __future__ import annotations

from typing import Any

from msgspec import Meta

REQUIRED = Meta(extra_json_schema={"x-required": True})
"""`required()` asks for the field later; null is no value for it."""
SETTINGS_GROUP = Meta(extra_json_schema={"x-table": "settings"})
"""An object with the settings of library/fields.py."""
PARAMETERS_GROUP = Meta(extra_json_schema={"x-table": "parameters"})
"""An object with the parameters of library/fields.py."""
BOTH_GROUPS = Meta(extra_json_schema={"x-table": "both"})
"""An object with either."""


def exactly(schema: dict[str, Any]) -> Meta:
    """A field whose type says less than is true of it: this schema stands in the document instead."""
    return Meta(extra_json_schema={"x-exactly": schema})
