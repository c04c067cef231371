"""Sampling parameters of several levels merged into what an engine gets.

Floor 1; pure. Names and ranges stand in `fields.py`; this module knows how they become SamplingParams. Chats, completions
and runs merge with it, so that a parameter means the same wherever it was set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hostler.domain import SEED_RANDOM, OutputFormat, SamplingParams

LARGEST = 2**31 - 1
"""Counts are cut to it: nothing is that long, and beyond it engines cannot count."""
SEED_SPAN = 2**31
"""Seeds are taken modulo this: what every engine's seed holds, with room for none of its special values."""

_SAME_NAME = (
    "temperature", "top_k", "top_p", "min_p", "typ_p", "min_keep", "frequency_penalty", "presence_penalty",
    "repeat_penalty", "repeat_last_n", "dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta",
    "ignore_eos",
)  # fmt: skip
_COUNTS = frozenset({"top_k", "min_keep", "repeat_last_n"})


def sampling_params(
    stored: Mapping[str, Any],
    requested: Mapping[str, Any],
    *,
    logprobs: int | None = None,
    logit_bias: Mapping[int, float] | None = None,
    default_max_tokens: int | None = None,
    output_format: OutputFormat | None = None,
) -> SamplingParams:
    """Merge: the request wins over the model, the model over the server.

    Args:
        stored: The model's parameters, native types.
        requested: What `validate_parameters` made of the request.
        logprobs: None: none; n: with the n most likely tokens.
        default_max_tokens: Instead of the model's limit where the request names none.
        output_format: What the answer must look like.
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
        output_format=output_format,
    )
