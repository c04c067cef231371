"""What runs the models and on what: `/v1/engines` and `/v1/hardware`. Source: spec/API.md section 11, Cortex's shapes.

Floor 5; on the waitress thread of the request. Engines are plugins: installing and removing them is pip's business, so the
routes for that answer 501.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon

from hostler.api import shapes
from hostler.api.schema.server_answers import EngineAnswer
from hostler.config import Settings
from hostler.domain import Lifecycle
from hostler.errors import EngineNotFound
from hostler.hardware import look_at_machine

if TYPE_CHECKING:
    from hostler.engine import EngineSpec
    from hostler.runtime import Runtime


class Machine:
    """Engines and hardware."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings

    def engines(self, req: falcon.Request, resp: falcon.Response) -> None:
        """listEngines: those that plugins registered, whether they can run here or not."""
        del req
        specs = self._runtime.plugins.engines
        loaded = self._loaded()
        resp.media = shapes.whole([_answer(specs[name], loaded) for name in sorted(specs)])

    def engine(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """One engine."""
        del req
        spec = self._runtime.plugins.engines.get(name)
        if spec is None:
            known = ", ".join(sorted(self._runtime.plugins.engines)) or "none"
            raise EngineNotFound(f"The engine {name} does not exist; installed: {known}")
        resp.media = _answer(spec, self._loaded())

    def hardware(self, req: falcon.Request, resp: falcon.Response) -> None:
        """What this machine has. Looking at GPUs may take a moment, so it holds a place of `max_requests`."""
        del req
        with self._runtime.hold("hardware"):
            resp.media = look_at_machine(self._settings.home)

    def _loaded(self) -> dict[str, list[str]]:
        """Engine -> the models that run in it."""
        found: dict[str, list[str]] = {}
        for view in self._runtime.models():
            if view.lifecycle is Lifecycle.RUNNING:
                found.setdefault(view.engine, []).append(view.manifest.id)
        return found


def _answer(spec: EngineSpec, loaded: dict[str, list[str]]) -> EngineAnswer:
    models = loaded.get(spec.name, [])
    return EngineAnswer(
        id=spec.name,
        name=spec.name,
        engine=spec.name,
        version=spec.version,
        status="loaded" if models else "installed",
        formats=list(spec.formats),
        models=models,
    )
