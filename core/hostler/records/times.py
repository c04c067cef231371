"""Times that others wrote: seconds or milliseconds, numbers or text. Floor 1; pure."""

from __future__ import annotations

from typing import Any

MILLISECONDS_FROM = 100_000_000_000
"""A time above this is in milliseconds, as Jan writes them: as seconds it would be the year 5138."""
_LATEST = 1e15


def unix_time(value: Any) -> float | None:
    """Unix seconds with their fraction; None: this is no time."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < _LATEST:
        return None
    return value / 1000 if value > MILLISECONDS_FROM else value


def whole_seconds(*values: Any) -> int | None:
    """The first of some values that is a time, in whole Unix seconds."""
    for value in values:
        found = unix_time(value)
        if found is not None:
            return int(found)
    return None
