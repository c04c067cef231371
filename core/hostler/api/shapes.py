"""Snapshots -> the JSON that the model routes answer with. Source: spec/API.md sections 4 and 5.

Floor 5; pure functions. One model has three shapes upstream, with other types in each; what differs is said here and nowhere
else.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, NamedTuple

from hostler.domain import Lifecycle
from hostler.library.fields import parameters_with_defaults, settings_with_defaults
from hostler.views import ModelView, PullView, RequestView

LIST_SETTINGS = ("ctx_len", "ngl", "embedding", "n_parallel")
LIST_PARAMETERS = ("temperature", "token_limit", "top_k", "top_p", "stream")
"""The seed closes both groups: a list item has these keys and no others."""
STRINGS_IN_GET = frozenset({"temperature", "token_limit", "top_k", "top_p"})


class States(NamedTuple):
    """What the documents call one lifecycle."""

    listed: str | None
    """`state` of a list item."""
    got: str | None
    """`state` of getModel; None: what it was before, downloaded or stopped."""
    status: str
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


def list_item(view: ModelView, *, is_native: bool = False) -> dict[str, Any]:
    """One entry of listModels; settings and parameters are strings unless native types are wanted."""
    manifest = view.manifest
    config = _config(view)
    states = STATES[view.lifecycle]
    settings = {name: config["settings"][name] for name in LIST_SETTINGS}
    parameters = {name: config["parameters"][name] for name in LIST_PARAMETERS}
    return {
        "type": "model",
        "object": "model",
        "version": manifest.version,
        "id": manifest.id,
        "model": manifest.id,
        "name": manifest.name,
        "owned_by": manifest.owned_by,
        "created": manifest.created,
        "description": manifest.description,
        "state": states.listed,
        "lifecycle": view.lifecycle.value,
        "status": states.status,
        "format": manifest.format,
        "source_url": _source_url(view),
        "settings": settings if is_native else {name: as_text(value) for name, value in settings.items()},
        "parameters": parameters if is_native else {name: as_text(value) for name, value in parameters.items()},
        "metadata": _metadata(view),
        "assets": [PurePath(file.path).name for file in manifest.files],
        "config": config,
        "hostler": _run(view),
    }


def get_item(view: ModelView, *, is_native: bool = False) -> dict[str, Any]:
    """The answer of getModel: settings merged into `parameters`, four of the parameters as strings."""
    manifest = view.manifest
    config = _config(view)
    states = STATES[view.lifecycle]
    settings = _picked(config["settings"], (*LIST_SETTINGS, *manifest.settings))
    parameters = _picked(config["parameters"], (*LIST_PARAMETERS, "stop", *manifest.parameters))
    if not is_native:
        parameters = {name: as_text(value) if name in STRINGS_IN_GET else value for name, value in parameters.items()}
    return {
        "id": manifest.id,
        "object": "model",
        "created": manifest.created,
        "owned_by": manifest.owned_by,
        "state": states.got or _resting(view),
        "lifecycle": view.lifecycle.value,
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
        "hostler": _run(view),
    }


def changed_state(view: ModelView, message: str) -> dict[str, Any]:
    """The answer of a start or a stop: here `state` is the lifecycle itself."""
    return {"id": view.manifest.id, "object": "model", "state": view.lifecycle.value, "message": message}


def download(view: PullView, message: str | None = None) -> dict[str, Any]:
    """The answer of a download, with Cortex's task."""
    if message is None:
        is_going_on = view.lifecycle is Lifecycle.DOWNLOADING
        message = f"Starting download {view.id}" if is_going_on else f"The model {view.id} is downloaded"
    return {"id": view.id, "object": "model", "state": view.lifecycle.value, "message": message, "task": download_task(view)}


def download_task(view: PullView) -> dict[str, Any]:
    """Cortex's shape of a download."""
    items = [
        {
            "id": view.id,
            "downloadUrl": url,
            "localPath": f"{view.id}/{filename}",
            "checksum": "N/A",
            "bytes": total,
            "downloadedBytes": done,
        }
        for filename, url, total, done in view.files
    ]
    return {"id": view.id, "type": "Model", "items": items}


def download_progress(view: PullView) -> dict[str, Any]:
    """Jan's shape of a download's progress; sizes in bytes, speed in bytes a second, times in seconds."""
    state = "downloading" if view.lifecycle is Lifecycle.DOWNLOADING else "end"
    if view.error is not None:
        state = "error"
    total = view.total_bytes
    is_moving = state == "downloading" and total is not None and view.speed > 0
    return {
        "modelId": view.id,
        "fileName": view.files[0][0] if view.files else "",
        "percent": 1.0 if state == "end" else round(view.done_bytes / total, 4) if total else 0.0,
        "speed": round(view.speed),
        "time": {
            "elapsed": round(view.elapsed_s, 1),
            "remaining": round((total - view.done_bytes) / view.speed, 1) if is_moving and total is not None else None,
        },
        "size": {"total": total, "transferred": view.done_bytes},
        "downloadState": state,
        "error": view.error,
    }


def request_item(view: RequestView) -> dict[str, Any]:
    """One entry of `GET /v1/requests`."""
    return {
        "id": view.id,
        "object": "request",
        "model": view.model,
        "state": view.state,
        "prompt_tokens": view.prompt_tokens,
        "completion_tokens": view.completion_tokens,
        "age_s": round(view.age_s, 3),
    }


def envelope(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A whole list in OpenAI's paged form: without `has_more` its clients would ask for ever."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": False,
    }


def as_text(value: Any) -> str:
    """A setting as the seed writes it: `2048`, `true`, `0.7`, `1`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def _picked(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _config(view: ModelView) -> dict[str, Any]:
    settings = settings_with_defaults(view.manifest.settings)
    settings["ctx_len"] = view.ctx_len
    settings["n_parallel"] = view.n_parallel
    if not settings["cpu_threads"]:
        del settings["cpu_threads"]  # unset: whatever the machine has when it starts; 0 could not be written back
    return {"settings": settings, "parameters": parameters_with_defaults(view.manifest.parameters)}


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


def _run(view: ModelView) -> dict[str, Any] | None:
    """hostler's own: the worker, while there is one."""
    if view.pid is None:
        return None
    return {
        "pid": view.pid,
        "engine_version": view.info.version if view.info else "",
        "device": view.info.device if view.info else "",
        "memory_bytes": view.memory_bytes,
        "n_active": view.n_active,
        "n_queued": view.n_queued,
        "idle_s": None if view.idle_s is None else round(view.idle_s, 3),
        "started_at": view.started_at,
    }
