"""How `hostler plugins check llamacpp` checks the engine, with a model that is named there. Imported in its process alone."""

from __future__ import annotations

from pathlib import Path

from hostler.testing import Sample

NEAR_TIE = 0.25
"""Log probabilities closer than this may swap places between batch shapes: kernels for one row and for many round
differently (measured on SmolLM2-135M, Q4_1: likely tokens up to 0.1 apart)."""


MAX_TOKENS_PER_STEP = 33
"""With `n_draft_max` at its default: the guesses, and the token behind them."""


def sample(folder: Path) -> Sample:
    """No model: a sound one has tens of megabytes."""
    del folder
    return Sample(allow_near_tie=NEAR_TIE, max_tokens_per_step=MAX_TOKENS_PER_STEP)
