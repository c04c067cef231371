"""How a result is held against its source: the numbers of the check."""

from __future__ import annotations

import numpy as np
import pytest

from hostler_onnxgenai.conversion.steps.compare import NotAsAsked, divergence


def test_the_same_logits_diverge_by_nothing_whatever_is_added_to_a_row() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32)

    kl, same = divergence(logits, logits + np.array([[5.0], [-900.0], [0.0]], dtype=np.float32))

    assert np.abs(kl).max() < 1e-4
    assert same.all()


def test_the_divergence_is_that_of_the_source_from_the_result() -> None:
    """Against the definition, with probabilities that can be written down."""
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])

    kl, same = divergence(np.log(p), np.log(q))

    assert kl[0] == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2))
    assert not same[0]


def test_columns_that_padding_made_do_not_count() -> None:
    logits = np.zeros((2, 4), dtype=np.float32)
    padded = np.concatenate([logits, np.full((2, 3), 100.0, dtype=np.float32)], axis=1)

    kl, same = divergence(logits, padded)

    assert kl.max() == 0
    assert same.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_told(bad: float) -> None:
    logits = np.zeros((2, 4), dtype=np.float32)
    spoilt = logits.copy()
    spoilt[1, 2] = bad

    with pytest.raises(NotAsAsked, match="no numbers"):
        divergence(logits, spoilt)
