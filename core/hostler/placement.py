"""Who gets memory: one start at a time decides, and unloads idle models or waits for busy ones if need be. Floor 4.

Used by the threads that start models. `_lock` is held while the ledger is asked and while an idle model is unloaded, never
while a worker loads; it is taken before any model's `changed`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hostler.config import Settings
from hostler.domain import MemoryEstimate
from hostler.engine import EngineSettings, EngineSpec, ModelFiles
from hostler.errors import EngineUnavailable, InsufficientMemory, StartCancelled
from hostler.hosted import HostedModel, StartAttempt
from hostler.ledger import AUTO_CTX_LEN, Grant, Ledger
from hostler.library.fields import AUTO
from hostler.library.manifest import Manifest
from hostler.worker.wire import PromptSettings

PATIENCE_S = 0.2
"""How soon a start that waits for memory looks at all models again."""
_PROMPT_FIELDS = ("prompt_template", "pre_prompt", "system_prompt", "user_prompt", "ai_prompt")
_ENGINE_FIELDS = frozenset(EngineSettings.__struct_fields__) - {"ctx_len"}


class Plan(msgspec.Struct, frozen=True):
    """What a start of one model means, before memory is asked for."""

    spec: EngineSpec
    files: ModelFiles
    settings: dict[str, Any]
    """Complete, native types."""
    is_auto: bool
    wanted_ctx_len: int

    def engine_settings(self, ctx_len: int) -> EngineSettings:
        """The settings as the engine gets them."""
        known = {name: value for name, value in self.settings.items() if name in _ENGINE_FIELDS}
        return EngineSettings(ctx_len=ctx_len, **known)

    def prompt_settings(self, chosen: dict[str, Any]) -> PromptSettings:
        """How messages become text; only what was set counts, defaults would hide the file's template."""
        return PromptSettings(**{name: chosen[name] for name in _PROMPT_FIELDS if name in chosen})


def wanted_ctx_len(ctx_len: int | str, limit: int, spec: EngineSpec | None) -> int:
    """The context that a setting asks for, before memory is asked.

    Args:
        ctx_len: The setting: tokens, 0 (the file's) or auto.
        limit: What the file allows; 0: unknown.
        spec: The engine; None: there is none.
    """
    if ctx_len in (AUTO, 0) and spec is not None and spec.takes_messages:
        return limit  # 0: whoever answers knows it
    if ctx_len == AUTO:
        return min(limit or AUTO_CTX_LEN, AUTO_CTX_LEN)
    if ctx_len == 0:
        return limit or AUTO_CTX_LEN
    return min(int(ctx_len), limit) if limit else int(ctx_len)


def context_limit(spec: EngineSpec | None, files: ModelFiles | None, manifest: Manifest) -> int:
    """The context that a model's file allows, by its engine or, where that does not say, by its manifest; 0: unknown."""
    if spec is not None and spec.context_length is not None and files is not None:
        return spec.context_length(Path(files.primary))
    known = manifest.metadata.get("context_length")
    return int(known) if isinstance(known, int | str) and str(known).isdigit() else 0


class Placement:
    """Grants memory to starts."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        all_hosted: Callable[[], list[HostedModel]],
        stop_idle: Callable[[HostedModel], bool],
    ) -> None:
        """Keep the rules.

        Args:
            all_hosted: Every model that was started at least once, or is about to be.
            stop_idle: Unloads a model if it is idle; False: it was not.
        """
        self._settings = settings
        self._ledger = ledger
        self._all_hosted = all_hosted
        self._stop_idle = stop_idle
        self._lock = threading.Lock()

    def place(self, hosted: HostedModel, attempt: StartAttempt, plan: Plan) -> Grant:
        """Get memory for a model, unloading idle ones and waiting for busy ones if need be.

        Raises:
            InsufficientMemory: It would not fit, or others stayed busy for `start_timeout_s`.
            EngineUnavailable: `max_loaded_models` busy ones run.
            StartCancelled: It was stopped meanwhile.
        """

        def estimate(ctx_len: int) -> MemoryEstimate:
            if plan.spec.estimate is not None:
                return plan.spec.estimate(Path(plan.files.primary), plan.engine_settings(ctx_len))
            return MemoryEstimate(_size_of(plan.files), 0, 0)

        deadline = time.monotonic() + self._settings.start_timeout_s
        while True:
            with self._lock:
                if attempt.is_cancelled:
                    raise StartCancelled(f"{hosted.id} was stopped while it started")
                if self._has_place_beside(hosted) or self._unload_idle(hosted):
                    try:
                        grant = self._ledger.grant(hosted.id, plan.wanted_ctx_len, is_auto=plan.is_auto, estimate=estimate)
                    except InsufficientMemory as error:
                        others = self._others_placed(hosted)
                        most = error.available_bytes + sum(self._ledger.bytes_of(other.id) for other in others)
                        if error.needed_bytes > most:
                            raise  # not even alone: nobody is unloaded for nothing
                        if self._unload_idle(hosted):
                            continue
                        if not others or time.monotonic() > deadline:
                            raise
                    else:
                        if attempt.is_cancelled:
                            self._ledger.release(hosted.id)
                            raise StartCancelled(f"{hosted.id} was stopped while it started")
                        return grant
                elif time.monotonic() > deadline:
                    raise EngineUnavailable(
                        f"{self._settings.max_loaded_models} models are running (max_loaded_models) and all of them are "
                        f"busy, so {hosted.id} cannot start; try again or stop one",
                        retry_after_s=5.0,
                    )
            self._wait_for_idle(hosted)

    def _has_place_beside(self, hosted: HostedModel) -> bool:
        limit = self._settings.max_loaded_models
        return not limit or len(self._others_placed(hosted)) < limit

    def _others_placed(self, hosted: HostedModel) -> list[HostedModel]:
        """The other models that run, or have been granted memory and are about to."""
        others = [other for other in self._all_hosted() if other is not hosted]
        return [other for other in others if other.worker is not None or self._ledger.bytes_of(other.id)]

    def _unload_idle(self, hosted: HostedModel) -> bool:
        """Stop the model that has been idle longest. False: none is idle."""
        idle = sorted((other for other in self._others_placed(hosted) if other.is_idle), key=lambda m: m.last_used)
        return any(self._stop_idle(other) for other in idle[:1])

    def _wait_for_idle(self, hosted: HostedModel) -> None:
        # Any of the others may become idle first; a short wait on the least recently used one, then all are looked at.
        others = self._others_placed(hosted)
        if others:
            other = min(others, key=lambda model: model.last_used)
            with other.changed:
                if not other.is_idle:
                    other.changed.wait(PATIENCE_S)


def _size_of(files: ModelFiles) -> int:
    total = 0
    for name in (files.primary, *files.others):
        path = Path(name)
        parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
        total += sum(part.stat().st_size for part in parts)
    return total
