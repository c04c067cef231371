"""A loaded engine with what tests ask of it again and again."""

from __future__ import annotations

from hostler_llamacpp.engine import LlamaCppEngine
from support.running import GREEDY as GREEDY
from support.running import Loaded as AnyLoaded
from support.running import assert_same_answer as assert_same_answer
from support.running import drawn_tokens

Loaded = AnyLoaded[LlamaCppEngine]


def prompt(n_tokens: int, seed: int, n_vocab: int = 300) -> list[int]:
    """Token ids that repeat nothing; letters and syllables of the tiny vocabulary."""
    return drawn_tokens(n_tokens, seed, 261, n_vocab)
