"""Who gets memory, and disk for a prefix cache: one start at a time decides, and unloads idle models or waits for busy ones
if need be. Floor 4.

Used by the threads that start models. `_lock` is held while the ledger is asked and while an idle model is unloaded, never
while a worker loads; it is taken before any model's `changed`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from hostler.config import Settings
from hostler.domain import MemoryEstimate
from hostler.engine import EngineSettings, EngineSpec, ModelFiles
from hostler.errors import (
    EngineUnavailable,
    InsufficientMemory,
    InvalidRequest,
    ModelNotDownloaded,
    ModelNotFound,
    StartCancelled,
    UnsupportedParameter,
)
from hostler.hosted import HostedModel, StartAttempt
from hostler.keptprefixes import KeptPrefixes, write_model_id
from hostler.ledger import AUTO_CTX_LEN, MIB, Grant, Ledger, machine_memory_bytes
from hostler.library.disk import free_bytes
from hostler.library.fields import AUTO, settings_with_defaults
from hostler.library.manifest import Manifest
from hostler.library.store import Library
from hostler.worker.wire import PromptSettings

PATIENCE_S = 0.2
"""How soon a start that waits for memory looks at all models again."""
_DEFAULTS = settings_with_defaults({})
DEFAULT_DISK_MIB = _DEFAULTS["cache_disk_mib"]
_OF_A_PREFIX_CACHE = ("cache_ram_mib", "cache_disk_mib")
_PROMPT_FIELDS = ("prompt_template", "pre_prompt", "system_prompt", "user_prompt", "ai_prompt")
_CACHE_FIELDS = frozenset({"cache_ram_bytes", "cache_disk_bytes", "cache_folder", "model_digest"})
_ENGINE_FIELDS = frozenset(EngineSettings.__struct_fields__) - {"ctx_len"} - _CACHE_FIELDS


class Plan(msgspec.Struct, frozen=True):
    """What a start of one model means, before memory is asked for."""

    spec: EngineSpec
    files: ModelFiles
    settings: dict[str, Any]
    """Complete, native types."""
    is_auto: bool
    wanted_ctx_len: int
    digest: str = ""
    """What is known of the files' content."""
    draft_path: str = ""
    """Primary file of the model that `draft_model` names."""

    def without_effect(self) -> Iterator[str]:
        """What was set and means nothing to the engine, in words."""
        ignored = self.spec.ignores if self.spec.keeps_prefixes else (*self.spec.ignores, *_OF_A_PREFIX_CACHE)
        for name in ignored:
            if self.settings.get(name) != _DEFAULTS.get(name):
                yield f"{name} has no effect on {self.spec.name}"

    @property
    def has_cache(self) -> bool:
        """Whether its engine has a prefix cache, and may use it."""
        return self.spec.keeps_prefixes and bool(self.settings["caching_enabled"])

    def engine_settings(self, ctx_len: int) -> EngineSettings:
        """The settings as the engine gets them."""
        known = {name: value for name, value in self.settings.items() if name in _ENGINE_FIELDS}
        return EngineSettings(ctx_len=ctx_len, **{**known, "draft_path": self.draft_path})

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


class Placed(msgspec.Struct, frozen=True):
    """What a start got."""

    grant: Grant
    settings: EngineSettings
    warnings: tuple[str, ...]
    """What it got less of than was set."""


def refuse_unmet(manifest: Manifest, settings: dict[str, Any]) -> None:
    """Settings that no engine here can honour, and that must not be dropped.

    Raises:
        UnsupportedParameter: With its name.
    """
    if settings.get("grammar_file"):
        raise UnsupportedParameter(
            f"grammar_file of {manifest.id} is {settings['grammar_file']!r}, and no engine reads grammars from files; unset "
            f"it, and send the grammar in each request's field grammar",
            param="grammar_file",
        )


