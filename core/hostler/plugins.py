"""The plugin manager: loads what is installed, registers its hooks and collects the answers.

Floor 2; used in the host and in the CLI, never in a worker. A plugin that cannot be imported, that was built for another
version of the plugin API, or whose hook raises or hangs is named in `problems` and skipped, and shown by `hostler plugins`
and `hostler doctor`; the host lives on. What strangers wrote runs on a thread of its own with a deadline (patience.py).

Two things leave plugins out: `hostler plugins disable` (HOME/plugins.json, see installed.py), and HOSTLER_LOAD_PLUGINS
(comma-separated entry-point names), which loads only those; the empty string loads none but the built-in ones.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from hostler import hookspecs
from hostler.engine import API_VERSION, EngineSpec
from hostler.errors import ConfigError
from hostler.installed import CHOICES_FILE, InstalledPlugin, find_installed, read_disabled
from hostler.listening import ListenerSpec
from hostler.mounts import RoutesSpec, complaint, is_below
from hostler.patience import TookTooLong, call_each
from hostler.sources.contract import SourceSpec
from hostler.subscription import EVENT_NAMES, is_wanted

if TYPE_CHECKING:
    import click

BUILTIN = (
    "hostler.sources.pypi",
    "hostler.sources.huggingface",
    "hostler.sources.https",
    "hostler.sources.file",
    "hostler.journal",
    "hostler.api.docspage",
)

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
    is_builtin: bool = False
    state: str = "loaded"
    """`loaded`, `failed` (it could not be) or `disabled` (by this home)."""
    installed: InstalledPlugin | None = field(default=None, compare=False, repr=False)
    """Its entry point; None for hostler's own."""
    import_s: float = field(default=0.0, compare=False)
    """What its import took."""
    brought: tuple[str, ...] = field(default=(), compare=False)
    """The packages that its import loaded beside its own, the standard library's left out."""

    @property
    def version(self) -> str:
        """Its package's version."""
        return self.installed.version if self.installed is not None else ""

    @property
    def distribution(self) -> str:
        """Its package's name."""
        return self.installed.distribution if self.installed is not None else ""


@dataclass(frozen=True)
class _Loaded:
    """What an import gave, and what it cost."""

    plugin: Any
    import_s: float = 0.0
    brought: tuple[str, ...] = ()


