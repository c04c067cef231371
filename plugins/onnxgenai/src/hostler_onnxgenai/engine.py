"""The engine: continuous batching over the rows of a backend.

Worker process. All methods run in the engine thread, save `tokenize` and `detokenize`, which may run beside it. It knows
sequences and steps; rows, sampling, loading and evaluation have modules of their own.

A step first evaluates a chunk of the prompts that wait, as much as the running answers allow, then one token of every
sequence that decodes: so who comes late is answered a step earlier. Where many prompts came together, answers sit out until
all of them are evaluated, for some seconds at most. A sequence gets its row when its first chunk is due, not before: by then
an earlier request with the same beginning may have evaluated it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hostler import (
    Cache,
    ContextLengthExceeded,
    EngineFailed,
    EngineInfo,
    EngineSettings,
    FinishReason,
    HostlerError,
    InvalidRequest,
    MemoryUse,
    ModelFiles,
    Pace,
    Progress,
    SequenceSink,
    TokenTable,
    Turn,
    UnsupportedParameter,
    Vectors,
    common_prefix,
    share_out,
)
from hostler_onnxgenai import loading, versions
from hostler_onnxgenai.estimate import GENERATOR_CHUNK_TOKENS, MAX_CHUNK_TOKENS
from hostler_onnxgenai.folder import chat_template
from hostler_onnxgenai.loading import Loaded
from hostler_onnxgenai.rows import Rows
from hostler_onnxgenai.sampling import Sampler
from hostler_onnxgenai.vocabulary import Vocabulary

MIN_SHARED_TOKENS = 32
"""A prompt waits for another's prefill only if at least so many of its tokens come out of that."""
ALONE_STEP_S = 0.15
"""Prefill of a step while nothing decodes. A chunk of 128 tokens is as fast as any (1,532 tokens a second where 512 make
1,511, and 64 make 1,436), so whoever cancels or arrives need not wait longer."""
MIN_ALONE_TOKENS = 64
MIN_PROMPT_S = 0.03
"""Prefill of a step beside running answers, at least: a gap that no reader notices, and with a small model's step of 4 ms
the rule of 2.5 times that would cut a short prompt into many slow pieces."""


MIN_FRAGMENT_TOKENS = 16
"""A prompt is not begun with fewer at the end of a step: each run costs as much as ten prompt tokens before the first."""
STRETCH = 1.25


class Run(Turn):
    """One sequence inside the engine.

    INVARIANT: with a row, the row's tokens are the prompt's first `n_done` and then what was generated and evaluated;
    `last_token` is generated but not evaluated yet.
    """

    __slots__ = ("last_token", "n_done", "n_prompt", "prompt", "row", "sampler", "sink")

    def __init__(self, sink: SequenceSink, prompt: np.ndarray, sampler: Sampler) -> None:
        super().__init__(sink.priority)
        self.sink = sink
        self.prompt = prompt
        self.n_prompt = len(prompt)
        self.sampler = sampler
        self.row: Cache | None = None
        """None until its first chunk is due."""
        self.n_done = 0
        """Prompt tokens in the KV cache."""
        self.last_token = 0

    def n_missing(self) -> int:
        """Prompt tokens that are not in the KV cache."""
        return self.n_prompt - self.n_done


