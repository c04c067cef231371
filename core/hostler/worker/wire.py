"""What runtime and worker say to each other: control messages on a pipe, frames on the token ring.

Floor 3, used on both sides. Control messages are rare (a submit, a cancel, a state): msgpack-encoded tagged structs, each
behind a little-endian u32 length, host -> worker on the worker's standard input, worker -> host on the descriptor that was
its standard output. (The worker points descriptor 1 at its standard error first, so that a library's stray print cannot
corrupt the stream.) End of file on standard input means that the host is gone: the worker exits at once.

Frames are the hot path: one ring per admitted sequence, written by the worker's loop thread only, read by the one host
thread that streams that request. A frame carries its sequence's generation (the low 32 bits of its sequence id).

    kind            payload
    PREFILL         u32 n_done, u32 n_total (n_done 0: the sequence has a slot now)
    TEXT            u32 n_tokens, then UTF-8 text (may be empty while a character or a stop string is held back)
    TEXT_LOGPROBS   msgpack TextFrame
    ENDED           msgpack EndedFrame; the last frame of a generation
    FAILED          msgpack FailedFrame; the last frame of a generation

Who frees a ring: the host, when the control message `SequenceClosed` says that the worker will write no more to it. That
message follows every accepted Submit exactly once, also when the reader left or its ring was too full for the last frame.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import msgspec

from hostler.domain import FinishReason, MemoryUse, Message, Priority, SamplingParams, Timings, TokenLogprob, Usage
from hostler.engine import EngineInfo, EngineSettings, ModelFiles

WIRE_VERSION = 1

# -- frames ---------------------------------------------------------------------------------------------------------

PREFILL = 1
TEXT = 2
TEXT_LOGPROBS = 3
ENDED = 4
FAILED = 5

PREFILL_STRUCT = struct.Struct("<II")
TEXT_HEADER = struct.Struct("<I")


class TextFrame(msgspec.Struct, frozen=True, array_like=True):
    """Text with log probabilities."""

    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...]


class EndedFrame(msgspec.Struct, frozen=True):
    """How a sequence ended."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_string: str | None = None


class FailedFrame(msgspec.Struct, frozen=True):
    """Why a sequence could not go on: a HostlerError's fields."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


# -- host to worker -------------------------------------------------------------------------------------------------


class PromptSettings(msgspec.Struct, frozen=True):
    """How messages become text when the model's settings say so (spec/API.md 5.0)."""

    prompt_template: str | None = None
    """Jan's form with `{system_message}` and `{prompt}`; wins over the file's template."""
    pre_prompt: str | None = None
    system_prompt: str | None = None
    user_prompt: str | None = None
    ai_prompt: str | None = None
    render_timeout_s: float = 5.0
    max_prompt_bytes: int = 32 * 1024 * 1024


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first message: what to run. Answered by Progress..., then Loaded or LoadFailed."""

    wire_version: int
    model_id: str
    engine: str
    files: ModelFiles
    settings: EngineSettings
    prompt: PromptSettings
    ring_handle: str
    """What `RingSegment.attach` takes."""
    stall_timeout_s: float = 60.0
    """A sequence whose reader takes nothing for so long is cancelled."""
    takes_messages: bool = False
    """EngineSpec's."""


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Run one sequence."""

    sequence_id: int
    """Rising within the worker's life; its low 32 bits are the ring generation."""
    ring: int
    params: SamplingParams
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    cache_prompt: bool = True
    priority: Priority = Priority.NORMAL
    template_kwargs: dict[str, Any] = {}


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Drop a sequence in any phase before the next step; unknown ids are ignored."""

    sequence_id: int


class Call(msgspec.Struct, frozen=True, tag="call"):
    """A rare question with one answer (Reply): `memory`, `tokenize`, `count`."""

    call_id: int
    name: str
    argument: Any = None


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Embed inputs; answered by Embedded as they are done, then by one Reply with EmbedReply's fields."""

    call_id: int
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    """Refuse unless the model's vectors are so long."""


class CancelCall(msgspec.Struct, frozen=True, tag="cancel_call"):
    """Drop an Embed before its next piece, unanswered; unknown ids are ignored."""

    call_id: int


class EmbedReply(msgspec.Struct, frozen=True):
    """The end of an Embed."""

    n_tokens: int
    """Of all its inputs."""


class Counting(msgspec.Struct, frozen=True):
    """The argument of the call `count`: messages that may become a prompt."""

    messages: tuple[Message, ...]
    template_kwargs: dict[str, Any] = {}


class PromptSize(msgspec.Struct, frozen=True):
    """The answer of the call `count`."""

    n_tokens: int
    """Of the whole prompt, as a Submit of the same messages would make it."""
    n_ctx: int
    """What a slot of this worker holds, prompt and answer together."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Cancel what runs, close the engine, answer Stopped, exit 0."""


HostMessage = Load | Submit | Cancel | Call | Embed | CancelCall | Stop

# -- worker to host -------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Sent at once after start, before any import of an engine."""

    wire_version: int
    pid: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The load goes on; renews the start deadline."""

    fraction: float
    stage: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Ready for Submit."""

    info: EngineInfo
    memory: MemoryUse


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The engine refused; the worker exits after this."""

    code: str
    message: str
    param: str | None = None


class SequenceClosed(msgspec.Struct, frozen=True, tag="closed"):
    """No further frame of this sequence will be written; its ring may be reused."""

    sequence_id: int


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The next vectors of an Embed, in the order of its inputs. In messages this small they do not keep others waiting."""

    call_id: int
    vectors: tuple[bytes, ...]
    """Little-endian float32, each of length 1."""


class Reply(msgspec.Struct, frozen=True, tag="reply"):
    """The answer to a Call: `value`, or an error's code and message."""

    call_id: int
    value: Any = None
    code: str | None = None
    message: str = ""
    param: str | None = None


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """The engine is closed; the process exits now."""


WorkerMessage = Hello | Progress | Loaded | LoadFailed | SequenceClosed | Embedded | Reply | Stopped

# -- framing --------------------------------------------------------------------------------------------------------

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
_host_decoder = msgspec.msgpack.Decoder(HostMessage)
_worker_decoder = msgspec.msgpack.Decoder(WorkerMessage)


def encode(message: HostMessage | WorkerMessage) -> bytes:
    """One message with its length in front, to be written in one piece."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def encode_payload(payload: TextFrame | EndedFrame | FailedFrame) -> bytes:
    """The msgpack payload of a frame."""
    return _encoder.encode(payload)


def read_host_message(stream: BinaryIO) -> HostMessage | None:
    """Read one message in the worker; None at the end of the stream."""
    body = _read_body(stream)
    return None if body is None else _host_decoder.decode(body)


def read_worker_message(stream: BinaryIO) -> WorkerMessage | None:
    """Read one message in the host; None at the end of the stream.

    Raises:
        msgspec.DecodeError, ValueError: The worker wrote nonsense; treat it as crashed.
    """
    body = _read_body(stream)
    return None if body is None else _worker_decoder.decode(body)


def _read_body(stream: BinaryIO) -> bytes | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a control message of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    body = stream.read(length)
    return body if len(body) == length else None