class Plugins:
    """All plugins of this process. Made by one thread, then only read, by any."""

    def __init__(self, disabled: Collection[str] = (), before_each: Callable[[str], None] | None = None) -> None:
        """Load nothing yet.

        Args:
            disabled: Names to leave out.
            before_each: Called with a plugin's name before anything of an installed one is run.
        """
        self._before_each = before_each or _say_nothing
        self.manager = pluggy.PluginManager("hostler")
        self.manager.add_hookspecs(hookspecs)
        self.problems: list[PluginProblem] = []
        """What went wrong so far; complete once all that plugins bring has been read, as `get_plugins` does."""
        self.infos: list[PluginInfo] = []
        """Those that are registered, in their order."""
        self.left_out: list[PluginInfo] = []
        """Those that are not, each with its state."""
        self.loaded: dict[str, Any] = {}
        """Name -> plugin, of the installed ones."""
        self._disabled = frozenset(disabled)
        self.delays: list[PluginProblem] = []
        """Those of the problems that cost everybody's time: an import or a hook that does not return."""
        self._stuck: set[str] = set()
        """A hook of theirs did not return; no other is called."""

    # -- finding --------------------------------------------------------------------------------------------------

    def load_builtin(self, names: tuple[str, ...] = BUILTIN) -> None:
        """Register hostler's own plugins by module name."""
        for name in names:
            short = name.rpartition(".")[2]
            if short in self._disabled:
                self.left_out.append(PluginInfo(short, name, is_builtin=True, state="disabled"))
                continue
            try:
                self.register(importlib.import_module(name), short, is_builtin=True)
            except ImportError as error:
                self._report(short, f"cannot be imported ({name}): {_described(error)}", error)
                self.left_out.append(PluginInfo(short, name, is_builtin=True, state="failed"))

    def load_installed(self, *, kept: Mapping[str, Any] | None = None, refused: Mapping[str, str] | None = None) -> None:
        """Register every plugin that is installed, in the order of their names.

        Args:
            kept: Name -> plugin, of those that an earlier manager has loaded and that have not changed.
            refused: Name -> why it must not be imported.
        """
        wanted = self._wanted(find_installed())
        calls = [partial(self._import, plugin, kept or {}, refused or {}) for plugin in wanted]
        for plugin, outcome in zip(wanted, call_each(calls), strict=True):
            if isinstance(outcome, BaseException):
                self._report_import(plugin, outcome)
            elif self._fits(plugin, outcome.plugin) and self._admit(plugin, outcome):
                self.loaded[plugin.name] = outcome.plugin
                continue
            self.left_out.append(PluginInfo(plugin.name, plugin.target, state="failed", installed=plugin))

    def _import(self, plugin: InstalledPlugin, kept: Mapping[str, Any], refused: Mapping[str, str]) -> _Loaded:
        if plugin.name in refused:
            raise _Refused(refused[plugin.name])
        if plugin.name in kept:
            return _Loaded(kept[plugin.name])
        self._before_each(plugin.name)
        known, started = set(sys.modules), time.perf_counter()
        loaded = plugin.load()
        import_s = time.perf_counter() - started
        packages = {name.partition(".")[0] for name in set(sys.modules) - known}
        own = {"hostler", plugin.target.partition(":")[0].partition(".")[0]}
        return _Loaded(loaded, import_s, tuple(sorted(packages - own - sys.stdlib_module_names)))

    def _wanted(self, found: Sequence[InstalledPlugin]) -> list[InstalledPlugin]:
        only = os.environ.get("HOSTLER_LOAD_PLUGINS")
        names = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
        for name in sorted((names or set()) - {plugin.name for plugin in found}):
            self._report(name, "is named in HOSTLER_LOAD_PLUGINS, but no installed package brings it")
        wanted = [plugin for plugin in found if names is None or plugin.name in names]
        for plugin in wanted:
            if plugin.name in self._disabled:
                self.left_out.append(PluginInfo(plugin.name, plugin.target, state="disabled", installed=plugin))
        return [plugin for plugin in wanted if plugin.name not in self._disabled]

    def _fits(self, installed: InstalledPlugin, plugin: Any) -> bool:
        """Whether the plugin speaks this hostler's API; one that does not say so speaks the first."""
        of_module = sys.modules.get(getattr(plugin, "__module__", None) or installed.target.partition(":")[0])
        declared = getattr(plugin, "HOSTLER_API", getattr(of_module, "HOSTLER_API", 1))
        if not isinstance(declared, int) or isinstance(declared, bool):
            self._report(installed.name, f"says HOSTLER_API = {declared!r}; it must be a whole number, such as {API_VERSION}")
            return False
        if declared != API_VERSION:
            self._report(installed.name, _is_of_another_api(declared, installed.distribution))
        return declared == API_VERSION

    def _report_import(self, plugin: InstalledPlugin, error: BaseException) -> None:
        declared = plugin.declared_api()
        if isinstance(error, _Refused):
            self._report(plugin.name, str(error))
        elif isinstance(error, TookTooLong):
            self._report_delay(plugin.name, "its import", error)
        elif declared not in {None, API_VERSION}:  # of course it misses names that this hostler does not have
            self._report(plugin.name, _is_of_another_api(declared, plugin.distribution), error)
        else:
            self._report(plugin.name, f"cannot be imported ({plugin.origin}): {_described(error)}", error)

    def _admit(self, plugin: InstalledPlugin, loaded: _Loaded) -> bool:
        return self.register(
            loaded.plugin, plugin.name, installed=plugin, import_s=loaded.import_s, brought=loaded.brought
        )

    def register(self, module: Any, name: str, **details: Any) -> bool:
        """Register one plugin object under a name; a second of the same name is reported and skipped.

        Args:
            details: Fields of its PluginInfo.

        Returns:
            False: it was skipped.
        """
        if self.manager.has_plugin(name):
            self._report(name, "cannot be registered: another plugin of that name came first; uninstall one of them")
            return False
        try:
            self.manager.register(module, name)
        except (ValueError, pluggy.PluginValidationError) as error:
            self._report(name, f"cannot be registered: {error}")
            return False
        for caller in self.manager.get_hookcallers(module) or ():
            if not caller.has_spec():
                self._report(name, f"implements {caller.name}, a hook that this hostler does not have; it is never called")
        self.infos.append(PluginInfo(name, getattr(module, "__name__", repr(module)), **details))
        return True

    # -- what they bring ------------------------------------------------------------------------------------------

    @cached_property
    def engines(self) -> dict[str, EngineSpec]:
        """Engine name -> spec, over all plugins."""
        return {name: spec for name, (_, spec) in self._engines.items()}

    @cached_property
    def sources(self) -> dict[str, SourceSpec]:
        """Scheme -> source, over all plugins."""
        return {scheme: spec for scheme, (_, spec) in self._sources.items()}

    @cached_property
    def routes(self) -> dict[str, tuple[str, RoutesSpec]]:
        """Prefix -> plugin and routes, over all plugins; no prefix stands below another."""
        found: dict[str, tuple[str, RoutesSpec]] = {}
        for plugin, spec in self._collect("register_routes", RoutesSpec):
            wrong = complaint(spec)
            taken = next((p for p in found if is_below(spec.prefix, p) or is_below(p, spec.prefix)), None)
            if not _is_object_path(spec.app):
                self._report(plugin, f"brings routes with app={spec.app!r}; it must look like 'package.module:name'")
            elif wrong is not None:
                self._report(plugin, f"brings routes that cannot be served: {wrong}")
            elif taken is not None:
                self._report(plugin, _is_taken("routes below", taken, found[taken][0]))
            else:
                found[spec.prefix] = (plugin, spec)
        return found

    @cached_property
    def listeners(self) -> list[tuple[str, ListenerSpec]]:
        """Plugin and listener, over all plugins."""
        found: list[tuple[str, ListenerSpec]] = []
        for plugin, spec in self._collect("register_events", ListenerSpec):
            idle = [glob for glob in spec.events if not any(is_wanted(name, (glob,)) for name in EVENT_NAMES)]
            if not _is_object_path(spec.listener):
                self._report(plugin, f"brings the listener {spec.listener!r}; it must look like 'package.module:name'")
            elif idle or not spec.events:
                which = ", ".join(map(repr, idle)) or "nothing"
                self._report(plugin, f"brings a listener to {which}, and there is no such event; it is skipped")
            else:
                found.append((plugin, spec))
        return found

    def engines_of(self, plugin: str) -> list[EngineSpec]:
        """The engines that one plugin brings, those left out that another plugin has brought first."""
        return [spec for owner, spec in self._engines.values() if owner == plugin]

    def sources_of(self, plugin: str) -> list[SourceSpec]:
        """The sources that one plugin brings, those left out that another plugin has brought first."""
        return [spec for owner, spec in self._sources.values() if owner == plugin]

    def routes_of(self, plugin: str) -> list[RoutesSpec]:
        """The routes that one plugin brings, those left out that another plugin has brought first."""
        return [spec for owner, spec in self.routes.values() if owner == plugin]

    def listeners_of(self, plugin: str) -> list[ListenerSpec]:
        """The listeners that one plugin brings."""
        return [spec for owner, spec in self.listeners if owner == plugin]

    def devices(self) -> tuple[str, ...]:
        """What the engines' libraries were built for, the best first, the CPU last."""
        found: list[str] = []
        for owner, spec in self._engines.values():
            try:
                found += [str(device) for device in (spec.devices() if spec.devices is not None else ())]
            except Exception as error:  # noqa: BLE001 - see add_commands
                self._report(owner, f"devices of the engine {spec.name!r} raised {_described(error)}", error)
        return (*dict.fromkeys(device for device in found if device != "cpu"), "cpu")

    def engine_for(self, model_format: str, wanted: str | None = None) -> EngineSpec | None:
        """The engine that runs a format: the wanted one if it takes it, else the first that does."""
        if wanted is not None and wanted in self.engines and model_format in self.engines[wanted].formats:
            return self.engines[wanted]
        return next((spec for spec in self.engines.values() if model_format in spec.formats), None)

    def add_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands; one that raises, hangs, or takes a name that is there already, adds none."""
        implementations = self._implementations("register_commands")
        # Each gets a copy, so that one that is late, or fails half way, leaves nothing behind.
        drafts = [_draft_of(cli) for _ in implementations]
        before = dict(cli.commands)
        calls = [
            partial(implementation.function, **({"cli": draft} if "cli" in implementation.argnames else {}))
            for implementation, draft in zip(implementations, drafts, strict=True)
        ]
        for implementation, draft, outcome in zip(implementations, drafts, call_each(calls), strict=True):
            name = implementation.plugin_name
            if isinstance(outcome, BaseException):
                self._report_hook(name, "register_commands", outcome)
                continue
            replaced = [command for command in before if draft.commands.get(command) is not before[command]]
            new = {command: value for command, value in draft.commands.items() if command not in before}
            taken = [*replaced, *(command for command in new if command in cli.commands)]
            if taken:
                names = ", ".join(repr(command) for command in taken)
                self._report(name, f"register_commands replaced {names}; its commands are skipped")
            else:
                cli.commands.update(new)

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
        implementations = self._implementations(hook)
        calls = [partial(self._answers_of, implementation) for implementation in implementations]
        for implementation, outcome in zip(implementations, call_each(calls), strict=True):
            name = implementation.plugin_name
            if isinstance(outcome, BaseException):
                self._report_hook(name, hook, outcome)
                continue
            for item in outcome:
                if isinstance(item, expected):
                    found.append((name, item))
                else:
                    self._report(name, f"{hook} gave {item!r}, which is no {expected.__name__}")
        return found

    def _answers_of(self, implementation: pluggy.HookImpl) -> list[Any]:
        if implementation.plugin_name in self.loaded:
            self._before_each(implementation.plugin_name)
        answer = implementation.function()
        if answer is None:
            return []
        return list(answer) if isinstance(answer, Iterable) and not isinstance(answer, str) else [answer]

    def _report_hook(self, plugin: str, hook: str, error: BaseException) -> None:
        if isinstance(error, TookTooLong):
            self._stuck.add(plugin)
            self._report_delay(plugin, hook, error)
        else:
            self._report(plugin, f"{hook} raised {_described(error)}", error)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """A hook's implementations in the order in which their plugins were registered."""
        order = {info.name: index for index, info in enumerate(self.infos)}
        found: list[pluggy.HookImpl] = getattr(self.manager.hook, hook).get_hookimpls()
        found = [implementation for implementation in found if implementation.plugin_name not in self._stuck]
        return sorted(found, key=lambda implementation: order.get(implementation.plugin_name, len(order)))

    def _report_delay(self, plugin: str, what: str, error: TookTooLong) -> None:
        self._report(plugin, f"is skipped: {what} {error}; `hostler plugins disable {plugin}` leaves it out")
        self.delays.append(self.problems[-1])

    def _report(self, plugin: str, message: str, error: BaseException | None = None) -> None:
        problem = PluginProblem(plugin, f"plugin {plugin!r} {message}")
        if problem not in self.problems:
            self.problems.append(problem)
            log.debug("%s", problem.message, exc_info=error)


