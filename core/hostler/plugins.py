"""The plugin manager: finds engine plugins by the entry-point group `hostler` and registers their hooks.

Floor 2; used in the host and in the CLI, never in a worker. A plugin that fails to import or whose hook raises is named in
`problems`, skipped, and shown by `hostler doctor`; the host lives on. HOSTLER_LOAD_PLUGINS (comma-separated entry-point
names) loads only those; the empty string loads none but the built-in ones.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pluggy

from hostler import hookspecs
from hostler.engine import API_VERSION, EngineSpec
from hostler.sources.contract import SourceSpec

if TYPE_CHECKING:
    import click

BUILTIN = (
    "hostler.sources.pypi",
    "hostler.sources.huggingface",
    "hostler.sources.https",
    "hostler.sources.file",
)
ENTRY_POINT_GROUP = "hostler"


@dataclass(frozen=True)
class PluginProblem:
    """One plugin that does not work as it should."""

    plugin: str
    message: str


@dataclass(frozen=True)
class PluginInfo:
    """One plugin as `hostler plugins` shows it."""

    name: str
    module: str
    version: str
    distribution: str
    is_builtin: bool


class Plugins:
    """All plugins of this process. Made once, then only read; not thread-safe while it is being made."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("hostler")
        self.manager.add_hookspecs(hookspecs)
        self.problems: list[PluginProblem] = []
        self.infos: list[PluginInfo] = []

    def load_builtin(self, names: tuple[str, ...] = BUILTIN) -> None:
        """Register hostler's own plugins by module name."""
        for name in names:
            self.register(importlib.import_module(name), name.rpartition(".")[2], is_builtin=True)

    def load_installed(self) -> None:
        """Register every plugin that is installed, in the order of their names."""
        only = os.environ.get("HOSTLER_LOAD_PLUGINS")
        wanted = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
        entries = sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
        for entry in entries:
            if wanted is not None and entry.name not in wanted:
                continue
            try:
                module = entry.load()
            except Exception as error:  # noqa: BLE001 - whatever a stranger's module raises must not stop the host
                self._report(entry.name, f"cannot be imported ({entry.value}): {type(error).__name__}: {error}")
                continue
            distribution = entry.dist
            self.register(
                module,
                entry.name,
                version=distribution.version if distribution else "",
                distribution=distribution.name if distribution else "",
            )

    def register(
        self, module: Any, name: str, *, is_builtin: bool = False, version: str = "", distribution: str = ""
    ) -> None:
        """Register one plugin object under a name; a second of the same name is reported and skipped."""
        try:
            self.manager.register(module, name)
        except (ValueError, pluggy.PluginValidationError) as error:
            self._report(name, f"cannot be registered: {error}")
            return
        self.infos.append(
            PluginInfo(name, getattr(module, "__name__", repr(module)), version, distribution, is_builtin)
        )

    @cached_property
    def engines(self) -> dict[str, EngineSpec]:
        """Engine name -> spec, over all plugins."""
        found: dict[str, EngineSpec] = {}
        for plugin, spec in self._collect("register_engines", EngineSpec):
            if spec.api_version != API_VERSION:
                self._report(
                    plugin,
                    f"engine {spec.name!r} was built for engine API {spec.api_version}, this hostler has {API_VERSION}; "
                    f"install a matching version of the plugin",
                )
            elif spec.name in found:
                self._report(plugin, f"engine {spec.name!r} is already registered by another plugin; this one is skipped")
            else:
                found[spec.name] = spec
        return found

    @cached_property
    def sources(self) -> dict[str, SourceSpec]:
        """Scheme -> source, over all plugins."""
        found: dict[str, SourceSpec] = {}
        for plugin, spec in self._collect("register_sources", SourceSpec):
            if spec.scheme in found:
                self._report(plugin, f"source {spec.scheme!r} is already registered by another plugin; this one is skipped")
            else:
                found[spec.scheme] = spec
        return found

    def engine_for(self, model_format: str, wanted: str | None = None) -> EngineSpec | None:
        """The engine that runs a format: the wanted one if it takes it, else the first that does."""
        if wanted is not None and wanted in self.engines and model_format in self.engines[wanted].formats:
            return self.engines[wanted]
        return next((spec for spec in self.engines.values() if model_format in spec.formats), None)

    def add_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands."""
        for implementation in self.manager.hook.register_commands.get_hookimpls():
            try:
                implementation.function(cli=cli)
            except Exception as error:  # noqa: BLE001 - a stranger's hook must not stop the host
                self._report(implementation.plugin_name, f"register_commands raised {type(error).__name__}: {error}")

    def _collect(self, hook: str, expected: type) -> list[tuple[str, Any]]:
        # One call per plugin instead of pluggy's multicall, so that one that raises costs only its own answer.
        found: list[tuple[str, Any]] = []
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        for implementation in sorted(implementations, key=lambda item: self._position(item.plugin_name)):
            try:
                answers = list(implementation.function() or ())
            except Exception as error:  # noqa: BLE001 - see above
                self._report(implementation.plugin_name, f"{hook} raised {type(error).__name__}: {error}")
                continue
            for answer in answers:
                if isinstance(answer, expected):
                    found.append((implementation.plugin_name, answer))
                else:
                    self._report(implementation.plugin_name, f"{hook} gave {answer!r}, which is no {expected.__name__}")
        return found

    def _position(self, name: str) -> int:
        return next((index for index, info in enumerate(self.infos) if info.name == name), len(self.infos))

    def _report(self, plugin: str, message: str) -> None:
        problem = PluginProblem(plugin, f"plugin {plugin!r} {message}")
        if problem not in self.problems:
            self.problems.append(problem)


def get_plugins() -> Plugins:
    """A fresh manager with the built-in and all installed plugins."""
    plugins = Plugins()
    plugins.load_builtin()
    plugins.load_installed()
    return plugins
