"""One sequence inside the engine. Worker process, engine thread only; values, no llama.cpp."""

from __future__ import annotations

import numpy as np

from hostler import SequenceSink, Turn
from hostler_llamacpp.drafting import Ngrams
from hostler_llamacpp.draftmodel import Follower
from hostler_llamacpp.sampling import Sampler
from hostler_llamacpp.streams import Stream


class Run(Turn):
    """One sequence inside the engine.

    INVARIANT: with a stream, the stream's tokens are the prompt's first `n_done` and then what was generated and
    evaluated; `last_token` is generated but not evaluated yet.
    """

    __slots__ = (
        "draft", "guesser", "last_token", "n_aside", "n_done", "n_known", "n_prompt", "ngrams", "prompt", "sampler", "sink",
        "stream",
    )  # fmt: skip

    def __init__(self, sink: SequenceSink, prompt: np.ndarray, sampler: Sampler, ngrams: Ngrams | None) -> None:
        super().__init__(sink.priority)
        self.sink = sink
        self.prompt = prompt
        self.n_prompt = len(prompt)
        self.sampler = sampler
        self.stream: Stream | None = None
        """None until its first chunk is due."""
        self.n_done = 0
        """Prompt tokens in the KV cache."""
        self.n_aside = 0
        """Prompt tokens that are evaluated aside, counted from the beginning; in the KV cache once all are."""
        self.n_known = 0
        """Prompt tokens that lay in some cache when it came, so that it counts as the short one that it will be."""
        self.last_token = 0
        self.ngrams = ngrams
        """None: nothing is guessed for it."""
        self.draft: list[int] = []
        """Guesses that are evaluated behind `last_token` in the step under way; in the stream until they are judged."""
        self.guesser: Follower | None = None
        """Whose they are, where a draft model made them."""

    def n_missing(self) -> int:
        """Prompt tokens that are not in the KV cache, or will not be once it has its stream."""
        return self.n_prompt - (self.n_known if self.stream is None else max(self.n_done, self.n_aside))
