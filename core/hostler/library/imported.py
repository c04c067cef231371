"""A model that lies on this machine already, as the library registers it: linked where it is, or moved here.

Floor 1; any thread. Values, and the reading of files to their ends; moving them is the shelf's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.errors import InvalidRequest, ModelExists
from hostler.library import describe
from hostler.library.disk import sync_file
from hostler.library.lookup import sources_of
from hostler.library.manifest import Manifest, ModelFile, ModelSource


def over_what_lies_there(draft: Manifest, found: describe.Found, name: str | None) -> Manifest:
    """An imported folder may have a model.json of Jan's: what it says of the model is kept, where the files are is ours."""
    old = found.manifest
    if old is None:
        return draft
    return msgspec.structs.replace(
        draft,
        name=name or old.name,
        description=old.description,
        version=old.version,
        owned_by=old.owned_by,
        settings={key: value for key, value in old.settings.items() if key not in {"llama_model_path", "mmproj"}},
        parameters=old.parameters,
        metadata=old.metadata,
        # Whoever asks for where it came from has it already.
        references=tuple(sorted(sources_of(old))),
    )


def is_link_to(manifest: Manifest, found: describe.Found) -> bool:
    """Whether a model was imported from this very place."""
    if not manifest.files or not manifest.files[0].is_link or not found.files:
        return False
    return manifest.files[0].path == found.files[0].path


def check_movable(folder: Path, models: Path, known: Iterable[Manifest]) -> None:
    """Refuse to move a folder that a model of this home lies in.

    Args:
        models: The library's own folder.
        known: The models on disk.

    Raises:
        ModelExists
    """
    place, own = folder.resolve(), models.resolve()
    if place.is_relative_to(own) or own.is_relative_to(place):
        raise ModelExists(f"{folder} and the library's own folder {own} lie in one another", param="path")
    for manifest in known:
        if any(file.is_link and Path(file.path).resolve().is_relative_to(place) for file in manifest.files):
            raise ModelExists(f"the model {manifest.id} lies in {folder}, which so cannot be moved", param="path")


def linked_manifest(draft: Manifest, found: describe.Found) -> Manifest:
    """The draft as a model that lies elsewhere."""
    return msgspec.structs.replace(
        draft,
        format=found.format,
        files=found.files,
        source_url=draft.source_url or found.path.as_uri(),
        sources=tuple(ModelSource(Path(file.path).name, Path(file.path).as_uri()) for file in found.files),
        metadata=merged_metadata(draft.metadata, found.metadata),
        is_complete=True,
    )


def owned_files(found: describe.Found) -> tuple[ModelFile, ...]:
    """The files of a model's folder as the library's own: relative, hashed, and surely on the disk.

    Raises:
        InvalidRequest: One is a link, so that moving the folder would not move it.
        OSError
    """
    files = []
    for file in found.files:
        path = Path(file.path)
        if path.is_symlink():
            raise InvalidRequest(f"{path} is a link, which cannot be moved into the library; import it instead", param="path")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        sync_file(path)
        files.append(ModelFile(path.relative_to(found.path).as_posix(), file.size_bytes, digest))
    return tuple(files)


def owned_manifest(draft: Manifest, found: describe.Found, files: tuple[ModelFile, ...]) -> Manifest:
    """The draft as a model whose folder becomes the library's own."""
    return msgspec.structs.replace(
        draft,
        format=found.format,
        files=files,
        source_url=found.manifest.source_url if found.manifest is not None else "",
        metadata=merged_metadata(draft.metadata, found.metadata),
        is_complete=True,
    )


def merged_metadata(known: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Labels as the user or the catalogue writes them, facts as the file has them."""
    facts = {key: described[key] for key in ("size_bytes", "context_length", "architecture") if key in described}
    return {**described, **known, **facts}
