"""The model routes: list, get, delete, start, stop, download, import, and Cortex's spellings of the same.

Floor 5; on the waitress thread of the request. Source: spec/API.md sections 5 and 11. What blocks holds a place of
`max_requests`; stops and deletions have four places of their own, so that a model can be stopped while all others are taken.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import falcon
import msgspec

from hostler.api import shapes
from hostler.api.body import query_bool, query_choice, read_object
from hostler.api.schema.model_answers import (
    DeleteModelResponse,
    DownloadCancelled,
    ModelStatus,
    StartModelResponse,
    StopModelResponse,
)
from hostler.api.schema.models import (
    read_download,
    read_import,
    read_named_model,
    read_start,
    read_task,
    read_update,
    read_variant,
    setting_warnings,
)
from hostler.config import EXTRA_THREADS, Settings
from hostler.domain import Lifecycle
from hostler.errors import (
    InvalidModelFile,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    UnsupportedParameter,
)
from hostler.views import ModelView, PullRequest, PullView

if TYPE_CHECKING:
    from hostler.runtime import Runtime

N_STOPS = EXTRA_THREADS // 2
"""Stops and deletions at once. They come out of the threads beyond `max_requests`, the other half of which answers health."""
IMPORT_FIELDS: dict[str | None, str] = {"path": "modelPath", "id": "model"}
"""What the library blames -> Cortex's name for it."""
IN_MEMORY = frozenset({Lifecycle.STARTING, Lifecycle.RUNNING, Lifecycle.STOPPING})


