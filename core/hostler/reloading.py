"""Plugins that come, go and change while a server runs.

Floor 4; any thread, one reload at a time. What was installed or edited since is loaded anew, what is unchanged stays as it is
in memory, what is gone or disabled is forgotten. A model that runs is not touched, save where its engine is gone: then it is
stopped, for what it runs on is no longer there. One whose engine has changed goes on with the old until it is started again.

`_lock` is held for a whole reload; it protects `_stamps` and `_known`.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Literal

import msgspec

from hostler.errors import ModelNotFound
from hostler.installed import Stamp, find_installed, look_again
from hostler.plugins import Plugins, load_plugins
from hostler.trial import try_plugins

if TYPE_CHECKING:
    from hostler.hosted import HostedModel
    from hostler.runtime import Runtime

log = logging.getLogger("hostler.plugins")


class Reloaded(msgspec.Struct, frozen=True):
    """What a reload has changed."""

    added: list[str]
    """Plugins."""
    removed: list[str]
    changed: list[str]
    """Plugins that were loaded anew."""
    stopped: list[str]
    """Models whose engine is gone."""
    outdated: list[str]
    """Models that run on what was installed when they were started."""
    problems: list[str]
    object: Literal["plugins.reload"] = "plugins.reload"


class Gone(msgspec.Struct, frozen=True):
    """An engine that this host once had."""

    engine: str
    plugin: str
    distribution: str


class Reloading:
    """The plugins of one host over time."""

    def __init__(self, runtime: Runtime) -> None:
        """Look at nothing yet."""
        self._runtime = runtime
        self._lock = threading.Lock()
        self._stamps: dict[str, Stamp] = {}
        """Plugin -> how it lay on the disk when it was loaded."""
        self._known: dict[str, Gone] = {}
        """Format -> who has run it."""

    def start(self) -> None:
        """A server serves: remember what is loaded, to know later what has changed. Reads each plugin's metadata."""
        with self._lock:
            self._remember(self._runtime.plugins, set(), {})

    def reload(self) -> Reloaded:
        """Look again at what is installed, and use that from now on.

        Raises:
            Nothing: a plugin that cannot be loaded is a problem to tell.
        """
        with self._lock:
            return self._reload()

    def explain(self, model_format: str) -> str:
        """Why there is no engine for a format, if there was one before, or if it may be among those left out."""
        plugins = self._runtime.plugins
        states = {info.name: info.state for info in plugins.left_out}
        gone = self._known.get(model_format)
        if gone is not None:
            if states.get(gone.plugin) == "disabled":
                return f"the engine {gone.engine} is disabled; `hostler plugins enable {gone.plugin}` takes it in again"
            if states.get(gone.plugin) == "failed":
                why = "; ".join(problem.message for problem in plugins.problems if problem.plugin == gone.plugin)
                return f"the engine {gone.engine} cannot be used any more: {why}"
            return (
                f"the engine {gone.engine} is gone with its package {gone.distribution or gone.plugin}; install it again, "
                f"then `hostler plugins reload`"
            )
        disabled = [name for name, state in states.items() if state == "disabled"]
        return f"disabled plugins: {', '.join(disabled)}" if disabled else ""

    # -- inside, under the lock ---------------------------------------------------------------------------------------

    def _reload(self) -> Reloaded:
        runtime = self._runtime
        old = runtime.plugins
        look_again()
        found = {plugin.name: plugin for plugin in reversed(find_installed())}  # of two of one name the first has it
        kept = {
            name: plugin
            for name, plugin in old.loaded.items()
            if name in found and name in self._stamps and not found[name].has_changed(self._stamps[name])
        }
        home = runtime.settings.home
        refused = try_plugins(home) if found.keys() - kept.keys() else {}
        gone = [info.installed for info in [*old.infos, *old.left_out] if info.installed is not None]
        for plugin in [*gone, *found.values()]:
            if plugin.name not in kept:
                plugin.forget()
        fresh = load_plugins(home, kept=kept, refused=refused)
        before, after = {info.name for info in old.infos}, {info.name for info in fresh.infos}
        anew = {name for name in before & after if name in found and name not in kept}
        self._remember(fresh, set(kept), self._stamps)
        runtime.use_plugins(fresh, anew)
        stopped, outdated = self._look_at_models(old, fresh, anew)
        result = Reloaded(
            added=sorted(after - before),
            removed=sorted(before - after),
            changed=sorted(anew),
            stopped=stopped,
            outdated=outdated,
            problems=[problem.message for problem in fresh.problems],
        )
        log.info(
            "plugins: %d added, %d removed, %d changed; %d models stopped",
            len(result.added), len(result.removed), len(result.changed), len(stopped),
        )  # fmt: skip
        for problem in result.problems:
            log.warning("%s", problem)
        return result

    def _remember(self, plugins: Plugins, kept: set[str], stamps: dict[str, Stamp]) -> None:
        self._stamps = {
            info.name: stamps[info.name] if info.name in kept else info.installed.stamp()
            for info in plugins.infos
            if info.installed is not None
        }
        for info in plugins.infos:
            for spec in plugins.engines_of(info.name):
                gone = Gone(spec.name, info.name, info.distribution)
                self._known.update(dict.fromkeys(spec.formats, gone))

    def _look_at_models(self, old: Plugins, fresh: Plugins, anew: set[str]) -> tuple[list[str], list[str]]:
        """Stop the models whose engine is gone; find those whose engine has changed."""
        owners = {spec.name: info.name for info in fresh.infos for spec in fresh.engines_of(info.name)}
        former = {spec.name: info.name for info in old.infos for spec in old.engines_of(info.name)}
        stopped: list[str] = []
        outdated: list[str] = []
        for hosted in self._runtime.hosted_models():
            engine = _running_engine(hosted)
            if not engine:
                continue
            if engine not in owners:
                log.warning("%s is stopped: its engine %s is gone", hosted.id, engine)
                try:
                    self._runtime.stop_model(hosted.id)
                    stopped.append(hosted.id)
                except ModelNotFound:
                    pass  # somebody has just deleted it
            elif owners[engine] in anew or owners[engine] != former.get(engine):
                outdated.append(hosted.id)
        return sorted(stopped), sorted(outdated)


def _running_engine(hosted: HostedModel) -> str:
    """The engine of a model that runs or starts; empty for one at rest."""
    with hosted.changed:
        return hosted.engine if hosted.worker is not None else ""
