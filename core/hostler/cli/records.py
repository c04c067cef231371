"""What `threads`, `messages` and `assistants` share: lists with all their pages, their options, and how records are shown.

Floor 6; the process of one command. It knows routes, not tables.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from hostler.cli.options import print_json

if TYPE_CHECKING:
    from hostler.cli.client import Client

_Function = TypeVar("_Function", bound=Callable[..., Any])

LINE_CHARACTERS = 72
"""Of a text in a table; `show` has it whole."""


# -- options ------------------------------------------------------------------------------------------------------------


def list_options(what: str, order: str) -> Callable[[_Function], _Function]:
    """Add `--limit` and `--order`.

    Args:
        what: The plural, for the help.
        order: The default: `desc` is newest first.
    """

    def add(function: _Function) -> _Function:
        limit = click.option("--limit", type=click.IntRange(1), metavar="N", help=f"Only the first N {what}; without it, all.")
        ordered = click.option(
            "--order",
            type=click.Choice(["asc", "desc"]),
            default=order,
            metavar="asc|desc",
            help=f"Oldest or newest first [{order}].",
        )
        return limit(ordered(function))

    return add


def metadata_option(function: _Function) -> _Function:
    """Add `--metadata KEY=VALUE`, passed as a mapping; the API checks its limits."""
    return click.option(
        "--metadata",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_read_metadata,
        help="Something to keep with it. May be given several times.",
    )(function)


def _read_metadata(context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", ctx=context, param=parameter)
        found[name] = value
    return found


def read_text(text: str | None) -> str:
    """The text of an argument; `-`, or nothing while something is piped in: what stands on stdin.

    Raises:
        click.UsageError: There is none.
    """
    if text is None and sys.stdin.isatty():
        raise click.UsageError("the text is missing; give it as an argument, or pipe it in")
    if text is None or text == "-":
        text = sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")
    if not text.strip():
        raise click.UsageError("the text is empty")
    return text


def output_option(function: _Function) -> _Function:
    """Add `--output`, passed as a path or None."""
    return click.option(
        "--output",
        "-o",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write to this file, which appears whole or not at all; without it, to stdout.",
    )(function)


# -- asking -------------------------------------------------------------------------------------------------------------


def path_of(*parts: str) -> str:
    """`path_of("threads", id, "messages")`: a route, its ids percent-encoded.

    Raises:
        click.UsageError: An id that would lead elsewhere: `messages delete THREAD ..` must not delete the thread.
    """
    for part in parts:
        if part in ("", ".", ".."):
            raise click.UsageError(f"{part!r} is no id")
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def every(client: Client, path: str, *, order: str = "asc", limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a list, page after page, as somebody may add and delete some meanwhile."""
    from hostler.cli.client import Refused
    from hostler.records.objects import MAX_PAGE

    n_left = limit
    last: list[str] = []
    while n_left is None or n_left > 0:
        size = MAX_PAGE if n_left is None else min(MAX_PAGE, n_left)
        query = {"after": last[-1]} if last else {}
        try:
            page = client.get(path, limit=str(size), order=order, **query)
        except Refused as refused:
            if refused.param != "after" or len(last) < 2:
                raise
            last.pop()  # the last one seen was deleted: go on behind the one before it
            continue
        yield from page["data"]
        last = [item["id"] for item in page["data"]]
        if not page["has_more"] or not last:
            return
        n_left = None if n_left is None else n_left - len(last)


def delete_all(client: Client, paths: Iterable[str], *, is_json: bool) -> None:
    """Delete one after the other, and say so."""
    answers = []
    for path in paths:
        answers.append(client.delete(path))
        if not is_json:
            click.echo(f"{answers[-1]['id']} is deleted")
    if is_json:
        print_json(answers)


def tell_export(counts: dict[str, int], output: Path | None, *, is_json: bool) -> None:
    """Say what was written to a file; stdout has the lines themselves, and nothing else."""
    if output is None:
        return
    if is_json:
        print_json({**counts, "output": str(output)})
    else:
        told = " and ".join(f"{count} {kind if count != 1 else kind.removesuffix('s')}" for kind, count in counts.items())
        click.echo(f"{output} has {told}", err=True)


# -- showing ------------------------------------------------------------------------------------------------------------


def show_time(seconds: float | None) -> str:
    """A time as people here read it: `2026-11-26 14:05`."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def show_content(message: dict[str, Any]) -> str:
    """What a message says; what is no text is named."""
    parts = []
    for part in message["content"]:
        if part["type"] == "text":
            parts.append(part["text"]["value"])
        elif part["type"] == "image_url":
            parts.append(f"[image: {one_line(str(part['image_url'].get('url', '')))}]")
        else:
            parts.append(f"[image: file {part['image_file'].get('file_id', '')}]")
    return "\n".join(parts)


def one_line(text: str) -> str:
    """The beginning of a text, for a table."""
    flat = " ".join(text[: LINE_CHARACTERS * 4].split())
    return flat if len(flat) <= LINE_CHARACTERS else f"{flat[: LINE_CHARACTERS - 1]}…"


def show_fields(item: dict[str, Any], names: Iterable[str]) -> list[list[str]]:
    """Rows of FIELD and VALUE: what is set of some fields; objects are taken apart."""
    rows = []
    for name in names:
        value = item.get(name)
        if name in {"created_at", "updated"}:
            rows.append([name, show_time(value)])
        elif isinstance(value, dict):
            rows += [[f"{name}.{key}", one_line(_shown(inner))] for key, inner in value.items()]
        elif value not in (None, "", []):
            rows.append([name, _shown(value)])
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    import msgspec

    return msgspec.json.encode(value).decode()
