"""One plugin as people see it: who it is, how it fares, what it brings. Floor 2; pure values, for the CLI and the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from hostler import __version__

if TYPE_CHECKING:
    from hostler.plugins import PluginInfo, Plugins


class EngineRow(msgspec.Struct, frozen=True):
    """An engine that a plugin brings."""

    name: str
    formats: list[str]
    version: str


class PluginView(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin."""

    id: str
    """Its name, once more."""
    object: Literal["plugin"] = "plugin"
    name: str
    version: str
    distribution: str
    """The package that brings it."""
    module: str
    is_builtin: bool
    state: Literal["ok", "problem", "failed", "disabled"]
    """`problem`: it works in part; `failed`: it could not be loaded."""
    problems: list[str]
    engines: list[EngineRow]
    sources: list[str]
    """Schemes."""
    routes: list[str]
    """Prefixes."""
    events: list[str]
    """What its listeners hear, as globs."""


def describe(plugins: Plugins) -> list[PluginView]:
    """All of them, those that are not loaded last; what another plugin has brought before is not counted."""
    return [_view(plugins, info) for info in [*plugins.infos, *plugins.left_out]]


def _view(plugins: Plugins, info: PluginInfo) -> PluginView:
    problems = [problem.message for problem in plugins.problems if problem.plugin == info.name]
    state: Literal["ok", "problem", "failed", "disabled"] = "problem" if problems else "ok"
    if info.state != "loaded":
        state = "disabled" if info.state == "disabled" else "failed"
    return PluginView(
        id=info.name,
        name=info.name,
        version=__version__ if info.is_builtin else info.version,
        distribution="hostler" if info.is_builtin else info.distribution,
        module=info.module,
        is_builtin=info.is_builtin,
        state=state,
        problems=problems,
        engines=[EngineRow(spec.name, list(spec.formats), spec.version) for spec in plugins.engines_of(info.name)],
        sources=[spec.scheme for spec in plugins.sources_of(info.name)],
        routes=[spec.prefix for spec in plugins.routes_of(info.name)],
        events=sorted({glob for spec in plugins.listeners_of(info.name) for glob in spec.events}),
    )
