"""What a person says of a model, over what is known of it: name, description, settings, parameters, metadata.

Floor 1; pure values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostler.library.fields import validate_parameters, validate_settings
from hostler.library.manifest import Manifest


def given_fields(
    name: str | None,
    description: str | None,
    format: str | None,
    settings: Mapping[str, Any] | None,
    parameters: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a pull says of the model, validated before anything is fetched."""
    texts = {"name": name, "description": description, "format": format}
    given: dict[str, Any] = {key: value for key, value in texts.items() if value is not None}
    if settings is not None:
        given["settings"] = validate_settings(settings)
    if parameters is not None:
        given["parameters"] = validate_parameters(parameters)
    if metadata is not None:
        given["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    return given


def over(draft: Manifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """Groups are merged over what the draft has, single values replace."""
    return {key: {**getattr(draft, key), **value} if isinstance(value, dict) else value for key, value in given.items()}


def merged(old: Mapping[str, Any], sent: Mapping[str, Any], valid: Mapping[str, Any]) -> dict[str, Any]:
    """A group after a change: a null value removes its key.

    Args:
        valid: What of `sent` is to be kept, checked.
    """
    removed = {key for key, value in sent.items() if value is None}
    return {key: value for key, value in {**old, **valid}.items() if key not in removed}
