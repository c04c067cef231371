"""Runs one step in a process of its own: llama.cpp and numpy are imported there and nowhere else.

Process of the command. The two speak JSON: one line of arguments down the child's stdin, which then stays open (its end is how
the child learns that the command is gone, kill -9 included), lines of progress and one result up its stdout. Everything that
libraries print goes into the step's log.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from hostler import HostlerError

TICK_S = 0.5
"""How often the display is told that time goes by."""
TAIL_BYTES = 8192
TAIL_LINES = 4
ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "10000", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
"""As a worker has it; what is measured is what will run."""

Show = Callable[[str, float | None], None]
"""Takes what a step does now, and how far it is (0 to 1, None: unknown)."""


class StepFailed(HostlerError):
    """A step ended without a result; the text says which, why, and where its log is."""

    code = "tuning_failed"


class _Said(msgspec.Struct):
    """One line of a child."""

    text: str = ""
    fraction: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


def run_step(
    step: str,
    arguments: Mapping[str, Any],
    *,
    log: Path,
    show: Show,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a step to its end.

    Args:
        step: Name of a module in `steps`.
        arguments: JSON.
        log: Written anew; gets stderr, and what libraries print.
        show: Told of progress, and twice a second that time goes by.
        environment: Beside our own and ENVIRONMENT.

    Returns:
        What the step's `run` returned.

    Raises:
        StepFailed
    """
    command = [sys.executable, "-m", "hostler_llamacpp.tuning.steps", step]
    with log.open("wb") as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**ENVIRONMENT, **os.environ, **(environment or {})},
            )
        except OSError as error:
            raise StepFailed(f"{sys.executable} cannot be run: {error.strerror}") from error
    lines: queue.Queue[_Said | None] = queue.Queue()
    assert process.stdin is not None
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        _send(process.stdin, arguments)
        last = _follow(lines, show)
        returncode = process.wait()
    finally:
        process.kill()
        process.wait()
        reader.join()
        _close(process.stdin)
        process.stdout.close()
    if last.error is not None:
        raise StepFailed(f"{step} failed: {last.error}; its log is {log}")
    if last.result is None or returncode != 0:
        raise StepFailed(f"{step} {_ending(returncode)}; its log is {log}{_tail(log)}")
    return last.result


def _send(stdin: IO[bytes], arguments: Mapping[str, Any]) -> None:
    try:
        stdin.write(msgspec.json.encode(arguments) + b"\n")
        stdin.flush()
    except OSError:
        pass  # it has died already; how, is seen when it is waited for


def _close(stdin: IO[bytes]) -> None:
    try:
        stdin.close()
    except OSError:
        pass


def _read(stdout: IO[bytes], lines: queue.Queue[_Said | None]) -> None:
    """Thread: the child's lines, and None at their end."""
    for line in stdout:
        try:
            lines.put(msgspec.json.decode(line, type=_Said))
        except msgspec.MsgspecError:
            continue  # a library that writes past sys.stdout; it is no message
    lines.put(None)


def _follow(lines: queue.Queue[_Said | None], show: Show) -> _Said:
    """Show progress until the child is silent for good; give its result or its error."""
    now, last = _Said(), _Said()
    while True:
        try:
            said = lines.get(timeout=TICK_S)
        except queue.Empty:
            show(now.text, now.fraction)
            continue
        if said is None:
            return last
        if said.result is not None or said.error is not None:
            last = said
        else:
            now = said
            show(now.text, now.fraction)


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode} and no result"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _tail(log: Path) -> str:
    """The last lines of a log, as a part of a sentence."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.rpartition("\r")[2].strip() for line in text.splitlines()]
    shown = [line for line in lines if line][-TAIL_LINES:]
    return ", which ends with: " + " | ".join(shown) if shown else ""
