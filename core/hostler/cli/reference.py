"""Makes docs/configuration.md from the table of settings and docs/cli.md from the commands, so that neither can drift.

`python -m hostler.cli.reference` writes both; with `--check` it writes nothing and exits 1 if one differs. tests/cli runs
the check.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hostler.cli import COMMAND_MODULES, CommandGroup, cli
from hostler.cli.serve import grouped_settings, show_default
from hostler.config import Setting
from hostler.subscription import Subscription

DOCS = Path(__file__).resolve().parents[3] / "docs"

CONFIGURATION_HEAD = """\
# Configuration

<!-- Made by `python -m hostler.cli.reference` from core/hostler/config.py: change it there. -->

Every setting below can be given in three places; the first one that has it wins:

1. a flag of `hostler serve`, such as `--port 8080`;
2. the environment: `HOSTLER_` and the name in capitals, such as `HOSTLER_PORT=8080` (lists are separated by commas);
3. `HOME/config.toml`, where HOME is the data folder:

   ```toml
   port = 8080
   model = ["smollm2"]
   api_key = ["a-long-random-word"]
   ```

A webhook is a table of its own in the file, a URL or a JSON object elsewhere (`HOSTLER_WEBHOOKS` takes a JSON list, too):

```toml
[[webhooks]]
url = "http://127.0.0.1:9000/hook"
secret = "whsec_..."                # optional: signs deliveries
events = ["model.*", "thread.*"]    # optional; without it model.*
```

An unknown name in `config.toml` and a bad value anywhere are errors that name the place. The data folder itself is given by
`--home` or `HOSTLER_HOME`; without them it is the platform's folder for user data (`~/.local/share/hostler` on Linux).
`HOSTLER_LOAD_PLUGINS` (names separated by commas) loads only those plugins; `hostler plugins disable` keeps what it leaves out
in `HOME/plugins.json`.

Settings of a model (`ctx_len`, `n_parallel`, `ngl`, `cpu_threads`, ...) are not here: they belong to the model, in its
`model.json`, and are changed by `hostler set MODEL ctx_len=4096`, or for one run by `hostler start MODEL --set ctx_len=4096`.
"""

CLI_HEAD = """\
# Command line

<!-- Made by `python -m hostler.cli.reference` from the commands' own help: change it there. -->

Commands talk to the server of their home folder (`--home`, `HOSTLER_HOME`), whatever port it has, and to no other. When none
runs, they work on the folder directly; only `start` and `stop` need a server.

Exit codes: 0 done, 1 it failed and one line on stderr says why, 2 the command line itself is wrong. With `--json` stdout
carries JSON only.

| command | what it does |
| --- | --- |
"""


def make_configuration_page() -> str:
    """docs/configuration.md."""
    parts = [CONFIGURATION_HEAD]
    for title, settings in grouped_settings():
        parts.append(f"## {title}\n")
        parts += [_describe_setting(setting) for setting in settings]
    return "\n".join(parts)


def _describe_setting(setting: Setting) -> str:
    kinds = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
        list: "list of texts",
        Subscription: "list of webhooks",
    }
    facts = [kinds[setting.type]]
    if setting.unit:
        facts.append(f"in {setting.unit}")
    if setting.minimum is not None:
        limit = (
            f"{setting.minimum:g} to {setting.maximum:g}" if setting.maximum is not None else f"{setting.minimum:g} or more"
        )
        facts.append(limit)
    facts.append(f"default {show_default(setting)}")
    return f"### `{setting.name}`\n\n{setting.help}\n\n{', '.join(facts)} · `{setting.flag}` · `{setting.environment}`\n"


def make_cli_page() -> str:
    """docs/cli.md; hostler's own commands, not those of plugins that happen to be installed."""
    from hostler.plugins import Plugins

    group = CommandGroup(name="hostler", params=cli.params)
    plugins = Plugins()
    plugins.load_builtin(COMMAND_MODULES)
    plugins.add_commands(group)
    commands = list(group.commands.items())
    rows = [f"| [`{name}`](#hostler-{name}) | {_text(command).partition(chr(10))[0]} |" for name, command in commands]
    parts = [CLI_HEAD + "\n".join(rows) + "\n"]
    for name, command in commands:
        parts += _describe_command(f"hostler {name}", command, "##")
    return "\n".join(parts)


def _describe_command(name: str, command: click.Command, heading: str) -> Iterator[str]:
    """One section; a group's has one a command below it."""
    usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=name)))
    yield f"{heading} {name}\n\n`{name} {usage}`\n\n{_text(command)}\n"
    if isinstance(command, click.Group):
        for below, child in command.commands.items():
            yield from _describe_command(f"{name} {below}", child, f"{heading}#")
    elif command.name == "serve":
        yield "Every setting of [configuration.md](configuration.md) is a flag of this command.\n"
    else:
        yield _describe_options(command)


def _text(command: click.Command) -> str:
    lines = (command.help or "").split("\n")
    return "\n".join(line.strip() for line in lines).strip()


def _describe_options(command: click.Command) -> str:
    rows = ["| option | meaning |", "| --- | --- |"]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            value = "" if parameter.is_flag else f" {parameter.metavar or _kind(parameter)}"
            rows.append(f"| `{', '.join(parameter.opts)}{value}` | {parameter.help} |")
    return "\n".join(rows) + "\n"


def _kind(option: click.Option) -> str:
    kinds: tuple[tuple[Any, str], ...] = (  # click.ParamType is generic in newer releases only
        (click.Path, "DIRECTORY"),
        (click.FloatRange, "NUMBER"),
        (type(click.INT), "N"),
    )
    return next((word for kind, word in kinds if isinstance(option.type, kind)), "TEXT")


PAGES = {"configuration.md": make_configuration_page, "cli.md": make_cli_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    is_stale = False
    for name, make in PAGES.items():
        target = DOCS / name
        text = make()
        if "--check" not in arguments:
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            click.echo(f"{target} is not what the code says; run: python -m hostler.cli.reference", err=True)
            is_stale = True
    return int(is_stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
