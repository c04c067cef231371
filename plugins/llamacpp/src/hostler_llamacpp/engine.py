"""The engine: continuous batching over llama.cpp, one `llama_decode` a step.

Worker process. All methods run in the engine thread, save `tokenize` and `detokenize`, which may run beside it. It knows
sequences and steps; sampling, streams, embedding and loading have modules of their own,
and what every engine decides alike stands in hostler.

A step takes one token of every sequence that decodes and a chunk of the prompts that wait, evaluates them together, and
samples for each row that came out. A sequence gets its KV stream when its first chunk is due, not before: by then an
earlier request with the same beginning may have evaluated it. A long prompt beside running answers is evaluated aside.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp as llama
import numpy as np

from hostler import (
    ContextLengthExceeded,
    EngineFailed,
    EngineInfo,
    EngineSettings,
    FinishReason,
    HostlerError,
    InvalidModelFile,
    InvalidRequest,
    MemoryUse,
    ModelFiles,
    Pace,
    Packing,
    PrefixFiles,
    Progress,
    SequenceSink,
    TokenLogprob,
    TokenTable,
    UnsupportedParameter,
    Vectors,
    share_out,
)
from hostler_llamacpp import aside, loading, probe
from hostler_llamacpp.aside import Aside
from hostler_llamacpp.binding import Batch, LogitRows, log
from hostler_llamacpp.detour import Detour
from hostler_llamacpp.drafting import Ngrams
from hostler_llamacpp.draftmodel import DraftModel
from hostler_llamacpp.embedding import Embedder
from hostler_llamacpp.estimate import room_bytes
from hostler_llamacpp.loading import Loaded
from hostler_llamacpp.prefixes import Prefixes, unknown_layout
from hostler_llamacpp.run import Run
from hostler_llamacpp.sampling import Sampler, Workspace
from hostler_llamacpp.speculation import Speculation, pick
from hostler_llamacpp.states import Layout, StreamMemory
from hostler_llamacpp.streams import Stream, Streams
from hostler_llamacpp.vocabulary import Vocabulary

MIN_SHARED_TOKENS = 32
"""A prompt waits for another's prefill only if at least so many of its tokens come out of that."""
STORING_S = 2.0
PREFIX_FILES_CLOSE_S = 5.0
"""What a close may take to look for prefixes worth a file, and to write them: together less than `stop_timeout_s`."""
MIN_SCRATCH_BYTES = 128 * 1024 * 1024
"""So much host memory, at least, a swap of two streams may take for a moment."""
PIECE_SHARE = 0.85
"""Of a prompt's time for a piece of embeddings, whose length in seconds is known less well: inputs end where they end."""
CRUMBS = 1.4
"""Where no answer flows, a prompt whose step is so much longer with its rest at most is completed: short chunks are slow, and
what a token of a long one costs is overestimated from them by up to a third."""
_WARM_UP_TOKENS = 32


