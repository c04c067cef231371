"""What the API and the CLI see of hostler: models, downloads, generations.

Floor 4, in the host process; every method may be called from any thread. It knows the library (what is on disk), the ledger
(what fits), the supervisors (what runs) and the queues (who waits); it knows no HTTP and imports no engine.

Locks, in the order they are taken: `_placement` (one start at a time decides who gets memory and who is unloaded for it),
then a model's `changed`, then `_lock` (the dictionaries below). None is held while a worker loads or stops, save
`_placement` while an idle model is unloaded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec

from hostler.config import Settings
from hostler.domain import GenerateRequest, Lifecycle, MemoryEstimate
from hostler.engine import EngineSettings, EngineSpec, ModelFiles
from hostler.errors import (
    EngineUnavailable,
    HostlerError,
    InsufficientMemory,
    InternalError,
    ModelLoadFailed,
    ModelNotDownloaded,
    RequestNotFound,
    StartCancelled,
)
from hostler.generation import Generation
from hostler.hosted import HostedModel, StartAttempt
from hostler.ledger import AUTO_CTX_LEN, Grant, Ledger
from hostler.library.fields import AUTO, settings_with_defaults, validate_settings
from hostler.library.pulls import PullJob
from hostler.library.store import Library, LibraryEntry
from hostler.modelcache import ModelCache
from hostler.plugins import Plugins
from hostler.scheduler import RequestBudget, Ticket
from hostler.sources.contract import SourceContext
from hostler.views import ModelView as ModelView
from hostler.views import PullRequest as PullRequest
from hostler.views import PullView as PullView
from hostler.views import RequestView as RequestView
from hostler.weights import WarmWeights
from hostler.worker.supervisor import Limits, Supervisor
from hostler.worker.wire import PromptSettings

log = logging.getLogger("hostler.runtime")

START_SLACK_S = 30.0
"""Beyond `start_timeout_s`, which each progress renews, a caller waits so long before it is told to ask again."""
JOINS = 3
"""How often a start that wants its own settings waits for others' starts of the same model."""
PATIENCE_S = 0.2
"""How soon a start that waits for memory looks at all models again."""
REAP_PERIOD_S = 1.0
"""How often idle models are compared with `keep_alive_s`."""
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