def draft_path(library: Library, manifest: Manifest, spec: EngineSpec, settings: dict[str, Any]) -> str:
    """The file of the model that is to guess for another one; empty where none is, or nothing is guessed.

    Raises:
        UnsupportedParameter: The engine cannot guess, or the other model is of another format.
        InvalidRequest: There is no such model, or it is not downloaded.
    """
    name = settings.get("draft_model")
    if not name or settings["speculation"] == "off":
        return ""
    if not spec.speculates:
        raise UnsupportedParameter(
            f"draft_model of {manifest.id} is {name!r}, and the engine {spec.name} guesses no tokens; unset draft_model",
            param="draft_model",
        )
    try:
        other = library.find(name).manifest
        if other.engine_format != manifest.engine_format:
            raise UnsupportedParameter(
                f"The draft_model of {manifest.id} is {other.id}, whose format is {other.format!r}; it must be "
                f"{manifest.format!r}, too",
                param="draft_model",
            )
        return library.files(other.id).primary
    except (ModelNotFound, ModelNotDownloaded) as error:
        # No 404 or 409 of its own: to whoever asks for an answer those would be about the model that was named.
        raise InvalidRequest(
            f"The draft_model of {manifest.id} is {name!r}, which is not there: {error.message}. Set draft_model to an id "
            f"that `hostler list` shows, or unset it",
            param="draft_model",
        ) from error


class Placement:
    """Grants memory and disk to starts."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        kept: KeptPrefixes,
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
        self._kept = kept
        self._all_hosted = all_hosted
        self._stop_idle = stop_idle
        self._lock = threading.Lock()

    def place(self, hosted: HostedModel, attempt: StartAttempt, plan: Plan) -> Placed:
        """Get what a model needs, and what its prefix cache may have.

        Raises:
            InsufficientMemory, EngineUnavailable, StartCancelled: As `_memory` does.
        """
        grant = self._memory(hosted, attempt, plan)
        settings = plan.engine_settings(grant.ctx_len)
        if not plan.has_cache:
            return Placed(grant, settings, ())
        disk_bytes = self._kept.grant(hosted.id, plan.settings["cache_disk_mib"] * MIB)
        folder = self._kept.folder_of(hosted.id)
        if disk_bytes:
            write_model_id(folder, hosted.id)
        settings = msgspec.structs.replace(
            settings,
            cache_ram_bytes=grant.cache_bytes,
            cache_disk_bytes=disk_bytes,
            cache_folder=str(folder) if disk_bytes else "",
            model_digest=plan.digest,
        )
        return Placed(grant, settings, tuple(self._cuts(plan, grant, disk_bytes)))

    def release(self, model_id: str) -> None:
        """The model is gone, and what it was granted is free. Idempotent."""
        self._ledger.release(model_id)
        self._kept.release(model_id)

    def _cache_wanted(self, plan: Plan) -> int:
        """Memory for its prefix cache."""
        if not plan.has_cache:
            return 0
        wanted = plan.settings["cache_ram_mib"]
        if wanted == AUTO:
            by_default: int = self._settings.cache_ram_bytes
            return min(by_default, machine_memory_bytes() // 10)
        return int(wanted) * MIB

    def _cuts(self, plan: Plan, grant: Grant, disk_bytes: int) -> Iterator[str]:
        """What somebody set and does not get, in words."""
        ram, disk = plan.settings["cache_ram_mib"], plan.settings["cache_disk_mib"]
        if ram != AUTO and grant.cache_bytes < ram * MIB:
            got = grant.cache_bytes // MIB
            yield f"cache_ram_mib is {ram}, and the prefix cache gets {got} MiB: half of the memory that the model leaves free"
        if disk_bytes < disk * MIB:
            yield (
                f"cache_disk_mib is {disk}, and the prefix cache gets {disk_bytes // MIB} MiB of disk: what the server's "
                f"cache_disk_bytes leaves beside other models that run"
            )
        elif disk != DEFAULT_DISK_MIB and (free := free_bytes(self._kept.folder)) < disk_bytes:
            yield f"cache_disk_mib is {disk}, and the disk of {self._kept.folder} has {free // MIB} MiB free"

    def _memory(self, hosted: HostedModel, attempt: StartAttempt, plan: Plan) -> Grant:
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

        cache_bytes = self._cache_wanted(plan)
        deadline = time.monotonic() + self._settings.start_timeout_s
        while True:
            with self._lock:
                if attempt.is_cancelled:
                    raise StartCancelled(f"{hosted.id} was stopped while it started")
                if self._has_place_beside(hosted) or self._unload_idle(hosted):
                    try:
                        grant = self._ledger.grant(
                            hosted.id,
                            plan.wanted_ctx_len,
                            is_auto=plan.is_auto,
                            estimate=estimate,
                            cache_bytes=cache_bytes,
                        )
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
