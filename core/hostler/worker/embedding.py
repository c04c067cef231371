"""Embeds inside the worker: tokenized in the preparation thread, evaluated by the loop, one piece a turn.

Floor 3, in the worker. `EmbedPreparation` runs in the preparation thread, save for `drop`; `EmbedJobs` belongs to the loop.
What is the same for all engines happens here: limits, order, the length of the vectors, their norm.

A job of thousands of inputs neither keeps other requests from being tokenized nor running answers from their next token:
both threads work on it for a moment, then look after the others. Jobs take turns after each piece that gave vectors.
"""

from __future__ import annotations

import math
import struct
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hostler.engine import Engine, EngineInfo, Vectors
from hostler.errors import EngineFailed, HostlerError
from hostler.worker.preparation import Preparation
from hostler.worker.wire import Embed, Embedded, EmbedReply, Reply, WorkerMessage

SLICE_CHARACTERS = 128 * 1024
"""So much text is tokenized before other requests have their turn: about 30 ms."""

Tokens = Sequence[int] | str
"""One input: token ids, or its text where the engine takes messages."""


class EmbedPreparation:
    """One Embed on its way to the loop."""

    def __init__(
        self,
        embed: Embed,
        preparation: Preparation,
        put_task: Callable[[Callable[[], None]], None],
        on_prepared: Callable[[int, list[Tokens]], None],
        on_failed: Callable[[int, HostlerError], None],
    ) -> None:
        """Begin nothing yet: `run` is a task of the preparation thread.

        Args:
            put_task: Queues a task of that thread.
            on_prepared: Gets the call's id and its token ids.
        """
        self._embed = embed
        self._preparation = preparation
        self._put_task = put_task
        self._on_prepared = on_prepared
        self._on_failed = on_failed
        self._prepared: list[Tokens] = []
        self._is_dropped = False

    def drop(self) -> None:
        """Nobody wants it any more; any thread."""
        self._is_dropped = True

    def run(self) -> None:
        """Do one slice, then queue the rest behind what has come meanwhile."""
        if self._is_dropped:
            return
        try:
            is_done = self._advance()
        except HostlerError as error:
            self._on_failed(self._embed.call_id, error)
        except MemoryError:
            message = "The worker has not enough memory to tokenize these inputs"
            self._on_failed(self._embed.call_id, EngineFailed(message))
        except Exception as error:  # noqa: BLE001 - a bug of the engine's tokenizer costs this request only
            traceback.print_exc()
            message = f"The inputs could not be tokenized: {type(error).__name__}: {error}"
            self._on_failed(self._embed.call_id, EngineFailed(message))
        else:
            if is_done:
                self._on_prepared(self._embed.call_id, self._prepared)
            else:
                self._put_task(self.run)

    def _advance(self) -> bool:
        inputs = self._embed.inputs
        if not self._prepared:
            self._preparation.check_embed(self._embed)
        n_characters = 0
        while len(self._prepared) < len(inputs) and n_characters < SLICE_CHARACTERS:
            index = len(self._prepared)
            self._prepared.append(self._preparation.embed_input(inputs[index], f"input[{index}]"))
            n_characters += len(inputs[index])
        return len(self._prepared) == len(inputs)


class _Job:
    """One Embed in the loop."""

    def __init__(self, call_id: int) -> None:
        self.call_id = call_id
        self.inputs: list[Tokens] = []
        self.pieces: Iterator[Vectors] | None = None
        """None until its first turn."""
        self.n_given = 0
        """Vectors that the host has."""


