"""`hostler plugins`: what is installed, what each plugin brings, and which does not work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from hostler.cli.options import home_option, json_option, print_json, print_table
from hostler.engine import EngineSpec
from hostler.hookspecs import hookimpl
from hostler.sources.contract import SourceSpec

if TYPE_CHECKING:
    from hostler.plugins import Plugins


@click.command()
@json_option("Print plugins and problems as JSON.")
@home_option
def plugins(is_json: bool) -> None:
    """Show the installed plugins with their engines and model sources."""
    from hostler.plugins import get_plugins

    found = get_plugins()
    rows = describe(found)
    if is_json:
        problems = [{"plugin": problem.plugin, "message": problem.message} for problem in found.problems]
        print_json({"plugins": rows, "problems": problems})
        return
    print_table(
        ["NAME", "VERSION", "PACKAGE", "ENGINES", "SOURCES"],
        [
            [
                row["name"],
                row["version"] or "-",
                row["distribution"] or "-",
                ", ".join(f"{engine['name']} ({', '.join(engine['formats'])})" for engine in row["engines"]) or "-",
                ", ".join(row["sources"]) or "-",
            ]
            for row in rows
        ],
    )
    for problem in found.problems:
        click.echo(f"problem: {problem.message}", err=True)


def describe(found: Plugins) -> list[dict[str, Any]]:
    """One row a plugin: who it is, and the engines and sources it won."""
    from hostler import __version__

    engines: dict[str, list[dict[str, Any]]] = {info.name: [] for info in found.infos}
    sources: dict[str, list[str]] = {info.name: [] for info in found.infos}
    for owner, engine in _answers(found, "register_engines"):
        if found.engines.get(engine.name) == engine:
            engines[owner].append({"name": engine.name, "formats": list(engine.formats), "version": engine.version})
    for owner, source in _answers(found, "register_sources"):
        if found.sources.get(source.scheme) == source:
            sources[owner].append(source.scheme)
    return [
        {
            "name": info.name,
            "version": __version__ if info.is_builtin else info.version,
            "distribution": "hostler" if info.is_builtin else info.distribution,
            "module": info.module,
            "is_builtin": info.is_builtin,
            "engines": engines[info.name],
            "sources": sources[info.name],
        }
        for info in found.infos
    ]


def _answers(found: Plugins, hook: str) -> Iterator[tuple[str, Any]]:
    for implementation in getattr(found.manager.hook, hook).get_hookimpls():
        try:
            answers = list(implementation.function() or ())
        except Exception:  # noqa: BLE001 - `found.engines` and `found.sources` have it among the problems
            continue
        for answer in answers:
            if isinstance(answer, EngineSpec | SourceSpec):
                yield implementation.plugin_name, answer


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `plugins`."""
    cli.add_command(plugins)
