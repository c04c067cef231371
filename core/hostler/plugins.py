"""The plugin manager: finds plugins by the entry-point group `hostler`, registers their hooks and collects the answers.

Floor 2; used in the host and in the CLI, never in a worker. A plugin that fails to import or whose hook raises is named in
`problems`, skipped, and shown by `hostler doctor`; the host lives on. HOSTLER_LOAD_PLUGINS (comma-separated entry-point
names) loads only those; the empty string loads none but the built-in ones.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

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

log = logging.getLogger(__name__)
_Spec = TypeVar("_Spec")


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
    """All plugins of this process. Made by one thread, then only read, by any."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("hostler")
        self.manager.add_hookspecs(hookspecs)
        self.problems: list[PluginProblem] = []
        """What went wrong so far; complete once `engines` and `sources` have been read, as `get_plugins` does."""
        self.infos: list[PluginInfo] = []

    # -- finding --------------------------------------------------------------------------------------------------

    def load_builtin(self, names: tuple[str, ...] = BUILTIN) -> None:
        """Register hostler's own plugins by module name."""
        for name in names:
            short = name.rpartition(".")[2]
            module = self._import(short, partial(importlib.import_module, name), name)
            if module is not None:
                self.register(module, short, is_builtin=True)

    def load_installed(self) -> None:
        """Register every plugin that is installed, in the order of their names."""
        only = os.environ.get("HOSTLER_LOAD_PLUGINS")
        wanted = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
        entries = sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
        for name in sorted((wanted or set()) - {entry.name for entry in entries}):
            self._report(name, "is named in HOSTLER_LOAD_PLUGINS, but no installed package brings it")
        for entry in entries:
            if wanted is not None and entry.name not in wanted:
                continue
            distribution = entry.dist
            source = f"{entry.value}, of {distribution.name} {distribution.version}" if distribution else entry.value
            plugin = self._import(entry.name, entry.load, source)
            if plugin is not None:
                self.register(
                    plugin,
                    entry.name,
                    version=distribution.version if distribution else "",
                    distribution=distribution.name if distribution else "",
                )

    def register(self, module: Any, name: str, *, is_builtin: bool = False, version: str = "", distribution: str = "") -> None:
        """Register one plugin object under a name; a second of the same name is reported and skipped."""
        if self.manager.has_plugin(name):
            self._report(name, "cannot be registered: another plugin of that name came first; uninstall one of them")
            return
        try:
            self.manager.register(module, name)
        except (ValueError, pluggy.PluginValidationError) as error:
            self._report(name, f"cannot be registered: {error}")
            return
        for caller in self.manager.get_hookcallers(module) or ():
            if not caller.has_spec():
                self._report(name, f"implements {caller.name}, a hook that this hostler does not have; it is never called")
        self.infos.append(PluginInfo(name, getattr(module, "__name__", repr(module)), version, distribution, is_builtin))

    # -- what they bring ------------------------------------------------------------------------------------------

    @cached_property
    def engines(self) -> dict[str, EngineSpec]:
        """Engine name -> spec, over all plugins."""
        return {name: spec for name, (_, spec) in self._engines.items()}

    @cached_property
    def sources(self) -> dict[str, SourceSpec]:
        """Scheme -> source, over all plugins."""
        return {scheme: spec for scheme, (_, spec) in self._sources.items()}

    def engines_of(self, plugin: str) -> list[EngineSpec]:
        """The engines that one plugin brings, those left out that another plugin has brought first."""
        return [spec for owner, spec in self._engines.values() if owner == plugin]

    def sources_of(self, plugin: str) -> list[SourceSpec]:
        """The sources that one plugin brings, those left out that another plugin has brought first."""
        return [spec for owner, spec in self._sources.values() if owner == plugin]

    def engine_for(self, model_format: str, wanted: str | None = None) -> EngineSpec | None:
        """The engine that runs a format: the wanted one if it takes it, else the first that does."""
        if wanted is not None and wanted in self.engines and model_format in self.engines[wanted].formats:
            return self.engines[wanted]
        return next((spec for spec in self.engines.values() if model_format in spec.formats), None)

    def add_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands; one that raises, or takes a name that is there already, adds none."""
        for implementation in self._implementations("register_commands"):
            before = dict(cli.commands)
            try:
                implementation.function(**({"cli": cli} if "cli" in implementation.argnames else {}))
            except Exception as error:  # noqa: BLE001 - a stranger's hook must not stop the host
                self._report(implementation.plugin_name, f"register_commands raised {_described(error)}", error)
                cli.commands = before
                continue
            taken = [name for name, command in before.items() if cli.commands.get(name) is not command]
            if taken:
                names = ", ".join(repr(name) for name in taken)
                self._report(implementation.plugin_name, f"register_commands replaced {names}; its commands are skipped")
                cli.commands = before

    # -- inside ---------------------------------------------------------------------------------------------------

    @cached_property
    def _engines(self) -> dict[str, tuple[str, EngineSpec]]:
        found: dict[str, tuple[str, EngineSpec]] = {}
        for plugin, spec in self._collect("register_engines", EngineSpec):
            if spec.api_version != API_VERSION:
                self._report(
                    plugin,
                    f"brings the engine {spec.name!r} built for engine API {spec.api_version}; this hostler has "
                    f"{API_VERSION}: install a matching version of the plugin",
                )
            elif not _is_object_path(spec.engine) or not _is_object_path(spec.probe):
                self._report(
                    plugin,
                    f"brings the engine {spec.name!r} with engine={spec.engine!r} and probe={spec.probe!r}; "
                    f"both must look like 'package.module:name'",
                )
            elif spec.name in found:
                self._report(plugin, _is_taken("engine", spec.name, found[spec.name][0]))
            else:
                found[spec.name] = (plugin, spec)
        return found

    @cached_property
    def _sources(self) -> dict[str, tuple[str, SourceSpec]]:
        found: dict[str, tuple[str, SourceSpec]] = {}
        for plugin, spec in self._collect("register_sources", SourceSpec):
            if spec.scheme in found:
                self._report(plugin, _is_taken("source", spec.scheme, found[spec.scheme][0]))
            else:
                found[spec.scheme] = (plugin, spec)
        return found

    def _collect(self, hook: str, expected: type[_Spec]) -> list[tuple[str, _Spec]]:
        # One call per plugin instead of pluggy's multicall, so that one that raises costs only its own answer.
        found: list[tuple[str, _Spec]] = []
        for implementation in self._implementations(hook):
            name = implementation.plugin_name
            try:
                answer = implementation.function()
                answers = list(answer) if isinstance(answer, Iterable) and not isinstance(answer, str) else [answer]
            except Exception as error:  # noqa: BLE001 - see add_commands
                self._report(name, f"{hook} raised {_described(error)}", error)
                continue
            for item in [] if answer is None else answers:
                if isinstance(item, expected):
                    found.append((name, item))
                else:
                    self._report(name, f"{hook} gave {item!r}, which is no {expected.__name__}")
        return found

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """A hook's implementations in the order in which their plugins were registered."""
        order = {info.name: index for index, info in enumerate(self.infos)}
        found: list[pluggy.HookImpl] = getattr(self.manager.hook, hook).get_hookimpls()
        return sorted(found, key=lambda implementation: order.get(implementation.plugin_name, len(order)))

    def _import(self, name: str, load: Callable[[], Any], source: str) -> Any:
        try:
            return load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a module does on import, save Ctrl-C
            self._report(name, f"cannot be imported ({source}): {_described(error)}", error)
            return None

    def _report(self, plugin: str, message: str, error: BaseException | None = None) -> None:
        problem = PluginProblem(plugin, f"plugin {plugin!r} {message}")
        if problem not in self.problems:
            self.problems.append(problem)
            log.debug("%s", problem.message, exc_info=error)


def get_plugins() -> Plugins:
    """A fresh manager with the built-in and all installed plugins, and with all they bring collected."""
    plugins = Plugins()
    plugins.load_builtin()
    plugins.load_installed()
    _ = plugins.engines, plugins.sources  # so that `problems` is complete
    return plugins


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_taken(kind: str, name: str, owner: str) -> str:
    return f"brings the {kind} {name!r}, which plugin {owner!r} has brought already; this one is skipped"


def _is_object_path(path: str) -> bool:
    module, has_colon, name = path.partition(":")
    return bool(has_colon) and all(part.isidentifier() for part in [*module.split("."), name])
