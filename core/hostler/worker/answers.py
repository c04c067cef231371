"""The host's end of a worker's token rings: who holds which ring, and the threads that read answers from them.

Floor 3, in the host. A RingTable belongs to one worker process and ends with it; a ReaderGroup belongs to one request.
Which thread does what: any thread submits and cancels; one thread reads a group (`wait`, `drain`); the worker's control
thread says `sequence_closed`; its end thread says `worker_ended`.

    a sequence's ring is free again when   the worker has closed it   (SequenceClosed: no frame will follow)
                                    and   its reader is done with it  (has drained it to the end, or has left)

It must not know supervision, scheduling or HTTP.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import msgspec

from hostler import errors
from hostler.domain import (
    FinishEvent,
    FinishReason,
    GenerationEvent,
    Message,
    PrefillEvent,
    Priority,
    SamplingParams,
    TextEvent,
    Timings,
    TokenLogprob,
    Usage,
)
from hostler.errors import EngineUnavailable, HostlerError, QueueFull, RequestCancelled
from hostler.ring import RingCorrupt, RingReader, RingSegment
from hostler.worker.exits import ExitReport
from hostler.worker.wire import (
    ENDED,
    FAILED,
    PREFILL,
    PREFILL_STRUCT,
    TEXT,
    TEXT_HEADER,
    TEXT_LOGPROBS,
    Cancel,
    EndedFrame,
    FailedFrame,
    HostMessage,
    Submit,
    TextFrame,
)

_log = logging.getLogger(__name__)
_MAX_FRAMES = 256
REST_S = 0.05
"""How often a group that gathers looks after its rings while nothing has ended, so that none of them fills up."""
_HEADER_BYTES = TEXT_HEADER.size
_ONE_TOKEN = TEXT_HEADER.pack(1)
_ended_decoder = msgspec.msgpack.Decoder(EndedFrame)
_failed_decoder = msgspec.msgpack.Decoder(FailedFrame)
_text_decoder = msgspec.msgpack.Decoder(TextFrame)


class Sender(Protocol):
    """The way to the worker."""

    def send(self, message: HostMessage) -> bool:
        """Write one message; False: the worker is gone."""


class _Gone:
    """The way to a worker that has ended."""

    def send(self, message: HostMessage) -> bool:  # noqa: ARG002
        return False


def error_of(
    code: str, message: str, param: str | None = None, retry_after_s: float | None = None, last_output: str = ""
) -> HostlerError:
    """The error that a worker named by its code; an unknown code is an InternalError."""
    kind = _CLASS_OF.get(code, errors.InternalError)
    error: HostlerError
    if kind is errors.ModelLoadFailed:
        error = errors.ModelLoadFailed(message, last_output=last_output)
    elif kind is errors.InvalidModelFile:
        error = errors.InvalidModelFile(message)
    elif issubclass(kind, errors.InsufficientMemory | errors.InsufficientStorage):
        # Both numbers stand in the text; as fields they do not cross the wire.
        error = kind(message, needed_bytes=0, available_bytes=0)
    else:
        error = kind(message, param=param, retry_after_s=retry_after_s)
    error.param, error.retry_after_s = param, retry_after_s
    return error


def _classes() -> dict[str, type[HostlerError]]:
    found = {}
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, HostlerError) and "code" in vars(value):
            found[value.code] = value
    found[HostlerError.code] = errors.InternalError
    return found


_CLASS_OF = _classes()


class WorkerSequence:
    """One submitted sequence, in the host. RingTable's lock protects the flags; only its group's thread reads frames."""

    def __init__(
        self,
        table: RingTable,
        sequence_id: int,
        index: int,
        ring: int,
        wake_index: int,
        on_closed: Callable[[], None] | None,
    ) -> None:
        self.id = sequence_id
        self.index = index
        self.ring = ring
        self.wake_index = wake_index
        """Its group's."""
        self.reader: RingReader | None = table.segment.reader(ring)
        self.is_cancelled = False
        """The host has asked for its end."""
        self.is_closed = False
        """The worker will write no more."""
        self.is_finished = False
        """Its last event has been given, or its reader has left."""
        self.n_prompt = 0
        self.n_output = 0
        self._table = table
        self.on_closed = on_closed

    def cancel(self) -> None:
        """Drop it in whatever phase it is; any thread. The group then gives FinishEvent(CANCELLED)."""
        if not self.is_closed:
            self.is_cancelled = True
            self._table.sender.send(Cancel(self.id))


