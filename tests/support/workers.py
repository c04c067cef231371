"""What tests of the worker share: an echo model's supervisor, and waiting on events with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from hostler.domain import FinishEvent, GenerationEvent, Message, SamplingParams, TextEvent
from hostler.engine import EngineSettings, ModelFiles
from hostler.worker.supervisor import Limits, ReaderGroup, Supervisor
from hostler.worker.wire import PromptSettings

DEADLINE_S = 120.0
"""Nothing here takes more than a second or two; a machine under load gets its time."""
ECHO = "hostler_echo.engine:EchoEngine"
GREEDY = SamplingParams(temperature=0.0, max_tokens=2000)


def wait_until(condition: Callable[[], Any], what: str = "what was waited for", deadline_s: float = DEADLINE_S) -> None:
    """Look until it holds; for states of other processes that nobody tells us of."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, f"{what} did not happen within {deadline_s} s"
        time.sleep(0.005)


def echo_model(folder: Path, **model: Any) -> ModelFiles:
    """Write an echo model."""
    path = folder / "model.echo"
    path.write_bytes(msgspec.json.encode(model))
    return ModelFiles(str(path), "echo")


@contextmanager
def supervised(
    files: ModelFiles,
    *,
    engine: str = ECHO,
    ctx_len: int = 4096,
    n_parallel: int = 4,
    limits: Limits | None = None,
    prompt: PromptSettings | None = None,
    **more: Any,
) -> Iterator[Supervisor]:
    """A supervisor that is stopped in the end, started or not."""
    extra = more.pop("extra", {})
    settings = EngineSettings(ctx_len=ctx_len, n_parallel=n_parallel, extra=extra)
    supervisor = Supervisor(
        "tiny", engine, more.pop("environment", {}), files, settings, prompt or PromptSettings(), limits=limits, **more
    )
    try:
        yield supervisor
    finally:
        supervisor.stop()


def user(text: str) -> tuple[Message, ...]:
    """A chat of one message."""
    return (Message("user", text),)


def next_events(group: ReaderGroup) -> list[GenerationEvent]:
    """Wait for at least one event, or the error."""
    until = time.monotonic() + DEADLINE_S
    while True:
        assert time.monotonic() < until, "no event came"
        group.wait(1.0)
        if events := group.drain():
            return events


def read_all(group: ReaderGroup) -> list[GenerationEvent]:
    """Every event until the last sequence is finished."""
    events: list[GenerationEvent] = []
    while not group.is_done:
        events += next_events(group)
    return events + group.drain()  # raises what may have come together with the last events


def read_on(group: ReaderGroup, into: list[GenerationEvent]) -> NoReturn:
    """Collect events until the error that must come is raised."""
    while True:
        into += next_events(group)


def text_of(events: list[GenerationEvent], index: int = 0) -> str:
    """The whole answer."""
    return "".join(event.text for event in events if isinstance(event, TextEvent) and event.index == index)


def finish_of(events: list[GenerationEvent], index: int = 0) -> FinishEvent:
    """The last event of an answer; there is exactly one."""
    (finish,) = [event for event in events if isinstance(event, FinishEvent) and event.index == index]
    return finish


def ask(supervisor: Supervisor, text: str, params: SamplingParams = GREEDY, **more: Any) -> list[GenerationEvent]:
    """One request from beginning to end."""
    with supervisor.reader_group() as group:
        supervisor.submit(group, 0, params, messages=user(text), **more)
        return read_all(group)
