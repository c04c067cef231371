"""Showing how a tuning goes: a progress bar on a terminal, plain lines elsewhere, JSON lines for programs.

Process of the command, its one thread.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import click
import msgspec

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Display(Protocol):
    """Where a tuning says what it does."""

    def note(self, text: str) -> None:
        """Something to know."""

    def begin(self, text: str, number: int, of: int) -> None:
        """A step begins."""

    def show(self, text: str, fraction: float | None) -> None:
        """The step goes on."""

    def end(self, summary: str) -> None:
        """The step is done."""

    def close(self) -> None:
        """Nothing more comes."""


class Bar:
    """For people at a terminal: a line for each finished step, and a bar below."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[place]}"), TimeElapsedColumn())
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: TaskID = self._progress.add_task("", total=1.0, place="")
        self._text, self._number = "", 0
        self._progress.start()

    def note(self, text: str) -> None:
        """See Display."""
        self._progress.console.print(text, markup=False, highlight=False)

    def begin(self, text: str, number: int, of: int) -> None:
        """See Display."""
        self._text, self._number = text, number - 1
        place = f"{number}/{of}"
        self._progress.update(self._task, description=text, total=float(of), completed=self._number, place=place)

    def show(self, text: str, fraction: float | None) -> None:
        """See Display."""
        del text
        if fraction is not None:
            self._progress.update(self._task, completed=self._number + fraction)

    def end(self, summary: str) -> None:
        """See Display."""
        self._progress.update(self._task, completed=self._number + 1)
        self.note(f"  {self._text}: {summary}")

    def close(self) -> None:
        """See Display."""
        self._progress.stop()


class Lines:
    """For logs: a line for each finished step, on stderr."""

    def __init__(self) -> None:
        self._head = ""

    def note(self, text: str) -> None:
        """See Display."""
        click.echo(text, err=True)

    def begin(self, text: str, number: int, of: int) -> None:
        """See Display."""
        self._head = f"{number}/{of} {text}"

    def show(self, text: str, fraction: float | None) -> None:
        """See Display."""

    def end(self, summary: str) -> None:
        """See Display."""
        click.echo(f"{self._head}: {summary}", err=True)

    def close(self) -> None:
        """See Display."""


class JsonLines:
    """For programs, on stdout: an object a change."""

    def __init__(self) -> None:
        self._step, self._started = "", 0.0
        self._last: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """See Display."""
        self._say({"note": text})

    def begin(self, text: str, number: int, of: int) -> None:
        """See Display."""
        self._step, self._started = text, time.monotonic()
        self._say({"step": text, "state": "started", "number": number, "of": of})

    def show(self, text: str, fraction: float | None) -> None:
        """See Display."""
        now = {"step": self._step, "state": "running", "text": text, "fraction": fraction}
        if now != self._last:
            self._last = now
            self._say(now)

    def end(self, summary: str) -> None:
        """See Display."""
        seconds = round(time.monotonic() - self._started, 3)
        self._say({"step": self._step, "state": "done", "text": summary, "seconds": seconds})

    def close(self) -> None:
        """See Display."""

    def _say(self, message: dict[str, Any]) -> None:
        click.echo(msgspec.json.encode(message).decode())


def display_for(*, is_json: bool) -> Display:
    """What suits where the output goes."""
    return JsonLines() if is_json else Bar() if sys.stderr.isatty() else Lines()
