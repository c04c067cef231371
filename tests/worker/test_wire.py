"""Control messages cross the pipe whole, and what is no message is refused."""

from __future__ import annotations

import io
from typing import get_args

import pytest

from hostler.domain import MemoryUse, Message, Priority, SamplingParams
from hostler.engine import EngineInfo, EngineSettings, ModelFiles
from hostler.worker import wire
from hostler.worker.wire import (
    Call,
    Cancel,
    CancelCall,
    Embed,
    Embedded,
    Hello,
    HostMessage,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    PromptSettings,
    Reply,
    SequenceClosed,
    Stop,
    Stopped,
    Submit,
    WorkerMessage,
    encode,
    read_host_message,
    read_worker_message,
)

HOST_MESSAGES: list[HostMessage] = [
    Load(1, "m", "a.b:C", ModelFiles("/m", "gguf"), EngineSettings(8, extra={"x": [1, None]}), PromptSettings(), "fd:3"),
    Submit(7, 3, SamplingParams(logit_bias={5: -100.0}, stop=("é",)), messages=(Message("user", "😀"),)),
    Submit(2**63, 0, SamplingParams(), prompt=(1, 2, 3), priority=Priority.BATCH, template_kwargs={"a": {"b": True}}),
    Cancel(7),
    Call(1, "tokenize", "x"),
    Embed(2, ("x", (1, 2)), dimensions=8),
    CancelCall(2),
    Stop(),
]
WORKER_MESSAGES: list[WorkerMessage] = [
    Hello(1, 42),
    Progress(0.5, "loading"),
    Loaded(EngineInfo(8, 1, 10, special_texts=("<s>",)), MemoryUse(1, 2, 3)),
    LoadFailed("invalid_value", "no", "settings.prompt_template"),
    SequenceClosed(7),
    Embedded(2, (b"\0\0\x80?", b"")),
    Reply(1, [0.5]),
    Reply(2, None, "invalid_value", "no", "input[0]"),
    Stopped(),
]


@pytest.mark.parametrize("message", HOST_MESSAGES, ids=lambda message: type(message).__name__)
def test_a_host_message_arrives_as_it_was_sent(message: HostMessage) -> None:
    assert read_host_message(io.BytesIO(encode(message))) == message


@pytest.mark.parametrize("message", WORKER_MESSAGES, ids=lambda message: type(message).__name__)
def test_a_worker_message_arrives_as_it_was_sent(message: WorkerMessage) -> None:
    assert read_worker_message(io.BytesIO(encode(message))) == message


def test_every_kind_of_message_is_among_those_tested() -> None:
    assert {type(message) for message in HOST_MESSAGES} == set(get_args(HostMessage))
    assert {type(message) for message in WORKER_MESSAGES} == set(get_args(WorkerMessage))


def test_messages_follow_one_another_and_the_end_is_none() -> None:
    stream = io.BytesIO(b"".join(encode(message) for message in HOST_MESSAGES))

    assert [read_host_message(stream) for _ in HOST_MESSAGES] == HOST_MESSAGES
    assert read_host_message(stream) is None


@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_a_message_that_breaks_off_is_the_end(cut: int) -> None:
    assert read_host_message(io.BytesIO(encode(Cancel(7))[:cut])) is None


def test_a_message_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match=str(wire.MAX_MESSAGE_BYTES)):
        read_worker_message(io.BytesIO(b"\xff\xff\xff\xff"))


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(ValueError, match=r"(?i)invalid|malformed|expected"):
        read_worker_message(io.BytesIO(b"\x03\x00\x00\x00abc"))
