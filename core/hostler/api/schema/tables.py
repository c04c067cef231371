"""The tables of library/fields.py as JSON Schema, so that ranges are written once.

Floor 5; pure functions. A request may send numbers and booleans as text (`"2048"`, `"true"`); what that means in a schema
stands here, too, and `api/openapi.py` uses it for every other body.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hostler.library.fields import FALSE_WORDS, TRUE_WORDS, Field

Schema = dict[str, Any]

FLAG_WORDS = sorted((TRUE_WORDS | FALSE_WORDS) - {"0", "1"})


def answer_properties(fields: Iterable[Field]) -> dict[str, Schema]:
    """The fields as hostler answers them: native types."""
    return {field.name: {**_native(field), "description": _described(field)} for field in fields}


def body_properties(fields: Iterable[Field]) -> dict[str, Schema]:
    """The fields as hostler takes them: under every spelling, natively or as text, null for "not given"."""
    found: dict[str, Schema] = {}
    for field in fields:
        taken = nullable(_taken(field))
        found[field.name] = {**taken, "description": _described(field)}
        for alias in field.aliases:
            found[alias] = {**taken, "description": f"Another name of {field.name}."}
    return found


def _described(field: Field) -> str:
    return field.help or field.name


def _native(field: Field) -> Schema:
    """The type a field has once it is read."""
    if field.type is bool:
        return {"type": "boolean"}
    if field.type is str:
        if field.choices:
            return {"enum": list(field.choices)}
        return {"type": "string", "pattern": field.pattern} if field.pattern else {"type": "string"}
    if field.type is list:
        return {"type": "array", "items": {"type": "string"}}
    if field.type is dict:
        return {"type": "object"}
    number: Schema = {"type": "integer" if field.type is int else "number"}
    for key, limit in (("minimum", field.minimum), ("maximum", field.maximum)):
        if limit is not None:
            number[key] = limit
    options = [number]
    if field.extra_values or field.choices:
        options.append({"enum": [*field.extra_values, *field.choices]})
    return options[0] if len(options) == 1 else {"anyOf": options}


def _taken(field: Field) -> Schema:
    """What `Field.parse` accepts, or nearly all of it: an exponent in a text is accepted and not told."""
    native = _native(field)
    if field.type is bool:
        return {"anyOf": [native, {"enum": [0, 1, "0", "1", *FLAG_WORDS]}]}
    if field.type is list:
        return {"anyOf": [{"type": "string"}, native]}
    if field.type in (int, float):
        options = [*native.get("anyOf", [native])]
        options.append(number_text(field.minimum, field.maximum, is_whole=field.type is int))
        if field.extra_values:
            options.append({"enum": [str(value) for value in field.extra_values]})
        if field.is_switch:
            options.append({"enum": [True, False, *FLAG_WORDS]})
        return {"anyOf": options}
    return native


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


# -- numbers as text ----------------------------------------------------------------------------------------------------


def flag_text() -> Schema:
    """What msgspec takes for a boolean beside true and false."""
    return {"enum": [0, 1, "0", "1", "false", "true"]}


def number_text(minimum: float | None, maximum: float | None, *, is_whole: bool) -> Schema:
    """A string that holds a number in a range.

    Args:
        minimum, maximum: Both inclusive, None: no limit. Whole numbers, save a positive minimum with one decimal.
    """
    return {"type": "string", "pattern": f"^({'|'.join(_signed(minimum, maximum, is_whole=is_whole))})$"}


def _signed(minimum: float | None, maximum: float | None, *, is_whole: bool) -> list[str]:
    tenths = round((minimum or 0) * 10)
    if not is_whole and minimum == tenths / 10 and tenths > 0 and tenths % 10:
        whole, tenths = divmod(tenths, 10)
        return [rf"{whole}\.[{tenths}-9][0-9]*", *_signed(whole + 1, maximum, is_whole=False)]
    low, high = (None if limit is None else int(limit) for limit in (minimum, maximum))
    if (low, high) != (minimum, maximum):
        raise ValueError(f"{minimum} to {maximum}: a limit with a fraction has no pattern yet")
    patterns = []
    if low is None or low < 0:
        nearest = 0 if high is None or high >= 0 else -high
        patterns.append(f"-{_unsigned(nearest, None if low is None else -low, is_whole=is_whole)}")
    if high is None or high >= 0:
        patterns.append(_unsigned(max(0, low or 0), high, is_whole=is_whole))
    return patterns


def _unsigned(low: int, high: int | None, *, is_whole: bool) -> str:
    if is_whole:
        return f"({_digits(low, high)})"
    patterns = []
    if high is None:
        patterns.append(rf"({_digits(low, None)})(\.[0-9]+)?")
    else:
        if low < high:
            patterns.append(rf"({_digits(low, high - 1)})(\.[0-9]+)?")
        patterns.append(rf"{high}(\.0+)?")
    return f"({'|'.join(patterns)})"


def _digits(low: int, high: int | None) -> str:
    """A regular expression for the whole numbers from low to high, without leading zeros."""
    shortest = len(str(low))
    longest = shortest if high is None else len(str(high))
    patterns = []
    for length in range(shortest, longest + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = 10**length - 1 if high is None else min(high, 10**length - 1)
        patterns += _same_length(str(first), str(last))
    if high is None:
        patterns.append(f"[1-9][0-9]{{{shortest},}}")
    return "|".join(patterns)


def _same_length(first: str, last: str) -> list[str]:
    """The numbers from first to last, which have as many digits: equal beginnings once, whole decades as `[0-9]`."""
    if not first:
        return [""]
    rest = len(first) - 1
    if first[0] == last[0]:
        return [first[0] + tail for tail in _same_length(first[1:], last[1:])]
    low, high, patterns = int(first[0]), int(last[0]), []
    if first[1:].strip("0"):
        patterns += [first[0] + tail for tail in _same_length(first[1:], "9" * rest)]
        low += 1
    tails = []
    if last[1:].strip("9"):
        tails = [last[0] + tail for tail in _same_length("0" * rest, last[1:])]
        high -= 1
    if low <= high:
        patterns.append((f"[{low}-{high}]" if low < high else str(low)) + (f"[0-9]{{{rest}}}" if rest else ""))
    return patterns + tails
