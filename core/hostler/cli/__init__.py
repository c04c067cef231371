"""The command line: the group `hostler` and how commands get into it.

Floor 6; a process of its own for each call. Commands are hook implementations (`register_commands`), hostler's own as
well as a plugin's. `hostler --help` must stay under 200 ms, so modules here import click and the standard library at
the top and everything else inside the command that needs it; tests/cli/test_main.py holds them to it.

Exit codes: 0 done, 1 it failed and one line on stderr says why, 2 the command line itself is wrong.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

COMMAND_MODULES = (
    "hostler.cli.serve",
    "hostler.cli.run",
    "hostler.cli.models",
    "hostler.cli.jan",
    "hostler.cli.setting",
    "hostler.cli.running",
    "hostler.cli.cache",
    "hostler.cli.bench",
    "hostler.cli.threads",
    "hostler.cli.messages",
    "hostler.cli.assistants",
    "hostler.cli.webhooks",
    "hostler.cli.plugins",
    "hostler.cli.doctor",
)

OUT_OF_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""The disk is full, or this user's share of it."""


class CommandGroup(click.Group):
    """A group whose commands come from plugins: hostler's own first, those of installed ones when asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_builtin = False
        self._has_installed = False

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command; a name that is taken is refused, so that no plugin replaces what another brought."""
        if (name or cmd.name) in self.commands:
            raise ValueError(f"there is already a command named {name or cmd.name!r}")
        super().add_command(cmd, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of registration."""
        self._load_builtin()
        self._load_installed(ctx)
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command; looks at installed plugins only when hostler itself has none of that name."""
        self._load_builtin()
        if cmd_name not in self.commands:
            self._load_installed(ctx)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn what hostler raises for the user into click's one line and exit code 1."""
        from hostler.errors import HostlerError

        try:
            return super().invoke(ctx)
        except HostlerError as error:
            raise click.ClickException(str(error)) from error
        except UnicodeEncodeError as error:
            if error.reason != "surrogates not allowed":
                raise
            # Bytes of the command line that are no UTF-8 come to Python as halves of surrogate pairs.
            raise click.ClickException("an argument has bytes that are no text; give names and texts in UTF-8") from error
        except OSError as error:
            if error.errno not in OUT_OF_ROOM:
                raise
            raise click.ClickException(f"{error.filename or 'the output'} cannot be written: {error.strerror}") from error
        except ImportError as error:
            if "hostler._native" not in str(error):
                raise
            raise click.ClickException(f"the C++ core does not fit ({error}); build it anew with: make install") from error

    def _load_builtin(self) -> None:
        if not self._has_builtin:
            self._has_builtin = True
            from hostler.plugins import Plugins

            plugins = Plugins()
            plugins.load_builtin(COMMAND_MODULES)
            plugins.add_commands(self)

    def _load_installed(self, ctx: click.Context) -> None:
        if not self._has_installed:
            self._has_installed = True
            from hostler.config import default_home
            from hostler.plugins import without_disabled

            home = ctx.find_root().params.get("home")
            plugins = without_disabled(home.expanduser() if home is not None else default_home())
            plugins.load_installed()
            plugins.add_commands(self)
            for problem in plugins.delays:  # every command that looks for plugins waits for them
                click.echo(f"Warning: {problem.message}", err=True)


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's
    if value:
        from hostler import __version__

        click.echo(f"hostler {__version__}")
        context.exit()


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The usual way: hostler pull smollm2, then hostler run smollm2, or hostler serve for programs.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    is_eager=True,  # --help shows the commands of this home's plugins
    help="Data folder; also HOSTLER_HOME. Every command takes it, too.",
)
@click.pass_context
def cli(context: click.Context, home: Path | None) -> None:
    """Run language models on this machine, in whatever engine a plugin brings, behind one OpenAI-compatible port."""
    context.obj = home


def main() -> None:
    """The console script."""
    cli(prog_name="hostler")
