"""The engine: hands requests to an event loop, and what comes back to their sequences.

Imported in a worker only. The engine thread calls everything here; the upstream is talked to on a thread of its own
(eventloop.py), which wakes the worker's loop when something has come. `step` takes what is there and never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, TimeoutError
from itertools import groupby
from pathlib import Path
from typing import Any

from hostler import (
    EngineInfo,
    EngineSettings,
    HostlerError,
    InvalidModelFile,
    MemoryUse,
    ModelFiles,
    ModelLoadFailed,
    Priority,
    Progress,
    SequenceSink,
    UnsupportedParameter,
    Vectors,
)
from hostler_remote import __version__
from hostler_remote.answers import Ending, Piece
from hostler_remote.conversation import Conversation
from hostler_remote.description import read_description, with_tuning
from hostler_remote.dialect import call_of
from hostler_remote.eventloop import LoopThread
from hostler_remote.keys import read_key
from hostler_remote.upstream import Found, Upstream

LOOK_S = 0.1
"""How often a load looks whether it is still wanted."""
NO_TOKEN = -1



class RemoteEngine:
    """See hostler's MessageEngine."""

    def __init__(self) -> None:
        self._wake: Callable[[], None] = _nothing
        self._thread: LoopThread | None = None
        self._upstream: Upstream | None = None
        self._conversations: dict[int, _Held] = {}
        self._can_embed = False

    def wake_with(self, wake: Callable[[], None]) -> None:
        """See MessageEngine."""
        self._wake = wake

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        """Find the upstream, its model and the key, or say what is wrong."""
        if not progress(0.0):
            raise ModelLoadFailed("the load was called off")
        if settings.device not in ("auto", "remote"):
            raise ModelLoadFailed(
                f"device {settings.device!r} cannot be had: the upstream chooses its devices; set device to 'auto'"
            )
        try:
            description, warnings = with_tuning(read_description(Path(files.primary)), settings.extra)
        except ValueError as error:
            raise InvalidModelFile(f"the setting extra of this model does not fit: {error}", path=files.primary) from error
        key = read_key(description)
        # More connections than slots: those that were cancelled take a moment to be closed, and embeddings need some.
        upstream = Upstream(description, key, 2 * settings.n_parallel + 8)
        self._thread, self._upstream = LoopThread("upstream"), upstream
        try:
            found: Found = self._wait(upstream.look(), progress, 0.1)
            if (found.entry or {}).get("source_url") == Path(files.primary).as_uri():
                raise ModelLoadFailed(f"{description.url} is this very server and {description.model} this very model")
            n_embd = 0
            self._can_embed = description.embeddings and settings.embedding
            if self._can_embed:
                vectors, _ = self._wait(upstream.embed(["dimension"]), progress, 0.6)
                n_embd = len(vectors[0])
        except BaseException:
            self.close()
            raise
        if found.warning:
            warnings += (found.warning,)
        if key and description.url.startswith("http:") and not description.is_local:
            warnings += (f"the key goes to {description.place} without encryption; use https where the upstream has it",)
        progress(1.0)
        limits = [limit for limit in (settings.ctx_len, found.n_ctx) if limit]
        return EngineInfo(
            n_ctx=min(limits, default=0),
            n_slots=settings.n_parallel,
            n_vocab=0,
            n_ctx_train=found.n_ctx,
            device="remote",
            can_generate=description.chat,
            can_embed=self._can_embed,
            n_embd=n_embd,
            version=f"remote {__version__}",
            warnings=warnings,
        )

    def add(self, sequence: SequenceSink) -> None:
        """Put the request into the upstream's words; the first step sends it."""
        thread, upstream = self._running()
        assert sequence.raw is not None
        call = call_of(
            sequence.raw,
            sequence.params,
            upstream.description,
            cache_prompt=sequence.cache_prompt,
            priority=tuple(Priority)[sequence.priority],
        )
        self._conversations[sequence.id] = _Held(sequence, Conversation(call, upstream, thread, self._wake))

    def cancel(self, sequence_id: int) -> None:
        """Hang up."""
        held = self._conversations.pop(sequence_id, None)
        if held is not None:
            held.leave()

    def step(self) -> bool:
        """Send what was added, hand over what has come."""
        has_worked = False
        for sequence_id, held in list(self._conversations.items()):
            if held.sequence.is_paused:
                continue
            has_worked = held.advance() or has_worked
            if held.is_over:
                del self._conversations[sequence_id]
        return has_worked

    def embed(self, inputs: Sequence[Sequence[int] | str]) -> Generator[Vectors, None, int]:
        """See MessageEngine: a batch of inputs a request."""
        if not self._can_embed:
            raise UnsupportedParameter(
                "this remote model does not embed; say so in its description ('embeddings': true) if its upstream does"
            )
        return self._embedding(inputs)

    def _embedding(self, inputs: Sequence[Sequence[int] | str]) -> Generator[Vectors, None, int]:
        thread, upstream = self._running()
        n_tokens = 0
        for batch in _batches(inputs, upstream.description.embed_batch):
            future = thread.start(upstream.embed(batch))
            future.add_done_callback(lambda _: self._wake())
            try:
                while not future.done():
                    yield []
                vectors, count = future.result()
            finally:
                future.cancel()
            n_tokens += count
            yield vectors
        return n_tokens

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:  # noqa: ARG002 - the contract's
        """Never called."""
        raise UnsupportedParameter("a remote model shows no tokens")

    def detokenize(self, token_ids: Sequence[int]) -> bytes:  # noqa: ARG002 - the contract's signature
        """Never called."""
        raise UnsupportedParameter("a remote model shows no tokens")

    def memory(self) -> MemoryUse:
        """None of it is here."""
        return MemoryUse()

    def close(self) -> None:
        """Hang up on everything."""
        thread, upstream = self._thread, self._upstream
        self._conversations.clear()
        self._thread = self._upstream = None
        if thread is not None and upstream is not None:
            thread.close(upstream.close)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _running(self) -> tuple[LoopThread, Upstream]:
        assert self._thread is not None
        assert self._upstream is not None
        return self._thread, self._upstream

    def _wait(self, coroutine: Any, progress: Progress, fraction: float) -> Any:
        assert self._thread is not None
        future: Future[Any] = self._thread.start(coroutine)
        while True:
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if future.done():
                    raise
            if not progress(fraction):
                future.cancel()
                raise ModelLoadFailed("the load was called off")