class EmbedJobs:
    """The embeds of one loop. Engine thread only."""

    def __init__(
        self, engine: Engine, info: EngineInfo, send: Callable[[WorkerMessage], None], *, takes_messages: bool = False
    ) -> None:
        """Nothing is under way.

        Args:
            send: Writes one control message to the host.
            takes_messages: The engine waits for others: all jobs are under way at once, and it counts their tokens.
        """
        # A MessageEngine's takes texts.
        self._embed: Callable[[Sequence[Any]], Iterator[Vectors]] = engine.embed
        self._info = info
        self._send = send
        self._takes_messages = takes_messages
        self._open: dict[int, _Job] = {}
        """All that are not answered, those in preparation too."""
        self._turns: deque[_Job] = deque()
        """Those to be evaluated; the first one has the next piece."""

    @property
    def is_open(self) -> bool:
        """Somebody waits for vectors."""
        return bool(self._open)

    @property
    def has_work(self) -> bool:
        """There is a piece to evaluate."""
        return bool(self._turns)

    def arrived(self, call_id: int) -> None:
        """It is being prepared."""
        self._open[call_id] = _Job(call_id)

    def prepared(self, call_id: int, inputs: list[Tokens]) -> None:
        """It may be evaluated."""
        job = self._open.get(call_id)
        if job is not None:
            job.inputs = inputs
            self._turns.append(job)

    def failed(self, call_id: int, error: HostlerError) -> None:
        """It cannot be prepared."""
        job = self._open.get(call_id)
        if job is not None:
            self._refuse(job, error)

    def drop(self, call_id: int) -> None:
        """Nobody wants it any more; unknown ids are ignored."""
        job = self._open.get(call_id)
        if job is not None:
            self._end(job)

    def drop_all(self) -> None:
        """The loop ends; the host tells whoever waits."""
        for job in list(self._open.values()):
            self._end(job)

    def advance(self) -> bool:
        """Evaluate one piece of the job whose turn it is; of an engine that waits, look at every job.

        Returns:
            False: none of them has gone on, and the engine will wake the loop when one can.

        Raises:
            MemoryError: The worker is not to be trusted on.
        """
        if not self._takes_messages:
            self._take_turn(self._turns[0])
            return True
        turns = [self._take_turn(job) for job in list(self._turns)]  # all of them, whatever the first one says
        return any(turns)

    def _take_turn(self, job: _Job) -> bool:
        try:
            return self._advance(job)
        except HostlerError as error:
            self._refuse(job, error)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug in one job costs that job
            traceback.print_exc()
            self._refuse(job, EngineFailed(f"The engine failed to embed: {type(error).__name__}: {error}"))
        return True

    def _advance(self, job: _Job) -> bool:
        """One piece; False: it brought no vector."""
        if job.pieces is None:
            job.pieces = iter(self._embed(job.inputs))
        vectors = next(job.pieces, None)
        if vectors is None:
            raise EngineFailed(f"The engine ended after {job.n_given} vectors for {len(job.inputs)} inputs")
        if not len(vectors):
            return False
        if job.n_given + len(vectors) > len(job.inputs):
            raise EngineFailed(f"The engine gave more than {len(job.inputs)} vectors for {len(job.inputs)} inputs")
        packed = tuple(
            packed_vector(vector, self._info.n_embd, job.n_given + index) for index, vector in enumerate(vectors)
        )
        job.n_given += len(packed)
        self._send(Embedded(job.call_id, packed))
        self._turns.rotate(-1)
        if job.n_given == len(job.inputs):
            n_tokens = _returned(job.pieces) if self._takes_messages else sum(len(tokens) for tokens in job.inputs)
            self._end(job)
            self._send(Reply(job.call_id, EmbedReply(n_tokens)))
        return True

    def _refuse(self, job: _Job, error: HostlerError) -> None:
        self._end(job)
        self._send(Reply(job.call_id, None, error.code, error.message, error.param))

    def _end(self, job: _Job) -> None:
        del self._open[job.call_id]
        if job in self._turns:
            self._turns.remove(job)
        close = getattr(job.pieces, "close", None)  # a generator's; other iterators are just let go
        if close is not None:
            try:
                close()
            except Exception:  # noqa: BLE001 - it is over; the log has what the engine did wrong
                traceback.print_exc()


def _returned(pieces: Iterator[Vectors]) -> int:
    """The number of tokens that a generator returns after its last vector; 0: it does not know."""
    try:
        next(pieces)
    except StopIteration as end:
        return int(end.value or 0)
    raise EngineFailed("The engine went on after the last vector")


def packed_vector(vector: Sequence[float], n_embd: int, index: int) -> bytes:
    """A vector of length 1 in the direction of this one, as little-endian float32; one without a direction stays zero.

    Raises:
        EngineFailed: It has not n_embd numbers, or one that is not finite.
    """
    if len(vector) != n_embd:
        raise EngineFailed(f"The engine gave a vector of {len(vector)} numbers for input[{index}]; its model has {n_embd}")
    length = math.hypot(*vector)
    if not math.isfinite(length):
        raise EngineFailed(f"The model computes no valid vector for input[{index}]")
    scale = 1.0 / length if length > 0 else 0.0
    return struct.pack(f"<{n_embd}f", *(value * scale for value in vector))
