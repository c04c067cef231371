"""`hostler messages`: the turns of threads, by the API's message routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hostler.cli.importing import import_file, import_options
from hostler.cli.lines import MESSAGE, writing
from hostler.cli.options import OrderedGroup, harmless, home_option, json_option, print_json, print_table, read_settings
from hostler.cli.records import (
    delete_all,
    every,
    list_options,
    metadata_option,
    one_line,
    output_option,
    path_of,
    read_text,
    show_content,
    show_fields,
    show_time,
    tell_export,
)
from hostler.cli.threads import chosen_threads, messages_of
from hostler.hookspecs import hookimpl

SHOWN = (
    "id", "thread_id", "role", "status", "incomplete_details", "created_at", "assistant_id", "run_id", "chat_completion_id",
    "file_ids", "attachments", "metadata",
)  # fmt: skip
"""The fields of `show`, in order; the content follows."""


@click.group(cls=OrderedGroup)
def messages() -> None:
    """Turns of a thread: list, show, create, delete, export and import them."""


@messages.command(name="list")
@click.argument("thread")
@list_options("messages", "asc")
@json_option("Print the messages as a JSON list.")
@home_option
def list_(thread: str, limit: int | None, order: str, is_json: bool) -> None:
    """Show the messages of a thread, a line each; `hostler threads show` has them whole."""
    from hostler.cli.client import connect

    with connect(read_settings(), "messages list", is_reading=True) as client:
        found = list(every(client, path_of("threads", thread, "messages"), order=order, limit=limit))
    if is_json:
        print_json(found)
        return
    if not found:
        click.echo(f"No message is in {thread} yet. `hostler messages create {thread} TEXT` adds one.")
        return
    rows = [
        [message["id"], message["role"], show_time(message["created_at"]), message["status"], one_line(show_content(message))]
        for message in found
    ]
    print_table(["ID", "ROLE", "CREATED", "STATUS", "TEXT"], rows)


@messages.command()
@click.argument("thread")
@click.argument("message")
@json_option("Print the message as JSON.")
@home_option
def show(thread: str, message: str, is_json: bool) -> None:
    """Show one message whole."""
    from hostler.cli.client import connect

    with connect(read_settings(), "messages show", is_reading=True) as client:
        found = client.get(path_of("threads", thread, "messages", message))
    if is_json:
        print_json(found)
        return
    print_table(["FIELD", "VALUE"], show_fields(found, SHOWN))
    click.echo(f"\n{harmless(show_content(found))}")


@messages.command()
@click.argument("thread")
@click.argument("text", required=False)
@click.option(
    "--role",
    type=click.Choice(["user", "assistant"]),
    default="user",
    metavar="user|assistant",
    help="Whose turn it is [user].",
)
@click.option("--file", "file_ids", multiple=True, metavar="FILE_ID", help="A file that it names. May be given several times.")
@metadata_option
@json_option("Print the message as JSON.")
@home_option
def create(
    thread: str, text: str | None, role: str, file_ids: tuple[str, ...], metadata: dict[str, str], is_json: bool
) -> None:
    """Add a message to the end of a thread and print its id. Without TEXT, or with `-`, it is read from stdin."""
    from hostler.cli.client import connect

    body: dict[str, Any] = {"role": role, "content": read_text(text)}
    if file_ids:
        body["file_ids"] = list(file_ids)
    if metadata:
        body["metadata"] = metadata
    with connect(read_settings(), "messages create") as client:
        made = client.post(path_of("threads", thread, "messages"), body)
    print_json(made) if is_json else click.echo(made["id"])


@messages.command()
@click.argument("thread")
@click.argument("ids", nargs=-1, required=True, metavar="MESSAGE...")
@json_option("Print one answer a message as a JSON list.")
@home_option
def delete(thread: str, ids: tuple[str, ...], is_json: bool) -> None:
    """Delete messages of a thread."""
    from hostler.cli.client import connect

    with connect(read_settings(), "messages delete") as client:
        delete_all(client, [path_of("threads", thread, "messages", name) for name in ids], is_json=is_json)


@messages.command()
@click.argument("threads", nargs=-1, metavar="[THREAD]...")
@output_option
@json_option("Print the count as JSON; only with --output.")
@home_option
def export(threads: tuple[str, ...], output: Path | None, is_json: bool) -> None:
    """Write the messages of threads as JSON Lines, one a line, in their order. Without THREAD those of all threads."""
    from hostler.cli.client import connect

    count = 0
    with connect(read_settings(), "messages export", is_reading=True) as client, writing(output) as write:
        for thread in chosen_threads(client, threads):
            for message in messages_of(client, thread["id"], is_wanted=bool(threads)) or ():
                write(message)
                count += 1
    tell_export({"messages": count}, output, is_json=is_json)


@messages.command(name="import")
@import_options
@click.option("--thread", metavar="THREAD", help="Put them all into this thread; without it, each into the thread it names.")
@json_option("Print the counts as JSON.")
@home_option
def import_(file: Path, thread: str | None, on_conflict: str, is_dry: bool, is_json: bool) -> None:
    """Read messages from JSON Lines into threads that are here, behind those they have; `-` is stdin.

    Ids, times and order are kept. Threads themselves come by `hostler threads import`.
    """

    def change(value: dict[str, Any]) -> dict[str, Any]:
        return value if thread is None else {**value, "thread_id": thread}

    import_file("messages import", file, {MESSAGE}, on_conflict=on_conflict, is_dry=is_dry, is_json=is_json, change=change)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `messages`."""
    cli.add_command(messages)
