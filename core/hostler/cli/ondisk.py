"""Where a model of this home lies on the disk, for commands that work on its files themselves.

Nothing is changed, so neither a server nor the home's lock is needed: the disk is the truth. Plugins' commands have
`find_model` as `hostler.find_model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from hostler.config import Settings


class LocalModel(msgspec.Struct, frozen=True):
    """A downloaded model, and where its files are."""

    id: str
    name: str
    description: str
    owned_by: str
    source_url: str
    format: str
    """As engines register it: `gguf`, ..."""
    path: Path
    """The primary file, or the folder where a model is one."""
    others: tuple[Path, ...]
    """The further files."""
    replaced: Path | None
    """Its own file, where `path` is a variant that runs in its place."""
    settings: dict[str, Any]
    """All of its settings, as they are without the variant."""
    parameters: dict[str, Any]
    """What is kept for its requests."""
    metadata: dict[str, Any]


def find_model(settings: Settings, reference: str) -> LocalModel:
    """Find a model by any of its names.

    Raises:
        ModelNotFound: "The model nope does not exist".
        ModelNotDownloaded: It says how to get it.
        InvalidModelFile: A file has vanished or changed its size.
    """
    from hostler.library.fields import settings_with_defaults
    from hostler.library.store import Library
    from hostler.library.variants import without_variant

    library = Library(settings.home, {})
    manifest = library.find(reference).manifest
    files = library.files(manifest.id)
    return LocalModel(
        id=manifest.id,
        name=manifest.name,
        description=manifest.description,
        owned_by=manifest.owned_by,
        source_url=manifest.source_url,
        format=manifest.engine_format,
        path=Path(files.primary),
        others=tuple(Path(path) for path in files.others),
        replaced=library.replaced(manifest.id),
        settings=settings_with_defaults(without_variant(manifest).settings),
        parameters=manifest.parameters,
        metadata=manifest.metadata,
    )
