"""Showing a download: a bar on a terminal, plain lines elsewhere, JSON lines for scripts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol
from urllib.parse import quote

import click
import msgspec

from hostler.cli.client import Client, Refused
from hostler.cli.options import show_bytes, show_seconds

POLL_S = 0.2
LINE_EVERY_S = 5.0
"""How often a log without a terminal gets a line."""


class PullState(msgspec.Struct, frozen=True):
    """How far a download is."""

    id: str
    state: str
    """`downloading`, `downloaded` or `failed`."""
    done_bytes: int
    total_bytes: int | None
    speed: float
    """Bytes a second."""
    elapsed_s: float
    error: str | None = None
    variant: str | None = None
    """Of a model that its source has in several forms: which one it is."""
    variant_reason: str | None = None


class Display(Protocol):
    """Shows states as they come."""

    def show(self, state: PullState) -> None:
        """Take the next state."""


class JsonLines:
    """One object a change, on stdout."""

    def __init__(self) -> None:
        self._last: PullState | None = None

    def show(self, state: PullState) -> None:
        """Print it unless nothing moved."""
        if self._last is None or (state.state, state.done_bytes) != (self._last.state, self._last.done_bytes):
            click.echo(msgspec.json.encode(state).decode())
            self._last = state


class PlainLines:
    """A line now and then, on stderr."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def show(self, state: PullState) -> None:
        """Print it when it is time to."""
        if state.elapsed_s >= self._next_s and state.state == "downloading":
            self._next_s = state.elapsed_s + LINE_EVERY_S
            click.echo(f"{state.id}: {_words(state)}", err=True)


def _words(state: PullState) -> str:
    if state.total_bytes is None and not state.done_bytes:
        return "asking its source where the files are"
    whole = f" of {show_bytes(state.total_bytes)}" if state.total_bytes else ""
    if state.done_bytes == state.total_bytes:
        return f"{show_bytes(state.done_bytes)} are here and are being checked"
    return f"{show_bytes(state.done_bytes)}{whole}, {show_bytes(state.speed)}/s"


class Bar(AbstractContextManager["Bar"]):
    """rich's progress bar, on stderr."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def show(self, state: PullState) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._progress.add_task(state.id, total=state.total_bytes)
        is_asking = state.total_bytes is None and not state.done_bytes
        description = f"{state.id} (asking its source)" if is_asking else state.id
        self._progress.update(self._task, description=description, completed=state.done_bytes, total=state.total_bytes)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def pull(client: Client, source: str, model_id: str | None, *, is_json: bool = False) -> str:
    """Download a model and show how it goes; Ctrl-C never loses what has arrived.

    Returns:
        The model's id.

    Raises:
        click.ClickException: It failed; the message says why.
    """
    body = {"model": source} if model_id is None else {"model": source, "id": model_id}
    answer = client.post("/v1/models/pull", body)
    name = str(answer["id"])
    if answer["state"] not in {"downloading", "not_downloaded"}:  # else it was as quick to fail
        if is_json:
            JsonLines().show(_arrived(client, name, 0.0))
        else:
            click.echo(f"{name} is already here", err=True)
        return name
    display: JsonLines | PlainLines | Bar
    display = JsonLines() if is_json else Bar() if sys.stderr.isatty() else PlainLines()
    try:
        with display if isinstance(display, Bar) else nullcontext():
            last = _watch(client, name, display.show)
    except KeyboardInterrupt:
        if client.address is None:
            told = f"{name} was not downloaded: interrupted; the same command goes on where it stopped"
        else:
            told = f"the download of {name} goes on in the server at {client.address.url}; `hostler rm {name}` ends it"
        raise click.ClickException(told) from None
    if last.error is not None:
        raise click.ClickException(last.error)
    if not is_json:
        click.echo(f"{name} is here: {show_bytes(last.done_bytes)} in {show_seconds(last.elapsed_s)}", err=True)
        if last.variant:
            click.echo(f"of its variants {last.variant} was taken: {last.variant_reason}", err=True)
    return name


def _watch(client: Client, name: str, show: Callable[[PullState], None]) -> PullState:
    started = time.monotonic()
    while True:
        try:
            report = client.get(f"/v1/download/getDownloadProgress/{quote(name, safe='')}")
        except Refused as refused:
            if refused.status != 404:
                raise
            report = None  # it ended, and nothing is left to report: the model itself tells how
        if report is None or report["downloadState"] == "end":
            state = _arrived(client, name, time.monotonic() - started)
            show(state)
            return state
        size = report["size"]
        state = PullState(
            id=name,
            state="failed" if report["downloadState"] == "error" else "downloading",
            done_bytes=int(size["transferred"]),
            total_bytes=int(size["total"]) if size.get("total") else None,
            speed=float(report["speed"] or 0.0),
            elapsed_s=time.monotonic() - started,
            error=_reason(client, name, report) if report["downloadState"] == "error" else None,
        )
        show(state)
        if state.error is not None:
            return state
        time.sleep(POLL_S)  # progress has no event over HTTP in this release


def _arrived(client: Client, name: str, elapsed_s: float) -> PullState:
    model = client.get(f"/v1/models/{quote(name, safe='')}", schema="native")
    metadata = model.get("metadata", {})
    size = metadata.get("size_bytes")
    done = int(size) if size else 0
    if model["lifecycle"] in {"not_downloaded", "downloading"}:
        reason = model.get("last_error") or f"{name} was not downloaded, and the server does not say why"
        return PullState(name, "failed", done, done or None, 0.0, elapsed_s, reason)
    variant, reason = metadata.get("variant"), metadata.get("variant_reason")
    return PullState(name, "downloaded", done, done or None, 0.0, elapsed_s, variant=variant, variant_reason=reason)


def _reason(client: Client, name: str, report: dict[str, Any]) -> str:
    if report.get("error"):
        return str(report["error"])
    model = client.get(f"/v1/models/{quote(name, safe='')}")
    return str(model.get("last_error") or f"{name} was not downloaded, and the server does not say why")
