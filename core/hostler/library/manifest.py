"""The model manifest, `model.json`: what a model is, as it stands on disk. Jan's fields, native types.

Floor 1; pure values plus reading and writing one file. Who writes: the library's store, one writer at a time per id.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from hostler.errors import HostlerError, InvalidRequest
from hostler.library import names
from hostler.library.disk import write_atomically
from hostler.library.fields import tolerated, validate_parameters, validate_settings

FILE_NAME = "model.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_MILLISECONDS_FROM = 100_000_000_000
"""A `created` above this is in milliseconds, as Jan wrote them: as seconds it would be the year 5138."""


class ModelSource(msgspec.Struct, frozen=True):
    """Where one file came from."""

    filename: str
    url: str


class ModelFile(msgspec.Struct, frozen=True):
    """One file of the model."""

    path: str
    """Relative to the model's folder, or absolute when `is_link`."""
    size_bytes: int
    sha256: str | None = None
    is_link: bool = False
    """The file lies where the user keeps it: never copied, never deleted."""


class Variant(msgspec.Struct, frozen=True):
    """What runs in place of the model's own file, and what it replaced; see variants.py."""

    file: ModelFile | None = None
    """In the model's folder; None: only settings were changed."""
    settings_before: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    """As they were set with it; null took one back to its default."""
    metadata_before: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True):
    """One model. `settings` and `parameters` hold only what was set; defaults are applied when they are read."""

    id: str
    name: str
    created: int
    """Unix seconds."""
    object: str = "model"
    version: str = "1"
    description: str = ""
    format: str = "gguf"
    engine: str = ""
    """Engine name the user asked for; empty: whichever takes the format."""
    owned_by: str = "_"
    source_url: str = ""
    """Canonical reference; a local import has a file: URL."""
    sources: tuple[ModelSource, ...] = ()
    files: tuple[ModelFile, ...] = ()
    """The primary file first. Empty while nothing is downloaded."""
    settings: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    """engine, quantization, size ("135M") as strings, size_bytes as an integer, author, tags, ..."""
    aliases: tuple[str, ...] = ()
    is_complete: bool = False
    """Every file is here and verified."""
    references: tuple[str, ...] = ()
    """Further references that led here (`hf:owner/repo:Q4_K_M`), normalised: the same one again asks nobody."""
    variant: Variant | None = None
    """What runs instead of the primary file."""

    @property
    def engine_format(self) -> str:
        """The format as engines register it: the seed writes `ggufv3`, but there is one GGUF, whose header has the version."""
        return "gguf" if self.format.lower().startswith("gguf") else self.format


class BrokenManifest(HostlerError):
    """A model.json that cannot be read as a model."""

    code = "invalid_model_file"


