"""One worker process as the host sees it: spawn, messages in and out, output, signals, how it ended.

Floor 3, in the host. Threads, all ended with the process: `control` reads its messages, `output` its standard error,
`end` waits for its end. Processes are spawned by one thread that lives as long as the host, because the kernel's
parent-death signal fires when the spawning thread ends. It must not know why a worker is started or restarted.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from hostler.worker.exits import ExitReport, classify, oom_kill_count
from hostler.worker.output import OutputLog, OutputTail
from hostler.worker.wire import HostMessage, WorkerMessage, encode, read_worker_message

DUMP_S = 0.5
"""Between asking a hung worker for its tracebacks and killing it."""
_LEFTOVERS_S = 2.0
"""After the end, for what is still in the pipes; a grandchild that keeps them open must not keep us."""


@dataclass(frozen=True)
class SpawnRequest:
    """What a worker process is started with."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    pass_fds: tuple[int, ...]


Spawn = Callable[[SpawnRequest], "subprocess.Popen[bytes]"]


def spawn_process(request: SpawnRequest) -> subprocess.Popen[bytes]:
    """Start a process from the spawner thread, with pipes on its three streams.

    Raises:
        OSError: The system refuses.
    """
    return _spawner.spawn(request)


class _Spawner:
    """The one thread that spawns; it never ends before the host does."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[SpawnRequest, queue.SimpleQueue[object]]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # protects _thread
        self._thread: threading.Thread | None = None

    def spawn(self, request: SpawnRequest) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spawner", daemon=True)
                self._thread.start()
        answer: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._requests.put((request, answer))
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        return cast("subprocess.Popen[bytes]", result)

    def _run(self) -> None:
        while True:
            request, answer = self._requests.get()
            try:
                answer.put(
                    subprocess.Popen(
                        request.arguments,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        env=dict(request.environment),
                        pass_fds=request.pass_fds,
                        close_fds=True,
                    )
                )
            except Exception as error:  # noqa: BLE001 - raised where the spawn was asked for
                answer.put(error)
            # The request holds descriptors' owners alive; this thread sleeps for hours with its last variables.
            del request, answer


_spawner = _Spawner()


def worker_command() -> tuple[str, ...]:
    """The command line of a worker of this host; -P keeps the current folder off the import path."""
    return (sys.executable, "-P", "-m", "hostler.worker.child", str(os.getpid()))


class WorkerProcess:
    """A spawned worker, until its end and after. Any thread, unless a method says otherwise."""

    def __init__(
        self,
        request: SpawnRequest,
        *,
        on_message: Callable[[WorkerProcess, WorkerMessage], None],
        on_end: Callable[[WorkerProcess], None],
        log_path: Path | None = None,
        spawn: Spawn = spawn_process,
    ) -> None:
        """Spawn it.

        Args:
            on_message: Called in its control thread with each message.
            on_end: Called once, in its end thread, after the last message, with `report` set.

        Raises:
            OSError: It could not be spawned.
        """
        self.report: ExitReport | None = None
        """How it ended; None while it lives."""
        self._on_message: Callable[[WorkerProcess, WorkerMessage], None] | None = on_message
        self._on_end: Callable[[WorkerProcess], None] | None = on_end
        self._tail = OutputTail()
        self._log = None if log_path is None else OutputLog(log_path)
        self._has_ended = threading.Event()
        self._kill_lock = threading.Lock()  # protects the two below
        self._asked_for: str | None = None
        self._detail = ""
        self._send_lock = threading.Lock()  # one message at a time
        self._oom_kills = oom_kill_count()
        self._popen = spawn(request)
        self.pid: int = self._popen.pid
        if self._log is not None:
            self._log.write(f"--- worker process {self.pid}\n".encode())
        self._control = self._start(self._read_control, "control")
        self._output = self._start(self._read_output, "output")
        self._end = self._start(self._await_end, "end")

    # -- what the host does with it ---------------------------------------------------------------------------------

    def send(self, message: HostMessage, timeout_s: float = -1) -> bool:
        """Write one message; blocks while the worker does not read.

        Args:
            timeout_s: For other senders to be done; -1: as long as it takes.

        Returns:
            False: the worker is gone, or the time was over before the message could be begun.
        """
        data = encode(message)
        if not self._send_lock.acquire(timeout=timeout_s):
            return False
        try:
            stdin = cast(BinaryIO, self._popen.stdin)
            stdin.write(data)
            stdin.flush()
        except (OSError, ValueError):
            return False  # the pipe broke with its process, or is closed after its end
        finally:
            self._send_lock.release()
        return True

    def expect_end(self, kind: str, detail: str = "") -> None:
        """Note why it is about to end (`stopped`); the first reason given stays."""
        with self._kill_lock:
            if self._asked_for is None:
                self._asked_for, self._detail = kind, detail

    def signal(self, number: int) -> None:
        """Send a signal, if it still lives."""
        try:
            self._popen.send_signal(number)
        except ProcessLookupError:
            pass  # it ended this very moment; the end thread will say how

    def dump_tracebacks(self) -> None:
        """Have every thread's traceback written to its output, which says where it hangs; waits DUMP_S for it."""
        if hasattr(signal, "SIGUSR2"):
            self.signal(signal.SIGUSR2)
            self._has_ended.wait(DUMP_S)

    def wait(self, timeout_s: float | None = None) -> ExitReport | None:
        """Wait for its end; None when it still lives after `timeout_s`."""
        self._has_ended.wait(timeout_s)
        return self.report

    def join(self) -> None:
        """After its end: wait until its threads have let go of everything. Not from those threads."""
        self._end.join()

    def last_output(self) -> str:
        """The last lines it wrote."""
        return self._tail.text()

    # -- its threads ------------------------------------------------------------------------------------------------

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"worker-{self.pid}-{name}", daemon=True)
        thread.start()
        return thread

    def _read_control(self) -> None:
        stream = cast(BinaryIO, self._popen.stdout)
        try:
            while (message := read_worker_message(stream)) is not None:
                if self._on_message is not None:
                    self._on_message(self, message)
        except (msgspec.DecodeError, ValueError, OSError) as error:
            self._kill_useless(f"it wrote what is no control message ({error})")
            return
        if not self._has_ended.wait(_LEFTOVERS_S):
            self._kill_useless("it closed its control pipe")

    def _kill_useless(self, detail: str) -> None:
        with self._kill_lock:
            if self._asked_for is None and self._popen.returncode is None:
                self._asked_for, self._detail = "babbled", detail
        self.signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _read_output(self) -> None:
        stream = cast(BinaryIO, self._popen.stderr)
        try:
            while data := stream.read1(65536):  # type: ignore[attr-defined]
                self._tail.add(data)
                if self._log is not None:
                    self._log.write(data)
        except (OSError, ValueError):
            pass  # closed under us after the end

    def _await_end(self) -> None:
        returncode = self._popen.wait()
        self._output.join(_LEFTOVERS_S)
        with self._kill_lock:
            asked_for, detail = self._asked_for, self._detail
        self.report = classify(
            returncode,
            asked_for=asked_for,
            detail=detail,
            oom_kills=oom_kill_count() - self._oom_kills,
            last_output=self._tail.text(),
        )
        self._has_ended.set()
        self._control.join(_LEFTOVERS_S)
        if self._log is not None:
            self._log.write(f"--- worker process {self.pid} {self.report.reason}\n".encode())
        on_end, self._on_end, self._on_message = self._on_end, None, None
        if on_end is not None:
            on_end(self)
        self._close_pipes()

    def _close_pipes(self) -> None:
        # Not under the send lock: a sender that still holds it gets its EPIPE from the pipe's end, not from us.
        for stream, thread in ((self._popen.stdout, self._control), (self._popen.stderr, self._output)):
            # A reader that a grandchild keeps waiting owns its stream until that child ends.
            if stream is not None and not thread.is_alive():
                stream.close()
        with self._send_lock:
            try:
                cast(BinaryIO, self._popen.stdin).close()
            except OSError:
                pass  # what was still buffered for the dead worker
