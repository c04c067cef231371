"""Looking at model files: which format they are, whether they are sound, what they say of themselves.

Floor 1; any thread. Reads headers only, never tensor data; the bytes are a stranger's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hostler.errors import InvalidModelFile, InvalidRequest, MissingParameter
from hostler.library import names
from hostler.library.manifest import FILE_NAME, BrokenManifest, Manifest, ModelFile, read_manifest

if TYPE_CHECKING:
    from hostler.library.gguf import GgufHeader

GGUF = "gguf"
ONNX_GENAI = "onnxgenai"
GENAI_CONFIG = "genai_config.json"
_MAX_CONFIG_BYTES = 4 * 1024 * 1024
DESCRIBED = frozenset({"architecture", "context_length", "quantization", "size", "size_bytes"})
"""Keys of a manifest's metadata that come from the files themselves."""


@dataclass(frozen=True)
class Found:
    """A model that lies somewhere on this machine."""

    path: Path
    """As the user named it, absolute: the file, or the folder."""
    format: str
    files: tuple[ModelFile, ...]
    """Links, the primary one first."""
    suggested_id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    """What a model.json in the folder says, if one is there and can be read."""


def describe_path(path: str | Path, formats: Collection[str] = ()) -> Found:
    """Find out what model a path holds.

    Args:
        path: A GGUF file, of a split model any part, or a folder with one model; or a file whose suffix is in `formats`.
        formats: What the installed engines take: of formats that hostler does not know itself the engine is the judge.

    Raises:
        InvalidRequest: There is nothing, or no model, or more than one.
        InvalidModelFile: A weight file is broken; the text names the place.
    """
    text = os.fspath(path)
    if not text:
        raise MissingParameter("No path was given; name a GGUF file or a model folder", param="path")
    if "\0" in text:
        raise InvalidRequest("A path cannot contain a null character", param="path")
    # Not resolved: in a cache of links the name says what the file is, its target does not.
    absolute = Path(os.path.abspath(os.path.expanduser(text)))
    try:
        if absolute.is_dir():
            return _describe_folder(absolute)
        if not absolute.exists():
            raise InvalidRequest(f"{absolute} does not exist", param="path")
        if not absolute.is_file():
            raise InvalidRequest(f"{absolute} is neither a file nor a folder", param="path")
        suffix = absolute.suffix.lower().removeprefix(".")
        if suffix != GGUF and suffix in formats:
            link = _link(absolute)
            return Found(absolute, suffix, (link,), absolute.stem, metadata={"size_bytes": link.size_bytes})
        return _describe_gguf(absolute, absolute)
    except OSError as error:
        raise InvalidRequest(f"{error.filename or absolute} cannot be read: {error.strerror}", param="path") from error


def describe_gguf(paths: tuple[Path, ...]) -> dict[str, Any]:
    """What the files of one GGUF model say of themselves, for the manifest's metadata; all headers are checked.

    Args:
        paths: All parts, the first one first.

    Raises:
        InvalidModelFile: With the file and the reason.
    """
    from hostler.library.gguf import read_gguf_header  # late: loads the native core, which lists of models do not need

    headers = [read_gguf_header(path) for path in paths]
    if headers[0].is_first_part and not headers[0].architecture:
        raise InvalidModelFile(f"{paths[0]} is a GGUF file without general.architecture: no model", path=str(paths[0]))
    if len(paths) > 1:
        _check_split(paths, headers)
    return gguf_metadata(headers[0], sum(path.stat().st_size for path in paths))


def gguf_metadata(header: GgufHeader, size_bytes: int) -> dict[str, Any]:
    """The manifest's metadata of a GGUF header; what the file does not say is left out."""
    known = {
        "architecture": header.architecture,
        "quantization": header.quantization,
        "size": header.size_label,
        "context_length": header.context_length,
    }
    return {"size_bytes": size_bytes, **{key: value for key, value in known.items() if value}}


def weight_paths(folder: Path, files: tuple[ModelFile, ...]) -> tuple[Path, ...]:
    """Absolute paths of a manifest's files."""
    return tuple(Path(file.path) if file.is_link else folder / file.path for file in files)


