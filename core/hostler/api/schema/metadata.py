"""`metadata`, as threads, messages, assistants and runs have it: OpenAI's limits, and the path of the key that breaks one.

Floor 5; pure.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hostler.api.schema.convert import shown
from hostler.errors import InvalidRequest

MAX_KEYS = 16
MAX_KEY_LENGTH = 64
MAX_VALUE_LENGTH = 512

MetadataBody = Annotated[
    dict[str, Any],
    Meta(
        description="At most 16 keys of 64 characters, values of 512; numbers and booleans become strings.",
        extra_json_schema={
            "maxProperties": MAX_KEYS,
            "propertyNames": {"minLength": 1, "maxLength": MAX_KEY_LENGTH},
            "additionalProperties": {"type": ["string", "number", "boolean", "null"], "maxLength": MAX_VALUE_LENGTH},
        },
    ),
]
"""As sent."""


def read_metadata(values: dict[str, Any], path: str = "metadata") -> dict[str, str]:
    """Check the limits; null values are absent.

    Raises:
        InvalidRequest: With the path of the key, `metadata.KEY`.
    """
    if len(values) > MAX_KEYS:
        raise InvalidRequest(f"{path} has {len(values)} keys; at most {MAX_KEYS} are kept", param=path)
    for key in values:
        if not 1 <= len(key) <= MAX_KEY_LENGTH:
            place = f"{path}.{key[:MAX_KEY_LENGTH]}"
            raise InvalidRequest(f"{place} is a key of {len(key)} characters; 1 to {MAX_KEY_LENGTH} are allowed", param=place)
    found = {key: _text(value, f"{path}.{key}") for key, value in values.items() if value is not None}
    for key, value in found.items():
        if len(value) > MAX_VALUE_LENGTH:
            raise InvalidRequest(
                f"{path}.{key} has {len(value)} characters; at most {MAX_VALUE_LENGTH} are kept", param=f"{path}.{key}"
            )
    return found


def _text(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return msgspec.json.encode(value).decode()
    path = path if len(path) <= MAX_VALUE_LENGTH else f"{path[:MAX_VALUE_LENGTH]}..."
    raise InvalidRequest(f"{path} is {shown(value)}; expected a string", param=path)
