"""Checks of embeddings and memory. Floor 2, tests only."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING

from hostler.domain import MemoryUse
from hostler.errors import UnsupportedParameter
from hostler.testing.rules.registry import PROMPTS, check, tokenize

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


@check
def embeddings_are_given_or_refused(c: EngineContract) -> None:
    """`embed` gives a finite vector of n_embd for each input, the same each time, and leaves running sequences alone.

    An engine that cannot embed raises UnsupportedParameter.
    """
    inputs = [tokenize(c, PROMPTS[0]), tokenize(c, PROMPTS[1])]
    if not c.info.can_embed:
        try:
            c.engine.embed(inputs)
        except UnsupportedParameter:
            return
        raise AssertionError("can_embed is false, but embed() did not raise UnsupportedParameter")
    reference = c.answer(PROMPTS[2], c.greedy(12))
    sequence = c.sequence(PROMPTS[2], c.greedy(12))
    with c.driver() as driver:
        driver.add(sequence)
        driver.step_until(lambda: len(sequence.token_ids) >= 3)
        result = c.engine.embed(inputs)
        driver.run()
    c.assert_same(reference, sequence, "after embed() between two steps")
    assert result.n_tokens == sum(len(tokens) for tokens in inputs), f"n_tokens is {result.n_tokens}"
    assert len(result.vectors) == 2, f"{len(result.vectors)} vectors came for 2 inputs"
    for vector in result.vectors:
        assert len(vector) == c.info.n_embd, f"a vector has {len(vector)} numbers, n_embd is {c.info.n_embd}"
        assert all(math.isfinite(value) for value in vector), "a vector holds a number that is not finite"
        assert any(vector), "a vector is all zeros"
    again = c.engine.embed([inputs[1]]).vectors[0]
    assert _cosine(again, result.vectors[1]) > 0.99, "one text alone and among others has different vectors"
    assert _cosine(result.vectors[0], result.vectors[1]) < 0.9999, "two texts have the same vector"


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@check
def memory_is_accounted(c: EngineContract) -> None:
    """`memory` gives a MemoryUse without negative numbers, also while a sequence runs."""
    sequence = c.sequence(PROMPTS[0])
    with c.driver() as driver:
        driver.add(sequence)
        driver.step()
        use = c.engine.memory()
    assert isinstance(use, MemoryUse), f"memory() gave {use!r}"
    assert min(use.weights_bytes, use.kv_bytes, use.compute_bytes) >= 0, f"memory() gave {use}"


@check
def close_gives_the_memory_back(c: EngineContract) -> None:
    """Loading, using and closing it once more leaves the process no larger than before, within the margin."""
    sizes = []
    for _ in range(3):
        c.close()
        c.answer(c.long_tokens(c.n_long(0.5)), c.greedy(4))
        c.close()
        sizes.append(_resident_bytes())
    growth = min(sizes[1] - sizes[0], sizes[2] - sizes[1])
    assert growth <= c.memory_margin_bytes, (
        f"each load, use and close left {growth / 2**20:.0f} MiB behind, over the margin of "
        f"{c.memory_margin_bytes / 2**20:.0f} MiB"
    )


def _resident_bytes() -> int:
    import psutil  # late: only this check needs it

    gc.collect()
    return int(psutil.Process().memory_info().rss)
