"""A real `hostler serve` in a process of its own, for the functional tests, and clients that speak to it over sockets.

Everything waits for events or polls with a deadline; nothing sleeps and hopes. DEADLINE_S is what a test is given up after,
never what it asserts.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import psutil

DEADLINE_S = 90.0
POLL_S = 0.02

_T = TypeVar("_T")


def eventually(check: Callable[[], _T], what: str, deadline_s: float = DEADLINE_S) -> _T:
    """Ask again and again until the answer is true; fail after the deadline, saying what was waited for."""
    deadline = time.monotonic() + deadline_s
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: still not so after {deadline_s:g} s"
        time.sleep(POLL_S)


def hostler_environment(**more: str) -> dict[str, str]:
    """The environment without the settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")} | more


def run_hostler(
    home: Path,
    *arguments: str,
    given: str | None = None,
    environment: dict[str, str] | None = None,
    python: str = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Run one command of the CLI to its end."""
    return subprocess.run(
        [python, "-m", "hostler", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        input=given,
        stdin=None if given is not None else subprocess.DEVNULL,
        timeout=DEADLINE_S * 2,
        env=hostler_environment(**(environment or {})),
        check=False,
    )


class Server:
    """One `hostler serve`; start and stop belong to one thread, requests to any."""

    def __init__(
        self, home: Path, *flags: str, environment: dict[str, str] | None = None, python: str = sys.executable
    ) -> None:
        self.home = home
        self.python = python
        self.flags = flags
        self.environment = environment or {}
        self.errors = home.with_name(home.name + ".stderr")
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.said = ""
        """What it printed on stdout up to now."""
        self._lines: queue.Queue[str | None] = queue.Queue()

    def start(self) -> Server:
        """Start it and wait until it has printed its URL."""
        command = [self.python, "-m", "hostler", "serve", "--port", "0", "--home", str(self.home), *self.flags]
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=hostler_environment(**self.environment),
                start_new_session=True,  # a Ctrl-C in the terminal is pytest's
            )
        threading.Thread(target=self._read, daemon=True).start()
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no URL after {DEADLINE_S:g} s; its log:\n{self.log}") from None
            assert line is not None, f"it ended with {self.process.wait()} before it was ready; its log:\n{self.log}"
            self.said += line
            if " serves " in line:
                self.url = line.split(" serves ")[1].split("/v1")[0]
            if line.lstrip().startswith("curl "):
                return self

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)

    @property
    def log(self) -> str:
        """Its stderr up to now."""
        return self.errors.read_text(encoding="utf-8", errors="replace") if self.errors.exists() else ""

    @property
    def port(self) -> int:
        """The port it took."""
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The host's process."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send the host a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended; its log:\n{self.log}") from None

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def clean_up(self) -> None:
        """End whatever is left: the host and its workers."""
        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()

    # -- talking to it ------------------------------------------------------------------------------------------------

    def client(self, **arguments: Any) -> httpx.Client:
        """A client that goes nowhere else and has no time limit shorter than the tests'."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=DEADLINE_S, **arguments)

    def call(self, method: str, path: str, body: Any = None, **arguments: Any) -> httpx.Response:
        """One request on a connection of its own."""
        with self.client() as client:
            if body is not None:
                arguments["json"] = body
            return client.request(method, path, **arguments)

    def chat(self, model: str, text: str, **fields: Any) -> httpx.Response:
        """One whole answer."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
        return self.call("POST", "/v1/chat/completions", body)

    @contextlib.contextmanager
    def stream(self, model: str, text: str, **fields: Any) -> Iterator[Stream]:
        """One streamed answer; leaving the block hangs up."""
        messages = [{"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "temperature": 0, "stream": True, **fields}
        with self.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            yield Stream(response)

    def model(self, model: str) -> dict[str, Any]:
        """The model as the list shows it, with `hostler.pid` and the like."""
        found: list[dict[str, Any]] = self.call("GET", "/v1/models", params={"schema": "native"}).json()["data"]
        return next(item for item in found if item["id"] == model)

    def worker_pid(self, model: str) -> int:
        """The process that runs the model."""
        return int(self.model(model)["hostler"]["pid"])

    def requests(self) -> list[dict[str, Any]]:
        """What is queued or running."""
        found: list[dict[str, Any]] = self.call("GET", "/v1/requests").json()["data"]
        return found

    def wait_for_requests(self, *states: str) -> None:
        """Wait until the running and queued requests are in just these states, in any order."""
        wanted = sorted(states)
        eventually(
            lambda: sorted(request["state"] for request in self.requests()) == wanted, f"requests in the states {wanted}"
        )


class Stream:
    """The events of one streamed answer."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.is_done = False
        """`[DONE]` has come."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            if line == "data: [DONE]":
                self.is_done = True
            elif line.startswith("data: "):
                yield json.loads(line[6:])

    def first_text(self) -> str:
        """Wait for the first text."""
        for event in self:
            text = text_of(event)
            if text:
                return text
        raise AssertionError("the stream ended without a text")


def text_of(event: dict[str, Any]) -> str:
    """The new text of one chunk."""
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def serving(
    home: Path, *flags: str, environment: dict[str, str] | None = None, python: str = sys.executable
) -> Iterator[Server]:
    """A server for the length of a block; what goes wrong inside is shown together with its log."""
    server = Server(home, *flags, environment=environment, python=python)
    try:
        yield server.start()
    except BaseException as error:
        error.add_note(f"log of the server:\n{server.log[-6000:]}")
        raise
    finally:
        server.clean_up()


def add_echo(home: Path, model_id: str = "echo", **content: Any) -> str:
    """Register an echo model in a home on which no server runs, as an import would: linked, its file beside the home."""
    source = home.with_name(home.name + ".models") / f"{model_id}.echo"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(json.dumps(content))
    manifest = {
        "id": model_id,
        "name": model_id,
        "created": int(time.time()),
        "format": "echo",
        "source_url": source.as_uri(),
        "files": [{"path": str(source), "size_bytes": source.stat().st_size, "is_link": True}],
        "is_complete": True,
        "parameters": {"temperature": 0},  # warmer, echo gets letters wrong
    }
    folder = home / "models" / quote(model_id, safe="")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(manifest))
    return model_id
