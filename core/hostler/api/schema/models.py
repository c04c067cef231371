"""Bodies of the model routes: downloads, starts, changes, imports. Source: spec/API.md sections 5 and 11. Floor 5; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from hostler.api.schema.convert import convert, required
from hostler.api.schema.marks import BOTH_GROUPS, PARAMETERS_GROUP, REQUIRED, SETTINGS_GROUP, exactly, rule
from hostler.api.schema.settings import read_settings
from hostler.errors import InvalidRequest, MissingParameter, UnsupportedParameter
from hostler.library.describe import DESCRIBED
from hostler.library.fields import PARAMETERS, SETTINGS, changes_of, validate_parameters
from hostler.library.names import repair_url
from hostler.views import ModelChanges, PullRequest

KEPT_METADATA = DESCRIBED | {"engine"}
"""What hostler knows of a model's files better than a client; sent back as it was read, it is ignored."""
MAX_NAME_LENGTH = 256
MAX_DESCRIPTION_LENGTH = 16_384


class Source(Struct):
    """One entry of model.json's `sources`."""

    url: str | None = None


class DownloadBody(Struct):
    """`POST /models` and `POST /models/pull`."""

    source_url: str | None = None
    id: str | None = None
    model: str | None = None
    name: str | None = None
    description: str | None = None
    format: str | None = None
    settings: Annotated[dict[str, Any] | None, SETTINGS_GROUP] = None
    engine_parameters: Annotated[dict[str, Any] | None, SETTINGS_GROUP] = None
    parameters: Annotated[dict[str, Any] | None, PARAMETERS_GROUP] = None
    model_parameters: Annotated[dict[str, Any] | None, PARAMETERS_GROUP] = None
    metadata: dict[str, Any] | None = None
    sources: list[Source | str] | None = None
    wait: bool | None = None


class ImportModelBody(Struct):
    """`POST /models/import`."""

    model: str | None = None
    modelPath: Annotated[str | None, REQUIRED] = None
    name: str | None = None
    option: Annotated[str | None, exactly({"enum": ["symlink", "move", None]})] = None


class VariantBody(Struct):
    """`PUT /models/{model_id}/variant`."""

    path: str | None = None
    """A GGUF file made of the model's own; it is moved. Without one only settings change."""
    settings: Annotated[dict[str, Any] | None, SETTINGS_GROUP] = None
    metadata: dict[str, Any] | None = None


class PullBody(DownloadBody):
    """`POST /models/pull`."""

    model: Annotated[str | None, REQUIRED] = None


class StartBody(Struct):
    """What a start says beside settings."""

    wait: bool | None = None
    settings: Annotated[dict[str, Any] | None, SETTINGS_GROUP] = None


class StartNamedBody(StartBody):
    """A start that names its model."""

    model: Annotated[str | None, REQUIRED] = None


class ModelBody(Struct):
    """A body that only names a model."""

    model: Annotated[str | None, REQUIRED] = None


_NAMED = {"type": "string", "minLength": 1}


@rule({"properties": {"taskId": _NAMED}, "required": ["taskId"]}, {"properties": {"model": _NAMED}, "required": ["model"]})
class TaskBody(Struct):
    """`DELETE /models/pull`: either of the two."""

    taskId: str | None = None
    model: str | None = None


class UpdateBody(Struct):
    """`PATCH /models/{model_id}`; settings and parameters may also stand in the body itself."""

    name: Annotated[str, Meta(max_length=MAX_NAME_LENGTH)] | None = None
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_LENGTH)] | None = None
    settings: Annotated[dict[str, Any] | None, SETTINGS_GROUP] = None
    engine_parameters: Annotated[dict[str, Any] | None, SETTINGS_GROUP] = None
    parameters: Annotated[dict[str, Any] | None, BOTH_GROUPS] = None
    """getModel's shape: settings may stand in it, too."""
    model_parameters: Annotated[dict[str, Any] | None, PARAMETERS_GROUP] = None
    metadata: dict[str, Any] | None = None


