"""Sampling fields of a request. Floor 5; pure functions.

Names and ranges stand in `library/fields.py`; how they become SamplingParams in `library/sampling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostler.errors import InvalidRequest
from hostler.library.fields import validate_parameters
from hostler.library.sampling import LARGEST

BIAS_LIMIT = 100


def read_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a request body, `stream` included, under their own names.

    Raises:
        InvalidRequest: A value out of range, with its path.
    """
    return validate_parameters(raw, prefix="")


def read_logit_bias(raw: Mapping[str, Any] | None) -> dict[int, float]:
    """Token id (as text, as JSON wants it) -> value from -100 to 100.

    Raises:
        InvalidRequest: With the path `logit_bias.KEY`.
    """
    biases: dict[int, float] = {}
    for key, value in (raw or {}).items():
        param = f"logit_bias.{key[:40]}"
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= LARGEST):
            raise InvalidRequest(f"logit_bias has the key {key[:40]!r}; its keys are token ids", param=param)
        try:
            bias = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            bias = None
        if bias is None or not -BIAS_LIMIT <= bias <= BIAS_LIMIT:
            raise InvalidRequest(f"{param} must be a number from -{BIAS_LIMIT} to {BIAS_LIMIT}", param=param)
        biases[int(key)] = bias
    return biases
