"""Snapshots -> what the model routes answer. Source: spec/API.md sections 4 and 5.

Floor 5; pure functions. One model has three shapes upstream, with other types in each; what differs is said here and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from msgspec import UNSET

from hostler.api.schema.model_answers import (
    LIST_PARAMETERS,
    LIST_SETTINGS,
    STRINGS_IN_GET,
    AvailableModel,
    DownloadItem,
    DownloadModelResponse,
    DownloadProgress,
    DownloadSize,
    DownloadTask,
    DownloadTime,
    GetModelResponse,
    ImportModelResponse,
    ListAvailableModelsResponse,
    ListedParameters,
    ListedSettings,
    ListModelsResponse,
    Model,
    ModelConfig,
    ModelRun,
    StartModelResponse,
    StartNamedResponse,
    StopModelResponse,
    StopNamedResponse,
    UpdateModelResponse,
)
from hostler.api.schema.server_answers import RequestItem
from hostler.domain import Lifecycle
from hostler.library.fields import parameters_with_defaults, settings_with_defaults
from hostler.records.objects import Page
from hostler.views import ModelView, PullView, RequestView


class HasId(Protocol):
    """An object of a list."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=HasId)


class States(NamedTuple):
    """What the documents call one lifecycle."""

    listed: Literal["downloading", "available"] | None
    """`state` of a list item."""
    got: str | None
    """`state` of getModel; None: what it was before, downloaded or stopped."""
    status: Literal["downloadable", "downloaded"]
    """Cortex's word."""


STATES: dict[Lifecycle, States] = {
    Lifecycle.NOT_DOWNLOADED: States(None, "not_downloaded", "downloadable"),
    Lifecycle.DOWNLOADING: States("downloading", "not_downloaded", "downloadable"),
    Lifecycle.DOWNLOADED: States("available", "downloaded", "downloaded"),
    Lifecycle.STARTING: States("available", None, "downloaded"),
    Lifecycle.RUNNING: States("available", "running", "downloaded"),
    Lifecycle.STOPPING: States("available", "running", "downloaded"),
    Lifecycle.STOPPED: States("available", "stopped", "downloaded"),
}


def list_item(view: ModelView, *, is_native: bool = False) -> Model:
    """One entry of listModels; settings and parameters are strings unless native types are wanted."""
    manifest = view.manifest
    config = _config(view)
    states = STATES[view.lifecycle]
    settings = _picked(_current(view, config), LIST_SETTINGS)
    parameters = _picked(config.parameters, LIST_PARAMETERS)
    if not is_native:
        settings, parameters = _texts(settings), _texts(parameters)
    return Model(
        type="model",
        object="model",
        version=manifest.version,
        id=manifest.id,
        model=manifest.id,
        name=manifest.name,
        owned_by=manifest.owned_by,
        created=manifest.created,
        description=manifest.description,
        state=states.listed,
        lifecycle=view.lifecycle,
        status=states.status,
        format=manifest.format,
        source_url=_source_url(view),
        settings=ListedSettings(**settings),
        parameters=ListedParameters(**parameters),
        metadata=_metadata(view),
        assets=[PurePath(file.path).name for file in manifest.files],
        config=config,
        hostler=_run(view, config),
    )


def list_answer(views: Iterable[ModelView], *, is_native: bool = False) -> ListModelsResponse:
    """The answer of listModels."""
    return ListModelsResponse("list", [list_item(view, is_native=is_native) for view in views])


def get_item(view: ModelView, *, is_native: bool = False) -> GetModelResponse:
    """The answer of getModel: settings merged into `parameters`, four of the parameters as strings."""
    return GetModelResponse(**_got(view, is_native=is_native))


def updated(view: ModelView, message: str) -> UpdateModelResponse:
    """The answer of an update, with the model as getModel shows it."""
    return UpdateModelResponse(
        **_got(view, is_native=False), result="Updated successfully!", modelHandle=view.manifest.id, message=message
    )


