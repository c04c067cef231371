"""A small model that guesses for a larger one of the same vocabulary.

Worker process, engine thread only. It has a context of its own with a KV stream for each slot, follows what the sequences
say, and guesses greedily for several of them at once; whether a guess is right is not its business. What it costs is
learnt here, and weighed in drafting.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp as llama
import numpy as np

from hostler import EngineFailed, EngineSettings, ModelLoadFailed, Progress, UnsupportedParameter
from hostler_llamacpp import loading
from hostler_llamacpp.binding import Batch, LogitRows, log, short
from hostler_llamacpp.loading import Loaded

MAX_SIZE_DIFFERENCE = 128
"""Vocabularies of one family differ by unused tokens at their ends; llama.cpp's own limit."""
FIRST_COMPARED = 5
"""The first tokens are control tokens, whose texts differ between finetunes; llama.cpp's own limit."""


class Follower:
    """What of one sequence lies in the draft model's stream. INVARIANT: `known` is what its KV holds, token by token."""

    __slots__ = ("known", "number", "rate")

    def __init__(self, number: int) -> None:
        self.number = number
        self.known: list[int] = []
        self.rate = 0.75
        """How often a guess was right lately."""

    def expected(self, n_most: int) -> list[float]:
        """See drafting.Source."""
        return [sum(self.rate**power for power in range(n + 1)) for n in range(n_most + 1)]

    def judged(self, n_drafted: int, n_accepted: int) -> None:
        """Learn how good its guesses were."""
        for n in range(min(n_drafted, n_accepted + 1)):
            self.rate += 0.05 * ((n < n_accepted) - self.rate)

    def forget(self) -> None:
        """Another token without a guess: after many of them it is worth another try."""
        self.rate += 0.002 * (0.75 - self.rate)


class DraftModel:
    """The model and its streams."""

    def __init__(self, target: Loaded, target_path: str, settings: EngineSettings, progress: Progress) -> None:
        """Load it.

        Raises:
            ModelLoadFailed, InvalidModelFile: It cannot be loaded.
            UnsupportedParameter: It cannot guess for this model; naming both.
        """
        path = Path(settings.draft_path)
        log.reset()
        self._model = loading.load_beside(path, settings, progress)
        self._context = 0
        try:
            _check_vocabulary(target.model, Path(target_path), self._model, path)
            self._n_vocab = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model)))
            self._n_batch = settings.n_batch
            params = loading.context_params(settings, target.cache_type, target.n_threads)
            params.n_ctx = loading.padded(target.n_ctx) * target.n_slots
            params.n_seq_max = params.n_outputs_max = target.n_slots
            params.n_batch = settings.n_batch + target.n_slots
            params.n_ubatch = loading.n_ubatch(settings)
            params.kv_unified = False
            params.swa_full = True
            self._context = int(llama.llama_init_from_model(self._model, params) or 0)
            if not self._context:
                raise ModelLoadFailed(f"llama.cpp could not make a context for the draft model {path.name}: {log.reason()}")
            self._memory = llama.llama_get_memory(self._context)
            self._batch = Batch(int(llama.llama_n_batch(self._context)))
            self._rows = LogitRows(self._context, self._n_vocab, target.n_slots)
            self._free = list(range(target.n_slots))
            self._followers: dict[int, Follower] = {}
            self.buffer_bytes = dict(log.buffer_bytes)
            self.pass_s = 0.0
            """Seconds of one guess for all who draft."""
            for _ in range(2):  # the first brings the weights in
                follower = Follower(0)
                self._guess([(follower, [1 % self._n_vocab])], 2)
                short.llama_memory_seq_rm(self._memory, 0, -1, -1)
        except BaseException:
            self.free()
            raise

    def follower(self, sequence_id: int) -> Follower:
        """What is known of a sequence; it gets a stream with the first call."""
        follower = self._followers.get(sequence_id)
        if follower is None:
            follower = self._followers[sequence_id] = Follower(self._free.pop())
        return follower

    def drop(self, sequence_id: int) -> None:
        """A sequence is over."""
        follower = self._followers.pop(sequence_id, None)
        if follower is not None:
            short.llama_memory_seq_rm(self._memory, follower.number, -1, -1)
            self._free.append(follower.number)

    def can_read(self, tokens: Sequence[int]) -> bool:
        """Whether it has all of these tokens: its vocabulary may be a little smaller."""
        return max(tokens) < self._n_vocab

    def draft(self, members: Sequence[tuple[Follower, list[int]]], n: int) -> list[list[int]]:
        """Guess the next tokens of several sequences.

        Args:
            members: Each with all its tokens, the last one included.
            n: How many, 1 or more.

        Returns:
            For each its guesses; none for one whose prompt is still being read.
        """
        ready: list[tuple[int, tuple[Follower, list[int]]]] = []
        for place, (follower, tokens) in enumerate(members):
            if self._catch_up(follower, tokens):
                ready.append((place, (follower, tokens)))
        found: list[list[int]] = [[] for _ in members]
        if ready:
            for (place, _), guesses in zip(ready, self._guess([one for _, one in ready], n), strict=True):
                found[place] = guesses
        return found

    def free(self) -> None:
        """Give everything back; may be called twice."""
        if self._context:
            llama.llama_free(self._context)
            self._context = 0
        if self._model:
            llama.llama_model_free(self._model)
            self._model = 0

    def _catch_up(self, follower: Follower, tokens: list[int]) -> bool:
        """Cut what was guessed wrong, and read what is new; False: there is more of it than one chunk takes."""
        known = follower.known
        n_keep = min(len(known), len(tokens) - 1)
        # Only the last guesses can differ: a sequence's tokens never change.
        while n_keep and known[n_keep - 1] != tokens[n_keep - 1]:
            n_keep -= 1
        if n_keep < len(known):
            short.llama_memory_seq_rm(self._memory, follower.number, n_keep, -1)
            del known[n_keep:]
        n_missing = len(tokens) - 1 - n_keep
        if n_missing < 32:
            return True  # read together with the last token
        chunk = tokens[n_keep : n_keep + min(n_missing, self._n_batch)]
        self._batch.clear()
        self._batch.add(follower.number, n_keep, np.array(chunk, np.int32), wants_output=False)
        self._decode()
        known += chunk
        return len(tokens) - 1 - len(known) < 32

    def _guess(self, members: Sequence[tuple[Follower, list[int]]], n: int) -> list[list[int]]:
        order = sorted(range(len(members)), key=lambda place: members[place][0].number)
        found: list[list[int]] = [[] for _ in members]
        for turn in range(n):
            self._batch.clear()
            for place in order:
                follower, tokens = members[place]
                new = found[place][-1:] if turn else tokens[len(follower.known) :]
                self._batch.add(follower.number, len(follower.known), np.array(new, np.int32), wants_output=True)
                follower.known += new
            started = time.monotonic()
            self._decode()
            for place, row in zip(order, self._rows.read(), strict=False):
                found[place].append(int(row.argmax()))
            elapsed = time.monotonic() - started
            if turn:
                self.pass_s += 0.2 * (min(elapsed, 3 * self.pass_s) - self.pass_s) if self.pass_s else elapsed
        return found

    def _decode(self) -> None:
        code = self._batch.decode(self._context)
        if code:
            raise EngineFailed(
                f"llama.cpp could not evaluate a batch in the draft model (code {code}). {log.reason()}".rstrip()
            )