class _Held:
    """One sequence and its conversation. Engine thread only."""

    def __init__(self, sequence: SequenceSink, conversation: Conversation) -> None:
        self.sequence = sequence
        self.is_over = False
        self._conversation = conversation
        self._has_begun = False

    def advance(self) -> bool:
        """Hand over what has come; False: nothing has."""
        conversation = self._conversation
        if not self._has_begun:
            self._has_begun = True
            self.sequence.begin(0)
            conversation.start()
            return True
        if not conversation.items:
            return False
        while conversation.items and not self.sequence.is_paused and not self.is_over:
            self._hand_over(conversation.next())
        conversation.drained()
        return True

    def leave(self) -> None:
        """Hang up, if anybody was called."""
        if self._has_begun:
            self._conversation.cancel()

    def _hand_over(self, item: object) -> None:
        sequence = self.sequence
        if isinstance(item, bytes):
            is_wanted = sequence.push(NO_TOKEN, item)
        elif isinstance(item, Piece):
            is_wanted = sequence.push(NO_TOKEN, item.text, item.logprob)
        else:
            self.is_over = True
            if isinstance(item, Ending):
                if item.usage is not None:
                    sequence.counted(item.usage)
                sequence.end(item.reason)
            elif isinstance(item, HostlerError):
                sequence.fail(item)
            return
        if not is_wanted:  # a stop string that the upstream went past, or nobody listens
            self.is_over = True
            self.leave()


def _batches(inputs: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Inputs in their order, texts and token ids never in one batch, which OpenAI's API does not have."""
    for _, group in groupby(inputs, key=lambda one: isinstance(one, str)):
        same = [one if isinstance(one, str) else list(one) for one in group]
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _nothing() -> None:
    pass
