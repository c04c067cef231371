"""Speculation in one loaded model: which running sequences get guesses in a step, and what came of it.

Worker process, engine thread only. It fills `Run.draft` before a step, learns from the step's time, and judges the
guesses by the rows that came out; evaluating them is the engine's. How guesses are made and weighed stands in drafting.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hostler import EngineSettings, TokenLogprob
from hostler_llamacpp.drafting import Ngrams, StepCosts, choose
from hostler_llamacpp.loading import Loaded
from hostler_llamacpp.run import Run

Picked = tuple[int, TokenLogprob | None]


class Speculation:
    """Who drafts, and what it costs."""

    def __init__(self, loaded: Loaded, settings: EngineSettings, end_tokens: frozenset[int]) -> None:
        """Nothing is known yet.

        Args:
            end_tokens: An answer never goes on behind one, so none is guessed.
        """
        self._n_ctx = loaded.n_ctx
        self._n_rows = loaded.n_draft_rows
        self._n_most = settings.n_draft_max
        self._end_tokens = end_tokens
        self._costs = StepCosts(loaded.n_slots)
        self._row_s = 0.0
        """A token of a prompt."""
        self._chosen = (0, 0)
        """How many sequences draft in this step, and how much each; 0: it is a plain one."""

    def warmed_up(self, n_tokens: int, elapsed_s: float) -> None:
        """Take first costs from the warm-up: a chunk of a prompt, then one token."""
        if n_tokens > 1:
            self._row_s = elapsed_s / n_tokens
        else:
            self._costs.start(elapsed_s, min(self._row_s, elapsed_s) or elapsed_s)

    def draft(self, decoding: Sequence[Run], n_prompt: int, n_waiting: int) -> bool:
        """Give sequences their guesses for this step, where any are worth a try.

        Args:
            decoding: The step's sequences that decode.
            n_prompt: Tokens of prompts that the step evaluates, too.
            n_waiting: Of so many prompts.
        """
        self._chosen = (0, 0)
        found: list[tuple[Run, Ngrams, int]] = []
        for run in decoding:
            ngrams = run.ngrams
            if ngrams is None or not ngrams.has_guess:
                continue
            assert run.stream is not None
            n_most = min(
                self._n_most, self._n_ctx - run.stream.n_tokens - 1, run.sink.params.max_tokens - ngrams.n_written - 1
            )
            if n_most > 0:
                found.append((run, ngrams, n_most))
        if not found:
            return False
        places, length = choose(
            [(ngrams, n_most) for _, ngrams, n_most in found],
            len(decoding),
            self._costs,
            self._n_rows,
            n_waiting=n_waiting,
            prompt_s=n_prompt * self._row_s,
        )
        for place in places:
            run, ngrams, n_most = found[place]
            run.draft = self._before_end(ngrams.draft(min(length, n_most)))
        self._chosen = (len(places), length)
        return bool(places)

    def learn(self, decoding: Sequence[Run], n_prompt: int, elapsed_s: float) -> None:
        """Note what the step took."""
        n_drafting, length = self._chosen
        if n_prompt:
            if not decoding:
                self._row_s += 0.25 * (elapsed_s / n_prompt - self._row_s)
        elif not n_drafting:
            self._costs.learn_plain(len(decoding), elapsed_s)
        elif sum(len(run.draft) for run in decoding) == n_drafting * length:  # cut ones are other shapes
            self._costs.learn(len(decoding), n_drafting, length, elapsed_s)

    def _before_end(self, draft: list[int]) -> list[int]:
        if self._end_tokens.isdisjoint(draft):
            return draft
        return draft[: next(place for place, token in enumerate(draft) if token in self._end_tokens)]


def pick(run: Run, logits: Sequence[np.ndarray], index: int) -> list[Picked]:
    """Pick tokens from rows one after the other for as long as each is what had been guessed; the guesses are used up.

    Each token is picked as it would be without guesses: by the sequence's own sampler, from the row behind the same
    tokens, in the same order. So the answer is the same, draws and all.

    Args:
        logits: Behind the last token, and behind each guess.
        index: The first row's batch index.

    Raises:
        HostlerError: See Sampler.pick.
    """
    draft, run.draft = run.draft, []
    picked: list[Picked] = []
    for n, row in enumerate(logits):
        picked.append(run.sampler.pick(row, index + n))
        if n < len(draft) and picked[-1][0] != draft[n]:
            break
    run.sink.drafted(len(draft), len(picked) - 1)
    return picked
