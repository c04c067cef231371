"""`hostler plugins check`: one plugin under the magnifying glass, and its engines under the engine contract.

Floor 6. The engine runs in a process of its own (contract.py). One that dies, or takes too long for a check, costs that
check; another process goes on with the next.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING

import click
import msgspec

from hostler.cli.contract import Line, Task
from hostler.cli.doctor import probe_engine
from hostler.engine import EngineSpec, ModelFiles
from hostler.worker.output import OutputTail

if TYPE_CHECKING:
    from hostler.plugins import PluginInfo, Plugins

STATES = OK, FAILED, LEFT_OUT = "ok", "failed", "left out"
LEFTOVERS_S = 2.0
"""After the end, for what is still in the pipes; a grandchild that keeps them open must not keep us."""


class Result(msgspec.Struct, frozen=True):
    """What came of one thing that was looked at."""

    subject: str
    """`plugin`, `engine NAME`, or a check's name."""
    state: str
    """`ok`, `failed` or `left out`."""
    detail: str = ""
    engine: str = ""
    """Of checks: whose."""
    elapsed_s: float = 0.0


class CannotCheck(click.ClickException):
    """There is nothing to look at."""


class PluginCheck:
    """One run of the command."""

    def __init__(
        self,
        home: Path,
        name: str,
        *,
        model: str = "",
        without: tuple[str, ...] = (),
        allow_near_tie: float | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        """Look for the plugin.

        Args:
            model: Id of a model of this home, or a path; empty: the one that the plugin brings.
            without: Checks to leave out, beside those that the plugin itself leaves out.
            timeout_s: For one check, and for everything before the first.

        Raises:
            CannotCheck: There is no such plugin, or it is disabled.
        """
        from hostler.plugins import get_plugins

        self._home = home
        self._model = model
        self._without = without
        self._allow_near_tie = allow_near_tie
        self._timeout_s = timeout_s
        self._plugins = get_plugins(home)
        self.info = _info_of(self._plugins, name)

    def results(self) -> Iterator[Result]:
        """Look at everything, one after the other."""
        problems = [problem.message for problem in self._plugins.problems if problem.plugin == self.info.name]
        yield from (Result("plugin", FAILED, problem) for problem in problems)
        if self.info.state != "loaded":
            return
        engines = self._plugins.engines_of(self.info.name)
        if not problems:
            what = ", ".join(f"engine {engine.name} ({', '.join(engine.formats)})" for engine in engines) or "no engine"
            yield Result("plugin", OK, f"{self.info.module}, imported in {self.info.import_s * 1000:.0f} ms, brings {what}")
        for engine in engines:
            finding = probe_engine(engine)
            yield Result(f"engine {engine.name}", OK if finding.state == "ok" else FAILED, finding.detail)
            yield from self._checks_of(engine)

    def _checks_of(self, engine: EngineSpec) -> Iterator[Result]:
        details = {"takes_messages": True} if engine.takes_messages else {}
        task = Task(
            engine.engine,
            engine.sample,
            self._files_for(engine),
            self._without,
            self._allow_near_tie,
            details=details,
        )
        rest: Task | None = task
        while rest is not None:
            run = _Run(engine, rest, self._timeout_s)
            yield from run.results()
            rest = run.rest

    def _files_for(self, engine: EngineSpec) -> ModelFiles | None:
        if not self._model:
            return None
        from hostler.library.describe import describe_path
        from hostler.library.store import Library

        if os.path.exists(self._model):
            found = describe_path(self._model, engine.formats)
            paths = [file.path for file in found.files]
            is_folder = found.path.is_dir() and len(paths) > 1
            files = ModelFiles(str(found.path) if is_folder else paths[0], found.format, () if is_folder else tuple(paths[1:]))
        else:
            library = Library(self._home, self._plugins.sources)
            try:
                files = library.files(self._model)
            finally:
                library.close()
        if files.format not in engine.formats:
            raise CannotCheck(
                f"{self._model} has the format {files.format}; the engine {engine.name} takes {', '.join(engine.formats)}"
            )
        return files


class _Run:
    """One process, from its start to its end."""

    def __init__(self, engine: EngineSpec, task: Task, timeout_s: float) -> None:
        self._engine = engine
        self._task = task
        self._timeout_s = timeout_s
        self._begun = ""
        """The check that is going on."""
        self._left: list[str] = []
        """Those that have not begun."""
        self.rest: Task | None = None
        """What is left to another process; None: nothing. Known once `results` has ended."""

    def results(self) -> Iterator[Result]:
        """What it tells, and what can be said of its end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "hostler.cli.contract"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self._engine.environment, **os.environ},
        )
        lines: SimpleQueue[Line | None] = SimpleQueue()
        tail = OutputTail()
        readers = [
            threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True),
            threading.Thread(target=_read_output, args=(process.stderr, tail), daemon=True),
        ]
        for reader in readers:
            reader.start()
        end = ""
        try:
            _write(process.stdin, msgspec.json.encode(self._task))
            while (line := lines.get(timeout=self._timeout_s)) is not None:
                yield from self._take(line)
        except Empty:
            end = f"it did not end within {self._timeout_s:g} s"
        else:
            code = process.wait()
            if code:
                end = f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
        finally:
            process.kill()
            process.wait()
            for reader in readers:
                reader.join(LEFTOVERS_S)
        if end:
            yield self._lost(end, tail.text().strip().rpartition("\n")[2])

    def _take(self, line: Line) -> Iterator[Result]:
        if line.begun:
            self._begun = line.begun
            self._left.remove(line.begun)
        elif line.ended:
            self._begun = ""
            yield self._result(line.ended, FAILED if line.error else OK, line.error, line.elapsed_s)
        elif line.error:
            yield self._result("", FAILED, line.error)
        else:
            self._left = list(line.checks)
            if not self._task.done:
                yield self._result("", OK, f"checked with {line.model}")
                for name in line.left_out:
                    yield self._result(name, LEFT_OUT)

    def _lost(self, what: str, last_words: str) -> Result:
        if self._begun and self._left:
            from hostler.testing import contract_checks

            done = tuple(name for name in contract_checks(**self._task.details) if name not in self._left)
            self.rest = msgspec.structs.replace(self._task, done=done)
        return self._result(self._begun, FAILED, f"{what}: {last_words}" if last_words else what)

    def _result(self, check: str, state: str, detail: str = "", elapsed_s: float = 0.0) -> Result:
        return Result(check or f"engine {self._engine.name}", state, detail, self._engine.name, elapsed_s)


def _write(stream: IO[bytes] | None, data: bytes) -> None:
    assert stream is not None
    try:
        with stream:
            stream.write(data)
    except BrokenPipeError:
        pass  # it died at once; its end says how


def _read_lines(stream: IO[bytes] | None, lines: SimpleQueue[Line | None]) -> None:
    assert stream is not None
    with stream:
        for line in stream:
            lines.put(msgspec.json.decode(line, type=Line))
    lines.put(None)


def _read_output(stream: IO[bytes] | None, tail: OutputTail) -> None:
    assert stream is not None
    with stream:
        while data := stream.read1(65536):  # type: ignore[attr-defined]
            tail.add(data)


def _info_of(plugins: Plugins, name: str) -> PluginInfo:
    infos = {info.name: info for info in [*plugins.left_out, *plugins.infos]}
    if name not in infos:
        raise CannotCheck(f"no plugin is named {name}; there are: {', '.join(info.name for info in plugins.infos)}")
    if infos[name].state == "disabled":
        raise CannotCheck(f"{name} is disabled; `hostler plugins enable {name}` takes it in again")
    return infos[name]
