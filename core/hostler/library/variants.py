"""A variant: a file made of a model's own, which runs in its place, and the settings that go with it; both can be taken back.

Floor 1; pure values, and one file that is read and moved. The model keeps its own files, untouched: the manifest names the
variant beside them. `hostler tune` makes variants; a model has one at a time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.errors import InvalidRequest
from hostler.library import describe
from hostler.library.disk import sync_file, sync_folder
from hostler.library.manifest import Manifest, ModelFile, Variant

PREFIX = "variant-"
"""Of the names of variants' files: what has it and stands in no manifest was left by a crash."""


def with_variant(
    manifest: Manifest, file: ModelFile | None, settings: Mapping[str, Any], metadata: Mapping[str, Any]
) -> Manifest:
    """The manifest of a model that runs a variant from its next start on.

    Args:
        manifest: One without a variant.
        file: The variant's, in the model's folder; None: the model's own file stays, only settings change.
        settings: Valid ones, to be set; None takes one back to its default.
        metadata: What is to be said of the model meanwhile.
    """
    before = {
        "settings": {name: manifest.settings.get(name) for name in settings},
        "metadata": {name: manifest.metadata.get(name) for name in metadata},
    }
    variant = Variant(file, before["settings"], dict(settings), before["metadata"], dict(metadata))
    return msgspec.structs.replace(
        manifest,
        settings=_over(manifest.settings, settings),
        metadata=_over(manifest.metadata, metadata),
        variant=variant,
    )


def without_variant(manifest: Manifest) -> Manifest:
    """The manifest as it was; what was changed since by others stays changed."""
    variant = manifest.variant
    if variant is None:
        return manifest
    return msgspec.structs.replace(
        manifest,
        settings=_taken_back(manifest.settings, variant.settings, variant.settings_before),
        metadata=_taken_back(manifest.metadata, variant.metadata, variant.metadata_before),
        variant=None,
    )


def _over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def _taken_back(now: Mapping[str, Any], applied: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    ours = {name: before.get(name) for name, value in applied.items() if now.get(name) == value}
    return _over(now, ours)


def described(path: Path) -> tuple[ModelFile, dict[str, Any]]:
    """A variant's file as it will stand in the manifest, and what it says of itself. It is read to its end.

    Raises:
        InvalidRequest: It is no single GGUF file.
        InvalidModelFile: A broken one.
        OSError
    """
    found = describe.describe_path(path)
    if found.format != describe.GGUF or len(found.files) != 1:
        raise InvalidRequest(f"{path} is no single GGUF file, and so no variant", param="path")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    file = ModelFile(f"{PREFIX}{digest[:12]}.gguf", found.files[0].size_bytes, digest)
    return file, {key: found.metadata.get(key) for key in ("quantization", "size_bytes")}


def move_in(source: Path, folder: Path, name: str) -> Path:
    """Move a file into a model's folder; it has its name there when it is whole and on the disk.

    Raises:
        OSError: The source is whole then.
    """
    target = folder / name
    sync_file(source)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = folder / f"{name}.part"
        try:
            shutil.copyfile(source, part)
            sync_file(part)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        source.unlink(missing_ok=True)
    sync_folder(folder)
    return target


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove variants' files that belong to nobody: those of a crash, or one that another process still held open."""
    kept = manifest.variant.file.path if manifest.variant is not None and manifest.variant.file is not None else ""
    for path in folder.glob(f"{PREFIX}*"):
        if path.name != kept:
            try:
                path.unlink()
            except OSError:
                continue  # Windows: a worker has it open; the next time
