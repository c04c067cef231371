"""`set`: what is kept of a model. Floor 6; see cli/__init__.py."""

from __future__ import annotations

from typing import Any

import click

from hostler.cli.options import home_option, json_option, print_json, read_settings
from hostler.hookspecs import hookimpl

METADATA = "metadata."


@click.command(name="set")
@click.argument("model")
@click.argument("pairs", nargs=-1, metavar="NAME=VALUE...")
@click.option(
    "--unset", "unset", multiple=True, metavar="NAME", help="Take one back to its default; may be given several times."
)
@json_option("Print the model as JSON.")
@home_option
def set_(model: str, pairs: tuple[str, ...], unset: tuple[str, ...], is_json: bool) -> None:
    """Change what is kept of a model: its settings, its parameters, its name.

    NAME is a setting (ctx_len, n_parallel, ngl, ...; all of them in `hostler show MODEL`), a parameter (temperature,
    token_limit, stop, ...), name, description or metadata.KEY. Parameters count from the next request on, settings from the
    next start on. stop may be given several times.
    """
    from hostler.cli.client import connect, model_path

    body = read_changes(pairs, unset)
    with connect(read_settings(), "set") as client:
        answer = client.patch(model_path(model), body)
    if is_json:
        print_json(answer)
    else:
        click.echo(answer["message"])


def read_changes(pairs: tuple[str, ...], unset: tuple[str, ...]) -> dict[str, Any]:
    """The body of the request; the API checks values, names are checked here, for it ignores those it does not know.

    Raises:
        click.UsageError: No such name, or nothing to change.
    """
    body: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE")
        name = _known(name.strip())
        if name.startswith(METADATA):
            body.setdefault("metadata", {})[name.removeprefix(METADATA)] = value
        elif name == "stop":
            body.setdefault("stop", []).append(value)
        else:
            body[name] = value
    for name in map(_known, unset):
        if name.startswith(METADATA):
            body.setdefault("metadata", {})[name.removeprefix(METADATA)] = None
        else:
            body[name] = None
    if not body:
        raise click.UsageError("Nothing to change; give NAME=VALUE, such as ctx_len=4096, or --unset NAME")
    return body


def _known(name: str) -> str:
    from difflib import get_close_matches

    from hostler.library.fields import PARAMETERS, SETTINGS

    if name.startswith(METADATA) and name != METADATA:
        return name
    names = ["name", "description"]
    for field in (*SETTINGS, *PARAMETERS):
        names += [field.name, *field.aliases]
    plain = name.replace("-", "_")
    if plain in names:
        return plain
    near = get_close_matches(plain, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; `hostler show MODEL` lists them"
    raise click.UsageError(f"A model has no {name!r}{hint}")


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `set`."""
    cli.add_command(set_)
