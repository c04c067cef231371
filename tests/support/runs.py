"""What the tests of runs say and ask: threads, requests, and how a run came out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hostler.liverun import LiveRun, RunEvent
from hostler.records.ids import new_id
from hostler.records.objects import Message as StoredMessage
from hostler.records.objects import (
    NewMessage,
    PageRequest,
    Run,
    RunStep,
    Text,
    TextPart,
)
from hostler.runplan import RunRequest
from hostler.runtime import Runtime
from support import workers

DEADLINE_S = 60.0
GREEDY = {"temperature": 0.0}
FLOOD = "[[echo: flood delay_s=0.005]] x"
EVERYTHING = PageRequest(limit=100, order="asc")
wait_until = functools.partial(workers.wait_until, deadline_s=DEADLINE_S)

MakeRuntime = Callable[..., Runtime]


def said(text: str, role: Any = "user") -> NewMessage:
    return NewMessage(role=role, content=[TextPart(Text(text))], id=new_id("msg"))


def new_thread(runtime: Runtime, *texts: str, **fields: Any) -> str:
    """A thread in which user and assistant have said these texts in turn."""
    roles = ["user", "assistant"] * len(texts)
    messages = [said(text, role) for text, role in zip(texts, roles, strict=False)]
    return runtime.records.threads.create(messages=messages, **fields).id


def request(text: str | None = None, **fields: Any) -> RunRequest:
    messages = () if text is None else (said(text),)
    return RunRequest(messages=messages, parameters=fields.pop("parameters", GREEDY), **fields)


def start(runtime: Runtime, thread_id: str, text: str | None = None, **fields: Any) -> LiveRun:
    """A run that is recorded."""
    is_followed = fields.pop("is_followed", False)
    live = runtime.runs.start(thread_id, request(text, **fields), is_followed=is_followed)
    assert live.wait_recorded(DEADLINE_S) is not None
    return live


def ended(live: LiveRun) -> Run:
    """The run when it is over."""
    assert live.wait_over(DEADLINE_S)
    assert live.run is not None
    return live.run


def answer(runtime: Runtime, thread_id: str, text: str | None = None, **fields: Any) -> Run:
    return ended(start(runtime, thread_id, text, **fields))


def texts(runtime: Runtime, thread_id: str) -> list[str]:
    return [text_of(message) for message in runtime.records.messages.all(thread_id)]


def text_of(message: StoredMessage) -> str:
    return "".join(part.text.value for part in message.content if isinstance(part, TextPart))


def newest(runtime: Runtime, thread_id: str) -> StoredMessage:
    return list(runtime.records.messages.all(thread_id))[-1]


def steps(runtime: Runtime, run: Run) -> list[RunStep]:
    return runtime.records.runs.steps(run.thread_id, run.id, EVERYTHING).data


def events(live: LiveRun) -> list[RunEvent]:
    return [event for news in live.follow(0.1) if news is not None for event in news]


def wait_for_text(runtime: Runtime) -> None:
    """Wait until an answer has begun."""
    wait_until(lambda: any(view.state == "decode" for view in runtime.requests()), "the first text")