def read_download(
    raw: dict[str, Any], *, query_source: str | None, default_model: str, is_from_cli: bool
) -> tuple[PullRequest, bool]:
    """Check a download's body.

    Args:
        query_source: `?source_url=`.
        default_model: What a request that names nothing means; empty: nothing.

    Returns:
        What to download, and whether the body asks to wait for it.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    body = convert(raw, DownloadBody)
    source = body.source_url or query_source or _first_source(body)
    reference = source or body.model or body.id or default_model
    if not reference:
        raise MissingParameter(
            "source_url is missing, and this server has no default_model; name a model or where to get it", param="source_url"
        )
    # Beside a source, `model` is the id to register under; alone it is the reference.
    wanted_id = body.id or (body.model if source else None)
    request = PullRequest(
        reference=repair_url(reference),
        id=wanted_id if wanted_id != reference else None,
        name=body.name,
        description=body.description,
        format=body.format,
        settings=_merged(read_settings, body, "engine_parameters", "settings"),
        parameters=_merged(validate_parameters, body, "model_parameters", "parameters"),
        metadata=body.metadata,
        is_from_cli=is_from_cli,
    )
    return request, bool(body.wait)


def _first_source(body: DownloadBody) -> str | None:
    for source in body.sources or ():
        url = source if isinstance(source, str) else source.url
        if url:
            return url
    return None


def _merged(validate: Any, body: DownloadBody, *names: str) -> dict[str, Any] | None:
    """The group under its several names, the later winning; None where none was sent."""
    groups = [(name, getattr(body, name)) for name in names if getattr(body, name) is not None]
    if not groups:
        return None
    merged: dict[str, Any] = {}
    for name, values in groups:
        merged.update(validate(values, name))
    return merged


def read_start(raw: dict[str, Any]) -> tuple[str | None, dict[str, Any], bool | None]:
    """Check a start's body.

    Returns:
        The model it names, if any; the settings for this run, native; whether to wait, if it says so.

    Raises:
        InvalidRequest: With the path of the field.
    """
    body = convert(raw, StartNamedBody)
    settings = read_settings(body.settings or {}, "settings")
    settings.update(read_settings(raw, ""))
    return body.model, settings, body.wait


def read_update(raw: dict[str, Any]) -> ModelChanges:
    """Check an update's body. A field that stands in several groups counts as the last of them says: F05's names, the
    seed's, the body itself.

    Raises:
        InvalidRequest: With the path of the field.
    """
    body = convert(raw, UpdateBody)
    settings: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for path in ("engine_parameters", "model_parameters", "settings", "parameters", ""):
        values = getattr(body, path) if path else raw
        if values is not None:
            settings |= {**changes_of(SETTINGS, values), **read_settings(values, path)}
            parameters |= {**changes_of(PARAMETERS, values), **validate_parameters(values, path)}
    return ModelChanges(
        name=_or_default(raw, "name", body.name),
        description=_or_default(raw, "description", body.description),
        settings=settings,
        parameters=parameters,
        metadata={key: value for key, value in (body.metadata or {}).items() if key not in KEPT_METADATA},
    )


def _or_default(raw: dict[str, Any], key: str, value: str | None) -> str | None:
    """None where it is not sent, empty where it is sent as null."""
    return "" if key in raw and value is None else value


def setting_warnings(settings: Mapping[str, Any]) -> list[str]:
    """What was accepted and has no effect, whatever the engine."""
    found = []
    if settings.get("cont_batching") is False:
        found.append("cont_batching is always on")
    if settings.get("vision_model"):
        found.append("vision_model has no effect: this release takes text only")
    if (settings.get("grp_attn_n") or 1) > 1:  # null takes it back
        found.append("grp_attn_n and grp_attn_w have no effect: no context is stretched")
    return found


def read_import(raw: dict[str, Any]) -> tuple[str, str | None, str | None, bool]:
    """Check an import's body.

    Returns:
        Path, id, name, and whether the files are to be moved.

    Raises:
        InvalidRequest, MissingParameter, UnsupportedParameter: With the field.
    """
    body = convert(raw, ImportModelBody)
    path = required(body.modelPath, "modelPath", "give the path of a GGUF file or of a model's folder")
    if body.option == "copy":
        raise UnsupportedParameter("option copy is not supported: imports link the files where they are", param="option")
    if body.option not in (None, "symlink", "move"):
        raise InvalidRequest(f"option is {body.option!r}; allowed: symlink, move", param="option")
    return path, body.model, body.name, body.option == "move"


def read_variant(raw: dict[str, Any]) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """Check a variant's body.

    Returns:
        Path of the file, settings (null values take one back), metadata.

    Raises:
        InvalidRequest: With the field.
    """
    body = convert(raw, VariantBody)
    values = body.settings or {}
    settings = {**changes_of(SETTINGS, values), **read_settings(values, "settings")}
    return body.path, settings, body.metadata or {}


def read_named_model(raw: dict[str, Any]) -> str:
    """The `model` of a body that names one.

    Raises:
        MissingParameter: It does not.
    """
    return required(convert(raw, ModelBody).model, "model")


def read_task(raw: dict[str, Any]) -> str:
    """The download that `DELETE /models/pull` names.

    Raises:
        MissingParameter: It names none.
    """
    body = convert(raw, TaskBody)
    return required(body.taskId or body.model, "taskId", "it is the id in the download's answer")
