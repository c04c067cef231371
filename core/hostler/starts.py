"""How models come to run and stop: starts in threads of their own, what a start needs, and who may join it.

Floor 4, in the host process; every method may be called from any thread. It knows models that are hosted, the library's
files and the placement; requests and HTTP it does not.

Locks, in the order they are taken: the placement's (see placement.py), then a model's `changed`, then those of whoever lists
the hosted models. None is held while a worker loads or stops, save the placement's while an idle model is unloaded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from hostler.config import Settings
from hostler.domain import Lifecycle
from hostler.engine import EngineSpec
from hostler.errors import EngineUnavailable, HostlerError, InternalError, ModelLoadFailed
from hostler.hosted import HostedModel, StartAttempt
from hostler.keptprefixes import KeptPrefixes
from hostler.ledger import Ledger
from hostler.library.fields import AUTO, settings_with_defaults
from hostler.library.store import Library, LibraryEntry
from hostler.modelcache import ModelCache
from hostler.modeldigest import known_digest
from hostler.placement import Placement, Plan, context_limit, draft_path, refuse_unmet, wanted_ctx_len
from hostler.weights import WarmWeights
from hostler.worker.supervisor import Limits, Supervisor

log = logging.getLogger("hostler.starts")

START_SLACK_S = 30.0
"""Beyond `start_timeout_s`, which each progress renews, a caller waits so long before it is told to ask again."""
JOINS = 3
"""How often a start that wants its own settings waits for others' starts of the same model."""


