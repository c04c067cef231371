"""Sampling fields: of a request, over those stored with the model, over the server's defaults.

Floor 5; pure functions. Names and ranges stand in `library/fields.py`; this module knows how they become SamplingParams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostler.domain import SEED_RANDOM, SamplingParams
from hostler.errors import InvalidRequest
from hostler.library.fields import validate_parameters

LARGEST = 2**31 - 1
"""Counts are cut to it: nothing is that long, and beyond it engines cannot count."""
SEED_SPAN = 2**31
"""Seeds are taken modulo this: what every engine's seed holds, with room for none of its special values."""
BIAS_LIMIT = 100

_SAME_NAME = (
    "temperature", "top_k", "top_p", "min_p", "typ_p", "min_keep", "frequency_penalty", "presence_penalty",
    "repeat_penalty", "repeat_last_n", "dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta",
    "ignore_eos",
)  # fmt: skip
_COUNTS = frozenset({"top_k", "min_keep", "repeat_last_n"})


def read_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a request body, `stream` included, under their own names.

    Raises:
        InvalidRequest: A value out of range, with its path.
    """
    return validate_parameters(raw, prefix="")


def sampling_params(
    stored: Mapping[str, Any],
    requested: Mapping[str, Any],
    *,
    logprobs: int | None = None,
    logit_bias: Mapping[int, float] | None = None,
    default_max_tokens: int | None = None,
) -> SamplingParams:
    """Merge: the request wins over the model, the model over the server.

    Args:
        stored: The model's parameters, native types.
        requested: What `read_parameters` gave.
        logprobs: None: none; n: with the n most likely tokens.
        default_max_tokens: Instead of the model's limit where the request names none.
    """
    merged = {**stored, **requested}
    values = {name: merged[name] for name in _SAME_NAME if merged.get(name) is not None}
    for name in _COUNTS & values.keys():
        values[name] = min(values[name], LARGEST)
    seed = merged.get("seed", SEED_RANDOM)
    max_tokens = requested.get("token_limit") or default_max_tokens or stored.get("token_limit")
    if max_tokens is not None:
        values["max_tokens"] = min(max_tokens, LARGEST)
    return SamplingParams(
        **values,
        seed=seed if seed == SEED_RANDOM else seed % SEED_SPAN,
        stop=tuple(text for text in merged.get("stop", ()) if text),
        logprobs=logprobs,
        logit_bias=dict(logit_bias or {}),
    )


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
