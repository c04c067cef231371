"""A loaded engine with what tests ask of it again and again."""

from __future__ import annotations

from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.engine import OnnxGenaiEngine
from support.running import GREEDY as GREEDY
from support.running import Loaded as AnyLoaded
from support.running import assert_same_answer as assert_same_answer
from support.running import drawn_tokens

Loaded = AnyLoaded[OnnxGenaiEngine]


def prompt(n_tokens: int, seed: int) -> list[int]:
    """Token ids that repeat nothing; syllables of the tiny vocabulary."""
    return drawn_tokens(n_tokens, seed, tinymodel.N_BYTES, tinymodel.END)
