"""A model's settings in a request body, wherever they stand. Floor 5; pure.

Ranges are those of `library/fields.py`; added is what only a stranger's request can get wrong: a file outside of the model's
folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostler.errors import InvalidRequest
from hostler.library.fields import INSIDE, SETTINGS, validate_settings
from hostler.library.manifest import check_member_path

_FILES = tuple(field.name for field in SETTINGS if field.pattern == INSIDE)


def read_settings(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Settings as sent -> native types under their own names.

    Args:
        values: Unknown keys and null values are left out.
        prefix: Begins the path in an error: `settings`; empty: none.

    Raises:
        InvalidRequest: With the path of the field.
    """
    settings = validate_settings(values, prefix)
    for name in _FILES:
        if name in settings:
            param = f"{prefix}.{name}" if prefix else name
            try:
                check_member_path(settings[name])
            except InvalidRequest as error:
                raise InvalidRequest(f"{param}: {error.message}", param=param) from error
    return settings
