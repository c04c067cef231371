"""Runs one step of a long work in a process of its own: heavy libraries are imported there and nowhere else.

Floor 2; process of the command, one thread of it. A step is a module with `run(arguments, show)`, which gives a dict.
The two processes speak JSON: one line of arguments down the child's stdin, which then stays open (its end is how the child
learns that the command is gone, kill -9 included), lines of progress and one result up its stdout. Everything that libraries
print goes into the step's log.
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

from hostler.errors import HostlerError

RUNNER = Path(__file__).with_name("runner.py")
TICK_S = 0.5
"""How often the display is told that time goes by."""
TAIL_BYTES = 8192
TAIL_LINES = 4
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
"""A module beside the runner or in the current folder takes no library's place; a log is written as it comes."""

ShowStep = Callable[[str, float | None], None]
"""Takes what a step does now, and how far it is (0 to 1, None: unknown)."""


class StepFailed(HostlerError):
    """A step ended without a result; the text says which, why, and where its log is."""

    code = "step_failed"


class _Said(msgspec.Struct):
    """One line of a child."""

    text: str = ""
    fraction: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


def run_step(
    folder: Path,
    step: str,
    arguments: Mapping[str, Any],
    *,
    log: Path,
    show: ShowStep,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    failure: type[StepFailed] = StepFailed,
) -> dict[str, Any]:
    """Run a step to its end.

    Args:
        folder: Where the steps' modules lie.
        step: Name of one. It is loaded by its path. An exception of it that has an attribute `is_told` is told by its text
            alone, others with their class.
        arguments: JSON.
        log: Written anew; gets stderr, and what libraries print.
        show: Told of progress, and twice a second that time goes by.
        python: Interpreter; it needs the step's libraries, hostler it does not need.
        environment: Over the command's own.
        failure: What to raise.

    Returns:
        What the step's `run` returned.

    Raises:
        StepFailed
    """
    command = [python, str(RUNNER), str(folder), step]
    with log.open("wb") as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **ENVIRONMENT, **(environment or {})},
            )
        except OSError as error:
            raise failure(f"{python} cannot be run: {error.strerror}") from error
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
        raise failure(f"{step} failed: {last.error}; its log is {log}")
    if last.result is None or returncode != 0:
        raise failure(f"{step} {_ending(returncode)}; its log is {log}{_tail(log)}")
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


def _follow(lines: queue.Queue[_Said | None], show: ShowStep) -> _Said:
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