def get_plugins(home: Path | None = None) -> Plugins:
    """A fresh manager with the built-in and all installed plugins, and with all they bring collected.

    Args:
        home: Whose choices count; None: nothing is disabled.
    """
    return load_plugins(home)


def load_plugins(
    home: Path | None,
    *,
    kept: Mapping[str, Any] | None = None,
    refused: Mapping[str, str] | None = None,
    before_each: Callable[[str], None] | None = None,
) -> Plugins:
    """As `get_plugins`; with the arguments of Plugins and of `load_installed`."""
    plugins = without_disabled(home, before_each)
    plugins.load_builtin()
    plugins.load_installed(kept=kept, refused=refused)
    _ = plugins.engines, plugins.sources, plugins.routes, plugins.listeners  # so that `problems` is complete
    return plugins


def without_disabled(home: Path | None, before_each: Callable[[str], None] | None = None) -> Plugins:
    """An empty manager that will leave out what this home has disabled. A file of choices that cannot be read is a problem
    to show; it leaves out nothing."""
    try:
        return Plugins(read_disabled(home) if home is not None else (), before_each)
    except ConfigError as error:
        plugins = Plugins((), before_each)
        plugins.problems.append(PluginProblem(CHOICES_FILE, error.message))
        return plugins


class _Refused(Exception):
    """A plugin that is not to be imported; the text is the reason."""


def _say_nothing(plugin: str) -> None:
    del plugin


def _draft_of(cli: click.Group) -> click.Group:
    draft = copy.copy(cli)
    draft.commands, draft.params = dict(cli.commands), list(cli.params)
    return draft


def _is_of_another_api(declared: int | None, distribution: str) -> str:
    return (
        f"was built for version {declared} of hostler's plugin API, and this hostler has version {API_VERSION}; "
        f"install a release of {distribution or 'its package'} that fits, or the hostler that it was built for"
    )


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_taken(kind: str, name: str, owner: str) -> str:
    return f"brings the {kind} {name!r}, which plugin {owner!r} has brought already; this one is skipped"


def _is_object_path(path: str) -> bool:
    module, has_colon, name = path.partition(":")
    return bool(has_colon) and all(part.isidentifier() for part in [*module.split("."), name])
