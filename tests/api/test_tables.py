"""The table of settings and parameters as JSON Schema: it says what the table takes, natively and as text."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.api.schema.settings import read_settings
from hostler.api.schema.tables import answer_properties, body_properties, number_text
from hostler.errors import InvalidRequest
from hostler.library.fields import (
    PARAMETERS,
    SETTINGS,
    parameters_with_defaults,
    settings_with_defaults,
    validate_parameters,
)

FIELDS = (*SETTINGS, *PARAMETERS)
TAKEN = body_properties(FIELDS)
ANSWERED = answer_properties(FIELDS)
LIMITS = [(field.minimum, field.maximum, field.type) for field in FIELDS if field.type in (int, float)]

values = (
    st.none()
    | st.booleans()
    | st.integers(-5, 70000)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["", "auto", "true", "off", "f16", "0", "128", "-1", "0.5", "2.0", "1e3", "{prompt}", "a/b", "../b", "1.5"]
    )
    | st.text(max_size=6)
    | st.lists(st.text(max_size=3) | st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def is_taken(name: str, value: Any) -> bool:
    try:
        read_settings({name: value}, "")
        validate_parameters({name: value}, "")
    except InvalidRequest:
        return False
    return True


@pytest.mark.parametrize("name", TAKEN)
@given(value=values)
def test_what_the_schema_allows_is_taken(name: str, value: Any) -> None:
    assert is_taken(name, value) or not is_valid(TAKEN[name], value)


@pytest.mark.parametrize("name", TAKEN)
@given(value=values.filter(lambda value: not isinstance(value, str)))
def test_what_is_taken_natively_the_schema_allows(name: str, value: Any) -> None:
    """Of texts more is taken than told: blanks around a number, an exponent, words in capitals."""
    assert is_valid(TAKEN[name], value) or not is_taken(name, value)


def test_every_spelling_is_told() -> None:
    assert TAKEN.keys() == {name for field in FIELDS for name in (field.name, *field.aliases)}
    assert all(schema["description"] for schema in TAKEN.values())


def test_the_defaults_are_valid_answers_and_may_be_sent_back() -> None:
    for name, value in {**settings_with_defaults({}), **parameters_with_defaults({})}.items():
        if name != "cpu_threads":  # 0 stands for unset and is never answered
            assert is_valid(ANSWERED[name], value), name
            assert is_valid(TAKEN[name], value), name


@pytest.mark.parametrize(("minimum", "maximum", "kind"), sorted(set(LIMITS), key=str))
@given(data=st.data())
def test_a_number_in_range_is_valid_as_text_and_one_out_of_range_is_not(
    minimum: float | None, maximum: float | None, kind: type, data: st.DataObject
) -> None:
    pattern = number_text(minimum, maximum, is_whole=kind is int)["pattern"]
    # Around the limits, where digits change, and anywhere.
    near = [limit for limit in (minimum, maximum, 0, 10, 99, 1000) if limit is not None]
    number = data.draw(
        st.integers() | st.sampled_from(near).flatmap(lambda limit: st.integers(int(limit) - 3, int(limit) + 3))
    )

    is_inside = (minimum is None or number >= minimum) and (maximum is None or number <= maximum)

    assert bool(re.search(pattern, str(number))) == is_inside
    assert not re.search(pattern, f"0{number}")


@given(limits=st.tuples(st.integers(-3000, 3000), st.integers(0, 3000)), number=st.integers(-7000, 7000))
def test_any_range_of_whole_numbers_has_a_pattern(limits: tuple[int, int], number: int) -> None:
    low, high = limits[0], limits[0] + limits[1]

    pattern = number_text(low, high, is_whole=True)["pattern"]

    assert bool(re.search(pattern, str(number))) == (low <= number <= high)


@given(number=st.decimals(-30, 30, places=2), limits=st.tuples(st.integers(-20, 20), st.integers(0, 20)))
def test_any_range_of_numbers_has_a_pattern(number: Any, limits: tuple[int, int]) -> None:
    low, high = limits[0], limits[0] + limits[1]

    pattern = number_text(low, high, is_whole=False)["pattern"]

    assert bool(re.search(pattern, str(number))) == (low <= number <= high) or number == 0


def test_a_limit_with_a_fraction_is_refused_when_the_document_is_made() -> None:
    with pytest.raises(ValueError, match="fraction"):
        number_text(0.25, None, is_whole=False)


@given(number=st.decimals(0, 30, places=2), tenths=st.integers(1, 150))
def test_a_positive_minimum_may_have_one_decimal(number: Any, tenths: int) -> None:
    pattern = number_text(tenths / 10, 20, is_whole=False)["pattern"]

    assert bool(re.search(pattern, str(number))) == (tenths <= 10 * number <= 200)