def _got(view: ModelView, *, is_native: bool) -> dict[str, Any]:
    manifest = view.manifest
    config = _config(view)
    states = STATES[view.lifecycle]
    settings = _picked(_current(view, config), (*LIST_SETTINGS, *manifest.settings))
    parameters = _picked(config.parameters, (*LIST_PARAMETERS, "stop", *manifest.parameters))
    if not is_native:
        parameters = {name: as_text(value) if name in STRINGS_IN_GET else value for name, value in parameters.items()}
    return {
        "id": manifest.id,
        "object": "model",
        "created": manifest.created,
        "owned_by": manifest.owned_by,
        "state": states.got or _resting(view),
        "lifecycle": view.lifecycle,
        "status": states.status,
        "source_url": _source_url(view),
        "parameters": {**{name: settings[name] for name in LIST_SETTINGS}, **parameters},
        "metadata": _metadata(view),
        "name": manifest.name,
        "version": manifest.version,
        "description": manifest.description,
        "format": manifest.format,
        "engine": view.engine,
        "settings": settings,
        "config": config,
        "last_error": view.last_error,
        "hostler": _run(view, config),
    }


def started(view: ModelView, warnings: Sequence[str] = ()) -> StartModelResponse:
    """The answer of a start: here `state` is the lifecycle itself."""
    name = view.manifest.id
    is_running = view.lifecycle is Lifecycle.RUNNING
    message = f"Model {name} started" if is_running else f"Model {name} is starting"
    return StartModelResponse(name, "model", view.lifecycle, message, "; ".join(warnings) or UNSET)


def stopped(view: ModelView) -> StopModelResponse:
    """The answer of a stop."""
    return StopModelResponse(view.manifest.id, "model", view.lifecycle, "Model stopped")


def started_named(answer: StartModelResponse) -> StartNamedResponse:
    """The same, as Cortex answers."""
    message = "Started successfully!" if answer.state is Lifecycle.RUNNING else answer.message
    return StartNamedResponse(
        id=answer.id,
        object="model",
        state=answer.state,
        message=message,
        warning=answer.warning,
        modelId=answer.id,
        model=answer.id,
    )


def stopped_named(answer: StopModelResponse) -> StopNamedResponse:
    """The same, as Cortex answers."""
    return StopNamedResponse(
        id=answer.id, object="model", state=answer.state, message="Stopped successfully!", model=answer.id
    )


def imported(view: ModelView) -> ImportModelResponse:
    """The answer of an import."""
    return ImportModelResponse(
        id=view.manifest.id,
        object="model",
        state=view.lifecycle,
        message="Model is imported successfully!",
        modelHandle=view.manifest.id,
    )


def available(views: Iterable[ModelView]) -> ListAvailableModelsResponse:
    """The answer of listAvailableModels."""
    return ListAvailableModelsResponse("list", [_available_item(view) for view in views])


def _available_item(view: ModelView) -> AvailableModel:
    can_generate = view.info is None or view.info.can_generate
    can_embed = view.info.can_embed if view.info is not None else settings_with_defaults(view.manifest.settings)["embedding"]
    return AvailableModel(
        id=view.manifest.id,
        object="model",
        engine=view.engine,
        status="running" if view.lifecycle is Lifecycle.RUNNING else "available",
        name=view.manifest.name,
        size_bytes=sum(file.size_bytes for file in view.manifest.files),
        capabilities=[*(["chat", "completions"] if can_generate else []), *(["embeddings"] if can_embed else [])],
    )


def download(view: PullView, message: str | None = None) -> DownloadModelResponse:
    """The answer of a download, with Cortex's task."""
    if message is None:
        is_going_on = view.lifecycle is Lifecycle.DOWNLOADING
        message = f"Starting download {view.id}" if is_going_on else f"The model {view.id} is downloaded"
    return DownloadModelResponse(view.id, "model", view.lifecycle, message, download_task(view))


