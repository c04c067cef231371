"""Which of a model's files an engine is given, each as it was registered.

Floor 2; any thread. Looks at names and sizes, never into a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hostler.engine import ModelFiles
from hostler.errors import InvalidModelFile, InvalidRequest
from hostler.library import describe
from hostler.library.manifest import Manifest, ModelFile


def running_files(manifest: Manifest, folder: Path, overrides: Mapping[str, Any]) -> ModelFiles:
    """What an engine is given, absolute and checked to exist.

    Args:
        manifest: A complete one.
        folder: The model's.
        overrides: Settings of one run, over those that are kept: they may name other files of the model.

    Raises:
        InvalidRequest: A setting names a file that is none of the model's.
        InvalidModelFile: A file has vanished or changed its size since it was registered.
    """
    chosen = {**manifest.settings, **overrides}
    names_file = "llama_model_path" in overrides  # and so none of a variant
    files = manifest.files if names_file else _chosen_files(manifest)
    paths = describe.weight_paths(folder, files)
    for path, file in zip(paths, files, strict=True):
        _check_present(manifest, folder, path, file.size_bytes, is_link=file.is_link)
    if manifest.format == describe.ONNX_GENAI:
        return ModelFiles(str(paths[0].parent), manifest.format)
    wanted = chosen.get("llama_model_path") if files is manifest.files else None
    primary = paths[0] if wanted is None else _named(paths, wanted, manifest.id, "llama_model_path")
    projector = chosen.get("mmproj")
    if projector is not None:
        _named(paths, projector, manifest.id, "mmproj")
    return ModelFiles(str(primary), manifest.engine_format, tuple(str(path) for path in paths if path != primary))


def replaced_file(manifest: Manifest, folder: Path) -> Path | None:
    """The model's own file, where a variant runs in its place; else None.

    Raises:
        InvalidModelFile: It has vanished or changed its size.
    """
    if manifest.variant is None or manifest.variant.file is None:
        return None
    paths = describe.weight_paths(folder, manifest.files)
    for path, file in zip(paths, manifest.files, strict=True):
        _check_present(manifest, folder, path, file.size_bytes, is_link=file.is_link)
    wanted = manifest.settings.get("llama_model_path")
    return paths[0] if wanted is None else _named(paths, wanted, manifest.id, "llama_model_path")


def check_named(manifest: Manifest, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings that name a file which is none of the model's.

    Raises:
        InvalidRequest
    """
    paths = describe.weight_paths(folder, manifest.files)
    for name in ("llama_model_path", "mmproj"):
        if settings.get(name) is not None:
            _named(paths, settings[name], manifest.id, name)


def _chosen_files(manifest: Manifest) -> tuple[ModelFile, ...]:
    """What an engine is given: the model's own files, or a variant's with the model's projectors."""
    if manifest.variant is None or manifest.variant.file is None:
        return manifest.files
    return (manifest.variant.file, *(file for file in manifest.files if describe.is_projector(Path(file.path).name)))


def _named(paths: tuple[Path, ...], wanted: str, model_id: str, setting: str) -> Path:
    """The file of the model that a setting names.

    Raises:
        InvalidRequest: It is none of the model's files.
    """
    name = wanted.replace("\\", "/").removeprefix("./")
    for path in paths:
        if str(path) == wanted or path.name == name or path.as_posix().endswith("/" + name):
            return path
    listed = ", ".join(path.name for path in paths[:8])
    raise InvalidRequest(
        f"{setting} of the model {model_id} is {wanted!r}, which is none of its files: {listed}", param=f"settings.{setting}"
    )


def _check_present(manifest: Manifest, folder: Path, path: Path, size_bytes: int, *, is_link: bool) -> None:
    try:
        size_now = path.stat().st_size
    except OSError as error:
        help_text = (
            "it was linked, not copied: put it back, or import it from where it is now"
            if is_link
            else f"delete the model and pull it again: `hostler rm {manifest.id}`, `hostler pull {manifest.id}`"
        )
        raise InvalidModelFile(
            f"{path}, a file of the model {manifest.id}, is gone ({error.strerror}); {help_text}", path=str(path)
        ) from error
    if not is_link and not path.resolve().is_relative_to(folder.resolve()):
        # APPSEC: a link inside the folder could make an engine read any file of this machine.
        raise InvalidModelFile(f"{path} leads out of the folder of the model {manifest.id}", path=str(path))
    if size_now != size_bytes:
        again = "import it again" if is_link else "delete the model and pull it again"
        raise InvalidModelFile(
            f"{path}, a file of the model {manifest.id}, has {size_now} bytes now and had {size_bytes} when it was "
            f"registered; {again}",
            path=str(path),
        )
