"""The hooks a plugin can implement, grouped by when they run. Floor 2; see docs/plugin-hooks.md for a page on each.

A hook that raises does not stop the host: the plugin is named, skipped and shown by `hostler doctor`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from hostler.engine import EngineSpec
from hostler.listening import ListenerSpec
from hostler.mounts import RoutesSpec
from hostler.sources.contract import SourceSpec

if TYPE_CHECKING:
    import click

hookspec = pluggy.HookspecMarker("hostler")
hookimpl = pluggy.HookimplMarker("hostler")


# -- discovery: once per process that needs it, in the host ---------------------------------------------------------


@hookspec
def register_engines() -> Iterable[EngineSpec]:
    """Give the engines this plugin brings.

    Called once, in the host process and in the CLI, before the first model is looked at; never in a worker. All plugins'
    answers count; of two specs with one name the first registered wins and the second is reported. Must be cheap: import
    no engine library here. A plugin in this tree that uses it: plugins/llamacpp.
    """
    return ()


@hookspec
def register_sources() -> Iterable[SourceSpec]:
    """Give the model sources this plugin brings: one scheme each, such as `pypi` for `pypi:PACKAGE`.

    Called once, in the host process and in the CLI, before the first pull. First registered wins a scheme. Must be cheap.
    Used by hostler.sources.pypi, huggingface, https and file.
    """
    return ()


# -- requests: once per server --------------------------------------------------------------------------------------


@hookspec
def register_routes() -> Iterable[RoutesSpec]:
    """Give the HTTP routes this plugin brings: WSGI applications, each below a prefix of its own.

    Called once in the server, and in a CLI process that lists plugins. The applications are named, not imported; each is
    made when its first request comes. First registered wins a prefix. Used by hostler.api.docspage.
    """
    return ()


# -- what happens: once per server ----------------------------------------------------------------------------------


@hookspec
def register_events() -> Iterable[ListenerSpec]:
    """Give the functions that are to be told of events, and of which.

    Called once in the server, and in a CLI process that lists plugins. The functions are named, not imported; each is called
    in the server, on a thread of its own, with every event it wants. Used by hostler.journal.
    """
    return ()


# -- command line: once per `hostler` call --------------------------------------------------------------------------


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the `hostler` command line with `cli.add_command`.

    Called once while `hostler` starts, in the CLI process, so `hostler --help` pays for every import made here: import
    inside the command's body. Used by hostler.cli's own command modules.
    """
