"""The worker's loop: receive, step, embed, emit. One engine, one model, one thread.

Floor 3, in the worker, on the engine thread. It decides who gets a slot and when a sequence is closed; it alone calls the
engine (tokenizing excepted), writes to the rings and says SequenceClosed. Other threads reach it through the Inbox only.
It must not know pipes, templates or which engine runs.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from hostler.domain import MemoryUse
from hostler.engine import Engine, EngineInfo
from hostler.errors import EngineFailed, HostlerError
from hostler.ring import RingSegment
from hostler.turns import Line
from hostler.worker import exits
from hostler.worker.embedding import EmbedJobs, Tokens
from hostler.worker.preparation import Prepared
from hostler.worker.sequence import RingSequence
from hostler.worker.wire import Reply, SequenceClosed, Submit, WorkerMessage

BEAT_S = 1.0
"""Longest wait while any sequence is open: the host takes a loop without beats for a hung one."""
IDLE_STEP_S = 0.001
"""Wait after a step that had nothing to do although sequences are active (an engine that itself waits)."""
_PAUSE_POLL_S = (0.002, 0.05)
"""How often a full ring is tried when nothing else runs, at first and at most: a reader cannot wake the worker."""


class Arrived(msgspec.Struct, frozen=True):
    """A request was submitted; its preparation is under way."""

    submit: Submit


class PreparationFailed(msgspec.Struct, frozen=True):
    """A request will not run."""

    sequence_id: int
    error: HostlerError


class Cancelled(msgspec.Struct, frozen=True):
    """A request is not wanted any more."""

    sequence_id: int


class EmbedArrived(msgspec.Struct, frozen=True):
    """Inputs are to be embedded; their preparation is under way."""

    call_id: int


class EmbedPrepared(msgspec.Struct, frozen=True):
    """Inputs are ready to be embedded."""

    call_id: int
    inputs: list[Tokens]


class EmbedFailed(msgspec.Struct, frozen=True):
    """Inputs will not be embedded."""

    call_id: int
    error: HostlerError


class EmbedDropped(msgspec.Struct, frozen=True):
    """Nobody wants the vectors any more."""

    call_id: int


class Task(msgspec.Struct, frozen=True):
    """A question to the engine; `ask` runs on the engine thread."""

    call_id: int
    ask: Callable[[Engine], Any]


class StopAsked(msgspec.Struct, frozen=True):
    """The worker shall end."""


Item = (
    Arrived | Prepared | PreparationFailed | Cancelled | EmbedArrived | EmbedPrepared | EmbedFailed | EmbedDropped | Task
    | StopAsked
)  # fmt: skip


class Inbox:
    """Everything that other threads have for the loop, in order."""

    def __init__(self) -> None:
        #: PERF: its truth value is read every step without a lock; append and popleft are atomic.
        self.items: deque[Item] = deque()
        self._has_come = threading.Event()

    def put(self, item: Item) -> None:
        """Hand over one item; any thread."""
        self.items.append(item)
        self._has_come.set()

    def wake(self) -> None:
        """Have the loop look after its engine; any thread."""
        self._has_come.set()

    def wait(self, timeout_s: float | None) -> None:
        """Return when there may be items or the time is over; loop thread only."""
        self._has_come.wait(timeout_s)
        # Cleared before the items are read: what comes after this sets it again.
        self._has_come.clear()


class Loop:
    """See the module."""

    def __init__(
        self,
        engine: Engine,
        info: EngineInfo,
        segment: RingSegment,
        inbox: Inbox,
        send: Callable[[WorkerMessage], None],
        *,
        stall_timeout_s: float,
        takes_messages: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing runs yet.

        Args:
            send: Writes one control message to the host.
            stall_timeout_s: A sequence whose ring takes nothing for so long is dropped.
            takes_messages: The engine is a MessageEngine, which wakes the loop through `Inbox.wake`.
        """
        self._engine = engine
        self._info = info
        self._segment = segment
        self._inbox = inbox
        self._send = send
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._open: dict[int, RingSequence] = {}
        """Every sequence whose SequenceClosed has not been sent."""
        self._waiting: Line[RingSequence] = Line()
        """Prepared sequences without a slot; ones that are over are skipped when their turn comes."""
        self._active: dict[int, RingSequence] = {}
        """Sequences in the engine."""
        self._full: dict[int, RingSequence] = {}
        """Sequences with frames that wait for room; some of them still in the engine, some over."""
        self._over: list[RingSequence] = []
        """Sequences that ended since the last look."""
        self._embeds = EmbedJobs(engine, info, send, takes_messages=takes_messages)
        self._idle_step_s = BEAT_S if takes_messages else IDLE_STEP_S
        self._is_stopping = False
        self._poll_s = _PAUSE_POLL_S[0]

    def run(self) -> int:
        """Run until told to stop.

        Returns:
            The exit code: ORDERLY, or ENGINE_BUG or OUT_OF_MEMORY after the engine failed as a whole, with its traceback
            printed. Open sequences are not told then: the host does that when the process is gone, so that whoever asks
            again at once meets the next worker and not the end of this one.
        """
        try:
            while not self._is_stopping:
                self._turn()
        except MemoryError:
            traceback.print_exc()
            return exits.OUT_OF_MEMORY
        except Exception:  # noqa: BLE001 - whatever an engine raises here ends this worker
            traceback.print_exc()
            return exits.ENGINE_BUG
        for sequence in list(self._open.values()):
            self._cancel(sequence.id)
        self._embeds.drop_all()
        return exits.ORDERLY

    def _turn(self) -> None:
        while self._inbox.items:
            self._receive(self._inbox.items.popleft())
        if self._waiting:
            self._admit()
        if self._full:
            self._flush()
        if self._over:
            self._settle()
        self._segment.beat()
        if self._is_stopping:
            return
        if self._active and (not self._full or any(not one.is_paused for one in self._active.values())):
            has_worked = self._engine.step()
            if self._over:
                self._settle()
            if self._embeds.has_work:
                has_worked = self._embeds.advance() or has_worked
            if not has_worked and (self._active or self._embeds.has_work):
                self._rest(self._idle_step_s)
        elif self._embeds.has_work:
            if not self._embeds.advance():
                self._rest(self._idle_step_s)
        elif self._full:
            self._rest(BEAT_S)
        else:
            self._inbox.wait(BEAT_S if self._open or self._embeds.is_open else None)

    def _rest(self, timeout_s: float) -> None:
        """Wait for items or the engine's wake; shortly while rings are full, whose readers cannot wake us."""
        if self._full:
            timeout_s = min(timeout_s, self._poll_s)
            self._poll_s = min(self._poll_s * 2, _PAUSE_POLL_S[1])
        self._inbox.wait(timeout_s)

    # -- receive ----------------------------------------------------------------------------------------------------

    def _receive(self, item: Item) -> None:
        match item:
            case Arrived(submit):
                self._open[submit.sequence_id] = RingSequence(
                    submit.sequence_id,
                    self._segment.writer(submit.ring),
                    self._segment.ring_bytes,
                    submit.priority,
                    on_over=self._over.append,
                    on_pause=self._note_full,
                    clock=self._clock,
                )
            case Prepared():
                sequence = self._open.get(item.sequence_id)
                if sequence is not None and not sequence.is_over:
                    sequence.prepared(
                        item.tokens,
                        item.params,
                        item.stops,
                        item.cache_prompt,
                        self._info.n_ctx,
                        item.raw,
                        item.constraint,
                        item.n_pinned,
                    )
                    self._waiting.put(sequence, sequence.priority, sequence.id)
            case PreparationFailed(sequence_id, error):
                sequence = self._open.get(sequence_id)
                if sequence is not None:
                    sequence.fail(error)
            case Cancelled(sequence_id):
                self._cancel(sequence_id)
            case EmbedArrived(call_id):
                self._embeds.arrived(call_id)
            case EmbedPrepared(call_id, inputs):
                self._embeds.prepared(call_id, inputs)
            case EmbedFailed(call_id, failure):
                self._embeds.failed(call_id, failure)
            case EmbedDropped(call_id):
                self._embeds.drop(call_id)
            case Task(call_id, ask):
                self._answer(call_id, ask)
            case StopAsked():
                self._is_stopping = True

    def _cancel(self, sequence_id: int) -> None:
        sequence = self._open.get(sequence_id)
        if sequence is None:
            return
        if self._active.pop(sequence_id, None) is not None and not sequence.is_over:
            self._engine.cancel(sequence_id)
        sequence.cancel()
        self._settle()
        if sequence_id in self._open:  # it was over already and only waited for room
            self._close(sequence)

    def _answer(self, call_id: int, ask: Callable[[Engine], Any]) -> None:
        try:
            value = ask(self._engine)
            reply = Reply(call_id, value if not isinstance(value, MemoryUse) else msgspec.to_builtins(value))
        except HostlerError as error:
            reply = Reply(call_id, None, error.code, error.message, error.param)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug in one answer costs that answer
            traceback.print_exc()
            reply = Reply(call_id, None, "engine_failed", f"The engine failed: {type(error).__name__}: {error}")
        self._send(reply)

    # -- slots ------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._info.n_slots:
            sequence = self._waiting.take()
            if sequence.is_over:
                continue
            sequence.admitted()
            self._active[sequence.id] = sequence
            try:
                self._engine.add(sequence)
            except HostlerError as error:
                self._refused(sequence, error)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - a bug in taking one sequence costs that sequence
                traceback.print_exc()
                message = f"The engine failed to take this request: {type(error).__name__}: {error}"
                self._refused(sequence, EngineFailed(message))

    def _refused(self, sequence: RingSequence, error: HostlerError) -> None:
        del self._active[sequence.id]
        sequence.fail(error)

    # -- emit -------------------------------------------------------------------------------------------------------

    def _note_full(self, sequence: RingSequence) -> None:
        self._full[sequence.id] = sequence
        self._poll_s = _PAUSE_POLL_S[0]

    def _flush(self) -> None:
        now = self._clock()
        for sequence in list(self._full.values()):
            if sequence.flush(now):
                self._poll_s = _PAUSE_POLL_S[0]
            if sequence.is_flushed:
                del self._full[sequence.id]
                if sequence.is_over and sequence not in self._over:
                    self._close(sequence)
            elif now - sequence.stalled_since > self._stall_timeout_s:
                if self._active.pop(sequence.id, None) is not None and not sequence.is_over:
                    self._engine.cancel(sequence.id)
                sequence.abandon()
                if sequence not in self._over:
                    self._close(sequence)

    def _settle(self) -> None:
        for sequence in self._over:
            self._active.pop(sequence.id, None)
            if sequence.is_flushed:
                self._close(sequence)
        self._over.clear()

    def _close(self, sequence: RingSequence) -> None:
        if self._open.pop(sequence.id, None) is not None:
            self._full.pop(sequence.id, None)
            self._send(SequenceClosed(sequence.id))