class Starts:
    """Owns the placement, and the workers from their making to their end."""

    def __init__(
        self,
        settings: Settings,
        library: Library,
        ledger: Ledger,
        model_cache: ModelCache,
        kept_prefixes: KeptPrefixes,
        *,
        engine_of: Callable[[LibraryEntry], EngineSpec | None],
        why_no_engine: Callable[[str], str | None],
        hosted_models: Callable[[], list[HostedModel]],
    ) -> None:
        """Start nothing yet.

        Args:
            engine_of: What runs a model, by the plugins of the moment.
            why_no_engine: A format -> why nothing runs it, where more is known than that no plugin does.
            hosted_models: Every model that was started at least once, or is about to be.
        """
        self._settings = settings
        self._library = library
        self._ledger = ledger
        self._model_cache = model_cache
        self._engine_of = engine_of
        self._why_no_engine = why_no_engine
        self._hosted_models = hosted_models
        self._limits = Limits(
            start_timeout_s=settings.start_timeout_s,
            step_timeout_s=settings.step_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            max_readers=settings.max_requests + 8,
        )
        self._placement = Placement(settings, ledger, kept_prefixes, hosted_models, self.stop_idle)

    def start(self, hosted: HostedModel, entry: LibraryEntry, overrides: dict[str, Any], *, is_waiting: bool) -> None:
        """Start a model, or join the start that is going on; see Runtime.start_model."""
        for _ in range(JOINS):
            with hosted.changed:
                attempt, is_mine = hosted.begin_start(is_reload=self._is_other_run(hosted, entry, overrides))
            if is_mine:
                self.run(hosted, attempt, entry, overrides)
            if is_waiting:
                attempt.wait(self._settings.start_timeout_s + START_SLACK_S)
            if is_mine or not is_waiting or not self._is_other_run(hosted, entry, overrides):
                break  # else it joined a start with other settings than it wants: once more

    def running_worker(self, hosted: HostedModel, entry: LibraryEntry, overrides: dict[str, Any]) -> Supervisor:
        """The model's worker, started and waited for if need be."""
        with hosted.changed:
            attempt, is_mine = self.begin_if_needed(hosted)
        if attempt is not None:
            if is_mine:
                self.run(hosted, attempt, entry, overrides)
            attempt.wait(self._settings.start_timeout_s + START_SLACK_S)
        worker = hosted.worker
        if worker is None:
            raise EngineUnavailable(f"{hosted.id} was stopped; try again", retry_after_s=1.0)
        return worker

    def begin_if_needed(self, hosted: HostedModel) -> tuple[StartAttempt | None, bool]:
        """Begin to start a model that does not run; call while holding its `changed`.

        Returns:
            The start that is to be waited for, None when it runs; and whether the caller must run it.

        Raises:
            EngineUnavailable: It keeps dying, or it does not run and may not be started.
        """
        worker = hosted.worker
        if worker is not None:
            hosted.worker_changed(worker)  # news of a death may still be on its way
            if worker.state == "backing_off" and hosted.lifecycle is Lifecycle.STARTING:
                raise hosted.unavailable(worker)
        if hosted.lifecycle is Lifecycle.RUNNING:
            return None, False
        is_joining = hosted.attempt is not None and hosted.attempt.is_open
        is_restarting = worker is not None and hosted.lifecycle is Lifecycle.STARTING
        if not (self._settings.autostart or is_joining or is_restarting):
            raise EngineUnavailable(
                f"The model {hosted.id} is not running and autostart is off; start it with PUT /v1/models/{hosted.id}/start"
            )
        return hosted.begin_start()

    def run(self, hosted: HostedModel, attempt: StartAttempt, entry: LibraryEntry, overrides: dict[str, Any]) -> None:
        """Run a start that `begin_if_needed` has begun for the caller, who is not held up by it."""
        # A thread of its own, so that a caller that leaves does not take the start with it.
        thread = threading.Thread(
            target=self._start, args=(hosted, attempt, entry, overrides), name=f"start {hosted.id}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            self._start_failed(hosted, attempt, InternalError(f"Starting {hosted.id} failed: {error}"))

    def stop(self, hosted: HostedModel, *, only_if_idle: bool = False, is_reload: bool = False) -> bool:
        """Stop a model, or cancel its start; returns when it is gone. False: somebody else does it, or it is not idle."""
        is_mine, worker = hosted.begin_stop(only_if_idle=only_if_idle, is_reload=is_reload)
        if not is_mine:
            if not only_if_idle:
                hosted.wait_while_cancelling()
            return False
        if worker is not None:
            worker.stop()
        self._placement.release(hosted.id)
        hosted.stopped()
        return True

    def stop_idle(self, hosted: HostedModel) -> bool:
        """Stop a model if nobody uses it. False: somebody does."""
        return self.stop(hosted, only_if_idle=True)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _is_other_run(self, hosted: HostedModel, entry: LibraryEntry, overrides: dict[str, Any]) -> bool:
        """Whether a start means other settings than those of the run: its own, or those kept, changed since."""
        running = hosted.chosen
        return hosted.kept != entry.manifest.settings or any(running.get(name) != value for name, value in overrides.items())

    def _start(self, hosted: HostedModel, attempt: StartAttempt, entry: LibraryEntry, overrides: dict[str, Any]) -> None:
        try:
            hosted.wait_while_stopping()
            if hosted.worker is not None:
                self.stop(hosted, is_reload=True)
            with hosted.changed:
                hosted.enter_starting(attempt)
            self._load(hosted, attempt, entry, overrides)
        except HostlerError as error:
            self._start_failed(hosted, attempt, error)
        except Exception as error:
            log.exception("starting %s failed", hosted.id)
            self._start_failed(hosted, attempt, InternalError(f"Starting {hosted.id} failed: {error!r}; see the log"))

    def _start_failed(self, hosted: HostedModel, attempt: StartAttempt, error: HostlerError) -> None:
        if hosted.attempt is attempt:
            self._placement.release(hosted.id)
        hosted.start_failed(attempt, error)
        log.warning("%s did not start: %s", hosted.id, error.message)

    def _load(self, hosted: HostedModel, attempt: StartAttempt, entry: LibraryEntry, overrides: dict[str, Any]) -> None:
        plan = self._plan(entry, overrides)
        placed = self._placement.place(hosted, attempt, plan)
        worker = Supervisor(
            hosted.id,
            plan.spec.engine,
            plan.spec.environment,
            plan.files,
            placed.settings,
            plan.prompt_settings({**entry.manifest.settings, **overrides}),
            takes_messages=plan.spec.takes_messages,
            limits=self._limits,
            log_path=self._settings.home / "logs" / f"{hosted.id.replace('/', '%2F')}.log",
            on_change=self._worker_changed,
        )
        warm = WarmWeights(self._model_cache, plan.files)
        hosted.loading(attempt, worker, plan.spec.name, placed.grant, plan.settings, warm)
        hosted.kept = entry.manifest.settings
        try:
            worker.start()
            info = worker.wait_ready()
            info = msgspec.structs.replace(info, warnings=(*plan.without_effect(), *placed.warnings, *info.warnings))
            self._ledger.settle(hosted.id, has_cache=info.can_generate)
            hosted.started(attempt, worker, info)
        except BaseException:
            worker.stop()  # a stop that came between these lines found nothing to stop yet
            raise
        log.info("%s runs in %s on %s with %d x %d tokens", hosted.id, plan.spec.name, info.device, info.n_slots, info.n_ctx)

    def _worker_changed(self, worker: Supervisor) -> None:
        hosted = next((one for one in self._hosted_models() if one.id == worker.model_id), None)
        if hosted is not None:
            hosted.worker_changed(worker)
            # What a dead worker gave back is still promised to the next one.
            self._ledger.settle(hosted.id, is_loaded=worker.state == "running")

    def _plan(self, entry: LibraryEntry, overrides: dict[str, Any]) -> Plan:
        manifest = entry.manifest
        files = self._library.files(manifest.id, overrides)
        spec = self._engine_of(entry)
        if spec is None:
            why = self._why_no_engine(manifest.engine_format) or (
                "install a plugin that does, such as `pip install hostler-llamacpp` for gguf (`hostler plugins` lists what is "
                "installed)"
            )
            raise ModelLoadFailed(f"No installed engine runs {manifest.id}, whose format is {manifest.format!r}: {why}")
        settings = settings_with_defaults({**manifest.settings, **overrides})
        limit = context_limit(spec, files, manifest)
        is_auto = settings["ctx_len"] == AUTO
        wanted = wanted_ctx_len(settings["ctx_len"], limit, spec)
        refuse_unmet(manifest, settings)
        draft = draft_path(self._library, manifest, spec, settings)
        return Plan(spec, files, settings, is_auto, wanted, known_digest(manifest), draft)
