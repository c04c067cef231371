"""What the model routes answer. Source: spec/API.md sections 4, 5 and 11.

Floor 5; pure values, made by `api/shapes.py`. The structs' names are the seed's where the seed has a schema. A list item
has text in `settings` and `parameters` unless native types are asked for; so both stand in the types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from hostler.api.schema.marks import PARAMETERS_GROUP, SETTINGS_GROUP, exactly
from hostler.api.schema.tables import Schema, answer_properties
from hostler.domain import Lifecycle
from hostler.library.fields import PARAMETERS, SETTINGS

LIST_SETTINGS = ("ctx_len", "ngl", "embedding", "n_parallel")
LIST_PARAMETERS = ("temperature", "token_limit", "top_k", "top_p", "stream")
"""The seed closes both groups: a list item has these keys and no others."""
STRINGS_IN_GET = frozenset({"temperature", "token_limit", "top_k", "top_p"})

Seconds = Annotated[int, Meta(extra_json_schema={"format": "int64"})]
"""Unix time."""


def _merged_properties() -> dict[str, Schema]:
    """getModel's `parameters`: both groups in one, four of the parameters as text unless native types are asked for."""
    found = answer_properties((*SETTINGS, *PARAMETERS))
    for name in STRINGS_IN_GET:
        found[name] = {"anyOf": [{"type": "string"}, found[name]]}
    return found


MergedParameters = Annotated[
    dict[str, Any], exactly({"type": "object", "properties": _merged_properties(), "required": [*LIST_SETTINGS]})
]
ModelMetadata = Annotated[
    dict[str, Any],
    exactly(
        {
            "type": "object",
            "description": "What is known of the file, and what users noted.",
            "properties": {
                "engine": {"type": "string"},
                "quantization": {"type": "string"},
                "size": {"type": "string", "description": 'Parameters, such as "7B".'},
                "size_bytes": {"description": "Of all files."},
            },
            "required": ["engine", "quantization", "size"],
        }
    ),
]


class ListedSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a list item: text, or native types with `schema=native`."""

    ctx_len: str | int
    ngl: str | int
    embedding: str | bool
    n_parallel: str | int


class ListedParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of a list item: text, or native types with `schema=native`."""

    temperature: str | float
    token_limit: str | int
    top_k: str | int
    top_p: str | float
    stream: str | bool


class ModelConfig(Struct, frozen=True):
    """All settings and parameters as they are set, complete and native: what the next start and the next request use."""

    settings: Annotated[dict[str, Any], SETTINGS_GROUP]
    parameters: Annotated[dict[str, Any], PARAMETERS_GROUP]


class ModelRun(Struct, frozen=True):
    """hostler's own: the worker, while there is one."""

    pid: int
    engine_version: str
    device: str
    memory_bytes: int
    """What the ledger granted."""
    n_active: int
    n_queued: int
    idle_s: float | None
    """Seconds since its last request ended; null while it works."""
    started_at: int | None
    settings: Annotated[dict[str, Any], SETTINGS_GROUP]
    """Those it runs with, whatever was changed since."""


class Model(Struct, frozen=True):
    """One entry of listModels."""

    type: Literal["model"]
    object: Literal["model"]
    version: str
    id: str
    model: str
    name: str
    owned_by: str
    created: Seconds
    description: str
    state: Literal["downloading", "available"] | None
    """The seed's word; null: not downloaded."""
    lifecycle: Lifecycle
    """The whole truth."""
    status: Literal["downloadable", "downloaded"]
    """Cortex's word."""
    format: str
    source_url: str
    settings: ListedSettings
    """Of the running model, else those of the next start."""
    parameters: ListedParameters
    metadata: ModelMetadata
    assets: list[str]
    """Names of its files."""
    config: ModelConfig
    hostler: ModelRun | None


class ListModelsResponse(Struct, frozen=True):
    """All models; not paged."""

    object: Literal["list"]
    data: list[Model]


class GetModelResponse(Struct, frozen=True):
    """One model."""

    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: str
    state: Literal["not_downloaded", "downloaded", "running", "stopped"]
    """The seed's word."""
    lifecycle: Lifecycle
    """The whole truth."""
    status: Literal["downloadable", "downloaded"]
    """Cortex's word."""
    source_url: str
    parameters: MergedParameters
    metadata: ModelMetadata
    name: str
    version: str
    description: str
    format: str
    engine: str
    """That runs it, or would; empty: no installed plugin takes its format."""
    settings: Annotated[dict[str, Any], SETTINGS_GROUP]
    config: ModelConfig
    last_error: str | None
    hostler: ModelRun | None


class UpdateModelResponse(GetModelResponse, frozen=True):
    """Cortex's answer to an update, and the model as it is now."""

    result: str
    modelHandle: str
    message: str


class DeleteModelResponse(Struct, frozen=True):
    """The model is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True
    message: str = "Deleted successfully!"


class StartModelResponse(Struct, frozen=True):
    """Here `state` is the lifecycle itself."""

    id: str
    object: Literal["model"]
    state: Lifecycle
    message: str
    warning: str | UnsetType = UNSET
    """Settings that were accepted and have no effect."""


class StopModelResponse(Struct, frozen=True):
    """Here `state` is the lifecycle itself."""

    id: str
    object: Literal["model"]
    state: Lifecycle
    message: str


class StartNamedResponse(StartModelResponse, frozen=True, kw_only=True):
    """Cortex's answer to a start, and the seed's."""

    modelId: str
    success: bool = True
    model: str


class StopNamedResponse(StopModelResponse, frozen=True, kw_only=True):
    """Cortex's answer to a stop, and the seed's."""

    success: bool = True
    model: str


class ImportModelResponse(StopModelResponse, frozen=True, kw_only=True):
    """Cortex's answer to an import, and the seed's form."""

    result: str = "OK"
    modelHandle: str


class DownloadItem(Struct, frozen=True):
    """One file of a download, in Cortex's shape."""

    id: str
    downloadUrl: str
    localPath: str
    checksum: str
    bytes: int | None
    """Null: not known yet."""
    downloadedBytes: int


class DownloadTask(Struct, frozen=True):
    """A download, in Cortex's shape."""

    id: str
    type: Literal["Model"]
    items: list[DownloadItem]


class DownloadModelResponse(Struct, frozen=True):
    """The download, or the model that is here already."""

    id: str
    object: Literal["model"]
    state: Lifecycle
    message: str
    task: DownloadTask


class DownloadTime(Struct, frozen=True):
    """In seconds."""

    elapsed: float
    remaining: float | None


class DownloadSize(Struct, frozen=True):
    """In bytes."""

    total: int | None
    transferred: int


class DownloadProgress(Struct, frozen=True):
    """Jan's shape of a download's progress."""

    modelId: str
    fileName: str
    percent: float
    """From 0 to 1."""
    speed: int
    """Bytes a second."""
    time: DownloadTime
    size: DownloadSize
    downloadState: Literal["downloading", "end", "error"]
    error: str | None


class DownloadCancelled(Struct, frozen=True):
    """Cortex's answer to the end of a download."""

    taskId: str
    message: str = "Download stopped successfully"


class ModelStatus(Struct, frozen=True):
    """Cortex's yes."""

    message: str = "Model is running"


class AvailableModel(Struct, frozen=True):
    """A model that can be asked now, in later Jan's shape."""

    id: str
    object: Literal["model"]
    engine: str
    status: Literal["running", "available"]
    name: str
    size_bytes: int
    capabilities: list[str]


class ListAvailableModelsResponse(Struct, frozen=True):
    """The models that are downloaded; not paged."""

    object: Literal["list"]
    data: list[AvailableModel]
