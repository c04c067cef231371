"""`python -m hostler.cli.contract` runs the engine contract's checks on one engine and tells of each as a line of JSON.

A process of its own, because an engine may crash, hang or print; `hostler plugins check` starts it with a Task on standard
input, reads the lines with a deadline for each, and starts another one with what is left when this one dies.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from hostler.engine import ModelFiles


class Task(msgspec.Struct, frozen=True):
    """What is to be checked."""

    engine: str
    """`package.module:Class`."""
    sample: str = ""
    """`package.module:function`; empty: the plugin says nothing of how it wants to be checked."""
    files: ModelFiles | None = None
    """In place of the sample's model."""
    without: tuple[str, ...] = ()
    """Beside those of the sample."""
    allow_near_tie: float | None = None
    """In place of the sample's."""
    done: tuple[str, ...] = ()
    """Checks that an earlier process has begun."""
    details: dict[str, Any] = {}
    """Further arguments of `contract_checks` and EngineContract."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is told, one kind a line."""

    model: str = ""
    """The first line: what the engine is checked with, and ..."""
    checks: tuple[str, ...] = ()
    """... the checks that follow, ..."""
    left_out: tuple[str, ...] = ()
    """... and those that do not."""
    begun: str = ""
    """A check."""
    ended: str = ""
    """A check."""
    error: str = ""
    """Of `ended`: why it failed; alone: why nothing can be checked."""
    elapsed_s: float = 0.0


def main() -> None:
    """Read the task, run the checks; the lines alone go to the real stdout, whatever the engine's libraries print."""
    lines = os.dup(1)
    os.dup2(2, 1)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    with os.fdopen(lines, "wb") as stream, tempfile.TemporaryDirectory(prefix="hostler-check-") as folder:

        def tell(line: Line) -> None:
            stream.write(msgspec.json.encode(line) + b"\n")
            stream.flush()

        try:
            run(task, Path(folder), tell)
        except Exception as error:  # noqa: BLE001 - a stranger's module, function and class: whatever they raise is the news
            tell(Line(error=f"{type(error).__name__}: {error}"))


def run(task: Task, folder: Path, tell: Any) -> None:
    """Run what is left of the checks."""
    from hostler.testing import Sample, contract_checks

    sample = named(task.sample)(folder) if task.sample else Sample()
    if not isinstance(sample, Sample):
        raise TypeError(f"{task.sample} gave {sample!r}, which is no hostler.testing.Sample")
    without = tuple(dict.fromkeys((*sample.without, *task.without)))
    sample = msgspec.structs.replace(sample, without=without, files=task.files or sample.files)
    if task.allow_near_tie is not None:
        sample = msgspec.structs.replace(sample, allow_near_tie=task.allow_near_tie)
    if sample.files is None:
        tell(Line(error="the plugin brings no model to check it with; name one with --model"))
        return
    checks = [name for name in sample.checks(**task.details) if name not in task.done]
    everything = contract_checks(**task.details)
    tell(Line(sample.files.primary, tuple(checks), tuple(name for name in everything if name in without)))
    with sample.contract(named(task.engine), **task.details) as contract:
        for name in checks:
            tell(Line(begun=name))
            started, error = time.monotonic(), ""
            try:
                contract.check(name)
            except AssertionError as failure:
                error = str(failure).removeprefix(f"engine contract, {name}: ")
            tell(Line(ended=name, error=error, elapsed_s=time.monotonic() - started))


def named(path: str) -> Any:
    """The object behind `package.module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    main()