def download_task(view: PullView) -> DownloadTask:
    """Cortex's shape of a download."""
    items = [
        DownloadItem(view.id, url, f"{view.id}/{filename}", "N/A", total, done) for filename, url, total, done in view.files
    ]
    return DownloadTask(view.id, "Model", items)


def download_progress(view: PullView) -> DownloadProgress:
    """Jan's shape of a download's progress; sizes in bytes, speed in bytes a second, times in seconds."""
    state: Literal["downloading", "end", "error"] = "downloading" if view.lifecycle is Lifecycle.DOWNLOADING else "end"
    if view.error is not None:
        state = "error"
    total = view.total_bytes
    is_moving = state == "downloading" and total is not None and view.speed > 0
    remaining = round((total - view.done_bytes) / view.speed, 1) if is_moving and total is not None else None
    return DownloadProgress(
        modelId=view.id,
        fileName=view.files[0][0] if view.files else "",
        percent=1.0 if state == "end" else round(view.done_bytes / total, 4) if total else 0.0,
        speed=round(view.speed),
        time=DownloadTime(round(view.elapsed_s, 1), remaining),
        size=DownloadSize(total, view.done_bytes),
        downloadState=state,
        error=view.error,
    )


def request_item(view: RequestView) -> RequestItem:
    """One entry of `GET /v1/requests`."""
    return RequestItem(
        id=view.id,
        model=view.model,
        state=view.state,
        prompt_tokens=view.prompt_tokens,
        evaluated_tokens=view.evaluated_tokens,
        completion_tokens=view.completion_tokens,
        age_s=round(view.age_s, 3),
    )


def whole(items: list[T]) -> Page[T]:
    """A whole list in OpenAI's paged form: without `has_more` its clients would ask for ever."""
    return Page(items, items[0].id if items else None, items[-1].id if items else None, has_more=False)


def as_text(value: Any) -> str:
    """A setting as the seed writes it: `2048`, `true`, `0.7`, `1`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def _picked(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _texts(values: dict[str, Any]) -> dict[str, Any]:
    return {name: as_text(value) for name, value in values.items()}


def _config(view: ModelView) -> ModelConfig:
    settings = settings_with_defaults(view.manifest.settings)
    settings["ctx_len"] = view.next_ctx_len or view.ctx_len
    return ModelConfig(_writable(settings), parameters_with_defaults(view.manifest.parameters))


def _current(view: ModelView, config: ModelConfig) -> dict[str, Any]:
    """The settings of the run, or those of the next one where nothing runs."""
    settings = config.settings if view.run is None else _writable(view.run)
    return {**settings, "ctx_len": view.ctx_len, "n_parallel": view.n_parallel}


def _writable(settings: dict[str, Any]) -> dict[str, Any]:
    """Without `cpu_threads` where it is unset: whatever the machine has when it starts; 0 could not be written back."""
    return {name: value for name, value in settings.items() if name != "cpu_threads" or value}


def _metadata(view: ModelView) -> dict[str, Any]:
    metadata = dict(view.manifest.metadata)
    metadata["engine"] = view.engine
    for name in ("quantization", "size"):
        metadata[name] = str(metadata.get(name) or "")
    metadata.setdefault("size_bytes", sum(file.size_bytes for file in view.manifest.files))
    return metadata


def _source_url(view: ModelView) -> str:
    manifest = view.manifest
    return manifest.source_url or (manifest.sources[0].url if manifest.sources else "")


def _resting(view: ModelView) -> str:
    return "stopped" if view.resting is Lifecycle.STOPPED else "downloaded"


def _run(view: ModelView, config: ModelConfig) -> ModelRun | None:
    if view.pid is None:
        return None
    return ModelRun(
        pid=view.pid,
        engine_version=view.info.version if view.info else "",
        device=view.info.device if view.info else "",
        memory_bytes=view.memory_bytes,
        n_active=view.n_active,
        n_queued=view.n_queued,
        idle_s=None if view.idle_s is None else round(view.idle_s, 3),
        started_at=view.started_at,
        settings=_writable(_current(view, config)),
    )
