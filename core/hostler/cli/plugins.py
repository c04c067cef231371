"""`hostler plugins`: what is installed, what each plugin brings, which does not work, and which this home leaves out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hostler.cli.options import (
    OrderedGroup,
    chosen_home,
    home_option,
    json_option,
    print_json,
    print_table,
    read_settings,
)
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.cli.plugincheck import Result
    from hostler.pluginview import PluginView

SHOWN_S = 1.0
"""A check that took so long is shown with its time."""


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
    from hostler.pluginview import describe

    found = get_plugins(_home())
    rows = describe(found)
    if is_json:
        problems = [{"plugin": problem.plugin, "message": problem.message} for problem in found.problems]
        print_json({"plugins": rows, "problems": problems})
        return
    print_table(
        ["NAME", "VERSION", "PACKAGE", "STATE", "BRINGS"],
        [[row.name, row.version or "-", row.distribution or "-", row.state, brings(row)] for row in rows],
    )
    for problem in found.problems:
        click.echo(f"problem: {problem.message}", err=True)


def brings(row: PluginView) -> str:
    """What a plugin brings, in words."""
    parts = [f"engine {engine.name} ({', '.join(engine.formats)})" for engine in row.engines]
    parts += [f"source {scheme}:" for scheme in row.sources]
    parts += [f"routes {prefix}" for prefix in row.routes]
    parts += [f"listener to {glob}" for glob in row.events]
    return ", ".join(parts) or "-"


@plugins.command()
@click.argument("name", metavar="PLUGIN")
@click.option("--model", metavar="MODEL", help="Id of a model, or a path, to check with [what the plugin brings].")
@click.option("--without", multiple=True, metavar="CHECK", help="A check to leave out. May be given several times.")
@click.option(
    "--near-tie",
    type=click.FloatRange(min=0),
    metavar="NUMBER",
    help="Let answers differ where two tokens' log probabilities are so close [what the plugin says].",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=1),
    default=120.0,
    metavar="NUMBER",
    help="Seconds that one check may take before it has failed [120].",
)
@json_option("Print the results as a JSON list.")
@home_option
def check(
    name: str, model: str | None, without: tuple[str, ...], near_tie: float | None, timeout_s: float, is_json: bool
) -> None:
    """Check whether PLUGIN keeps hostler's contract; exits 1 if it does not.

    Its hooks are called, its engine's probe is run, and the engine itself goes through the checks of the engine contract with
    a small model, in a process of its own.
    """
    from hostler.cli.plugincheck import STATES, PluginCheck

    run = PluginCheck(
        _home(),
        name,
        model=model or "",
        without=without,
        allow_near_tie=near_tie,
        timeout_s=timeout_s,
    )
    results = []
    for result in run.results():
        results.append(result)
        if not is_json:
            click.echo(_show(result))
    counts = Counter(result.state for result in results)
    if is_json:
        print_json(results)
    else:
        click.echo(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    if counts["failed"]:
        click.get_current_context().exit(1)


def _show(result: Result) -> str:
    text = f"{result.state:<8}  {result.subject}"
    if result.elapsed_s >= SHOWN_S:
        text += f" ({result.elapsed_s:.1f} s)"
    lines = result.detail.splitlines()
    if not lines:
        return text
    return "\n".join([f"{text}: {lines[0]}", *(f"          {line}" for line in lines[1:])])


@plugins.command()
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="Where to write the package [hostler-NAME].",
)
def new(name: str, folder: Path | None) -> None:
    """Write a package with an engine plugin that works: the place to begin with one of your own.

    NAME is what the engine and its model format will be called. The engine is a real, if very small, language model; the
    package has tests that run hostler's checks of an engine, and passes them. Nothing is written over.
    """
    from hostler.cli.plugintemplate import PREFIX, check_name, render, write

    name = check_name(name, {*_known(), "gguf"})
    files = render(name)
    folder = folder or Path(f"{PREFIX}{name}")
    write(files, folder)
    for path in files:
        click.echo(folder / path)
    click.echo(f"\nNext: cd {folder}, then pip install -e '.[test]', then hostler plugins check {name}")


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


@plugins.command()
@json_option("Print what has changed as JSON.")
@home_option
def reload(is_json: bool) -> None:
    """Have the server of this home see what was installed, removed, edited, disabled or enabled since it was started.

    Models go on running, save those whose engine is gone, which are stopped.
    """
    from hostler.cli.client import connect_to_server

    with connect_to_server(read_settings(), "every command looks at plugins anew by itself") as client:
        changes = client.post("/v1/plugins/reload", {})
    if is_json:
        print_json(changes)
        return
    words = {
        "added": "added",
        "removed": "removed",
        "changed": "changed",
        "stopped": "stopped, because their engine is gone",
        "outdated": "go on with what was installed when they were started",
    }
    said = [f"{', '.join(changes[key])}: {text}" for key, text in words.items() if changes[key]]
    click.echo("\n".join(said) or "nothing has changed")
    for problem in changes["problems"]:
        click.echo(f"problem: {problem}", err=True)


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