class RingTable:
    """Rings, wake words and open sequences of one worker process. Any thread."""

    def __init__(self, segment: RingSegment, sender: Sender, model_id: str) -> None:
        self.segment = segment
        self.sender: Sender = sender
        self.model_id = model_id
        self.report: ExitReport | None = None
        """Set before any reader is woken when the worker has ended."""
        self._lock = threading.Lock()  # protects everything below, and the flags of the sequences
        self._free_rings = list(range(segment.n_rings - 1, -1, -1))
        self._unheard_wake = segment.n_wakes - 1
        """Nobody waits on it."""
        self._free_wakes = list(range(self._unheard_wake - 1, -1, -1))
        self._open: dict[int, WorkerSequence] = {}
        """Sequences that hold a ring."""
        self._n_active = 0
        """Those of them that the worker has not closed."""
        self._ids = itertools.count(1)

    @property
    def free_rings(self) -> int:
        """How many sequences may be submitted now."""
        return 0 if self.report is not None else len(self._free_rings)

    @property
    def active_count(self) -> int:
        """Sequences that the worker has not closed."""
        return self._n_active

    def reader_group(self, *, gathers: bool = False) -> ReaderGroup:
        """A new group.

        Args:
            gathers: See ReaderGroup.

        Raises:
            EngineUnavailable: The worker has ended.
            QueueFull: Every wake word is taken.
        """
        with self._lock:
            if self.report is not None:
                raise self.unavailable()
            if not self._free_wakes:
                raise QueueFull(
                    f"{self.model_id} already has {self._unheard_wake} readers; try again when one is done",
                    retry_after_s=1.0,
                )
            return ReaderGroup(self, self._free_wakes.pop(), gathers=gathers)

    def submit(
        self,
        group: ReaderGroup,
        index: int,
        params: SamplingParams,
        *,
        messages: tuple[Message, ...] | None,
        prompt: str | tuple[int, ...] | None,
        cache_prompt: bool,
        priority: Priority,
        template_kwargs: dict[str, Any],
        on_closed: Callable[[], None] | None,
    ) -> WorkerSequence:
        """See Supervisor.submit. When it raises, `on_closed` is never called."""
        with self._lock:
            if self.report is not None:
                raise self.unavailable()
            if not self._free_rings:
                raise QueueFull(f"All {self.segment.n_rings} rings of {self.model_id} are taken", retry_after_s=1.0)
            ring = self._free_rings.pop()
            sequence = WorkerSequence(self, next(self._ids), index, ring, group.wake_index, on_closed)
            self._open[sequence.id] = sequence
            self._n_active += 1
        assert sequence.reader is not None
        wake_index = self._unheard_wake if group.gathers else group.wake_index
        sequence.reader.open(sequence.id & 0xFFFF_FFFF, wake_index)
        submit = Submit(
            sequence.id, sequence.ring, params, messages, prompt, cache_prompt, priority, template_kwargs
        )
        if not self.sender.send(submit):
            with self._lock:
                # Not there any more: worker_ended was faster, has told on_closed, and drain() will tell the reader.
                if self._open.pop(sequence.id, None) is not None:
                    self._n_active -= 1
                    raise self.unavailable()
        group.add(sequence)
        return sequence

    def sequence_closed(self, sequence_id: int) -> None:
        """The worker will write no more of it."""
        with self._lock:
            sequence = self._open.get(sequence_id)
            if sequence is None or sequence.is_closed:
                return
            sequence.is_closed = True
            self._n_active -= 1
            callback = self._release_if_done(sequence)
        self.segment.wake(sequence.wake_index)
        _tell(callback)

    def reader_done(self, sequence: WorkerSequence) -> None:
        """Its reader needs the ring no more."""
        with self._lock:
            sequence.is_finished = True
            callback = self._release_if_done(sequence)
        _tell(callback)

    def group_done(self, wake_index: int) -> None:
        """A group has left; its wake word may go to another."""
        with self._lock:
            self._free_wakes.append(wake_index)

    def worker_ended(self, report: ExitReport) -> None:
        """The process is gone: what is in the rings may still be read, nothing will follow."""
        with self._lock:
            self.report = report
            sequences = list(self._open.values())
            self._open.clear()
            self._n_active = 0
            for sequence in sequences:
                sequence.is_closed = True
            # Also ends the cycle through the sender, so that the shared memory goes with its last reader, not with
            # the next run of the garbage collector.
            self.sender = _Gone()
        self.segment.wake_all()
        for sequence in sequences:
            _tell(sequence.on_closed)

    def unavailable(self) -> EngineUnavailable:
        """The error for whoever needs this worker after its end."""
        reason = "is gone" if self.report is None else self.report.text()
        return EngineUnavailable(f"The engine of {self.model_id} {reason}", retry_after_s=1.0)

    def _release_if_done(self, sequence: WorkerSequence) -> Callable[[], None] | None:
        if not (sequence.is_closed and sequence.is_finished):
            return None
        if self._open.pop(sequence.id, None) is None:
            return None
        sequence.reader = None
        self._free_rings.append(sequence.ring)
        return sequence.on_closed