class OnnxGenaiEngine:
    """See hostler.Engine."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._runs: dict[int, Run] = {}
        """By sequence id, in the order they came."""

    # -- life ---------------------------------------------------------------------------------------------------------

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        """See Engine."""
        loaded = loading.load(files, settings, progress)
        try:
            info = self._start(loaded, settings)
            loading.report(progress, 1.0)
        except BaseException:
            loaded.backend.close()
            raise
        self._loaded = loaded
        return info

    def _start(self, loaded: Loaded, settings: EngineSettings) -> EngineInfo:
        folder = loaded.folder
        self._backend = loaded.backend
        self._n_ctx = loaded.n_ctx
        self._n_slots = loaded.n_slots
        self._caching = settings.caching_enabled
        self._vocabulary = vocabulary = Vocabulary(folder)
        self._rows = Rows(loaded.backend, loaded.n_slots, loaded.n_ctx)
        self._n_batch = min(settings.n_batch, MAX_CHUNK_TOKENS if loaded.backend.can_copy else GENERATOR_CHUNK_TOKENS)
        self._pace = Pace(
            self._n_batch,
            loaded.n_slots,
            max_itl_ratio=settings.max_itl_ratio,
            alone_step_s=ALONE_STEP_S,
            min_alone_tokens=MIN_ALONE_TOKENS,
            min_prompt_s=MIN_PROMPT_S,
        )
        self._learn_costs()
        return EngineInfo(
            n_ctx=loaded.n_ctx,
            n_slots=loaded.n_slots,
            n_vocab=vocabulary.n_tokens,
            n_ctx_train=folder.context_length,
            device=loaded.backend.device,
            chat_template=chat_template(Path(folder.path)),
            special_texts=vocabulary.special_texts,
            bos_text=vocabulary.bos_text,
            eos_text=vocabulary.eos_text,
            adds_bos=vocabulary.adds_bos,
            can_embed=False,
            can_guide=True,
            version=versions.version(),
            warnings=loaded.warnings,
        )

    def _learn_costs(self) -> None:
        """Find out what a prompt token and a step take, so that the first requests are shared out rightly, too."""
        n_tokens = min(32, self._n_ctx - 1)
        prompt = np.arange(n_tokens, dtype=np.int32) % self._vocabulary.n_tokens
        started = time.monotonic()
        self._backend.prefill(0, 0, prompt)
        self._pace.learn(0, n_tokens, time.monotonic() - started)
        started = time.monotonic()
        self._backend.decode([0], [n_tokens], [0])
        self._pace.learn(1, 0, time.monotonic() - started)

    def close(self) -> None:
        """See Engine."""
        self._runs.clear()
        if self._loaded is not None:
            self._loaded.backend.close()
            self._loaded = None
            del self._backend, self._rows, self._vocabulary

    def memory(self) -> MemoryUse:
        """See Engine. Weights as the libraries keep them: repacked, about as large as the files."""
        if self._loaded is None:
            return MemoryUse()
        return MemoryUse(weights_bytes=self._loaded.folder.weights_bytes, kv_bytes=self._backend.kv_bytes)

    # -- sequences ----------------------------------------------------------------------------------------------------

    def add(self, sequence: SequenceSink) -> None:
        """See Engine."""
        if len(self._runs) >= self._n_slots:
            raise EngineFailed(f"all {self._n_slots} slots are taken; this is a bug of the caller")
        prompt = self._vocabulary.validate(sequence.tokens)
        if not len(prompt):
            raise InvalidRequest("the prompt has no tokens; at least one is needed")
        if len(prompt) > self._n_ctx - 1:
            raise ContextLengthExceeded(
                f"the prompt has {len(prompt)} tokens; with a context of {self._n_ctx} at most {self._n_ctx - 1} fit"
            )
        sampler = Sampler(
            sequence.params,
            prompt,
            n_vocab=self._vocabulary.n_tokens,
            n_ctx=self._n_ctx,
            end_tokens=self._vocabulary.end_tokens,
            piece=self._vocabulary.piece,
            constraint=sequence.constraint,
        )
        self._runs[sequence.id] = Run(sequence, prompt, sampler)

    def cancel(self, sequence_id: int) -> None:
        """See Engine."""
        run = self._runs.get(sequence_id)
        if run is not None:
            self._drop(run)

    def _drop(self, run: Run) -> None:
        """Forget a sequence; its row keeps what was evaluated, if others may have it."""
        del self._runs[run.sink.id]
        if run.row is not None:
            self._rows.release(run.row)
            run.row = None

    def _fail(self, run: Run, message: str) -> None:
        run.sink.end(FinishReason.ERROR, message)
        self._drop(run)

    # -- step ---------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """See Engine."""
        decoding: list[Run] = []
        waiting: list[Run] = []
        for run in self._runs.values():
            if not run.sink.is_paused:
                (decoding if run.n_done == run.n_prompt else waiting).append(run)
        n_prefilled, sits_out = 0, False
        if waiting:
            seconds, is_alone = self._pace.room_s(waiting, decoding)
            n_prefilled = self._prefill(waiting, seconds, is_alone=is_alone)
            # A run for some rows now, and one for the others later, would take longer than one for all.
            sits_out = is_alone and self._pace.is_long(n_prefilled)
        if decoding and not sits_out:
            self._decode(decoding)
        return bool(decoding or n_prefilled)

    def _prefill(self, waiting: list[Run], seconds: float, *, is_alone: bool) -> int:
        """Evaluate some of the prompts that wait; whose is complete gets its first token. See Pace.room_s."""
        n_prefilled = 0
        n_tokens = self._pace.tokens_in(seconds, is_alone=is_alone)
        chunks = share_out(
            waiting,
            n_tokens,
            lambda run: self._is_due(run, waiting),
            min_tokens=MIN_FRAGMENT_TOKENS,
            stretch=min(STRETCH, self._n_batch / n_tokens),
        )
        for run, n in chunks:
            row = run.row
            assert row is not None
            tokens = run.prompt[run.n_done : run.n_done + n]
            started = time.monotonic()
            logits = self._backend.prefill(row.number, run.n_done, tokens)
            self._pace.learn(0, n, time.monotonic() - started)
            row.extend(tokens)
            run.n_done += n
            n_prefilled += n
            run.sink.prefilled(run.n_done)
            if run.n_done == run.n_prompt:
                self._sample(run, logits)
        return n_prefilled

    def _decode(self, decoding: list[Run]) -> None:
        rows = [run.row for run in decoding if run.row is not None]
        started = time.monotonic()
        logits = self._backend.decode(
            [row.number for row in rows], [row.n_tokens for row in rows], [run.last_token for run in decoding]
        )
        self._pace.learn(len(decoding), 0, time.monotonic() - started)
        for run, row, own in zip(decoding, rows, logits, strict=True):
            row.append(run.last_token)
            self._sample(run, own)

    def _sample(self, run: Run, logits: np.ndarray) -> None:
        vocabulary = self._vocabulary
        try:
            token, logprob = run.sampler.pick(logits[: vocabulary.n_tokens])
        except HostlerError as error:
            run.sink.fail(error)
            self._drop(run)
            return
        if token in vocabulary.end_tokens:
            run.sink.end(FinishReason.STOP)
            self._drop(run)
            return
        run.last_token = token
        if not run.sink.push(token, vocabulary.pieces[token] or vocabulary.piece(token), logprob):
            self._drop(run)
        elif run.row is not None and run.row.n_tokens + 1 >= self._n_ctx:
            # INVARIANT: the token of position n_ctx - 1 is never evaluated, so that a row always has room for one.
            self._fail(run, f"the context of {self._n_ctx} tokens is full")

    def _is_due(self, run: Run, waiting: list[Run]) -> bool:
        """Give a prompt its row, unless another's prefill will soon evaluate much of its beginning."""
        if run.row is not None:
            return True
        if run.sink.cache_prompt and self._caching and self._backend.can_copy:
            for other in waiting:
                if other.row is None or not other.row.is_shared:
                    continue
                if common_prefix(other.prompt, run.prompt) - other.n_done >= MIN_SHARED_TOKENS:
                    return False
        run.row, run.n_done = self._rows.place(run.prompt, may_reuse=run.sink.cache_prompt and self._caching)
        run.sink.begin(run.n_done)
        return True

    # -- text and vectors ---------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See Engine."""
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        """See Engine."""
        return self._vocabulary.detokenize(token_ids)

    def token_table(self) -> TokenTable:
        """See GuidedEngine."""
        return self._vocabulary.table()

    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:  # noqa: ARG002 - the contract's name
        """See Engine."""
        raise UnsupportedParameter("the onnxgenai engine cannot embed; it only generates text")
