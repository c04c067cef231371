"""`/v1/plugins`: what is installed as this server sees it, and the order to look again. hostler's own routes.

Floor 5; on the waitress thread of the request, which holds a place of `max_requests` for a reload: strangers' code runs in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon

from hostler.api import shapes
from hostler.listeners import ListenerView
from hostler.pluginview import PluginView, describe

if TYPE_CHECKING:
    from hostler.runtime import Runtime


class PluginAnswer(PluginView, frozen=True, kw_only=True):
    """A plugin in a server that runs."""

    listeners: list[ListenerView]
    """How its listeners fare."""


class Plugins:
    """What plugins there are."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def list_all(self, req: falcon.Request, resp: falcon.Response) -> None:
        """listPlugins: hostler's own, then the installed ones; those that are not loaded come last."""
        del req
        listeners = self._runtime.listeners.views()
        resp.media = shapes.whole([_answer(view, listeners) for view in describe(self._runtime.plugins)])

    def reload(self, req: falcon.Request, resp: falcon.Response) -> None:
        """reloadPlugins."""
        del req
        with self._runtime.hold("reload of plugins"):
            resp.media = self._runtime.reload_plugins()


def _answer(view: PluginView, listeners: list[ListenerView]) -> PluginAnswer:
    own = [listener for listener in listeners if listener.plugin == view.name]
    return PluginAnswer(**{name: getattr(view, name) for name in view.__struct_fields__}, listeners=own)
