"""`hostler assistants`: who answers in threads, by the API's assistant routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hostler.cli.importing import import_file, import_options
from hostler.cli.lines import ASSISTANT, writing
from hostler.cli.options import OrderedGroup, harmless, home_option, json_option, print_json, print_table, read_settings
from hostler.cli.records import (
    delete_all,
    every,
    list_options,
    metadata_option,
    output_option,
    path_of,
    show_fields,
    show_time,
    tell_export,
)
from hostler.hookspecs import hookimpl

SHOWN = (
    "id", "name", "description", "model", "temperature", "top_p", "parameters", "tools", "tool_resources", "response_format",
    "file_ids", "thread_location", "metadata", "created_at",
)  # fmt: skip
"""The fields of `show`, in order; instructions and avatar follow."""


@click.group(cls=OrderedGroup)
def assistants() -> None:
    """Instructions with a model and its parameters: list, show, create, delete, export and import them."""


@assistants.command(name="list")
@list_options("assistants", "desc")
@json_option("Print the assistants as a JSON list.")
@home_option
def list_(limit: int | None, order: str, is_json: bool) -> None:
    """Show the assistants that are here."""
    from hostler.cli.client import connect

    with connect(read_settings(), "assistants list", is_reading=True) as client:
        found = list(every(client, path_of("assistants"), order=order, limit=limit))
    if is_json:
        print_json(found)
        return
    rows = [
        [
            assistant["id"],
            assistant["name"] or "-",
            assistant["model"] or "(default)",
            " ".join((assistant["instructions"] or "-").split())[:40],
            show_time(assistant["created_at"]),
        ]
        for assistant in found
    ]
    print_table(["ID", "NAME", "MODEL", "INSTRUCTIONS", "CREATED"], rows)


@assistants.command()
@click.argument("assistant")
@json_option("Print the assistant as JSON.")
@home_option
def show(assistant: str, is_json: bool) -> None:
    """Show all that is known of one assistant."""
    from hostler.cli.client import connect

    with connect(read_settings(), "assistants show", is_reading=True) as client:
        found = client.get(path_of("assistants", assistant))
    if is_json:
        print_json(found)
        return
    avatar = found["avatar"] or ""
    rows = show_fields({**found, "model": found["model"] or "(default)"}, SHOWN)
    if avatar:
        rows.append(["avatar", avatar if len(avatar) <= 200 else f"{len(avatar)} characters"])
    print_table(["FIELD", "VALUE"], rows)
    if found["instructions"]:
        click.echo(f"\n{harmless(found['instructions'])}")


@assistants.command()
@click.option("--id", "assistant_id", metavar="ID", help="Its id; without it, a new one is made.")
@click.option("--name", help="A name for people.")
@click.option("--description", metavar="TEXT", help="What it is for.")
@click.option(
    "--model", metavar="MODEL", help="The model that answers, which need not be here yet; without it, the default model."
)
@click.option("--instructions", metavar="TEXT", help="What the model is told before each conversation.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), metavar="NUMBER", help="Randomness; 0 takes the most likely token always."
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1), metavar="NUMBER", help="Choose among the likeliest tokens that make up this share."
)
@metadata_option
@json_option("Print the assistant as JSON.")
@home_option
def create(assistant_id: str | None, is_json: bool, metadata: dict[str, str], **fields: Any) -> None:
    """Make an assistant and print its id."""
    from hostler.cli.client import Refused, connect

    body = {**fields, "metadata": metadata or None}
    with connect(read_settings(), "assistants create") as client:
        if assistant_id is None:
            made = client.post(path_of("assistants"), body)
        else:
            path = path_of("assistants", assistant_id)
            try:
                client.get(path)
            except Refused as refused:
                if refused.status != 404:
                    raise
            else:
                raise click.ClickException(f"there is already an assistant {assistant_id}")
            made = client.post(path, body)
    print_json(made) if is_json else click.echo(made["id"])


@assistants.command()
@click.argument("ids", nargs=-1, required=True, metavar="ASSISTANT...")
@json_option("Print one answer an assistant as a JSON list.")
@home_option
def delete(ids: tuple[str, ...], is_json: bool) -> None:
    """Delete assistants; threads that name one stay as they are. The default assistant cannot be deleted."""
    from hostler.cli.client import connect

    with connect(read_settings(), "assistants delete") as client:
        delete_all(client, [path_of("assistants", name) for name in ids], is_json=is_json)


@assistants.command()
@click.argument("ids", nargs=-1, metavar="[ASSISTANT]...")
@output_option
@json_option("Print the count as JSON; only with --output.")
@home_option
def export(ids: tuple[str, ...], output: Path | None, is_json: bool) -> None:
    """Write assistants as JSON Lines, one a line. Without ASSISTANT all of them."""
    from hostler.cli.client import connect

    count = 0
    with connect(read_settings(), "assistants export", is_reading=True) as client, writing(output) as write:
        chosen = (client.get(path_of("assistants", name)) for name in dict.fromkeys(ids))
        for assistant in chosen if ids else every(client, path_of("assistants")):
            write(assistant)
            count += 1
    tell_export({"assistants": count}, output, is_json=is_json)


@assistants.command(name="import")
@import_options
@json_option("Print the counts as JSON.")
@home_option
def import_(file: Path, on_conflict: str, is_dry: bool, is_json: bool) -> None:
    """Read assistants from JSON Lines, as `hostler assistants export` writes them; `-` is stdin.

    Ids and times are kept. One that is here already in just this form is no conflict, nor is the default assistant as
    long as nobody has changed it.
    """
    import_file("assistants import", file, {ASSISTANT}, on_conflict=on_conflict, is_dry=is_dry, is_json=is_json)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `assistants`."""
    cli.add_command(assistants)