class LlamaCppEngine:
    """See hostler.Engine."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._speculation: Speculation | None = None
        self._runs: dict[int, Run] = {}
        """By sequence id, in the order they came."""
        self._detour: Detour | None = None
        """None: no prompt can be evaluated aside."""

    # -- life ---------------------------------------------------------------------------------------------------------

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        """See Engine."""
        loaded = loading.load(files, settings, progress)
        with contextlib.ExitStack() as failing:
            failing.callback(loaded.free)
            info = self._start(loaded, settings)
            failing.callback(self._embedder.free)
            if self._speculation is not None:
                failing.callback(self._speculation.free)
            if info.can_generate:
                layout = self._warm_up(files.primary)
                self._open_prefixes(layout, settings)
                failing.callback(self._streams.prefixes.close, PREFIX_FILES_CLOSE_S)
                if aside.is_possible(loaded, settings, layout):
                    self._detour = Detour(Aside(loaded, settings, layout), self._streams, self._pace)
            else:
                self._warm_up_embedding(files.primary)
            self._load_draft_model(loaded, files.primary, settings, progress)
            loading.report(progress, 1.0)
            failing.pop_all()
        self._loaded = loaded
        return info

    def _load_draft_model(self, loaded: Loaded, path: str, settings: EngineSettings, progress: Progress) -> None:
        if not settings.draft_path or settings.speculation == "off" or not loaded.context:
            return
        if self._speculation is None:
            raise UnsupportedParameter(
                f"{Path(path).name} is recurrent and cannot go back to before a wrong guess, so no model can guess for it; "
                "unset draft_model",
                param="draft_model",
            )
        self._speculation.model = DraftModel(loaded, path, settings, progress)

    def _start(self, loaded: Loaded, settings: EngineSettings) -> EngineInfo:
        model = loaded.model
        self._n_ctx = loaded.n_ctx
        self._n_slots = loaded.n_slots
        self._vocabulary = Vocabulary(model)
        kv_bytes = log.buffer_bytes.get("KV", 0) if loaded.context else 0
        n_cells = loading.padded(loaded.n_ctx) * loaded.n_slots
        token_bytes = kv_bytes // n_cells
        self._n_chunk = max(1, min(settings.n_batch, loaded.n_batch - loaded.n_slots - loaded.n_draft_rows))
        self._pace = Pace(self._n_chunk, loaded.n_slots, max_itl_ratio=settings.max_itl_ratio)
        self._embedder = Embedder(loaded, settings, self._vocabulary.n_tokens, token_bytes)
        if loaded.context:
            self._start_writing(loaded, settings, token_bytes, kv_bytes)
        self._memory_use = MemoryUse(
            weights_bytes=log.buffer_bytes.get("model", 0) or int(llama.llama_model_size(model)),
            kv_bytes=kv_bytes + log.buffer_bytes.get("RS", 0) if loaded.context else 0,
            compute_bytes=self._compute_bytes() if loaded.context else 0,
        )
        template: bytes | None = llama.llama_model_chat_template(model, None)
        self._can_embed = settings.embedding and self._embedder.can_embed
        return EngineInfo(
            n_ctx=loaded.n_ctx,
            n_slots=loaded.n_slots,
            n_vocab=self._vocabulary.n_tokens,
            n_ctx_train=int(llama.llama_model_n_ctx_train(model)),
            device=loaded.device,
            chat_template=None if template is None else template.decode("utf-8", "replace"),
            special_texts=self._vocabulary.special_texts,
            bos_text=self._vocabulary.bos_text,
            eos_text=self._vocabulary.eos_text,
            adds_bos=self._vocabulary.adds_bos,
            can_generate=bool(loaded.context),
            can_guide=bool(loaded.context),
            can_embed=self._can_embed,
            n_embd=self._embedder.n_embd if self._can_embed else 0,
            version=probe.version(),
            warnings=loaded.warnings,
        )

    def _compute_bytes(self) -> int:
        return log.buffer_bytes.get("compute", 0) + log.buffer_bytes.get("output", 0) + self._streams.room.nbytes

    def _start_writing(self, loaded: Loaded, settings: EngineSettings, token_bytes: int, kv_bytes: int) -> None:
        """What a model needs that writes text."""
        model, context = loaded.model, loaded.context
        self._context = context
        self._caching = settings.caching_enabled
        self._workspace = Workspace(self._vocabulary.n_tokens)
        self._batch = Batch(loaded.n_batch)
        self._rows = LogitRows(context, self._vocabulary.n_tokens, loaded.n_slots + loaded.n_draft_rows)
        can_roll_back = not (llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))
        self._n_swa = int(llama.llama_model_n_swa(model))
        self._streams = Streams(
            StreamMemory(context),
            loaded.n_slots,
            loading.padded(loaded.n_ctx),
            n_swa=self._n_swa,
            can_roll_back=can_roll_back,
            prefixes=Prefixes(unknown_layout(), ram_bytes=0),
            room_bytes=room_bytes(kv_bytes, loaded.n_slots),
        )
        self._packing = Packing(
            hole_bytes=int(llama.llama_model_size(model)),
            token_bytes=max(1, token_bytes),
            scratch_bytes=max(MIN_SCRATCH_BYTES, kv_bytes // 8),
        )
        self._speculation = (
            Speculation(loaded, settings, self._vocabulary)
            if loaded.n_draft_rows and self._streams.can_take_back
            else None
        )

    def _warm_up(self, path: str) -> Layout:
        """Evaluate a few tokens: mapped weights become resident, broken ones show, first costs are learnt.

        Returns:
            What a stream's state is made of.
        """
        n_tokens = min(_WARM_UP_TOKENS, self._n_chunk, self._n_ctx - 1)
        stream = self._streams.all[0]
        prompt = np.arange(n_tokens, dtype=np.int32) % self._vocabulary.n_tokens
        states: list[np.ndarray] = []
        # A chunk that brings the weights in, one that tells what a prompt token costs, and one token of decode.
        for position, tokens, is_measured in ((0, prompt, False), (0, prompt, True), (n_tokens, prompt[:1], True)):
            if position == 0:
                self._streams.release(stream)
            self._batch.clear()
            self._batch.add(stream.number, position, tokens, wants_output=True)
            started = time.monotonic()
            self._decode()
            elapsed = time.monotonic() - started
            if is_measured:
                self._pace.learn(int(len(tokens) == 1), len(tokens) if len(tokens) > 1 else 0, elapsed)
                if self._speculation is not None:
                    self._speculation.warmed_up(len(tokens), elapsed)
            largest = float(self._rows.read()[0].max())
            if not np.isfinite(largest):
                raise InvalidModelFile(
                    f"{path}: the model computes no valid probabilities (largest logit {largest}); its weights are "
                    "corrupt. Delete it and pull it again",
                    path=path,
                )
            with contextlib.suppress(EngineFailed):
                states.append(self._streams.memory.save(stream.number))
        self._streams.release(stream)
        if len(states) < 3:
            self._caching = False  # a memory that llama.cpp cannot save; every prompt starts anew
            return unknown_layout()
        return Layout.learn(states[1], states[2], (n_tokens, n_tokens + 1), has_window=self._n_swa > 0)

    def _open_prefixes(self, layout: Layout, settings: EngineSettings) -> None:
        """Set up what outlives the streams."""
        if not self._caching:
            return
        files = None
        if settings.cache_folder and settings.cache_disk_bytes > 0 and settings.model_digest:
            identity = f"{settings.model_digest}\n{probe.version()}\n{loading.state_settings(settings)}\n{layout.identity()}"
            files = PrefixFiles(Path(settings.cache_folder), identity, settings.cache_disk_bytes)
        self._streams.prefixes = Prefixes(layout, ram_bytes=settings.cache_ram_bytes, files=files)

    def _warm_up_embedding(self, path: str) -> None:
        """The same for a model that only embeds."""
        n_tokens = min(_WARM_UP_TOKENS, self._n_ctx)
        tokens = np.arange(n_tokens, dtype=np.int32) % self._vocabulary.n_tokens
        (vector,) = [vector for piece in self._embedder.pieces([tokens], lambda: self._pace.prompt_s(0)) for vector in piece]
        if not np.isfinite(vector).all():
            raise InvalidModelFile(
                f"{path}: the model computes no valid vectors; its weights are corrupt. Delete it and pull it again", path=path
            )

    def close(self) -> None:
        """See Engine."""
        for run in self._runs.values():
            run.sampler.close()
        self._runs.clear()
        if self._loaded is not None:
            if self._detour is not None:
                self._detour.close()
                self._detour = None
            self._embedder.free()
            if self._speculation is not None:
                self._speculation.free()
            if self._loaded.context:
                self._streams.close(STORING_S)
                self._streams.prefixes.close(PREFIX_FILES_CLOSE_S)
                del self._rows, self._batch, self._streams
            self._loaded.free()
            self._loaded = None

    def memory(self) -> MemoryUse:
        """See Engine. Weights as mapped, repacked copies included."""
        use, more = self._memory_use, [self._embedder.buffer_bytes, self._detour.aside.buffer_bytes if self._detour else {}]
        if self._speculation is not None and self._speculation.model is not None:
            more.append(self._speculation.model.buffer_bytes)
        return MemoryUse(
            use.weights_bytes + sum(one.get("model", 0) for one in more),
            use.kv_bytes + sum(one.get("KV", 0) + one.get("RS", 0) for one in more),
            use.compute_bytes + sum(one.get("compute", 0) + one.get("output", 0) for one in more),
            self._streams.prefixes.n_bytes if self._loaded is not None and self._loaded.context else 0,
        )

    # -- sequences ----------------------------------------------------------------------------------------------------

    def add(self, sequence: SequenceSink) -> None:
        """See Engine."""
        if self._loaded is None or not self._loaded.context:
            raise EngineFailed("this model only embeds; this is a bug of the caller")
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
            sequence.params, prompt, self._vocabulary, self._context, self._workspace, self._n_ctx, sequence.constraint
        )
        ngrams = Ngrams(prompt) if self._speculation is not None and sequence.constraint is None else None
        run = self._runs[sequence.id] = Run(sequence, prompt, sampler, ngrams)
        if sequence.cache_prompt and self._caching:
            run.n_known = min(self._streams.prefixes.tree.find(prompt)[1], len(prompt) - 1)
        if self._detour is not None:
            self._detour.expect(run)

    def cancel(self, sequence_id: int) -> None:
        """See Engine."""
        run = self._runs.get(sequence_id)
        if run is not None:
            self._drop(run)

    def _drop(self, run: Run) -> None:
        """Forget a sequence; its stream keeps what was evaluated, if others may have it."""
        del self._runs[run.sink.id]
        run.sampler.close()
        if self._speculation is not None:
            self._speculation.drop(run.sink.id)
        if self._detour is not None and run is self._detour.run:
            self._detour.end()
        if run.stream is not None:
            self._streams.release(run.stream)
            run.stream = None

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
        chunks: list[tuple[Run, int]] = []
        detour, aside_s = self._detour, 0.0
        if waiting:

            def is_due(run: Run) -> bool:
                return self._is_due(run, waiting)

            seconds, is_alone = self._pace.room_s(waiting, decoding)
            if detour is not None:
                aside_s = detour.room_s(waiting, len(decoding), seconds, is_due, is_alone=is_alone)
            if self._embedder.n_open:
                seconds, aside_s = seconds / 2, aside_s / 2
        if waiting and not aside_s:
            n_tokens = self._pace.tokens_in(seconds, is_alone=is_alone)
            others = [run for run in waiting if detour is None or run is not detour.run]
            stretch = min(CRUMBS, self._n_chunk / n_tokens) if is_alone else 1.0
            n_enough = self._pace.n_enough(others) if is_alone else None
            chunks = share_out(others, n_tokens, is_due, stretch=stretch, n_enough=n_enough) if others else []
            if others and not chunks and detour is not None:  # they wait for what is evaluated aside
                aside_s = detour.awaited_s(len(decoding), seconds)
            if is_alone and self._pace.is_long(sum(n for _, n in chunks)):
                decoding = []
        if not decoding and not chunks:
            if detour is None or not aside_s:
                if self._runs:  # all are paused
                    self._streams.settle()
                return False
            detour.go_on(waiting, aside_s)
            return True
        chunks = [(run, self._streams.clip(run.stream, n)) for run, n in chunks if run.stream is not None]
        n_prompt = sum(n for _, n in chunks)
        speculation = self._speculation
        is_drafting = speculation is not None and speculation.draft([] if waiting else decoding, n_prompt, len(chunks))
        started = time.monotonic()
        rows = self._evaluate(decoding, chunks)
        elapsed = time.monotonic() - started
        if aside_s:
            aside_s = self._pace.rest_s(aside_s, len(decoding), elapsed)
        if not is_drafting:
            self._pace.learn(len(decoding), n_prompt, elapsed)
        if speculation is not None:
            speculation.learn(decoding, n_prompt, elapsed)
        for run, _ in chunks:
            if run.n_done == run.n_prompt:
                run.begins()
            if run.stream is not None:
                self._streams.take_checkpoint(run.stream)
        if rows:
            self._sample(rows)
        if aside_s and detour is not None and detour.run is not None:
            detour.go_on(waiting, aside_s)
        self._streams.advance()
        return True

    def _is_prefix_coming(self, run: Run, waiting: list[Run]) -> bool:
        """Whether another prompt's prefill, under way, will soon evaluate much of this prompt's beginning."""
        if not (run.sink.cache_prompt and self._caching):
            return False
        coming: dict[Stream, int] | None = None
        for other in waiting:
            if other.stream is None:
                continue
            if coming is None:
                coming = self._streams.coming(run.prompt)
            n = min(coming.get(other.stream, 0), run.n_prompt - 1)
            if n - other.n_done >= MIN_SHARED_TOKENS and self._streams.may_wait_for(other.stream, n):
                return True
        return False

    def _is_due(self, run: Run, waiting: list[Run]) -> bool:
        """Give a prompt its stream, unless another's prefill will soon evaluate much of its beginning."""
        if run.stream is None:
            if self._is_prefix_coming(run, waiting):
                return False
            self._place(run)
        return True

    def _place(self, run: Run) -> None:
        may_reuse = run.sink.cache_prompt and self._caching
        run.stream, run.n_done = self._streams.place(run.prompt, may_reuse=may_reuse, n_pinned=run.sink.n_pinned)
        run.sink.begin(run.n_done)

    def _evaluate(self, decoding: list[Run], chunks: list[tuple[Run, int]]) -> list[tuple[Run, int]]:
        """Decode one batch.

        Returns:
            Runs that have rows of logits now, in the rows' order, each with the batch index of its first: one, and one more
            for each guess.
        """
        members: list[tuple[Run, int]] = [(run, 0) for run in decoding]
        members += chunks
        # Ascending stream numbers: llama.cpp batches nothing else.
        if len(members) > 1:
            members.sort(key=_stream_number)
        if _stream_number(members[-1]) - _stream_number(members[0]) == len(members) - 1:
            self._packing.no_holes()
        else:
            running = {id(run.stream) for run, _ in members}
            for one, other in self._packing.plan(self._streams.all, lambda stream: id(stream) in running):
                self._streams.swap(one, other)
            members.sort(key=_stream_number)
        batch = self._batch
        batch.clear()
        rows: list[tuple[Run, int]] = []
        for run, n in members:
            stream = run.stream
            assert stream is not None
            if not n and run.draft:
                rows.append((run, batch.add_all(stream.number, stream.n_tokens, [run.last_token, *run.draft])))
                continue
            if not n:
                rows.append((run, batch.add_one(stream.number, stream.n_tokens, run.last_token)))
                continue
            is_last = run.n_done + n == run.n_prompt
            index = batch.add(stream.number, run.n_done, run.prompt[run.n_done : run.n_done + n], wants_output=is_last)
            if is_last:
                rows.append((run, index))
        self._decode()
        for run, n in members:
            stream = run.stream
            assert stream is not None
            if not n:
                stream.append(run.last_token)
                if run.draft:
                    stream.extend(run.draft)
                continue
            stream.extend(run.prompt[run.n_done : run.n_done + n])
            run.n_done += n
            run.sink.prefilled(run.n_done)
        return rows

    def _decode(self) -> None:
        code = self._batch.decode(self._context)
        if code == 0:
            return
        # The engine counts cells itself, so every code is a bug or a broken model; the worker is not to be trusted on.
        meaning = {1: "no room in the KV cache", 2: "aborted", -1: "invalid batch"}.get(code, "fatal error")
        raise EngineFailed(
            f"llama.cpp could not evaluate a batch of {self._batch.n_tokens} tokens: {meaning} (code {code}). "
            f"{log.reason()}".rstrip()
        )

    def _sample(self, rows: list[tuple[Run, int]]) -> None:
        logits = iter(self._rows.read())
        for run, index in rows:
            try:
                if run.draft:
                    goes_on = self._verify(run, [next(logits) for _ in range(len(run.draft) + 1)], index)
                else:
                    goes_on = self._hand_over(run, *run.sampler.pick(next(logits), index))
            except HostlerError as error:
                run.sink.fail(error)
                self._drop(run)
                continue
            if not goes_on:
                self._drop(run)
            elif run.stream is not None and run.stream.n_tokens >= self._n_ctx:
                self._fail(run, f"the context of {self._n_ctx} tokens is full")

    def _verify(self, run: Run, logits: list[np.ndarray], index: int) -> bool:
        """Judge a sequence's guesses, hand over what was picked, and take back what was guessed wrong."""
        stream = run.stream
        assert stream is not None
        n_before, n_pushed, goes_on = stream.n_tokens - len(run.draft), 0, True
        try:
            picked = pick(run, logits, index)
            while goes_on and n_pushed < len(picked):
                goes_on = self._hand_over(run, *picked[n_pushed])
                n_pushed += 1
        finally:
            # The last token handed over is not evaluated yet, as ever; nor is what nobody wanted any more.
            self._streams.truncate(stream, n_before + max(0, n_pushed - 1))
        return goes_on

    def _hand_over(self, run: Run, token: int, logprob: TokenLogprob | None) -> bool:
        """Give a sequence its next token. False: it is over, for the caller to drop."""
        if token in self._vocabulary.end_tokens:
            run.sink.end(FinishReason.STOP)
            return False
        run.last_token = token
        goes_on = run.sink.push(token, self._vocabulary.pieces[token] or self._vocabulary.piece(token), logprob)
        if goes_on and run.ngrams is not None:
            run.ngrams.note(token)
        return goes_on

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

    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        """See Engine."""
        if not self._can_embed:
            raise UnsupportedParameter("this model gives no embeddings: its setting embedding is false, or it is a reranker")
        checked = [self._vocabulary.validate(tokens) for tokens in inputs]
        for tokens in checked:
            if not len(tokens):
                raise InvalidRequest("an input has no tokens; at least one is needed")
            if len(tokens) > self._n_ctx:
                raise ContextLengthExceeded(f"an input has {len(tokens)} tokens; at most {self._n_ctx} fit")
        return self._embedder.pieces(checked, self._embedding_s)

    def _embedding_s(self) -> float:
        """Seconds for the next piece: about what a prompt would get, half of it beside a prompt."""
        running = [run for run in self._runs.values() if not run.sink.is_paused]
        n_decoding = sum(run.n_done == run.n_prompt for run in running)
        seconds = PIECE_SHARE * self._pace.prompt_s(n_decoding)
        return seconds / 2 if n_decoding < len(running) else seconds


def _stream_number(member: tuple[Run, int]) -> int:
    stream = member[0].stream
    assert stream is not None
    return stream.number
