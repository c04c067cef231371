"""Showing how a conversion goes: one line that moves on a terminal, plain lines elsewhere, JSON lines for programs.

Process of the command, its one thread.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import click
import msgspec

from hostler import show_seconds


class Clock:
    """Seconds since a moment."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Until now."""
        return time.monotonic() - self._started


class Display(Protocol):
    """Where a conversion says what it does."""

    def note(self, text: str) -> None:
        """Something to know."""

    def begin(self, step: str, number: int, of: int) -> None:
        """A step begins."""

    def show(self, text: str, fraction: float | None) -> None:
        """The step goes on."""

    def end(self, summary: str, *, was_done: bool = False) -> float:
        """The step is done, by this command or an earlier one; gives its seconds."""


class Lines:
    """For people, on stderr."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._clock = Clock()
        self._head = ""
        self._shown = ""

    def note(self, text: str) -> None:
        """See Display."""
        click.echo(text, err=True)

    def begin(self, step: str, number: int, of: int) -> None:
        """See Display."""
        self._head = f"{number}/{of} {step:<9}"
        self._shown = ""
        self._clock = Clock()

    def show(self, text: str, fraction: float | None) -> None:
        """See Display."""
        if self._is_terminal:
            share = "" if fraction is None else f" {fraction:4.0%}"
            line = f"{self._head} {show_seconds(self._clock.seconds()):>6}{share}  {text}"
            click.echo(f"\r\x1b[K{line[:100]}", nl=False, err=True)
        elif text != self._shown:
            self._shown = text
            click.echo(f"{self._head} {text}", err=True)

    def end(self, summary: str, *, was_done: bool = False) -> float:
        """See Display."""
        seconds = self._clock.seconds()
        took = "before" if was_done else show_seconds(seconds)
        click.echo(f"{chr(13) + chr(27) + '[K' if self._is_terminal else ''}{self._head} {took:>6}  {summary}", err=True)
        return seconds


class JsonLines:
    """For programs, on stdout: an object a change."""

    def __init__(self) -> None:
        self._clock = Clock()
        self._step = ""
        self._last: dict[str, Any] = {}

    def note(self, text: str) -> None:
        """See Display."""
        self._say({"note": text})

    def begin(self, step: str, number: int, of: int) -> None:
        """See Display."""
        self._step, self._clock = step, Clock()
        self._say({"step": step, "state": "started", "number": number, "of": of})

    def show(self, text: str, fraction: float | None) -> None:
        """See Display."""
        now = {"step": self._step, "state": "running", "text": text, "fraction": fraction}
        if now != self._last:
            self._last = now
            self._say(now)

    def end(self, summary: str, *, was_done: bool = False) -> float:
        """See Display."""
        seconds = self._clock.seconds()
        state = "was done" if was_done else "done"
        self._say({"step": self._step, "state": state, "text": summary, "seconds": round(seconds, 3)})
        return seconds

    def _say(self, message: dict[str, Any]) -> None:
        click.echo(msgspec.json.encode(message).decode())
