"""Models in memory: `start`, `stop`, `ps`. They speak to the server of this home; without one nothing runs."""

from __future__ import annotations

from typing import Any

import click

from hostler.cli.options import (
    home_option,
    json_option,
    print_json,
    print_table,
    read_settings,
    show_bytes,
    show_seconds,
)
from hostler.hookspecs import hookimpl


def read_overrides(context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Turn `--set ctx_len=4096` into a mapping; the API checks names and values."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", ctx=context, param=parameter)
        found[name.strip().replace("-", "_")] = value.strip()
    return found


@click.command()
@click.argument("model")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    callback=read_overrides,
    help="A setting for this run, such as ctx_len=4096, n_parallel=2 or ngl=0. May be given several times.",
)
@json_option("Print the answer as JSON.")
@home_option
def start(model: str, settings: dict[str, str], is_json: bool) -> None:
    """Load a model into the running server and wait until it answers."""
    from hostler.cli.client import connect_to_server, model_path

    with connect_to_server(read_settings(), "a started model lives in one") as client:
        answer = client.put(model_path(model, "/start"), dict(settings))
    _report(answer, is_json)


@click.command()
@click.argument("model")
@json_option("Print the answer as JSON.")
@home_option
def stop(model: str, is_json: bool) -> None:
    """Unload a model from the running server; its memory is free afterwards."""
    from hostler.cli.client import connect_to_server, model_path

    with connect_to_server(read_settings(), "without one no model runs") as client:
        answer = client.put(model_path(model, "/stop"), {})
    _report(answer, is_json)


def _report(answer: dict[str, Any], is_json: bool) -> None:
    if is_json:
        print_json(answer)
        return
    click.echo(f"{answer['id']} is {answer['state']}")
    if answer.get("warning"):
        click.echo(f"warning: {answer['warning']}", err=True)


@click.command()
@json_option("Print the models as a JSON list: id, state, pid, engine, memory_bytes, ctx_len, n_slots, n_active, n_queued.")
@home_option
def ps(is_json: bool) -> None:
    """Show the models that are in memory, each with the process it runs in."""
    from hostler.cli.client import connect_to
    from hostler.home import find_server

    settings = read_settings()
    address = find_server(settings.home)
    models: list[dict[str, Any]] = []
    if address is not None:
        with connect_to(address) as client:
            models = [_pick(item) for item in client.get("/v1/models", schema="native")["data"]]
    models = [model for model in models if model["state"] in {"starting", "running", "stopping"}]
    if is_json:
        print_json(models)
        return
    if address is None:
        click.echo(f"No hostler server runs for {settings.home}, so no model does.")
        return
    if not models:
        click.echo(f"No model runs in the server at {address.url}.")
        return
    rows = [
        [
            model["id"],
            model["state"],
            str(model["pid"] or "-"),
            model["engine"],
            show_bytes(model["memory_bytes"]),
            str(model["ctx_len"]),
            f"{model['n_active']}/{model['n_slots']}",
            str(model["n_queued"]),
            "-" if model["idle_s"] is None else show_seconds(model["idle_s"]),
        ]
        for model in models
    ]
    print_table(["ID", "STATE", "PID", "ENGINE", "MEMORY", "CTX", "SLOTS", "QUEUED", "IDLE"], rows)


def _pick(item: dict[str, Any]) -> dict[str, Any]:
    run = item.get("hostler") or {}
    return {
        "id": item["id"],
        "state": item["lifecycle"],
        "pid": run.get("pid"),
        "engine": item["metadata"].get("engine", ""),
        "memory_bytes": run.get("memory_bytes", 0),
        "ctx_len": int(item["settings"]["ctx_len"]),
        "n_slots": int(item["settings"]["n_parallel"]),
        "n_active": run.get("n_active", 0),
        "n_queued": run.get("n_queued", 0),
        "idle_s": run.get("idle_s"),
    }


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add the commands of this module."""
    for command in (start, stop, ps):
        cli.add_command(command)
