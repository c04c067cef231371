"""The worker process seen through its pipes, without a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostler.domain import Message
from hostler.engine import EngineSettings, ModelFiles
from hostler.ring import RingSegment
from hostler.worker import exits
from hostler.worker.process import worker_command
from hostler.worker.wire import (
    WIRE_VERSION,
    Call,
    Counting,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    PromptSettings,
    Stop,
    Stopped,
    Submit,
    WorkerMessage,
    encode,
    read_worker_message,
)
from support.workers import DEADLINE_S, ECHO, GREEDY, ask, echo_model, supervised, text_of


class Child:
    """A worker with its pipes and its ring segment."""

    def __init__(self, process: subprocess.Popen[bytes], segment: RingSegment) -> None:
        self.process = process
        self.segment = segment

    def send(self, message) -> None:
        self.process.stdin.write(encode(message))
        self.process.stdin.flush()

    def read(self) -> WorkerMessage | None:
        return read_worker_message(self.process.stdout)

    def load(self, files: ModelFiles, **more) -> Load:
        settings = EngineSettings(ctx_len=4096, n_parallel=2)
        return Load(
            more.pop("wire_version", WIRE_VERSION), "tiny", ECHO, files, settings, more.pop("prompt", PromptSettings()),
            self.segment.handle_for_child(),
        )  # fmt: skip

    def start(self, files: ModelFiles) -> Loaded:
        self.send(self.load(files))
        while True:
            message = self.read()
            if isinstance(message, Loaded):
                return message
            assert isinstance(message, Hello | Progress), message


@contextmanager
def child_process() -> Iterator[Child]:
    segment = RingSegment.create(4, 4096, 4)
    process = subprocess.Popen(
        worker_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=segment.pass_fds,
    )
    try:
        yield Child(process, segment)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def child() -> Iterator[Child]:
    with child_process() as child:
        yield child


def test_a_worker_says_hello_before_it_is_told_anything(child: Child) -> None:
    hello = child.read()

    assert hello == Hello(WIRE_VERSION, child.process.pid)


def test_a_worker_loads_and_stops_in_order(child: Child, tmp_path: Path) -> None:
    assert child.start(echo_model(tmp_path)).info.n_slots == 2
    child.send(Stop())

    assert child.read() == Stopped()
    assert child.process.wait(DEADLINE_S) == exits.ORDERLY


def test_the_end_of_its_input_ends_a_worker_that_hangs_in_a_step(child: Child, tmp_path: Path) -> None:
    child.start(echo_model(tmp_path))
    reader = child.segment.reader(0)
    reader.open(1, 0)
    child.send(Submit(1, 0, GREEDY, prompt="[[echo: hang at=1]]abc"))
    while not any(payload.endswith(b"a") for _, payload in reader.drain()):
        assert child.segment.wait(0, [0], DEADLINE_S)

    child.process.stdin.close()

    assert child.process.wait(DEADLINE_S) == exits.HOST_GONE
    child.process.stdin = None


def test_the_end_of_its_input_ends_a_worker_that_hangs_in_a_load(child: Child, tmp_path: Path) -> None:
    child.send(child.load(echo_model(tmp_path, manners={"load_hang": True})))
    while not isinstance(child.read(), Progress):
        pass

    child.process.stdin.close()

    assert child.process.wait(DEADLINE_S) == exits.HOST_GONE
    child.process.stdin = None


def test_another_wire_version_is_refused(child: Child, tmp_path: Path) -> None:
    child.send(child.load(echo_model(tmp_path), wire_version=99))

    assert child.process.wait(DEADLINE_S) == exits.PROTOCOL
    assert b"version 1" in child.process.stderr.read()


def test_nonsense_on_its_input_ends_a_worker_with_a_reason(child: Child, tmp_path: Path) -> None:
    child.start(echo_model(tmp_path))
    child.process.stdin.write(b"\x05\x00\x00\x00hello")
    child.process.stdin.flush()

    assert child.process.wait(DEADLINE_S) == exits.PROTOCOL
    assert b"cannot read" in child.process.stderr.read()


def test_a_refused_load_says_why_and_exits_with_its_code(child: Child, tmp_path: Path) -> None:
    child.send(child.load(echo_model(tmp_path), prompt=PromptSettings(prompt_template="no marker")))
    while not isinstance(message := child.read(), LoadFailed):
        assert isinstance(message, Hello | Progress)

    assert (message.code, message.param) == ("invalid_value", "settings.prompt_template")
    assert child.process.wait(DEADLINE_S) == exits.LOAD_FAILED


def test_stray_prints_go_to_the_log_and_not_into_the_control_stream(child: Child, tmp_path: Path) -> None:
    child.start(echo_model(tmp_path, manners={"load_print": "printed while loading"}))
    child.send(Call(1, "tokenize", "a"))
    assert child.read().value == [97]
    child.send(Stop())

    assert child.read() == Stopped()
    assert child.process.stderr.read().count(b"printed while loading") == 2


def test_a_worker_counts_messages_as_it_would_prepare_them(child: Child, tmp_path: Path) -> None:
    child.start(echo_model(tmp_path))

    child.send(Call(1, "count", Counting((Message("user", "hello"),))))
    assert child.read().value == {"n_tokens": len("hello") + 3, "n_ctx": 4096}  # <|user|>, <|end|>, <|assistant|>

    child.send(Call(2, "count", {"messages": "nonsense"}))
    assert child.read().code == "invalid_value"


def test_the_engine_cannot_read_the_hosts_messages(child: Child, tmp_path: Path) -> None:
    """Descriptor 0 is at its end for whatever an engine or its children read there."""
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into /proc")
    child.start(echo_model(tmp_path))

    assert os.readlink(f"/proc/{child.process.pid}/fd/0") == os.devnull
    assert os.readlink(f"/proc/{child.process.pid}/fd/1") == os.readlink(f"/proc/{child.process.pid}/fd/2")


def test_ctrl_c_is_the_hosts_business(tmp_path: Path) -> None:
    with supervised(echo_model(tmp_path)) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGINT)

        assert text_of(ask(supervisor, "still here")) == "still here"
        assert supervisor.crashes == 0


def test_the_engines_environment_is_set_unless_the_user_has_set_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into /proc")
    monkeypatch.setenv("HOSTLER_TEST_USERS", "mine")
    wanted = {"HOSTLER_TEST_USERS": "the engine's", "HOSTLER_TEST_ENGINES": "the engine's"}
    with supervised(echo_model(tmp_path), environment=wanted) as supervisor:
        supervisor.start()
        supervisor.wait_ready(DEADLINE_S)
        environment = Path(f"/proc/{supervisor.pid}/environ").read_bytes().split(b"\0")

    assert b"HOSTLER_TEST_USERS=mine" in environment
    assert b"HOSTLER_TEST_ENGINES=the engine's" in environment


def test_a_worker_imports_no_server_and_no_database() -> None:
    code = (
        "import sys, hostler.worker.child\n"
        "print(*sorted({'falcon', 'waitress', 'sqlalchemy', 'pluggy', 'click', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == ""