def _check_vocabulary(target: int, target_path: Path, draft: int, draft_path: Path) -> None:
    """Refuse a draft model whose tokens mean something else, or that cannot be taken back."""
    one, other = llama.llama_model_get_vocab(target), llama.llama_model_get_vocab(draft)
    names = f"{draft_path.name} cannot guess for {target_path.name}"
    if llama.llama_model_is_recurrent(draft) or llama.llama_model_is_hybrid(draft):
        raise _unfit(
            f"{names}: it is recurrent, and cannot go back to before a wrong guess; choose another draft_model"
        )
    for what, function in (
        ("the kind of tokenizer", llama.llama_vocab_type),
        ("whether a BOS token is added", llama.llama_vocab_get_add_bos),
        ("whether an EOS token is added", llama.llama_vocab_get_add_eos),
        ("the BOS token", llama.llama_vocab_bos),
        ("the EOS token", llama.llama_vocab_eos),
    ):
        if function(one) != function(other):
            raise _unfit(f"{names}: {what} differs; draft_model must be a model of the same vocabulary")
    n_one, n_other = int(llama.llama_vocab_n_tokens(one)), int(llama.llama_vocab_n_tokens(other))
    if abs(n_one - n_other) > MAX_SIZE_DIFFERENCE:
        raise _unfit(
            f"{names}: it has {n_other} tokens, not {n_one}; draft_model must be a model of the same vocabulary"
        )
    text = short.llama_vocab_get_text
    for token in range(FIRST_COMPARED, min(n_one, n_other)):
        if text(one, token) != text(other, token):
            raise _unfit(
                f"{names}: token {token} is {text(other, token)!r}, not {text(one, token)!r}; draft_model must be a model of "
                "the same vocabulary"
            )


def _unfit(message: str) -> UnsupportedParameter:
    return UnsupportedParameter(message, param="draft_model")
