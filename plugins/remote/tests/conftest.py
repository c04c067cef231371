"""Fixtures of the plugin's tests: a scripted upstream, and engines that ask it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hostler import EngineInfo, EngineSettings, HostlerError, Message, ModelFiles, RawPrompt, SamplingParams
from hostler.testing import Driver, RecordingSequence
from hostler_remote.engine import RemoteEngine

from .scripted import MODEL, ScriptedUpstream

QUICK = {"connect_timeout_s": 5, "first_byte_timeout_s": 30, "idle_timeout_s": 30, "retries": 0, "breaker_failures": 100}
"""No retries and no breaker, where a test is not about them."""


class Asked:
    """A loaded engine, stepped by the test."""

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        self.engine = RemoteEngine()
        self._has_news = threading.Event()
        self.engine.wake_with(self._has_news.set)
        self.info: EngineInfo = self.engine.load(ModelFiles(str(path), "remote"), settings, lambda _: True)

    def driver(self) -> Driver:
        return Driver(self.engine, n_slots=self.info.n_slots, max_tokens_per_step=10**9, wait=self.wait)

    def wait(self) -> None:
        self._has_news.wait(0.05)
        self._has_news.clear()

    def ask(self, text: str = "Hi.", params: SamplingParams | None = None, **fields: Any) -> RecordingSequence:
        """One chat to its end."""
        sequence = chat(text, params, **fields)
        self.driver().run([sequence])
        assert sequence.violations == []
        return sequence

    def embed(self, inputs: list[Any]) -> tuple[list[list[float]], int]:
        """Vectors and tokens."""
        vectors: list[list[float]] = []
        pieces = self.engine.embed(inputs)
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return vectors, end.value
            vectors += piece
            if not piece:
                self.wait()


def chat(text: str = "Hi.", params: SamplingParams | None = None, **fields: Any) -> RecordingSequence:
    """A request of one message."""
    raw = RawPrompt(messages=(Message("user", text),)) if "raw" not in fields else fields.pop("raw")
    return RecordingSequence((), params or SamplingParams(), raw=raw, **fields)


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


Load = Callable[..., Asked]


@pytest.fixture
def write(tmp_path: Path, upstream: ScriptedUpstream) -> Callable[..., Path]:
    """Writes a description of the scripted upstream."""

    def write(name: str = "far.remote", **fields: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"url": upstream.url, "model": MODEL, **QUICK, **fields}))
        return path

    return write


@pytest.fixture
def load(write: Callable[..., Path]) -> Iterator[Load]:
    """Loads engines that ask the scripted upstream, and closes them."""
    with ExitStack() as stack:

        def load(*, extra: dict[str, Any] | None = None, ctx_len: int = 0, n_parallel: int = 4, **fields: Any) -> Asked:
            settings = EngineSettings(ctx_len=ctx_len, n_parallel=n_parallel, extra=extra or {})
            asked = Asked(write(**fields), settings)
            stack.callback(asked.engine.close)
            return asked

        yield load


@pytest.fixture
def asked(load: Load) -> Asked:
    return load()


def failed(asked: Asked, **fields: object) -> HostlerError:
    """The error that an answer ends with."""
    sequence = asked.ask(**fields)
    assert sequence.error is not None, f"it ended with {sequence.reason}: {sequence.text!r}"
    return sequence.error
