"""Checks of embeddings and memory. Floor 2, tests only."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hostler.domain import MemoryUse
from hostler.errors import UnsupportedParameter
from hostler.testing.rules.registry import PROMPTS, also_for_messages, check

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract, Input
    from hostler.testing.recording import RecordingSequence


@also_for_messages
@check
def embeddings_are_given_or_refused(c: EngineContract) -> None:
    """`embed` gives a finite vector of n_embd for each input, the same each time, and leaves running sequences alone.

    An engine that cannot embed raises UnsupportedParameter.
    """
    inputs = [c.input(PROMPTS[0]), c.input(PROMPTS[1])]
    if not c.info.can_embed:
        try:
            _embed(c, inputs)
        except UnsupportedParameter:
            return
        raise AssertionError("can_embed is false, but embed() did not raise UnsupportedParameter")
    reference = c.answer(PROMPTS[2], c.greedy(12)) if c.info.can_generate else None
    vectors, again, other = _embed_beside_an_answer(c, inputs, reference)
    for vector in vectors:
        assert len(vector) == c.info.n_embd, f"a vector has {len(vector)} numbers, n_embd is {c.info.n_embd}"
        assert all(math.isfinite(value) for value in vector), "a vector holds a number that is not finite"
        assert any(vector), "a vector is all zeros"
    assert _cosine(again, vectors[1]) > 0.99, "one text alone and among others has different vectors"
    assert _cosine(vectors[0], vectors[1]) < 0.9999, "two texts have the same vector"
    assert _cosine(other, vectors[0]) > 0.99, "a text has another vector after an embed that was closed before its end"


def _embed_beside_an_answer(
    c: EngineContract, inputs: list[Input], reference: RecordingSequence | None
) -> tuple[list[Sequence[float]], Sequence[float], Sequence[float]]:
    """The inputs' vectors with a step of an answer between any two pieces; then the second's alone, and the first's again."""
    if reference is None:
        vectors = _embed(c, inputs)
    else:
        sequence = c.sequence(PROMPTS[2], c.greedy(12))
        with c.driver() as driver:
            driver.add(sequence)
            driver.step_until(lambda: len(sequence.pieces) >= 3)
            vectors = _embed(c, inputs, lambda: bool(driver.active) and driver.step())
            driver.run()
        c.assert_same(reference, sequence, "with pieces of embed() between its steps")
    (again,) = _embed(c, inputs[1:])
    pieces = iter(c.embed([inputs[1], inputs[0]]))
    next(pieces)
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
    return vectors, again, _embed(c, inputs[:1])[0]


@check
def long_inputs_are_embedded_whole(c: EngineContract) -> None:
    """An input of n_ctx tokens is taken, and every part of it counts: another beginning or end gives another vector."""
    if not c.info.can_embed:
        return
    whole = c.long_tokens(c.info.n_ctx)
    rival = c.long_tokens(c.info.n_ctx, topic="chapter")
    n_part = max(1, c.info.n_ctx // 8)
    first, begun, ended = _embed(c, [whole, rival[:n_part] + whole[n_part:], whole[:-n_part] + rival[-n_part:]])
    (again,) = _embed(c, [whole])
    assert _cosine(first, again) > 0.99, "a long input has different vectors alone and among others"
    assert _cosine(first, begun) < 0.999999, "the beginning of a long input does not count"
    assert _cosine(first, ended) < 0.999999, "the end of a long input does not count"


def _embed(
    c: EngineContract, inputs: list[Input], between: Callable[[], object] = lambda: None
) -> list[Sequence[float]]:
    """All vectors, with a call after each piece.

    Raises:
        AssertionError: More or fewer vectors than inputs came.
    """
    vectors: list[Sequence[float]] = []
    for piece in c.embed(inputs):
        vectors += piece
        between()
        if not len(piece):
            c.wait()
    assert len(vectors) == len(inputs), f"{len(vectors)} vectors came for {len(inputs)} inputs"
    return vectors


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@also_for_messages
@check
def memory_is_accounted(c: EngineContract) -> None:
    """`memory` gives a MemoryUse without negative numbers, also while a sequence runs."""
    sequence = c.sequence(PROMPTS[0])
    with c.driver() as driver:
        driver.add(sequence)
        driver.step()
        use = c.engine.memory()
    assert isinstance(use, MemoryUse), f"memory() gave {use!r}"
    assert min(use.weights_bytes, use.kv_bytes, use.compute_bytes, use.cache_bytes) >= 0, f"memory() gave {use}"


@also_for_messages
@check
def close_gives_the_memory_back(c: EngineContract) -> None:
    """Loading, using and closing it once more leaves the process no larger than before, within the margin."""
    sizes = []
    for _ in range(3):
        c.close()
        c.answer(PROMPTS[0] if c.takes_messages else c.long_tokens(c.n_long(0.5)), c.greedy(4))
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
