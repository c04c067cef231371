"""Step: what a variant loses against the original, on a text: perplexity, and KL divergence of its distributions.

The original's distributions are written to a file once, as the 16-bit codes of their log probabilities; every variant is held
against them. All variants see the same chunks in batches of the same shape, so the figures of a file are always the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hostler_llamacpp.tuning.steps.opened import NotMeasurable, Opened

CHUNK = 512
"""Tokens that are seen together."""
STORE_BYTES = 512 * 1024 * 1024
"""What the original's distributions may take; of a larger vocabulary every second, third ... position is compared."""
DEPTH = 32.0
"""Nats below the likeliest token down to which a log probability is told apart: in steps of 0.0005."""
_STEPS = 65535 / DEPTH


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Measure one file.

    Args:
        arguments: `path`, `text`, `n_tokens` (0: all), `n_threads`, `flash_attn`, `cache_type`, `repack`; `reference`: the
            file of the original's distributions; `is_reference`: this is the original, write them.
        show: Takes a text and a fraction.

    Returns:
        `n_scored`, `perplexity`, `nll` (mean, nats). Of a variant also `kl` (mean), `kl_p99`, `kl_max`, `same_top` (share of
        positions with the same likeliest token), `n_compared`, `nll_change` (mean), `nll_change_se` (its standard error).
    """
    show("loading", None)
    with Opened(
        arguments["path"],
        n_ctx=CHUNK,
        n_threads=arguments["n_threads"],
        flash_attn=arguments["flash_attn"],
        cache_type=arguments["cache_type"],
        repack=arguments["repack"],
    ) as opened:
        chunks = opened.chunks(arguments["text"], CHUNK, arguments["n_tokens"])
        if not chunks:
            raise NotMeasurable("the text has too few tokens for this model")
        if arguments["is_reference"]:
            return write_reference(opened, chunks, Path(arguments["reference"]), show)
        return Reference(Path(arguments["reference"])).compare(opened, chunks, show)


def write_reference(opened: Opened, chunks: Sequence[np.ndarray], path: Path, show: Callable[..., None]) -> dict[str, Any]:
    """Evaluate the original, and keep its distributions."""
    n_positions = sum(len(chunk) - 1 for chunk in chunks)
    stride = max(1, math.ceil(2 * n_positions * opened.n_vocab / STORE_BYTES))
    nll: list[np.ndarray] = []
    n_done = 0
    with path.open("wb") as stream:
        for rows, targets, _ in scored(opened, chunks):
            logp = log_softmax(rows)
            nll.append(-logp[np.arange(len(targets)), targets])
            stream.write(encode(logp[(-n_done) % stride :: stride]).tobytes())
            n_done += len(targets)
            show("original", n_done / n_positions)
    values = np.concatenate(nll)
    np.save(path.with_suffix(".npy"), np.concatenate([[float(stride), float(opened.n_vocab)], values]))
    mean = float(values.mean())
    return {"n_scored": len(values), "nll": mean, "perplexity": math.exp(mean)}


class Reference:
    """The original's distributions, as `write_reference` left them."""

    def __init__(self, path: Path) -> None:
        header = np.load(path.with_suffix(".npy"))
        self.stride, self.n_vocab = int(header[0]), int(header[1])
        self.nll = header[2:]
        self._codes = np.memmap(path, np.uint16, "r").reshape(-1, self.n_vocab)

    def compare(self, opened: Opened, chunks: Sequence[np.ndarray], show: Callable[..., None]) -> dict[str, Any]:
        """Evaluate a variant.

        Raises:
            NotMeasurable: It has another vocabulary, or computes no numbers.
        """
        if opened.n_vocab != self.n_vocab:
            raise NotMeasurable(f"the variant has {opened.n_vocab} tokens, the original {self.n_vocab}")
        kl: list[np.ndarray] = []
        nll: list[np.ndarray] = []
        same: list[np.ndarray] = []
        n_done = n_read = 0
        for rows, targets, _ in scored(opened, chunks):
            logp = log_softmax(rows)
            nll.append(-logp[np.arange(len(targets)), targets])
            compared = logp[(-n_done) % self.stride :: self.stride]
            theirs = decode(self._codes[n_read : n_read + len(compared)])
            n_read += len(compared)
            kl.append((np.exp(theirs) * (theirs - compared)).sum(axis=1))
            same.append(theirs.argmax(axis=1) == compared.argmax(axis=1))
            n_done += len(targets)
            show("variant", n_done / len(self.nll))
        values, divergences = np.concatenate(nll), np.concatenate(kl).astype(np.float64)
        change = values - self.nll[: len(values)]
        mean = float(values.mean())
        return {
            "n_scored": len(values),
            "nll": mean,
            "perplexity": math.exp(mean),
            "nll_change": float(change.mean()),
            "nll_change_se": float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else 0.0,
            "n_compared": len(divergences),
            "kl": float(divergences.mean()),
            "kl_p99": float(np.quantile(divergences, 0.99)),
            "kl_max": float(divergences.max()),
            "same_top": float(np.concatenate(same).mean()),
        }


def scored(opened: Opened, chunks: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Every position that has a next token.

    Yields:
        Logits (n_rows, n_vocab), the tokens that came next (n_rows), the chunk's number.

    Raises:
        NotMeasurable: A logit is no number.
    """
    for number, chunk in enumerate(chunks):
        for start, rows in opened.chunk_logits(chunk):
            targets = chunk[start + 1 : start + 1 + len(rows)]
            found = rows[: len(targets)]
            if len(found) and not np.isfinite(found.max(axis=1)).all():
                raise NotMeasurable("it computes logits that are no numbers")
            if len(found):
                yield found, targets, number


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities, float32; the sums in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    result: np.ndarray = shifted - np.log(total).astype(np.float32)
    return result


def encode(logp: np.ndarray) -> np.ndarray:
    """Log probabilities -> 16 bits below each row's largest."""
    below = logp.max(axis=1, keepdims=True) - logp
    result: np.ndarray = np.minimum(np.rint(below * _STEPS), 65535).astype(np.uint16)
    return result


def decode(codes: np.ndarray) -> np.ndarray:
    """16 bits -> log probabilities; they sum to one again."""
    below = codes.astype(np.float32) / np.float32(-_STEPS)
    return log_softmax(below)
