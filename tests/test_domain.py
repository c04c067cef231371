"""The values that cross process borders: they survive the wire, and their defaults are the documented ones."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hostler import domain, engine
from hostler.domain import (
    FinishEvent,
    FinishReason,
    MemoryEstimate,
    Message,
    SamplingParams,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)

STRUCTS = [
    value
    for module in (domain, engine)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_value_is_frozen(struct: type[msgspec.Struct]) -> None:
    assert struct.__struct_config__.frozen


@pytest.mark.parametrize(
    "value",
    [
        Message("user", "Grüße 🦙"),
        Message("assistant", None, tool_calls=({"id": "a", "function": {"name": "f", "arguments": "{}"}},)),
        SamplingParams(),
        SamplingParams(temperature=0, logit_bias={5: -100.0}, logprobs=3, stop=("a", "🦙"), seed=2**32 - 1),
        TokenLogprob(7, b"\xf0\x9f", -0.5, (TopLogprob(7, b"\xf0\x9f", -0.5), TopLogprob(8, b"x", -1.25))),
        FinishEvent(1, FinishReason.STOP, Usage(3, 4, 2), Timings(1, 2.5, 2, 4, 8.0), "\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive_msgpack(value: Any) -> None:
    data = msgspec.msgpack.encode(value)

    assert msgspec.msgpack.decode(data, type=type(value)) == value


def test_sampling_defaults_are_those_of_the_api_reference() -> None:
    """spec/API.md 5.0; a change here changes what every client gets that says nothing."""
    params = SamplingParams()

    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.typ_p) == (0.7, 0, 0.95, 0.05, 1.0)
    assert (params.repeat_penalty, params.repeat_last_n) == (1.0, 64)
    assert (params.frequency_penalty, params.presence_penalty, params.mirostat) == (0.0, 0.0, 0)
    assert (params.max_tokens, params.stop, params.seed) == (2048, (), domain.SEED_RANDOM)


def test_an_estimate_is_the_sum_of_its_parts() -> None:
    assert MemoryEstimate(1, 20, 300).total_bytes == 321


def test_finish_reasons_are_the_words_on_the_wire() -> None:
    assert [reason.value for reason in FinishReason] == ["stop", "length", "cancelled", "error"]