def read_manifest(folder: Path) -> Manifest:
    """Read the model.json of a folder: ours, or one that Jan or a person wrote.

    A bad setting in it is dropped, a missing field gets its default; only what makes the model unusable raises.

    Raises:
        FileNotFoundError: There is none.
        BrokenManifest: It is no JSON object, or its id or a path in it is not allowed.
        OSError: It cannot be read.
    """
    path = folder / FILE_NAME
    with path.open("rb") as stream:
        data = stream.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BrokenManifest(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise BrokenManifest(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise BrokenManifest(f"{path} is nested too deeply") from error
    if not isinstance(document, dict):
        raise BrokenManifest(f"{path} holds no JSON object")
    manifest = _manifest_of(document, folder)
    try:
        names.check_id(manifest.id)
        for file in manifest.files:
            _check_file(file)
        if manifest.variant is not None and manifest.variant.file is not None:
            _check_file(manifest.variant.file)
    except InvalidRequest as error:
        raise BrokenManifest(f"{path}: {error.message}") from error
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the model.json of a folder, which must exist; a reader sees the old one or the new one.

    Raises:
        InvalidRequest: It would be too large to be read again.
        OSError: Nothing has changed then.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidRequest(
            f"the {FILE_NAME} of {manifest.id} would have {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read again",
            param="metadata",
        )
    write_atomically(folder / FILE_NAME, data)


def check_member_path(path: str) -> str:
    """Refuse a file name that would leave the model's folder.

    Raises:
        InvalidRequest: With the reason.
    """
    parts = PurePosixPath(path.replace("\\", "/"))
    bad = (
        not path
        or parts.is_absolute()
        or ".." in parts.parts
        or (len(path) > 1 and path[1] == ":")
        or any(ord(character) < 32 or ord(character) == 127 for character in path)
        or not parts.parts
    )
    if bad:
        raise InvalidRequest(f"{path!r} is no file name inside a model's folder", param="path")
    return path


def _check_file(file: ModelFile) -> None:
    if not file.is_link:
        check_member_path(file.path)
    elif not Path(file.path).is_absolute() or "\0" in file.path:
        raise InvalidRequest(f"the linked file {file.path!r} has no absolute path", param="path")


def _manifest_of(document: Mapping[str, Any], folder: Path) -> Manifest:
    model_id = document.get("id") or folder.name
    sources = _sources_of(document)
    source_url = _text(document.get("source_url")) or (sources[0].url if sources else "")
    settings = tolerated(document.get("settings"), validate_settings)
    metadata = document.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    size = metadata.get("size")
    if isinstance(size, int | float) and not isinstance(size, bool) and math.isfinite(size):
        # Jan's size is a number of bytes, the seed's a text such as "7B".
        metadata.setdefault("size_bytes", int(metadata.pop("size")))
    if "files" in document:
        files = _files_of(document["files"])
        is_complete = document.get("is_complete") is True and bool(files)
    else:
        files = _files_beside(folder, sources, settings)
        is_complete = bool(files)
    return Manifest(
        id=str(model_id),
        name=_text(document.get("name")) or str(model_id),
        created=_created_of(document.get("created"), folder),
        version=_version_of(document.get("version")),
        description=_text(document.get("description")),
        format=_text(document.get("format")) or "gguf",
        # "nitro" was Jan's one local engine; it means no choice here.
        engine="" if _text(document.get("engine")) in {"nitro", "cortex.llamacpp"} else _text(document.get("engine")),
        owned_by=_text(document.get("owned_by")) or _text(metadata.get("author")) or "_",
        source_url=source_url,
        sources=sources,
        files=files,
        settings=settings,
        parameters=tolerated(document.get("parameters"), validate_parameters),
        metadata=metadata,
        aliases=_texts(document.get("aliases")),
        is_complete=is_complete,
        references=_texts(document.get("references")),
        variant=_variant_of(document.get("variant")),
    )


def _variant_of(value: Any) -> Variant | None:
    if value is None:
        return None
    try:
        return msgspec.convert(value, Variant, strict=False)
    except msgspec.ValidationError as error:
        raise BrokenManifest(f"its variant cannot be read: {error}") from error


def _sources_of(document: Mapping[str, Any]) -> tuple[ModelSource, ...]:
    found = []
    entries = document.get("sources")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("url"), str):
            filename = _text(entry.get("filename")) or entry["url"].rpartition("/")[2]
            found.append(ModelSource(filename, entry["url"]))
    return tuple(found)


def _files_of(entries: Any) -> tuple[ModelFile, ...]:
    try:
        return msgspec.convert(entries, tuple[ModelFile, ...], strict=False)
    except msgspec.ValidationError as error:
        raise BrokenManifest(f"its list of files cannot be read: {error}") from error


def _files_beside(folder: Path, sources: tuple[ModelSource, ...], settings: Mapping[str, Any]) -> tuple[ModelFile, ...]:
    """The weight files of a folder whose model.json has no list of them (Jan's): all that it names, or none."""
    wanted = [settings["llama_model_path"]] if "llama_model_path" in settings else []
    wanted += [source.filename for source in sources if source.filename.lower().endswith(".gguf")]
    if not wanted:
        wanted = sorted(path.name for path in folder.glob("*.gguf"))
    found = []
    for name in dict.fromkeys(wanted):
        try:
            path = folder / check_member_path(name)
            if not path.is_file():
                return ()
            found.append(ModelFile(name, path.stat().st_size))
        except (InvalidRequest, OSError):
            return ()
    return tuple(found)


def _created_of(value: Any, folder: Path) -> int:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 1e15:
        return int(value / 1000 if value > _MILLISECONDS_FROM else value)
    try:
        return int((folder / FILE_NAME).stat().st_mtime)
    except OSError:
        return int(time.time())


def _version_of(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return _text(value) or "1"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()