class Runtime:
    """Owns the library, the workers, the queues and the memory ledger of one home."""

    def __init__(self, settings: Settings, plugins: Plugins, *, ledger: Ledger | None = None) -> None:
        """Open a home; starts no worker and reads nothing yet.

        Args:
            settings: The server's settings; `settings.home` is the data folder.
            plugins: Engines and sources.
            ledger: Replaced in tests.
        """
        self.settings = settings
        self.plugins = plugins
        self._sources_context = SourceContext(
            proxy=settings.proxy or None, huggingface_token=settings.huggingface_token or None
        )
        self.library = Library(
            settings.home,
            plugins.sources,
            context=self._sources_context,
            is_file_allowed=settings.allow_file_sources,
            formats={model_format for spec in plugins.engines.values() for model_format in spec.formats},
        )
        self.ledger = ledger or Ledger(settings.memory_budget_bytes)
        self.model_cache = ModelCache(settings.model_cache_bytes or _quarter_of_memory())
        self.budget = RequestBudget(settings.max_requests)
        self._limits = Limits(
            start_timeout_s=settings.start_timeout_s,
            step_timeout_s=settings.step_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            max_readers=settings.max_requests + 8,
        )
        self._lock = threading.Lock()  # protects _hosted and _generations
        self._hosted: dict[str, HostedModel] = {}
        self._generations: dict[str, Generation] = {}
        self._placement = threading.Lock()
        self._closing = threading.Event()
        self.is_ready = True
        """False while draining: /readyz answers 503 then."""
        if settings.keep_alive_s > 0:
            threading.Thread(target=self._reap, name="keep-alive", daemon=True).start()

    # -- models -----------------------------------------------------------------------------------------------------

    def models(self, *, include_catalogue: bool = False) -> list[ModelView]:
        """All models that are here or on their way, by id; with `include_catalogue` those not downloaded, too."""
        return [self._view(entry) for entry in self.library.entries(include_catalogue=include_catalogue)]

    def model(self, reference: str) -> ModelView:
        """One model by any of its names, catalogue entries included.

        Raises:
            ModelNotFound
        """
        return self._view(self.library.find(reference))

    def start_model(
        self, reference: str, overrides: dict[str, Any] | None = None, *, is_waiting: bool = True
    ) -> ModelView:
        """Start a model, or join the start that is going on.

        Args:
            reference: Any name.
            overrides: Settings for this run only; a model running with other settings is started again.
            is_waiting: Wait until it runs.

        Raises:
            ModelNotFound, ModelNotDownloaded, InvalidRequest
            HostlerError: Why it could not start.
        """
        self._refuse_when_closing()
        entry = self._downloaded(reference)
        overrides = validate_settings(overrides or {}, prefix="")
        hosted = self._host(entry)
        for _ in range(JOINS):
            with hosted.changed:
                attempt, is_mine = hosted.begin_start(is_reload=self._is_other_run(hosted, overrides))
            if is_mine:
                self._run_start(hosted, attempt, entry, overrides)
            if is_waiting:
                attempt.wait(self.settings.start_timeout_s + START_SLACK_S)
            if is_mine or not is_waiting or not self._is_other_run(hosted, overrides):
                break  # else it joined a start with other settings than it wants: once more
        return self.model(entry.manifest.id)

    def stop_model(self, reference: str) -> ModelView:
        """Stop a model, or cancel its start; its requests end with an error. Idempotent; returns when it is gone."""
        entry = self.library.find(reference)
        hosted = self._hosted.get(entry.manifest.id)
        if hosted is not None:
            self._stop(hosted)
        return self.model(entry.manifest.id)

    def delete_model(self, reference: str) -> str:
        """Stop a model and remove its files and registration.

        Returns:
            The id that was deleted.
        """
        entry = self.library.find(reference)
        hosted = self._host(entry)
        hosted.mark_deleted(is_deleted=True)  # or a request would start it again while its files go
        try:
            self._stop(hosted)
            model_id = self.library.delete(reference)
        except BaseException:
            hosted.mark_deleted(is_deleted=False)
            raise
        with self._lock:
            self._hosted.pop(model_id, None)
        return model_id

    def import_model(self, path: str, model_id: str | None = None, name: str | None = None) -> ModelView:
        """Register a model that lies on this machine, without copying it."""
        return self._view(self.library.import_path(path, id=model_id, name=name))

    # -- downloads --------------------------------------------------------------------------------------------------

    def pull_model(self, request: PullRequest, *, is_waiting: bool = False) -> PullView:
        """Download a model, or join the download that is going on.

        Raises:
            HostlerError: It cannot be downloaded; with `is_waiting` also what went wrong on the way.
        """
        job = self.library.pull(
            request.reference,
            id=request.id,
            name=request.name,
            description=request.description,
            format=request.format,
            settings=request.settings,
            parameters=request.parameters,
            metadata=request.metadata,
            is_from_cli=request.is_from_cli,
            context=msgspec.structs.replace(
                self._sources_context, proxy=request.proxy or self._sources_context.proxy, verify_tls=request.verify_tls
            ),
        )
        if is_waiting:
            job.result()
        return _pull_view(job)

    def pull(self, model_id: str) -> PullView | None:
        """The running or last download of a model, by any of its names."""
        job = self.library.job(model_id)
        return _pull_view(job) if job is not None else None

    def cancel_pull(self, model_id: str) -> bool:
        """Stop a running download and remove what arrived. False: none was running."""
        return self.library.cancel_pull(model_id)

    # -- requests ---------------------------------------------------------------------------------------------------

    def hold(self, what: str) -> AbstractContextManager[None]:
        """Hold one place of `max_requests` for anything that keeps a waitress thread.

        Raises:
            QueueFull
        """
        return self.budget.hold(what)

    def generate(self, request: GenerateRequest) -> Generation:
        """Admit a request; use the result as a context manager.

        A model that does not run is started by the first request that names it, while `events` is iterated, so that the
        caller can keep its client company meanwhile.

        Raises:
            ModelNotFound, ModelNotDownloaded, QueueFull, EngineUnavailable
        """
        self._refuse_when_closing()
        entry = self._downloaded(request.model)
        self.budget.acquire("generation")
        try:
            hosted = self._host(entry)

            n_stops = hosted.n_stops

            def reenter() -> Ticket:
                if hosted.n_stops != n_stops or self._closing.is_set():
                    raise hosted.was_stopped()
                return self._enter(hosted, entry, request, is_new=False)

            ticket = self._enter(hosted, entry, request, is_new=True)
            generation = Generation(request, self._view(entry), hosted, ticket, reenter, self._generation_closed)
        except BaseException:
            self.budget.release()
            raise
        with self._lock:
            self._generations[request.id] = generation
        return generation

    def requests(self) -> list[RequestView]:
        """What is queued or running, the oldest first."""
        with self._lock:
            generations = list(self._generations.values())
        return [generation.view() for generation in generations]

    def cancel_request(self, request_id: str) -> None:
        """Cancel a request in whatever phase it is.

        Raises:
            RequestNotFound
        """
        with self._lock:
            generation = self._generations.get(request_id)
        if generation is None:
            raise RequestNotFound(f"No request {request_id} is queued or running; GET /v1/requests lists them")
        generation.cancel()

    def close(self, drain_timeout_s: float) -> None:
        """Let running requests finish for so long, then stop every model and every download."""
        self.is_ready = False
        deadline = time.monotonic() + drain_timeout_s
        while self._generations and time.monotonic() < deadline:
            if self._closing.wait(min(0.05, max(0.0, deadline - time.monotonic()))):
                break  # a second, more impatient close
        self._closing.set()
        stops = [threading.Thread(target=self._stop, args=(hosted,)) for hosted in list(self._hosted.values())]
        try:
            for thread in stops:
                thread.start()
            for thread in stops:
                thread.join()
        finally:
            try:
                self.library.close()
            finally:
                self.model_cache.close()

    def hurry(self) -> None:
        """Cut the draining of `close` short; from a signal handler."""
        self._closing.set()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _refuse_when_closing(self) -> None:
        if not self.is_ready:
            raise EngineUnavailable("hostler is stopping and takes no new requests", retry_after_s=5.0)

    def _downloaded(self, reference: str) -> LibraryEntry:
        entry = self.library.find(reference)
        if not entry.is_downloaded:
            model_id = entry.manifest.id
            raise ModelNotDownloaded(
                f"The model {model_id} is not downloaded; run `hostler pull {model_id}` or POST /v1/models with its id"
            )
        return entry

    def _host(self, entry: LibraryEntry) -> HostedModel:
        model_id = entry.manifest.id
        with self._lock:
            hosted = self._hosted.get(model_id)
            if hosted is None:
                hosted = self._hosted[model_id] = HostedModel(model_id, self.settings.queue_len)
            return hosted

    def _is_other_run(self, hosted: HostedModel, overrides: dict[str, Any]) -> bool:
        running = hosted.chosen
        return bool(overrides) and any(running.get(name) != value for name, value in overrides.items())

    def _enter(self, hosted: HostedModel, entry: LibraryEntry, request: GenerateRequest, *, is_new: bool) -> Ticket:
        n_slots = settings_with_defaults(entry.manifest.settings)["n_parallel"]
        attempt: StartAttempt | None = None
        with hosted.changed:
            worker = hosted.worker
            if worker is not None:
                hosted.worker_changed(worker)  # news of a death may still be on its way
                if worker.state == "backing_off" and hosted.lifecycle is Lifecycle.STARTING:
                    raise hosted.unavailable(worker)
            if hosted.lifecycle is not Lifecycle.RUNNING:
                is_joining = hosted.attempt is not None and hosted.attempt.is_open
                is_restarting = worker is not None and hosted.lifecycle is Lifecycle.STARTING
                if not (self.settings.autostart or is_joining or is_restarting):
                    raise EngineUnavailable(
                        f"The model {hosted.id} is not running and autostart is off; start it with "
                        f"PUT /v1/models/{hosted.id}/start"
                    )
                attempt, is_mine = hosted.begin_start()
                if not is_mine:
                    attempt = None
            try:
                ticket = hosted.enter_queue(request.n, request.priority, n_slots, is_new=is_new)
            finally:
                if attempt is not None:
                    self._run_start(hosted, attempt, entry, {})
        return ticket

    def _generation_closed(self, generation: Generation) -> None:
        with self._lock:
            self._generations.pop(generation.id, None)
        generation.hosted.leave()
        self.budget.release()

    def _run_start(
        self, hosted: HostedModel, attempt: StartAttempt, entry: LibraryEntry, overrides: dict[str, Any]
    ) -> None:
        # A thread of its own, so that a caller that leaves does not take the start with it.
        thread = threading.Thread(
            target=self._start, args=(hosted, attempt, entry, overrides), name=f"start {hosted.id}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            self._start_failed(hosted, attempt, InternalError(f"Starting {hosted.id} failed: {error}"))

    def _start(
        self, hosted: HostedModel, attempt: StartAttempt, entry: LibraryEntry, overrides: dict[str, Any]
    ) -> None:
        try:
            hosted.wait_while_stopping()
            if hosted.worker is not None:
                self._stop(hosted, is_reload=True)
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
            self.ledger.release(hosted.id)
        hosted.start_failed(attempt, error)
        log.warning("%s did not start: %s", hosted.id, error.message)

    def _load(
        self, hosted: HostedModel, attempt: StartAttempt, entry: LibraryEntry, overrides: dict[str, Any]
    ) -> None:
        plan = self._plan(entry, overrides)
        grant = self._place(hosted, attempt, plan)
        worker = Supervisor(
            hosted.id,
            plan.spec.engine,
            plan.spec.environment,
            plan.files,
            plan.engine_settings(grant.ctx_len),
            plan.prompt_settings({**entry.manifest.settings, **overrides}),
            limits=self._limits,
            log_path=self.settings.home / "logs" / f"{hosted.id.replace('/', '%2F')}.log",
            on_change=self._worker_changed,
        )
        hosted.loading(attempt, worker, plan.spec.name, grant, plan.settings, WarmWeights(self.model_cache, plan.files))
        try:
            worker.start()
            info = worker.wait_ready()
            self.ledger.settle(hosted.id)
            hosted.started(attempt, worker, info)
        except BaseException:
            worker.stop()  # a stop that came between these lines found nothing to stop yet
            raise
        log.info("%s runs in %s on %s with %d x %d tokens", hosted.id, plan.spec.name, info.device, info.n_slots, info.n_ctx)

    def _worker_changed(self, worker: Supervisor) -> None:
        with self._lock:
            hosted = self._hosted.get(worker.model_id)
        if hosted is not None:
            hosted.worker_changed(worker)
            # What a dead worker gave back is still promised to the next one.
            self.ledger.settle(hosted.id, is_loaded=worker.state == "running")

    def _plan(self, entry: LibraryEntry, overrides: dict[str, Any]) -> Plan:
        manifest = entry.manifest
        files = self.library.files(manifest.id)
        spec = self._engine_of(entry)
        if spec is None:
            raise ModelLoadFailed(
                f"No installed engine runs {manifest.id}, whose format is {manifest.format!r}; install a plugin that does, "
                f"such as `pip install hostler-llamacpp` for gguf (`hostler plugins` lists what is installed)"
            )
        settings = settings_with_defaults({**manifest.settings, **overrides})
        limit = self._context_limit(spec, files, entry)
        is_auto = settings["ctx_len"] == AUTO
        wanted = self._wanted_ctx_len(settings["ctx_len"], limit)
        return Plan(spec, files, settings, is_auto, wanted)

    def _engine_of(self, entry: LibraryEntry) -> EngineSpec | None:
        return self.plugins.engine_for(entry.manifest.engine_format, entry.manifest.engine or None)

    @staticmethod
    def _wanted_ctx_len(ctx_len: int | str, limit: int) -> int:
        if ctx_len == AUTO:
            return min(limit or AUTO_CTX_LEN, AUTO_CTX_LEN)
        if ctx_len == 0:
            return limit or AUTO_CTX_LEN
        return min(int(ctx_len), limit) if limit else int(ctx_len)

    @staticmethod
    def _context_limit(spec: EngineSpec | None, files: ModelFiles | None, entry: LibraryEntry) -> int:
        if spec is not None and spec.context_length is not None and files is not None:
            return spec.context_length(Path(files.primary))
        known = entry.manifest.metadata.get("context_length")
        return int(known) if isinstance(known, int | str) and str(known).isdigit() else 0

    def _place(self, hosted: HostedModel, attempt: StartAttempt, plan: Plan) -> Grant:
        """Get memory for a model, unloading idle ones and waiting for busy ones if need be."""

        def estimate(ctx_len: int) -> MemoryEstimate:
            if plan.spec.estimate is not None:
                return plan.spec.estimate(Path(plan.files.primary), plan.engine_settings(ctx_len))
            return MemoryEstimate(_size_of(plan.files), 0, 0)

        deadline = time.monotonic() + self.settings.start_timeout_s
        while True:
            with self._placement:
                if attempt.is_cancelled:
                    raise StartCancelled(f"{hosted.id} was stopped while it started")
                has_place = self._has_place_beside(hosted)
                if has_place or self._unload_idle(hosted):
                    try:
                        grant = self.ledger.grant(
                            hosted.id, plan.wanted_ctx_len, is_auto=plan.is_auto, estimate=estimate
                        )
                    except InsufficientMemory as error:
                        others = self._others_placed(hosted)
                        most = error.available_bytes + sum(self.ledger.bytes_of(other.id) for other in others)
                        if error.needed_bytes > most:
                            raise  # not even alone: nobody is unloaded for nothing
                        if self._unload_idle(hosted):
                            continue
                        if not others or time.monotonic() > deadline:
                            raise
                    else:
                        if attempt.is_cancelled:
                            self.ledger.release(hosted.id)
                            raise StartCancelled(f"{hosted.id} was stopped while it started")
                        return grant
                elif time.monotonic() > deadline:
                    raise EngineUnavailable(
                        f"{self.settings.max_loaded_models} models are running (max_loaded_models) and all of them are "
                        f"busy, so {hosted.id} cannot start; try again or stop one",
                        retry_after_s=5.0,
                    )
            self._wait_for_idle(hosted)

    def _has_place_beside(self, hosted: HostedModel) -> bool:
        limit = self.settings.max_loaded_models
        return not limit or len(self._others_placed(hosted)) < limit

    def _others_placed(self, hosted: HostedModel) -> list[HostedModel]:
        """The other models that run, or have been granted memory and are about to."""
        with self._lock:
            others = [other for other in self._hosted.values() if other is not hosted]
        return [other for other in others if other.worker is not None or self.ledger.bytes_of(other.id)]

    def _unload_idle(self, hosted: HostedModel) -> bool:
        """Stop the model that has been idle longest. False: none is idle."""
        idle = sorted((other for other in self._others_placed(hosted) if other.is_idle), key=lambda m: m.last_used)
        return any(self._stop(other, only_if_idle=True) for other in idle[:1])

    def _wait_for_idle(self, hosted: HostedModel) -> None:
        # Any of the others may become idle first; a short wait on the least recently used one, then all are looked at.
        others = self._others_placed(hosted)
        if others:
            other = min(others, key=lambda model: model.last_used)
            with other.changed:
                if not other.is_idle:
                    other.changed.wait(PATIENCE_S)

    def _stop(self, hosted: HostedModel, *, only_if_idle: bool = False, is_reload: bool = False) -> bool:
        is_mine, worker = hosted.begin_stop(only_if_idle=only_if_idle, is_reload=is_reload)
        if not is_mine:
            if not only_if_idle:
                hosted.wait_while_cancelling()
            return False
        if worker is not None:
            worker.stop()
        self.ledger.release(hosted.id)
        hosted.stopped()
        return True

    def _reap(self) -> None:
        keep_alive_s = self.settings.keep_alive_s
        while not self._closing.wait(min(REAP_PERIOD_S, keep_alive_s / 2)):
            with self._lock:
                models = list(self._hosted.values())
            for hosted in models:
                if hosted.is_idle and hosted.clock() - hosted.last_used > keep_alive_s:
                    log.info("%s was idle for %g s (keep_alive_s) and is stopped", hosted.id, keep_alive_s)
                    self._stop(hosted, only_if_idle=True)

    def _view(self, entry: LibraryEntry) -> ModelView:
        manifest = entry.manifest
        hosted = self._hosted.get(manifest.id)
        spec = self._engine_of(entry)
        settings = settings_with_defaults(manifest.settings)
        if hosted is None or not entry.is_downloaded or hosted.lifecycle in {Lifecycle.DOWNLOADED, Lifecycle.STOPPED}:
            at_rest = hosted.resting if hosted is not None and entry.is_downloaded else entry.lifecycle
            return ModelView(
                manifest=manifest,
                lifecycle=at_rest,
                resting=at_rest,
                engine=spec.name if spec is not None else "",
                ctx_len=self._wanted_ctx_len(settings["ctx_len"], self._context_limit(None, None, entry)),
                n_parallel=settings["n_parallel"],
                last_error=hosted.last_error if hosted is not None else self._pull_error(manifest.id),
                is_catalogue=entry.is_catalogue,
            )
        with hosted.changed:
            running = {**settings, **hosted.chosen}
            wanted = self._wanted_ctx_len(running["ctx_len"], self._context_limit(None, None, entry))
            n_in_flight, n_queued = hosted.queue.n_in_flight, hosted.queue.n_queued
            return ModelView(
                manifest=manifest,
                lifecycle=hosted.lifecycle,
                resting=hosted.resting,
                engine=hosted.engine or (spec.name if spec is not None else ""),
                ctx_len=hosted.info.n_ctx if hosted.info else hosted.grant.ctx_len if hosted.grant else wanted,
                n_parallel=hosted.info.n_slots if hosted.info else running["n_parallel"],
                last_error=hosted.last_error,
                pid=hosted.worker.pid if hosted.worker is not None else None,
                info=hosted.info,
                memory_bytes=hosted.grant.estimate.total_bytes if hosted.grant else 0,
                n_active=n_in_flight - n_queued,
                n_queued=n_queued,
                idle_s=hosted.clock() - hosted.last_used if hosted.is_idle else None,
                is_catalogue=entry.is_catalogue,
                started_at=hosted.started_at,
            )

    def _pull_error(self, model_id: str) -> str | None:
        job = self.library.job(model_id)
        return job.error.message if job is not None and job.error is not None else None


def _pull_view(job: PullJob) -> PullView:
    progress = job.progress()
    return PullView(
        id=progress.id,
        lifecycle=progress.lifecycle,
        files=tuple((file.filename, file.url, file.total_bytes, file.done_bytes) for file in progress.files),
        total_bytes=progress.total_bytes,
        done_bytes=progress.done_bytes,
        speed=progress.speed,
        elapsed_s=progress.elapsed_s,
        error=progress.error,
    )


def _size_of(files: ModelFiles) -> int:
    total = 0
    for name in (files.primary, *files.others):
        path = Path(name)
        parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
        total += sum(part.stat().st_size for part in parts)
    return total


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):  # no sysconf on Windows
        import psutil

        return int(psutil.virtual_memory().total) // 4

