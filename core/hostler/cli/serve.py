"""`hostler serve`: its flags are made from the table of settings, one a setting."""

from __future__ import annotations

from typing import Any

import click

from hostler.cli.options import home_option, read_settings
from hostler.config import SETTINGS, Setting
from hostler.hookspecs import hookimpl
from hostler.subscription import Subscription

GROUPS = (
    ("Address and access", "host"),
    ("Requests", "max_requests"),
    ("Models", "default_model"),
    ("Downloads", "allow_file_sources"),
    ("Records", "database"),
    ("Webhooks", "webhooks"),
    ("Logs", "log_level"),
)
"""Heading, and the setting that opens its part of the table."""


def grouped_settings() -> list[tuple[str, list[Setting]]]:
    """The table of settings, cut where GROUPS says."""
    openings = {name: title for title, name in GROUPS}
    found: list[tuple[str, list[Setting]]] = []
    for setting in SETTINGS:
        if setting.name in openings:
            found.append((openings[setting.name], []))
        found[-1][1].append(setting)
    return found


def show_default(setting: Setting) -> str:
    """A setting's default as a user would write it."""
    if setting.type is bool:
        return "on" if setting.default else "off"
    if setting.type in {list, Subscription} or setting.default == "":
        return ",".join(setting.default) or "none"
    return (
        f"{setting.default:g} {setting.unit}".rstrip()
        if setting.type is float
        else f"{setting.default} {setting.unit}".rstrip()
    )


def make_option(setting: Setting) -> click.Option:
    """The flag of one setting. Its default is None: what is not given leaves environment and file their say."""
    extra: dict[str, Any] = {}
    declaration = setting.flag
    if setting.type is bool:
        declaration = f"{setting.flag}/--no-{setting.flag[2:]}"
    elif setting.name == "log_level":
        extra["type"] = click.Choice(["debug", "info", "warning", "error"])
    elif setting.type is int:
        extra.update(type=click.IntRange(_whole(setting.minimum), _whole(setting.maximum)), metavar="N")
    elif setting.type is float:
        extra.update(type=click.FloatRange(setting.minimum, setting.maximum), metavar="N")
    elif setting.type is list:
        extra.update(type=str, multiple=True, metavar="TEXT")
    elif setting.type is Subscription:
        extra.update(type=str, multiple=True, metavar="URL")
    repeat = " May be given several times." if "multiple" in extra else ""
    return click.Option(
        [declaration, setting.name], default=None, help=f"{setting.help}{repeat} [{show_default(setting)}]", **extra
    )


def _whole(limit: float | None) -> int | None:
    return None if limit is None else int(limit)


class ServeCommand(click.Command):
    """A command whose help shows the settings by concern."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section a group, then what is no setting."""
        names = {setting.name for setting in SETTINGS}
        by_name = {parameter.name: parameter for parameter in self.get_params(ctx)}
        for title, settings in grouped_settings():
            records = [by_name[setting.name].get_help_record(ctx) for setting in settings]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])
        others = [by_name[name].get_help_record(ctx) for name in by_name if name not in names]
        with formatter.section("Other"):
            formatter.write_dl([record for record in others if record])


@click.command(
    cls=ServeCommand,
    params=[make_option(setting) for setting in SETTINGS],
    epilog="Every setting can also stand in HOME/config.toml or in the environment as HOSTLER_NAME. "
    "The usual way: hostler serve --model smollm2",
)
@home_option
def serve(**flags: Any) -> None:
    """Serve the API in the foreground until Ctrl-C or SIGTERM; prints its URL and one curl that works."""
    from hostler.server import serve as serve_until_stopped

    settings = read_settings(flags)
    code = serve_until_stopped(settings, announce=click.echo)
    click.get_current_context().exit(code)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `serve`."""
    cli.add_command(serve)
