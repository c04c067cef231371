"""`hostler plugins`: what is installed, what each plugin brings, which does not work, and which this home leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hostler.cli.options import OrderedGroup, chosen_home, home_option, json_option, print_json, print_table
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.plugins import PluginInfo, Plugins


@click.group(cls=OrderedGroup, invoke_without_command=True)
@json_option("Print plugins and problems as JSON.")
@home_option
@click.pass_context
def plugins(context: click.Context, is_json: bool) -> None:
    """Show, check, choose and make plugins; without a command: list them."""
    if context.invoked_subcommand is None:
        show(is_json)


@plugins.command(name="list")
@json_option("Print plugins and problems as JSON.")
@home_option
def list_(is_json: bool) -> None:
    """Show the installed plugins, what each brings, and what is wrong with them."""
    show(is_json)


def show(is_json: bool) -> None:
    """Print all plugins; problems go to standard error."""
    from hostler.plugins import get_plugins

    found = get_plugins(_home())
    rows = describe(found)
    if is_json:
        problems = [{"plugin": problem.plugin, "message": problem.message} for problem in found.problems]
        print_json({"plugins": rows, "problems": problems})
        return
    print_table(
        ["NAME", "VERSION", "PACKAGE", "STATE", "BRINGS"],
        [[row["name"], row["version"] or "-", row["distribution"] or "-", row["state"], brings(row)] for row in rows],
    )
    for problem in found.problems:
        click.echo(f"problem: {problem.message}", err=True)


def describe(found: Plugins) -> list[dict[str, Any]]:
    """One row a plugin: who it is, how it fares, and what it brings that no other had brought before."""
    return [_row(found, info) for info in [*found.infos, *found.left_out]]


def _row(found: Plugins, info: PluginInfo) -> dict[str, Any]:
    from hostler import __version__

    state = info.state
    if state == "loaded":
        state = "problem" if any(problem.plugin == info.name for problem in found.problems) else "ok"
    return {
        "name": info.name,
        "version": __version__ if info.is_builtin else info.version,
        "distribution": "hostler" if info.is_builtin else info.distribution,
        "module": info.module,
        "is_builtin": info.is_builtin,
        "state": state,
        "engines": [
            {"name": engine.name, "formats": list(engine.formats), "version": engine.version}
            for engine in found.engines_of(info.name)
        ],
        "sources": [source.scheme for source in found.sources_of(info.name)],
    }


def brings(row: dict[str, Any]) -> str:
    """What a row's plugin brings, in words."""
    parts = [f"engine {engine['name']} ({', '.join(engine['formats'])})" for engine in row["engines"]]
    parts += [f"source {scheme}:" for scheme in row["sources"]]
    return ", ".join(parts) or "-"


@plugins.command()
@click.argument("names", nargs=-1, required=True, metavar="PLUGIN...")
@home_option
def disable(names: tuple[str, ...]) -> None:
    """Leave plugins out from now on, in every command and server of this home; nothing of them is imported any more.

    Helps against one that hangs or breaks, and against one that takes what another should have.
    """
    from hostler.installed import read_disabled, write_disabled

    home = _home()
    unknown = sorted(set(names) - set(_known()))
    if unknown:
        raise click.ClickException(f"no plugin is named {', '.join(unknown)}; there are: {', '.join(_known())}")
    write_disabled(home, read_disabled(home) | set(names))
    _tell(home, names, "disabled")


@plugins.command()
@click.argument("names", nargs=-1, required=True, metavar="PLUGIN...")
@home_option
def enable(names: tuple[str, ...]) -> None:
    """Take plugins in again that were disabled."""
    from hostler.installed import read_disabled, write_disabled

    home = _home()
    disabled = read_disabled(home)
    not_disabled = sorted(set(names) - disabled)
    if not_disabled:
        which = ", ".join(sorted(disabled)) or "none"
        raise click.ClickException(f"{', '.join(not_disabled)} is not disabled in {home}; disabled are: {which}")
    write_disabled(home, disabled - set(names))
    _tell(home, names, "enabled")


def _tell(home: Path, names: tuple[str, ...], what: str) -> None:
    from hostler.home import find_server

    click.echo(f"{', '.join(names)}: {what} in {home}")
    if find_server(home) is not None:
        click.echo("The server of this home goes on as it was until: hostler plugins reload")


def _known() -> list[str]:
    """Every name there is, without importing what bears it."""
    from hostler.installed import find_installed
    from hostler.plugins import BUILTIN

    return [*(module.rpartition(".")[2] for module in BUILTIN), *dict.fromkeys(plugin.name for plugin in find_installed())]


def _home() -> Path:
    from hostler.config import default_home

    return chosen_home() or default_home()


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `plugins`."""
    cli.add_command(plugins)
