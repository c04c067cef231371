"""Servers under test: started here with equal settings and stopped again, or already running somewhere.

One process runs this: the benchmark's. A spawned server is a process tree known by its root's pid; its output goes to a file
in a temporary folder, whose end is shown when it dies. `hostler` is used as a stranger would: command line and HTTP only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psutil
from streamclient import Address, fetch

START_TIMEOUT_S = 300.0
POLL_S = 0.002
"""Between two looks at a starting server: the resolution of the times to ready."""


class ServerFailed(Exception):
    """A server under test did not start or refused what the benchmark needs."""


@dataclass(frozen=True)
class Settings:
    """What all servers of a run get alike."""

    model_path: Path
    n_slots: int = 16
    ctx_len: int = 1024
    """Tokens per slot."""
    n_threads: int = 2

    def __str__(self) -> str:
        return f"slots={self.n_slots} ctx_len={self.ctx_len} threads={self.n_threads}"


class Process:
    """A child process with its output in a file; a context manager that ends it."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.command = list(command)
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.started_s = time.perf_counter()
        self.popen = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )

    def wait_for(self, look: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
        """Call `look` until it gives something true.

        Raises:
            ServerFailed: The process ended, or time is up; with its last output.
        """
        deadline = time.perf_counter() + timeout_s
        while True:
            if result := look():
                return result
            if self.popen.poll() is not None:
                raise ServerFailed(f"{self.command[0]} exited with {self.popen.returncode} before {what}:\n{self.tail()}")
            if time.perf_counter() > deadline:
                raise ServerFailed(f"{self.command[0]}: no {what} within {timeout_s:g} s:\n{self.tail()}")
            time.sleep(POLL_S)

    def tail(self, n_bytes: int = 2000) -> str:
        """The last output."""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - n_bytes))
        return self.log.read().decode("utf-8", "replace")

    def close(self) -> None:
        """Ask it to end, then insist."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()
        self.log.close()


class Server:
    """One server under test; this base class stands for one that was already running."""

    def __init__(self, name: str, address: Address, model: str) -> None:
        self.name = name
        self.address = address
        self.model = model
        """What requests call the model."""
        self.process: Process | None = None

    def processes(self) -> list[psutil.Process]:
        """The processes of a spawned server, root first; nothing for one that was already running."""
        if self.process is None:
            return []
        try:
            root = psutil.Process(self.process.popen.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """Processor seconds its processes have used."""
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def memory(self) -> dict[str, float]:
        """MB (10^6 bytes) over the process tree: rss counts shared pages in each process, pss shares them out,
        own is what no other process has; host is the root process alone."""
        result = {"rss": 0.0, "pss": 0.0, "own": 0.0, "host_rss": 0.0}
        for index, process in enumerate(self.processes()):
            full = process.memory_full_info()
            result["rss"] += full.rss / 1e6
            result["pss"] += getattr(full, "pss", full.rss) / 1e6
            result["own"] += full.uss / 1e6
            if index == 0:
                result["host_rss"] = full.rss / 1e6
        return result

    def restart(self) -> None:
        """Stop it in an orderly way and start it again, as it was."""
        raise ServerFailed(f"{self.name} was not started here, so it cannot be restarted")

    def close(self) -> None:
        """Stop it, if it was started here."""
        if self.process is not None:
            self.process.close()


class LlamaServer(Server):
    """llama.cpp's own server: `n_slots` separate streams of `ctx_len` cells each, everything else by its defaults."""

    def __init__(self, binary: Path, settings: Settings, arguments: Sequence[str] = ()) -> None:
        port = free_port()
        super().__init__("llama-server", Address("127.0.0.1", port, "/v1"), "bench")
        self._command = [
            *(str(binary), "-m", str(settings.model_path), "--alias", "bench"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("-np", str(settings.n_slots), "-c", str(settings.n_slots * settings.ctx_len)),
            *("-t", str(settings.n_threads), *arguments),
        ]
        self._start()

    def _start(self) -> None:
        self.process = Process(self._command)
        health = Address("127.0.0.1", self.address.port, "")
        try:
            self.ready_s = _time_until(self.process, lambda: is_status(health, "/health", 200), "a healthy answer")
        except BaseException:
            self.process.close()
            raise

    def restart(self) -> None:
        """See Server."""
        self.close()
        self._start()


class Hostler(Server):
    """`hostler serve` on a home of its own; a model runs in it after `start_model`."""

    def __init__(
        self, arguments: Sequence[str] = (), environment: dict[str, str] | None = None, home: Path | None = None
    ) -> None:
        """Start it.

        Args:
            home: Stays when it is closed; None: a temporary folder, which does not.
        """
        self._keeps_home = home is not None
        self.home = home or Path(tempfile.mkdtemp(prefix="hostler-bench-"))
        self.home.mkdir(parents=True, exist_ok=True)
        # Bytecode is cached as on a user's machine; some build machines switch that off, and a start would compile everything.
        self.environment = {"PYTHONDONTWRITEBYTECODE": "", **(environment or {}), "HOSTLER_HOME": str(self.home)}
        self._arguments = list(arguments)
        self._started: dict[str, Any] = {}
        process, address = self._serve()
        super().__init__("hostler", address, "")
        self.process = process

    def _serve(self) -> tuple[Process, Address]:
        (self.home / "server.json").unlink(missing_ok=True)
        process = Process([*hostler_command(), "serve", "--port", "0", *self._arguments], self.environment)
        try:
            url = process.wait_for(self._find_url, "an address in its home")
            root = Address.parse(url)
            self.ready_s = _time_until(process, lambda: is_status(root, "/readyz", 200), "a ready answer")
        except BaseException:
            process.close()
            self._remove_home()
            raise
        return process, Address.parse(url + "/v1")

    def _find_url(self) -> str | None:
        try:
            return json.loads((self.home / "server.json").read_bytes())["url"]
        except (OSError, ValueError, KeyError):
            return None

    def import_model(self, path: Path, model: str = "bench") -> None:
        """Register a model file under an id, by link."""
        self.command("import", str(path), "--id", model)

    def has_model(self, model: str) -> bool:
        """Whether a model of this id is registered."""
        return is_status(self.address, f"/models/{quote(model, safe='')}", 200)

    def command(self, *arguments: str) -> str:
        """Run a command of hostler's on the same home, and give what it printed.

        Raises:
            ServerFailed: It failed.
        """
        command = [*hostler_command(), *arguments]
        result = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        if result.returncode:
            raise ServerFailed(f"{' '.join(command)}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
        return result.stdout

    def start_model(self, model: str, settings: dict[str, Any]) -> float:
        """Start a model and give the seconds from the PUT to its answer."""
        began_s = time.perf_counter()
        status, answer = fetch(self.address, "PUT", f"/models/{quote(model, safe='')}/start", settings)
        taken_s = time.perf_counter() - began_s
        if status != 200 or answer.get("state") != "running":
            raise ServerFailed(f"hostler did not start {model!r}: {status} {answer}\n{self.process and self.process.tail()}")
        self.model, self._started = model, settings
        return taken_s

    def restart(self) -> None:
        """See Server: the host process stops and starts on the same home, and the model that ran starts again."""
        super().close()
        self.process, self.address = self._serve()
        self.start_model(self.model, self._started)

    def close(self) -> None:
        """Stop it and remove its home, if that is a temporary one."""
        super().close()
        self._remove_home()

    def _remove_home(self) -> None:
        if not self._keeps_home:
            shutil.rmtree(self.home, ignore_errors=True)


def spawn(what: str, settings: Settings, environment: dict[str, str] | None = None) -> Server:
    """Start a server by its word on the command line: `hostler` or `llama-server=/path/to/llama-server`.

    Args:
        environment: For hostler alone: what an experiment changes.
    """
    name, _, path = what.partition("=")
    if name == "llama-server" and path:
        return LlamaServer(Path(path), settings)
    if name == "hostler" and not path:
        server = Hostler(environment=environment)
        try:
            server.import_model(settings.model_path)
            server.start_model("bench", start_settings(settings))
        except BaseException:
            server.close()
            raise
        return server
    raise ServerFailed(f"cannot spawn {what!r}; give hostler or llama-server=/path/to/llama-server")


def start_settings(settings: Settings) -> dict[str, Any]:
    """The body of hostler's start request."""
    return {"ctx_len": settings.ctx_len, "n_parallel": settings.n_slots, "cpu_threads": settings.n_threads}


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this process like Ctrl-C, so that no server started here stays behind."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def hostler_command() -> list[str]:
    """The console script beside this interpreter, or the module where there is none."""
    script = Path(sys.executable).parent / "hostler"
    return [str(script)] if script.exists() else [sys.executable, "-m", "hostler"]


def is_status(address: Address, route: str, wanted: int) -> bool:
    """Whether a GET is answered so; False also when nobody answers."""
    try:
        return fetch(address, "GET", route, timeout_s=5)[0] == wanted
    except (OSError, ValueError):
        return False


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _time_until(process: Process, look: Callable[[], Any], what: str) -> float:
    process.wait_for(look, what)
    return time.perf_counter() - process.started_s
