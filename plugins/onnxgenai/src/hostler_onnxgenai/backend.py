"""What evaluates tokens: the one small interface between the engine and its two ways of running a model.

Worker process, engine thread only. `session.py` runs the graph in a plain onnxruntime session with KV rows of its own,
`generators.py` in onnxruntime-genai's Generators, one a row. Rows are numbered from 0; the caller knows what lies in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

SPIN_US = 200
"""How long a thread of onnxruntime spins for its next piece of work before it sleeps: as long as sampling takes between two
steps, for to wake it up costs 2 % of one. Beside a busy neighbour spinning costs instead, up to a fifth of a single stream;
not to spin at all costs a third of it on an idle machine (README.md has the table)."""


class Backend(Protocol):
    """A loaded model with a KV row for each slot."""

    device: str
    """`cpu`, `cuda` or `dml`, as asked of the library and answered by it."""
    can_copy: bool
    """Whether `copy` works."""
    kv_bytes: int
    """Of all rows together."""

    def prefill(self, row: int, start: int, tokens: np.ndarray) -> np.ndarray:
        """Evaluate tokens behind the first `start` of a row, and forget what lay there.

        Args:
            tokens: int32, at least one; `start` and they fit into the row.

        Returns:
            Logits of the last one: float32, (n_vocab,), valid until the next call, free to be written to.

        Raises:
            EngineFailed: The library could not.
        """

    def decode(self, rows: Sequence[int], starts: Sequence[int], tokens: Sequence[int]) -> Sequence[np.ndarray]:
        """Evaluate one token in each of several rows.

        Args:
            rows: Each once, at least one.
            starts: Tokens that lie in each.

        Returns:
            Logits as of `prefill`, row by row.
        """

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Make a row begin with another's first tokens."""

    def close(self) -> None:
        """Give back what can be given back; once."""