def is_projector(name: str) -> bool:
    """Whether a GGUF file is a vision model's projector by its name, and so no model of its own."""
    return re.search(r"(^|[-._])mmproj([-._]|$)", name.lower()) is not None


def _describe_folder(folder: Path) -> Found:
    if (folder / GENAI_CONFIG).is_file():
        return _describe_genai(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    models = [path for path in files if not is_projector(path.name)]
    firsts = [path for path in models if path.name == (names.split_part_names(path.name) or (path.name,))[0]]
    if not models:
        within = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{GENAI_CONFIG}"))
        hint = f"; model folders lie below it: {', '.join(within[:8])}" if within else ""
        raise InvalidRequest(f"{folder} holds neither a GGUF file nor a {GENAI_CONFIG}{hint}", param="path")
    if len(firsts) != 1:
        listed = ", ".join(path.name for path in (firsts or models)[:8])
        raise InvalidRequest(f"{folder} holds {len(firsts)} whole models ({listed}); name the file of one", param="path")
    found = _describe_gguf(firsts[0], folder)
    projectors = tuple(_link(path) for path in files if is_projector(path.name))
    return Found(folder, GGUF, found.files + projectors, found.suggested_id, found.metadata, _manifest_in(folder))


def _describe_gguf(path: Path, named: Path) -> Found:
    parts = names.split_part_names(path.name) or (path.name,)
    paths = tuple(path.with_name(part) for part in parts)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise InvalidRequest(
            f"{path.name} is one of {len(parts)} parts, and {path.parent} lacks {', '.join(missing[:3])}", param="path"
        )
    metadata = describe_gguf(paths)
    return Found(
        path=named if named != path else paths[0],
        format=GGUF,
        files=tuple(_link(part) for part in paths),
        suggested_id=names.id_from_filename(path.name),
        metadata=metadata,
    )


def _describe_genai(folder: Path) -> Found:
    config_path = folder / GENAI_CONFIG
    with config_path.open("rb") as stream:
        data = stream.read(_MAX_CONFIG_BYTES + 1)
    try:
        config = msgspec.json.decode(data[:_MAX_CONFIG_BYTES])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidModelFile(f"{config_path} is not valid JSON: {error}", path=str(config_path)) from error
    model = config.get("model") if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping):
        raise InvalidModelFile(f"{config_path} has no object named model", path=str(config_path))
    others = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in {GENAI_CONFIG, FILE_NAME})
    if not any(path.suffix == ".onnx" for path in others):
        raise InvalidModelFile(f"{folder} has a {GENAI_CONFIG} and no .onnx file", path=str(folder))
    files = tuple(_link(path) for path in (config_path, *others))
    metadata: dict[str, Any] = {"size_bytes": sum(file.size_bytes for file in files)}
    if isinstance(model.get("type"), str):
        metadata["architecture"] = model["type"]
    if isinstance(model.get("context_length"), int):
        metadata["context_length"] = model["context_length"]
    quantization = re.search(r"(?:^|[-._])(u?int[48]|fp16|fp32|bf16)(?=$|[-._])", folder.name.lower())
    if quantization:
        metadata["quantization"] = quantization.group(1)
    return Found(folder, ONNX_GENAI, files, names.id_from_filename(folder.name), metadata, _manifest_in(folder))


def _manifest_in(folder: Path) -> Manifest | None:
    """A model.json beside the weights; one that cannot be read says nothing, the weights say enough."""
    try:
        return read_manifest(folder)
    except (OSError, BrokenManifest):
        return None


def _check_split(paths: tuple[Path, ...], headers: list[GgufHeader]) -> None:
    """Parts of different models under one name would load as rubbish; each part says how many there are."""
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        count, index = header.split_count, header.split_index
        if count is not None and count != len(paths):
            raise InvalidModelFile(f"{path} says it is one of {count} parts, its name says {len(paths)}", path=str(path))
        if index is not None and index != number:
            raise InvalidModelFile(f"{path} says it is part {index + 1}, its name says {number + 1}", path=str(path))


def _link(path: Path) -> ModelFile:
    return ModelFile(str(path), path.stat().st_size, is_link=True)
