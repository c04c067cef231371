"""What the API and the CLI see of hostler: models, downloads, generations.

Floor 4, in the host process; every method may be called from any thread. It knows the library (what is on disk), the ledger
(what fits), the supervisors (what runs) and the queues (who waits); it knows no HTTP and imports no engine. How a model comes
to run and stops is starts.py's.

Locks, in the order they are taken: the placement's (see placement.py), then a model's `changed`, then `_lock` (the
dictionaries below). None is held while a worker loads or stops, save the placement's while an idle model is unloaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hostler import typeinfo
from hostler.config import Settings
from hostler.domain import EmbedRequest, GenerateRequest, Lifecycle, Message, Priority
from hostler.embedding import Embedding
from hostler.engine import EngineSpec
from hostler.errors import EmbeddingsDisabled, EngineUnavailable, ModelNotDownloaded, RequestNotFound
from hostler.events import EventBus
from hostler.generation import Generation
from hostler.hosted import HostedModel
from hostler.keptprefixes import kept_prefixes
from hostler.ledger import Ledger, machine_memory_bytes
from hostler.library.changes import Change
from hostler.library.fields import settings_with_defaults, validate_settings
from hostler.library.store import Library, LibraryEntry
from hostler.listeners import Listeners
from hostler.modelcache import ModelCache
from hostler.plugins import Plugins
from hostler.records.store import Records
from hostler.reloading import Reloaded, Reloading
from hostler.request import RESUBMITS, HostedRequest
from hostler.runs import Runs
from hostler.scheduler import RequestBudget, Ticket
from hostler.snapshots import pull_view, view_of
from hostler.sources.contract import SourceContext
from hostler.starts import Starts
from hostler.views import ModelChanges as ModelChanges
from hostler.views import ModelView as ModelView
from hostler.views import PullRequest as PullRequest
from hostler.views import PullView as PullView
from hostler.views import RequestView as RequestView
from hostler.webhooks import Webhooks
from hostler.worker.wire import Counting, PromptSize

log = logging.getLogger("hostler.runtime")

REAP_PERIOD_S = 1.0
"""How often idle models are compared with `keep_alive_s`."""

Asked = GenerateRequest | EmbedRequest
Admitted = TypeVar("Admitted", bound=HostedRequest)


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
            proxy=settings.proxy or None,
            huggingface_token=settings.huggingface_token or None,
            devices=lambda: self.plugins.devices(),
        )
        self.library = Library(
            settings.home,
            plugins.sources,
            context=self._sources_context,
            is_file_allowed=settings.allow_file_sources,
            formats=_formats_of(plugins),
            tell=self._library_changed,
        )
        self.records = Records(settings.home, settings.database, default_model=settings.default_model)
        self.events = EventBus(self.records)
        self.webhooks = Webhooks(self.records, settings.webhooks)
        self.records.on_open.append(self.webhooks.opened)
        self.listeners = Listeners(self.records)
        self.records.on_open.append(self.listeners.opened)
        self.records.on_event += [self.events.grew, self.webhooks.grew, self.listeners.grew]
        self.ledger = ledger or Ledger(settings.memory_budget_bytes)
        self.model_cache = ModelCache(settings.model_cache_bytes or machine_memory_bytes() // 4)
        self.budget = RequestBudget(settings.max_requests)
        self._lock = threading.Lock()  # protects _hosted and _requests
        self._hosted: dict[str, HostedModel] = {}
        self._requests: dict[str, HostedRequest] = {}
        self.kept_prefixes = kept_prefixes(settings)
        self._closing = threading.Event()
        self.is_ready = True
        """False while draining: /readyz answers 503 then."""
        self.runs = Runs(self)
        self.reloading = Reloading(self)
        self._starts = Starts(
            settings,
            self.library,
            self.ledger,
            self.model_cache,
            self.kept_prefixes,
            engine_of=self._engine_of,
            why_no_engine=self.reloading.explain,
            hosted_models=self.hosted_models,
        )
        typeinfo.build()  # from here on there are threads
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
        self._starts.start(hosted, entry, overrides, is_waiting=is_waiting)
        return self.model(entry.manifest.id)

    def stop_model(self, reference: str) -> ModelView:
        """Stop a model, or cancel its start; its requests end with an error. Idempotent; returns when it is gone."""
        entry = self.library.find(reference)
        hosted = self._hosted.get(entry.manifest.id)
        if hosted is not None:
            self._starts.stop(hosted)
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
            self._starts.stop(hosted)
            model_id = self.library.delete(reference)
            self.kept_prefixes.clear(model_id)
        except BaseException:
            hosted.mark_deleted(is_deleted=False)
            raise
        with self._lock:
            self._hosted.pop(model_id, None)
        return model_id

    def update_model(self, reference: str, changes: ModelChanges) -> ModelView:
        """Change what is kept of a model: parameters count from the next request on, settings from the next start on.

        Raises:
            ModelNotFound, ModelNotDownloaded, InvalidRequest
        """
        model_id = self.library.find(reference).manifest.id
        entry = self.library.update(
            model_id,
            name=model_id if changes.name == "" else changes.name,
            description=changes.description,
            settings=changes.settings,
            parameters=changes.parameters,
            metadata=changes.metadata,
            needs_files=True,
        )
        return self._view(entry)

    def import_model(
        self, path: str, model_id: str | None = None, name: str | None = None, *, is_moved: bool = False
    ) -> ModelView:
        """Register a model that lies on this machine: where it lies, or, with `is_moved`, its folder taken over."""
        take = self.library.take_folder if is_moved else self.library.import_path
        return self._view(take(path, id=model_id, name=name))

    def take_variant(
        self, reference: str, path: str | None, settings: dict[str, Any], metadata: dict[str, Any]
    ) -> ModelView:
        """Have a model run a file that was made of its own, from its next start on; see Library.take_variant."""
        place = None if path is None else Path(path)
        return self._view(self.library.take_variant(reference, place, settings=settings, metadata=metadata))

    def drop_variant(self, reference: str) -> ModelView:
        """Have a model run its own file again, from its next start on."""
        return self._view(self.library.drop_variant(reference))

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
        return pull_view(job)

    def pull(self, model_id: str) -> PullView | None:
        """The running or last download of a model, by any of its names."""
        job = self.library.job(model_id)
        return pull_view(job) if job is not None else None

    def cancel_pull(self, model_id: str) -> bool:
        """Stop a running download and remove what arrived. False: none was running."""
        return self.library.cancel_pull(model_id)

    # -- plugins ----------------------------------------------------------------------------------------------------

    def reload_plugins(self) -> Reloaded:
        """See what was installed and removed since; models go on running, save those whose engine is gone."""
        self._refuse_when_closing()
        return self.reloading.reload()

    def use_plugins(self, plugins: Plugins, changed: Collection[str]) -> None:
        """Use these from now on.

        Args:
            changed: Those of them that were loaded anew.
        """
        self.plugins = plugins
        self.library.use(plugins.sources, _formats_of(plugins))
        self.listeners.use(plugins.listeners, changed)

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
        return self._admit(request, request.n, "generation", Generation)

    def embed(self, request: EmbedRequest) -> Embedding:
        """Admit a request for embeddings, under the rules of `generate`; use the result as a context manager.

        Raises:
            ModelNotFound, ModelNotDownloaded, QueueFull, EngineUnavailable
            EmbeddingsDisabled: The model's setting `embedding` is false.
        """
        entry = self._downloaded(request.model)
        hosted = self._hosted.get(entry.manifest.id)
        chosen = hosted.chosen if hosted is not None and hosted.worker is not None else entry.manifest.settings
        if not settings_with_defaults(chosen)["embedding"]:  # else a model would be started only to be refused
            raise EmbeddingsDisabled(
                f"{entry.manifest.id} has the setting embedding: false, so it gives no embeddings", param="model"
            )
        return self._admit(request, 1, "embedding", Embedding)

    def count_tokens(
        self,
        reference: str,
        messages: tuple[Message, ...],
        *,
        template_kwargs: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> PromptSize:
        """How long a prompt these messages become, by the model's own template and tokenizer.

        A model that does not run is started and waited for. It takes a place of `max_requests` meanwhile, and none in the
        model's queue: nothing is evaluated.

        Args:
            reference: Any name of the model.
            settings: For the start, if there must be one; a model that runs keeps its own.

        Raises:
            ModelNotFound, ModelNotDownloaded, QueueFull, EngineUnavailable
            HostlerError: Why the model could not start, or what is wrong with the messages.
        """
        self._refuse_when_closing()
        entry = self._downloaded(reference)
        overrides = validate_settings(settings or {}, prefix="")
        with self.budget.hold("count"):
            hosted = self._host(entry)
            hosted.use()
            try:
                return self._count(hosted, entry, overrides, Counting(messages, template_kwargs or {}))
            finally:
                hosted.leave()

    def _count(
        self, hosted: HostedModel, entry: LibraryEntry, overrides: dict[str, Any], counting: Counting
    ) -> PromptSize:
        n_stops = hosted.n_stops
        for _ in range(RESUBMITS):
            worker = self._starts.running_worker(hosted, entry, overrides)
            try:
                return msgspec.convert(worker.call("count", counting), PromptSize)
            except EngineUnavailable:
                if hosted.n_stops != n_stops or self._closing.is_set():
                    raise hosted.was_stopped() from None
        raise EngineUnavailable(f"The engine of {hosted.id} keeps dying; try again", retry_after_s=1.0)

    def _admit(self, request: Asked, n: int, what: str, make: Callable[..., Admitted]) -> Admitted:
        """Take a place of the budget and `n` of the model's queue, and make what gives them back."""
        self._refuse_when_closing()
        entry = self._downloaded(request.model)
        self.budget.acquire(what)
        try:
            hosted = self._host(entry)

            n_stops = hosted.n_stops

            def reenter() -> Ticket:
                if hosted.n_stops != n_stops or self._closing.is_set():
                    raise hosted.was_stopped()
                return self._enter(hosted, entry, n, request.priority, is_new=False)

            ticket = self._enter(hosted, entry, n, request.priority, is_new=True)
            admitted = make(request, self._view(entry), hosted, ticket, reenter, self._request_closed)
        except BaseException:
            self.budget.release()
            raise
        with self._lock:
            self._requests[request.id] = admitted
        return admitted

    def requests(self) -> list[RequestView]:
        """What is queued or running, the oldest first."""
        with self._lock:
            requests = list(self._requests.values())
        return [request.view() for request in requests]

    def cancel_request(self, request_id: str) -> None:
        """Cancel a request in whatever phase it is.

        Raises:
            RequestNotFound
        """
        with self._lock:
            request = self._requests.get(request_id)
        if request is None:
            raise RequestNotFound(f"No request {request_id} is queued or running; GET /v1/requests lists them")
        request.cancel()

    def close(self, drain_timeout_s: float) -> None:
        """Let running requests finish for so long, then stop every model and every download."""
        self.is_ready = False
        deadline = time.monotonic() + drain_timeout_s
        while (self._requests or self.runs.is_busy) and time.monotonic() < deadline:
            if self._closing.wait(min(0.05, max(0.0, deadline - time.monotonic()))):
                break  # a second, more impatient close
        self._closing.set()
        stops = [threading.Thread(target=self._starts.stop, args=(hosted,)) for hosted in list(self._hosted.values())]
        try:
            for thread in stops:
                thread.start()
            for thread in stops:
                thread.join()
        finally:
            try:
                self.runs.close()  # their generations have ended with the models; the records hear of it
                self.library.close()
            finally:
                self.model_cache.close()
                self.events.close()  # what the stops and the end of downloads told is written
                self.listeners.close()
                self.webhooks.close()
                self.records.close()

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
                hosted = HostedModel(model_id, self.settings.queue_len, on_enter=self._entered)
                self._hosted[model_id] = hosted
            hosted.manifest = entry.manifest
            return hosted

    def _entered(self, hosted: HostedModel, previous: Lifecycle, error: str | None) -> None:
        # Under the model's lock, as `on_enter` is called: no lock is taken here but the queue's.
        what = "start_failed" if error is not None and previous is Lifecycle.STARTING else hosted.lifecycle.value
        if hosted.manifest is not None:
            self.events.model(
                what, hosted.manifest, previous, hosted.lifecycle, resting=hosted.resting, error=error
            )

    def _library_changed(self, change: Change) -> None:
        # Under the library's lock or in a download's thread: no lock is taken here but the queue's.
        hosted = self._hosted.get(change.manifest.id)
        resting = hosted.resting if hosted is not None else Lifecycle.DOWNLOADED

        def now(lifecycle: Lifecycle) -> Lifecycle:
            # What is downloaded may run; that is not the library's knowledge.
            is_hosted = hosted is not None and lifecycle is Lifecycle.DOWNLOADED
            return hosted.lifecycle if hosted is not None and is_hosted else lifecycle

        previous, lifecycle = change.previous, change.lifecycle
        if change.kind in {"updated", "deleted"}:
            previous, lifecycle = now(previous), now(lifecycle)
        self.events.model(change.kind, change.manifest, previous, lifecycle, resting=resting, error=change.error)

    def _enter(self, hosted: HostedModel, entry: LibraryEntry, n: int, priority: Priority, *, is_new: bool) -> Ticket:
        n_slots = settings_with_defaults(entry.manifest.settings)["n_parallel"]
        with hosted.changed:
            attempt, is_mine = self._starts.begin_if_needed(hosted)
            try:
                ticket = hosted.enter_queue(n, priority, n_slots, is_new=is_new)
            finally:
                if attempt is not None and is_mine:
                    self._starts.run(hosted, attempt, entry, {})
        return ticket

    def _request_closed(self, request: HostedRequest) -> None:
        with self._lock:
            self._requests.pop(request.id, None)
        request.hosted.leave()
        self.budget.release()

    def _engine_of(self, entry: LibraryEntry) -> EngineSpec | None:
        return self.plugins.engine_for(entry.manifest.engine_format, entry.manifest.engine or None)

    def hosted_models(self) -> list[HostedModel]:
        """Every model that was started at least once, or is about to be."""
        with self._lock:
            return list(self._hosted.values())

    def _reap(self) -> None:
        keep_alive_s = self.settings.keep_alive_s
        while not self._closing.wait(min(REAP_PERIOD_S, keep_alive_s / 2)):
            for hosted in self.hosted_models():
                if hosted.is_idle and hosted.clock() - hosted.last_used > keep_alive_s:
                    log.info("%s was idle for %g s (keep_alive_s) and is stopped", hosted.id, keep_alive_s)
                    self._starts.stop_idle(hosted)

    def _view(self, entry: LibraryEntry) -> ModelView:
        model_id = entry.manifest.id
        return view_of(entry, self._hosted.get(model_id), self._engine_of(entry), pull_error=self._pull_error(model_id))

    def _pull_error(self, model_id: str) -> str | None:
        job = self.library.job(model_id)
        return job.error.message if job is not None and job.error is not None else None


def _formats_of(plugins: Plugins) -> set[str]:
    return {model_format for spec in plugins.engines.values() for model_format in spec.formats}
