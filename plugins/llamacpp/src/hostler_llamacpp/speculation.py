"""Speculation in one loaded model: which running sequences get guesses in a step, and what came of it.

Worker process, engine thread only. It fills `Run.draft` before a step, learns from the step's time, and judges the
guesses by the rows that came out; evaluating them is the engine's. How guesses are made and weighed stands in drafting.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp as llama
import numpy as np

from hostler import EngineSettings, TokenLogprob
from hostler_llamacpp.drafting import Source, StepCosts, choose
from hostler_llamacpp.draftmodel import DraftModel, Follower
from hostler_llamacpp.loading import Loaded
from hostler_llamacpp.run import Run
from hostler_llamacpp.vocabulary import Vocabulary

LONG_FIND = 8
"""So many tokens that have stood there before say more than a draft model does, and cost nothing."""

Picked = tuple[int, TokenLogprob | None]


class Speculation:
    """Who drafts, and what it costs."""

    def __init__(self, loaded: Loaded, settings: EngineSettings, vocabulary: Vocabulary) -> None:
        """Nothing is known yet."""
        self._n_vocab = vocabulary.n_tokens
        self._n_ctx = loaded.n_ctx
        self._n_rows = loaded.n_draft_rows
        self._n_most = settings.n_draft_max
        self._max_ratio = settings.max_itl_ratio
        self._is_even = int(llama.llama_model_n_swa(loaded.model)) > 0
        """All who draft in a step draft equally many: see Streams.can_take_back."""
        self._end_tokens = vocabulary.end_tokens
        """An answer never goes on behind one, so none is guessed."""
        self._costs = StepCosts(loaded.n_slots)
        self._row_s = 0.0
        """A token of a prompt."""
        self.model: DraftModel | None = None
        """Guesses where nothing was found that stood before."""
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
        found: list[tuple[Run, Source, int]] = []
        guess_s = 0.0
        for run in decoding:
            ngrams = run.ngrams
            if ngrams is None:
                continue
            source: Source | None = ngrams if ngrams.has_guess else None
            if self.model is not None and ngrams.n_agreed < LONG_FIND and ngrams.n_written:
                source = self._follower(self.model, run) or source
            if source is None:
                continue
            assert run.stream is not None
            n_most = min(
                self._n_most, self._n_ctx - run.stream.n_tokens - 1, run.sink.params.max_tokens - ngrams.n_written - 1
            )
            if n_most > 0:
                found.append((run, source, n_most))
                if self.model is not None and isinstance(source, Follower):
                    guess_s = self.model.pass_s
        if not found:
            return False
        places, length = choose(
            [(source, n_most) for _, source, n_most in found],
            len(decoding),
            self._costs,
            self._n_rows,
            n_waiting=n_waiting,
            prompt_s=n_prompt * self._row_s,
            guess_s=guess_s,
            max_ratio=self._max_ratio,
        )
        followed: list[tuple[Run, Follower]] = []
        for place in places:
            run, source, n_most = found[place]
            if isinstance(source, Follower):
                followed.append((run, source))
            elif run.ngrams is not None:
                run.draft = self._before_end(run.ngrams.draft(min(length, n_most)))
        for _, source, _ in found:
            if isinstance(source, Follower) and not places:
                source.forget()
        if self.model is not None and followed:
            self._ask(self.model, followed, length)
        if self._is_even:
            shortest = min((len(run.draft) for run, _, _ in found if run.draft), default=0)
            for run, _, _ in found:
                del run.draft[shortest:]
        self._chosen = (len(places), length)
        return any(run.draft for run, _, _ in found)

    def free(self) -> None:
        """Free the draft model, if there is one."""
        if self.model is not None:
            self.model.free()
            self.model = None

    def drop(self, sequence_id: int) -> None:
        """A sequence is over."""
        if self.model is not None:
            self.model.drop(sequence_id)

    def _follower(self, model: DraftModel, run: Run) -> Follower | None:
        assert run.ngrams is not None
        follower = model.follower(run.sink.id)
        tokens = run.ngrams.tokens
        return follower if model.can_read(tokens[min(len(follower.known), len(tokens) - 1) :]) else None

    def _ask(self, model: DraftModel, followed: list[tuple[Run, Follower]], length: int) -> None:
        """Let the draft model guess for these."""
        members = [(follower, run.ngrams.tokens) for run, follower in followed if run.ngrams is not None]
        for (run, follower), guesses in zip(followed, model.draft(members, length), strict=True):
            assert run.ngrams is not None
            n_most = min(length, self._n_ctx - len(run.ngrams.tokens), run.sink.params.max_tokens - run.ngrams.n_written - 1)
            draft = self._before_end(guesses[: max(0, n_most)])
            if max(draft, default=0) < self._n_vocab:  # the draft model may have some tokens more
                run.draft, run.guesser = draft, follower

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
    if run.guesser is not None:
        run.guesser.judged(len(draft), len(picked) - 1)
        run.guesser = None
    return picked
