"""`hostler threads`: conversations, by the API's thread routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hostler.cli.importing import import_file, import_options
from hostler.cli.lines import MESSAGE, THREAD, writing
from hostler.cli.options import OrderedGroup, harmless, home_option, json_option, print_json, print_table, read_settings
from hostler.cli.records import (
    delete_all,
    every,
    list_options,
    metadata_option,
    output_option,
    path_of,
    show_content,
    show_time,
    tell_export,
)
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.cli.client import Client

N_MESSAGES = 50
"""Of a thread that `show` shows when nothing is said."""


@click.group(cls=OrderedGroup)
def threads() -> None:
    """Conversations: list, show, create, delete, export and import them."""


@threads.command(name="list")
@list_options("threads", "desc")
@json_option("Print the threads as a JSON list.")
@home_option
def list_(limit: int | None, order: str, is_json: bool) -> None:
    """Show the threads that are here."""
    from hostler.cli.client import connect

    with connect(read_settings(), "threads list", is_reading=True) as client:
        found = list(every(client, path_of("threads"), order=order, limit=limit))
    if is_json:
        print_json(found)
        return
    if not found:
        click.echo(
            "No thread is here yet. `hostler threads create` makes one, `hostler threads import` reads them from a file."
        )
        return
    rows = [
        [
            thread["id"],
            thread["title"] or "-",
            ", ".join(thread["assistant_ids"]) or "-",
            _count(thread["messages"]),
            show_time(thread["updated"]),
        ]
        for thread in found
    ]
    print_table(["ID", "TITLE", "ASSISTANT", "MESSAGES", "UPDATED"], rows)


def _count(message_ids: list[str]) -> str:
    from hostler.records.objects import MAX_MESSAGE_IDS

    return f"{MAX_MESSAGE_IDS}+" if len(message_ids) >= MAX_MESSAGE_IDS else str(len(message_ids))


@threads.command()
@click.argument("thread")
@click.option(
    "--limit", type=click.IntRange(0), default=N_MESSAGES, metavar="N", help=f"The last N messages; 0: all [{N_MESSAGES}]."
)
@json_option("Print the thread as JSON; `hostler messages list THREAD --json` has its messages.")
@home_option
def show(thread: str, limit: int, is_json: bool) -> None:
    """Show one thread as a conversation."""
    from hostler.cli.client import connect

    with connect(read_settings(), "threads show", is_reading=True) as client:
        found = client.get(path_of("threads", thread))
        if is_json:
            print_json(found)
            return
        newest = list(every(client, path_of("threads", thread, "messages"), order="desc", limit=limit + 1 if limit else None))
    shown = newest[:limit] if limit else newest
    _print_head(found)
    if len(shown) < len(newest):
        click.echo("\n... earlier messages are not shown; --limit 0 shows all")
    for message in reversed(shown):
        _print_message(message)
    if not newest:
        click.echo(f"\nNo message is in it yet. `hostler messages create {found['id']} TEXT` adds one.")


def _print_head(thread: dict[str, Any]) -> None:
    click.secho(harmless(thread["title"]) or "(no title)", bold=True)
    facts = [thread["id"], f"created {show_time(thread['created_at'])}"]
    for assistant in thread["assistants"]:
        model = assistant["model"]["id"]
        facts.append(f"assistant {assistant['assistant_id']}" + (f" with {model}" if model else ""))
    click.echo(harmless(", ".join(facts)))
    for name, value in thread["metadata"].items():
        click.echo(harmless(f"{name}: {value}"))


def _print_message(message: dict[str, Any]) -> None:
    status = "" if message["status"] == "completed" else f", {message['status']}"
    click.secho(f"\n{message['role']}", bold=True, nl=False)
    click.secho(f"  {show_time(message['created_at'])}{status}  {message['id']}", dim=True)
    click.echo(harmless(show_content(message)))
    for name in message["file_ids"]:
        click.echo(f"[file {name}]")


@threads.command()
@click.argument("text", required=False)
@click.option("--title", help="What it is about.")
@click.option("--assistant", metavar="ID", help="Who answers in it; without it, the default assistant.")
@click.option("--model", metavar="MODEL", help="The model that answers; without it, the assistant's.")
@click.option(
    "--instructions", metavar="TEXT", help="What the model is told before the conversation, instead of the assistant's."
)
@metadata_option
@json_option("Print the thread as JSON.")
@home_option
def create(
    text: str | None,
    title: str | None,
    assistant: str | None,
    model: str | None,
    instructions: str | None,
    metadata: dict[str, str],
    is_json: bool,
) -> None:
    """Make a thread and print its id; TEXT becomes its first message, a user's."""
    from hostler.cli.client import connect
    from hostler.records.objects import DEFAULT_ASSISTANT

    body: dict[str, Any] = {"title": title, "metadata": metadata or None}
    if text is not None:
        body["messages"] = [{"role": "user", "content": text}]
    with connect(read_settings(), "threads create") as client:
        if assistant or model or instructions:
            entry: dict[str, Any] = {"assistant_id": assistant or DEFAULT_ASSISTANT, "instructions": instructions}
            known = client.get(path_of("assistants", entry["assistant_id"]))
            entry["assistant_name"] = known["name"]
            if model:
                entry["model"] = {"id": model}
            body["assistants"] = [entry]
        made = client.post(path_of("threads"), body)
    print_json(made) if is_json else click.echo(made["id"])