class Models:
    """Models, by the seed's operations and Cortex's."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._stops = threading.BoundedSemaphore(N_STOPS)

    # -- the seed -------------------------------------------------------------------------------------------------------

    def list_all(self, req: falcon.Request, resp: falcon.Response) -> None:
        """listModels."""
        is_all = query_bool(req, "all", default=False)
        is_native = query_choice(req, "schema", ("seed", "native")) == "native"
        views = self._runtime.models(include_catalogue=is_all)
        shown = [view for view in views if is_all or view.lifecycle is not Lifecycle.NOT_DOWNLOADED]
        resp.media = shapes.list_answer(shown, is_native=is_native)

    def list_available(self, req: falcon.Request, resp: falcon.Response) -> None:
        """listAvailableModels: what can be asked now."""
        del req
        views = self._runtime.models()
        resp.media = shapes.available(view for view in views if view.manifest.is_complete)

    def get(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """getModel."""
        is_native = query_choice(req, "schema", ("seed", "native")) == "native"
        resp.media = shapes.get_item(self._runtime.model(model_id), is_native=is_native)

    def delete(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """deleteModel."""
        del req
        with self._stopping():
            deleted = self._runtime.delete_model(model_id)
        resp.media = DeleteModelResponse(deleted)

    def start(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """startModel."""
        _, overrides, wait = read_start(read_object(req))
        resp.media = self._start(req, model_id, overrides, wait)

    def stop(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """stopModel."""
        del req
        resp.media = self._stop(model_id)

    def download(self, req: falcon.Request, resp: falcon.Response) -> None:
        """downloadModel, by POST."""
        resp.media = shapes.download(self._download(req))

    # -- Jan ------------------------------------------------------------------------------------------------------------

    def download_known(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """downloadModel, by GET: ids that are registered or in the catalogue, nothing else."""
        request = PullRequest(self._runtime.model(model_id).manifest.id)
        is_unverified = query_bool(req, "ignoreSSL", default=False)
        if self._settings.allow_insecure_downloads:
            request = msgspec.structs.replace(request, proxy=req.get_param("proxy") or None, verify_tls=not is_unverified)
        with self._runtime.hold("download"):
            resp.media = shapes.download(self._runtime.pull_model(request))

    def progress(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """Jan's getDownloadProgress."""
        del req
        view = self._runtime.pull(model_id)
        if view is None:
            raise ModelNotFound(f"Nothing was downloaded for {model_id} since the server started")
        resp.media = shapes.download_progress(view)

    # -- Cortex ---------------------------------------------------------------------------------------------------------

    def pull(self, req: falcon.Request, resp: falcon.Response) -> None:
        """ModelsController_pullModel."""
        view = self._download(req, needs_model=True)
        is_going_on = view.lifecycle is Lifecycle.DOWNLOADING
        resp.media = shapes.download(view, "Model start downloading!" if is_going_on else None)

    def cancel_pull(self, req: falcon.Request, resp: falcon.Response) -> None:
        """ModelsController_stopModelDownload."""
        task = read_task(read_object(req))
        if not self._runtime.cancel_pull(task):
            raise ModelNotFound(f"No download of {task} is going on")
        resp.media = DownloadCancelled(task)

    def start_named(self, req: falcon.Request, resp: falcon.Response) -> None:
        """ModelsController_startModel; also /models/load."""
        raw = read_object(req)
        model, overrides, wait = read_start(raw)
        resp.media = shapes.started_named(self._start(req, model or read_named_model(raw), overrides, wait))

    def stop_named(self, req: falcon.Request, resp: falcon.Response) -> None:
        """ModelsController_stopModel."""
        resp.media = shapes.stopped_named(self._stop(read_named_model(read_object(req))))

    def unload_named(self, req: falcon.Request, resp: falcon.Response) -> None:
        """unloadModel: as stop, but 404 for a model that is not loaded."""
        view = self._runtime.model(read_named_model(read_object(req)))
        if view.lifecycle not in IN_MEMORY:
            raise ModelNotFound(f"The model {view.manifest.id} is not loaded", param="model")
        resp.media = shapes.stopped_named(self._stop(view.manifest.id))

    def status(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """Cortex's yes or no: 200 when it runs, 400 when not."""
        del req
        view = self._runtime.model(model_id)
        if view.lifecycle is not Lifecycle.RUNNING:
            raise InvalidRequest(f"The model {view.manifest.id} is not running, it is {view.lifecycle.value}")
        resp.media = ModelStatus()

    def update(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """ModelsController_update: what is kept of a model."""
        changes = read_update(read_object(req))
        view = self._runtime.update_model(model_id, changes)
        name = view.manifest.id
        is_running = changes.settings and view.lifecycle in IN_MEMORY
        message = f"{name} keeps running with its settings until its next start" if is_running else f"{name} is updated"
        warnings = setting_warnings(changes.settings)
        resp.media = shapes.updated(view, "; ".join([message, *warnings]))

    def import_path(self, req: falcon.Request, resp: falcon.Response) -> None:
        """ModelsController_importModel: link files that are on this machine already, or, for the CLI, take a folder over."""
        path, model_id, name, is_moved = read_import(read_object(req))
        if is_moved and not req.context.is_from_cli:
            raise UnsupportedParameter("option move is for hostler's own commands: it takes files away", param="option")
        if not (req.context.is_from_cli or self._settings.allow_file_sources):
            raise UnsupportedParameter(
                "modelPath is not accepted over HTTP; use `hostler import`, or set allow_file_sources", param="modelPath"
            )
        try:
            with self._runtime.hold("import"):
                view = self._runtime.import_model(path, model_id, name, is_moved=is_moved)
        except InvalidModelFile as error:
            # On import the file is the request's own fault; on a start it is the server's.
            raise InvalidRequest(error.message, param="modelPath") from error
        except InvalidRequest as error:
            error.param = IMPORT_FIELDS.get(error.param, error.param)
            raise
        resp.media = shapes.imported(view)

    # -- hostler: variants ----------------------------------------------------------------------------------------------

    def take_variant(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """What `hostler tune --apply` keeps: a file that was made of the model's own, and the settings that go with it."""
        path, settings, metadata = read_variant(read_object(req))
        if not req.context.is_from_cli:
            raise UnsupportedParameter("variants are for hostler's own commands; use `hostler tune`")
        with self._runtime.hold("variant"):
            view = self._runtime.take_variant(model_id, path, settings, metadata)
        resp.media = shapes.updated(view, _until_next_start(view))

    def drop_variant(self, req: falcon.Request, resp: falcon.Response, model_id: str) -> None:
        """The model's own file and settings again."""
        if not req.context.is_from_cli:
            raise UnsupportedParameter("variants are for hostler's own commands; use `hostler tune`")
        view = self._runtime.drop_variant(model_id)
        resp.media = shapes.updated(view, _until_next_start(view))

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _start(self, req: falcon.Request, model: str, overrides: dict[str, Any], wait: bool | None) -> StartModelResponse:
        is_waiting = query_bool(req, "wait", default=True) if wait is None else wait
        if is_waiting:
            with self._runtime.hold("start"):
                view = self._runtime.start_model(model, overrides)
        else:
            view = self._runtime.start_model(model, overrides, is_waiting=False)
        return shapes.started(view, [*setting_warnings(overrides), *(view.info.warnings if view.info else ())])

    def _stop(self, model: str) -> StopModelResponse:
        with self._stopping():
            view = self._runtime.stop_model(model)
        return shapes.stopped(view)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        if not self._stops.acquire(blocking=False):
            raise QueueFull(f"{N_STOPS} models are being stopped already; try again in a moment", retry_after_s=1.0)
        try:
            yield
        finally:
            self._stops.release()

    def _download(self, req: falcon.Request, *, needs_model: bool = False) -> PullView:
        raw = read_object(req)
        if needs_model:
            read_named_model(raw)
        request, wait = read_download(
            raw,
            query_source=req.get_param("source_url"),
            default_model=self._settings.default_model,
            is_from_cli=req.context.is_from_cli,
        )
        is_waiting = wait or query_bool(req, "wait", default=False)
        with self._runtime.hold("download"):
            return self._runtime.pull_model(request, is_waiting=is_waiting)


def _until_next_start(view: ModelView) -> str:
    name = view.manifest.id
    if view.lifecycle in IN_MEMORY:
        return f"{name} keeps running as it was started until its next start"
    return f"{name} is updated"
