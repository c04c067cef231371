"""What all commands share: `--home`, `--json`, loading the settings, and how numbers, tables and JSON are shown."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hostler.config import Settings

_Function = TypeVar("_Function", bound=Callable[..., Any])


class OrderedGroup(click.Group):
    """A group of commands that shows them in the order they were written, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """All names."""
        return list(self.commands)


def _remember_home(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:  # noqa: ARG001 - click's
    if value is not None:
        context.find_root().obj = value


def home_option(function: _Function) -> _Function:
    """Add `--home`; read it with `chosen_home`."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        expose_value=False,
        callback=_remember_home,
        help="Data folder; also HOSTLER_HOME.",
    )(function)


def json_option(help_text: str) -> Callable[[_Function], _Function]:
    """Add `--json`, passed as `is_json`."""
    return click.option("--json", "is_json", is_flag=True, help=help_text)


def chosen_home() -> Path | None:
    """The folder given by `--home`, before or after the command's name; None when none was."""
    home = click.get_current_context().find_root().obj
    return home.expanduser().absolute() if isinstance(home, Path) else None


def read_settings(flags: dict[str, Any] | None = None) -> Settings:
    """All settings of the chosen home."""
    from hostler.config import load_settings

    return load_settings(chosen_home(), flags)


def harmless(text: str) -> str:
    """A stranger's text as a terminal may get it: what would command it is shown as a mark. A pipe gets the text as it is."""
    if not sys.stdout.isatty():
        return text
    return "".join("\ufffd" if unicodedata.category(one) == "Cc" and one not in "\n\t" else one for one in text)


def print_json(value: Any) -> None:
    """One value as JSON: indented on a terminal, one line elsewhere."""
    import msgspec

    text = msgspec.json.encode(value)
    click.echo((msgspec.json.format(text, indent=2) if sys.stdout.isatty() else text).decode())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns: drawn by rich on a terminal, plain and unwrapped elsewhere, so that a pipe gets one line a row."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(Text(harmless(cell)) for cell in row))
        Console().print(table)
        return
    lines = [headings, *([" ".join(cell.splitlines()) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for row in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_bytes(count: float | None) -> str:
    """A size as people read it: `97.3 MB`, decimal units."""
    if not count:
        return "-" if count is None else "0 B"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def show_seconds(seconds: float) -> str:
    """A duration as people read it: `8s`, `3m20s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