@threads.command()
@click.argument("ids", nargs=-1, required=True, metavar="THREAD...")
@json_option("Print one answer a thread as a JSON list.")
@home_option
def delete(ids: tuple[str, ...], is_json: bool) -> None:
    """Delete threads with all their messages."""
    from hostler.cli.client import connect

    with connect(read_settings(), "threads delete") as client:
        delete_all(client, [path_of("threads", name) for name in ids], is_json=is_json)


@threads.command()
@click.argument("ids", nargs=-1, metavar="[THREAD]...")
@output_option
@json_option("Print the counts as JSON; only with --output.")
@home_option
def export(ids: tuple[str, ...], output: Path | None, is_json: bool) -> None:
    """Write threads as JSON Lines: each on a line of its own, followed by its messages. Without THREAD all of them."""
    from hostler.cli.client import connect

    n_threads = n_messages = 0
    with connect(read_settings(), "threads export", is_reading=True) as client, writing(output) as write:
        for thread in chosen_threads(client, ids):
            messages = messages_of(client, thread["id"], is_wanted=bool(ids))
            if messages is not None:
                write(thread)
                n_threads += 1
                n_messages += _write_all(write, messages)
    tell_export({"threads": n_threads, "messages": n_messages}, output, is_json=is_json)


def chosen_threads(client: Client, ids: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The threads of some ids; of none: all, the oldest first, so that an import keeps their order."""
    if ids:
        yield from (client.get(path_of("threads", name)) for name in dict.fromkeys(ids))
    else:
        yield from every(client, path_of("threads"))


def messages_of(client: Client, thread_id: str, *, is_wanted: bool) -> Iterator[dict[str, Any]] | None:
    """A thread's messages in order; None: it was deleted while all threads were being read."""
    from itertools import chain

    from hostler.cli.client import Refused

    found = every(client, path_of("threads", thread_id, "messages"))
    try:
        first = next(found, None)
    except Refused as refused:
        if is_wanted or refused.status != 404:
            raise
        return None
    return chain([] if first is None else [first], found)


def _write_all(write: Callable[[Any], None], items: Iterator[dict[str, Any]]) -> int:
    count = 0
    for item in items:
        write(item)
        count += 1
    return count


@threads.command(name="import")
@import_options
@json_option("Print the counts as JSON.")
@home_option
def import_(file: Path, on_conflict: str, is_dry: bool, is_json: bool) -> None:
    """Read threads and their messages from JSON Lines, as `hostler threads export` writes them; `-` is stdin.

    Ids, times and order are kept. The whole file is checked before the first thread is written, and a thread comes with
    all its messages or not at all (one of more than 16 MB in several steps). After an interruption, --on-conflict skip
    goes on where it stopped.
    """
    import_file("threads import", file, {THREAD, MESSAGE}, on_conflict=on_conflict, is_dry=is_dry, is_json=is_json)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `threads`."""
    cli.add_command(threads)
