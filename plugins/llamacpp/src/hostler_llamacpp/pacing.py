"""How many prompt tokens a step may evaluate, so that running answers keep flowing.

Worker process, engine thread only. It knows counts and seconds, nothing of llama.cpp.

A step that decodes and prefills takes the time of both, so the prompt tokens of a step are what the decode time allows.
Costs are learnt while running: they grow with position, shrink with faster machines, and change with their neighbours.
"""

from __future__ import annotations

PREFILL_SHARE = 2.5
"""Seconds of prefill for each second of decode in one step. A running answer's gap between tokens then stays under four
times its usual one; more would help nobody: throughput at 16 clients is within a few percent of unlimited chunks."""
ALONE_STEP_S = 1.0
"""Length of a step while nothing decodes: whoever cancels or arrives waits no longer than that."""
MIN_CHUNK_TOKENS = 16
MIN_ALONE_TOKENS = 128
_LEARNING_RATE = 0.25


class Pace:
    """Learnt step costs of one loaded model."""

    def __init__(self, n_batch: int, n_slots: int) -> None:
        self._n_batch = n_batch
        self._prefill_s = 0.0
        """Seconds a prompt token costs; 0: unknown."""
        self._decode_s = [0.0] * (n_slots + 1)
        """Seconds of a step that decodes so many sequences; 0: unknown."""

    def prompt_s(self, n_decoding: int) -> float:
        """Seconds that may be spent beside so many decoding sequences, between one of their tokens and the next."""
        return PREFILL_SHARE * self._decode_time(n_decoding) if n_decoding else ALONE_STEP_S

    def chunk_tokens(self, n_decoding: int, share: float = 1.0) -> int:
        """Prompt tokens that the next step may evaluate beside so many decoding sequences.

        Args:
            share: Of the time; less than 1 where embeddings want theirs.
        """
        if not self._prefill_s:
            return min(self._n_batch, MIN_ALONE_TOKENS if not n_decoding else 4 * MIN_CHUNK_TOKENS)
        n_tokens = share * self.prompt_s(n_decoding) / self._prefill_s
        floor = MIN_CHUNK_TOKENS if n_decoding else MIN_ALONE_TOKENS
        return min(self._n_batch, max(floor, int(n_tokens)))

    def learn(self, n_decoding: int, n_prefilled: int, elapsed_s: float) -> None:
        """Note what a step took."""
        if not n_prefilled:
            self._decode_s[n_decoding] = _blend(self._decode_s[n_decoding], elapsed_s)
        elif n_prefilled >= MIN_CHUNK_TOKENS:
            spent_s = elapsed_s - (self._decode_time(n_decoding) if n_decoding else 0.0)
            # A decode estimate from a busier moment must not make prefill look free.
            self._prefill_s = _blend(self._prefill_s, max(spent_s, elapsed_s / 10) / n_prefilled)

    def _decode_time(self, n_decoding: int) -> float:
        known = self._decode_s[n_decoding]
        if known:
            return known
        nearest = min(
            (n for n, seconds in enumerate(self._decode_s) if seconds),
            key=lambda n: abs(n - n_decoding),
            default=0,
        )
        # Unknown: what one prompt token costs is the least a step can take.
        return self._decode_s[nearest] if nearest else self._prefill_s * n_decoding


def _blend(old: float, new: float) -> float:
    return old + _LEARNING_RATE * (new - old) if old else new