class ReaderGroup:
    """The answers of one request over one wake word. One thread reads; any thread submits and cancels.

    One that `gathers` is for whoever wants whole answers: it is not woken for each token, only when an answer has ended, and
    looks every REST_S. PERF: on few cores a reader that wakes for each token takes a core from a thread that evaluates.
    """

    def __init__(self, table: RingTable, wake_index: int, *, gathers: bool = False) -> None:
        self.wake_index = wake_index
        self.gathers = gathers
        self._table = table
        self._lock = threading.Lock()  # protects _sequences against concurrent adds; replaced, never changed in place
        self._sequences: tuple[WorkerSequence, ...] = ()
        self._rings: list[int] = []
        self._failure: HostlerError | None = None
        self._is_closed = False

    def __enter__(self) -> ReaderGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        index: int,
        params: SamplingParams,
        *,
        messages: tuple[Message, ...] | None = None,
        prompt: str | tuple[int, ...] | None = None,
        cache_prompt: bool = True,
        priority: Priority = Priority.NORMAL,
        template_kwargs: dict[str, Any] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> WorkerSequence:
        """See Supervisor.submit."""
        return self._table.submit(
            self,
            index,
            params,
            messages=messages,
            prompt=prompt,
            cache_prompt=cache_prompt,
            priority=priority,
            template_kwargs=template_kwargs or {},
            on_closed=on_closed,
        )

    def add(self, sequence: WorkerSequence) -> None:
        """Read this one, too; wakes the reader. A group that was closed meanwhile cancels it."""
        with self._lock:
            is_late = self._is_closed
            if not is_late:
                self._sequences = (*self._sequences, sequence)
                self._rings = [one.ring for one in self._sequences if not one.is_finished]
        if is_late:
            sequence.cancel()
            self._table.reader_done(sequence)
        else:
            self._table.segment.wake(self.wake_index)

    @property
    def is_done(self) -> bool:
        """Every sequence submitted so far has had its last event."""
        return all(sequence.is_finished for sequence in self._sequences)

    @property
    def beats(self) -> int:
        """How often its worker's loop has gone round; a number that stands still while answers are due means a hang."""
        return self._table.segment.beats

    def wait(self, timeout_s: float) -> bool:
        """Sleep, the GIL released, until `drain` may have something; False after `timeout_s`."""
        if self._failure is not None or (self._table.report is not None and not self.is_done):
            return True
        segment = self._table.segment
        if not self.gathers:
            return segment.wait(self.wake_index, self._rings, timeout_s)
        until = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            if segment.wait(self.wake_index, (), min(left_s, REST_S)):
                return True
            # After a rest that a worker's writes do not end.
            if any(one.reader is not None and one.reader.has_data for one in self._sequences if not one.is_finished):
                return True
            if left_s <= REST_S:
                return False

    def drain(self) -> list[GenerationEvent]:
        """What has come, consecutive text of one answer joined; never blocks.

        Raises:
            HostlerError: A sequence failed (its class by the worker's code), or the worker ended (EngineUnavailable),
                after all events that came before have been given.
        """
        if self._failure is not None:
            raise self._failure
        events: list[GenerationEvent] = []
        for sequence in self._sequences:
            if sequence.is_finished:
                continue
            # In this order: a worker's end sets the report first. And both before the ring: what the worker wrote
            # before it closed the sequence, or ended, is in there by now.
            is_closed = sequence.is_closed
            report = self._table.report
            try:
                self._read(sequence, events)
            except (RingCorrupt, msgspec.DecodeError, UnicodeDecodeError) as error:
                self._fail(sequence, EngineUnavailable(f"The engine of {self._table.model_id} wrote nonsense: {error}"))
            if sequence.is_finished or not is_closed:
                continue
            if report is None or sequence.is_cancelled:
                self._end_without_last_frame(sequence, events)
            else:
                self._fail(sequence, self._table.unavailable())
        if self._failure is not None and not events:
            raise self._failure
        return events

    def cancel(self) -> None:
        """Cancel all its sequences; any thread."""
        for sequence in self._sequences:
            sequence.cancel()

    def close(self) -> None:
        """Cancel what still runs and give rings and wake word back. Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for sequence in self._sequences:
            if not sequence.is_finished:
                sequence.cancel()
                self._table.reader_done(sequence)
        self._table.group_done(self.wake_index)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _read(self, sequence: WorkerSequence, events: list[GenerationEvent]) -> None:
        # PERF: 0.4 us a text frame; under load several of one answer become one event.
        reader = sequence.reader
        assert reader is not None
        pieces: list[bytes] = []
        n_tokens = 0
        while frames := reader.drain(_MAX_FRAMES):
            for kind, payload in frames:
                if kind == TEXT:
                    n_tokens += 1 if payload[:_HEADER_BYTES] == _ONE_TOKEN else _count(payload)
                    pieces.append(payload[_HEADER_BYTES:])
                    continue
                if pieces:
                    self._emit_text(sequence, pieces, n_tokens, events)
                    pieces, n_tokens = [], 0
                if kind == TEXT_LOGPROBS:
                    frame = _text_decoder.decode(payload)
                    sequence.n_output += frame.n_tokens
                    _add_logprobs(events, sequence.index, frame)
                elif kind == PREFILL:
                    n_done, sequence.n_prompt = PREFILL_STRUCT.unpack(payload)
                    events.append(PrefillEvent(sequence.index, n_done, sequence.n_prompt))
                elif kind == ENDED:
                    ended = _ended_decoder.decode(payload)
                    events.append(
                        FinishEvent(sequence.index, ended.reason, ended.usage, ended.timings, ended.stop_string)
                    )
                    self._finish(sequence)
                    return
                elif kind == FAILED:
                    failed = _failed_decoder.decode(payload)
                    self._fail(
                        sequence, error_of(failed.code, failed.message, failed.param, failed.retry_after_s)
                    )
                    return
            if len(frames) < _MAX_FRAMES:
                break
        if pieces:
            self._emit_text(sequence, pieces, n_tokens, events)

    def _emit_text(
        self, sequence: WorkerSequence, pieces: list[bytes], n_tokens: int, events: list[GenerationEvent]
    ) -> None:
        sequence.n_output += n_tokens
        events.append(TextEvent(sequence.index, b"".join(pieces).decode(), n_tokens))

    def _finish(self, sequence: WorkerSequence) -> None:
        self._table.reader_done(sequence)
        with self._lock:
            self._rings = [one.ring for one in self._sequences if not one.is_finished]

    def _fail(self, sequence: WorkerSequence, error: HostlerError) -> None:
        if self._failure is None:
            self._failure = error
        self._finish(sequence)

    def _end_without_last_frame(self, sequence: WorkerSequence, events: list[GenerationEvent]) -> None:
        # Its ring was too full for a last frame: cancelled, or too slow to be waited for.
        if sequence.is_cancelled:
            usage = Usage(sequence.n_prompt, sequence.n_output)
            timings = Timings(0, 0.0, 0, sequence.n_output, 0.0)
            events.append(FinishEvent(sequence.index, FinishReason.CANCELLED, usage, timings))
            self._finish(sequence)
        else:
            self._fail(sequence, RequestCancelled("The answer was read too slowly, so the request was cancelled"))


def _tell(callback: Callable[[], None] | None) -> None:
    if callback is None:
        return
    try:
        callback()
    except Exception:  # noqa: BLE001 - logged with its traceback
        # It runs in the worker's control thread, which every other sequence needs.
        _log.exception("an on_closed callback failed")


def _count(payload: bytes) -> int:
    (n_tokens,) = TEXT_HEADER.unpack_from(payload)
    return int(n_tokens)


def _add_logprobs(events: list[GenerationEvent], index: int, frame: TextFrame) -> None:
    last = events[-1] if events else None
    if isinstance(last, TextEvent) and last.index == index and last.logprobs:
        logprobs: tuple[TokenLogprob, ...] = (*last.logprobs, *frame.logprobs)
        events[-1] = TextEvent(index, last.text + frame.text, last.n_tokens + frame.n_tokens, logprobs)
    else:
        events.append(TextEvent(index, frame.text, frame.n_tokens, frame.logprobs))
