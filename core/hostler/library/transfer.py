"""The steps of one download, from the source's answer to the complete manifest. What a pull's thread does.

Floor 2. Each step leaves the folder so that the next pull can go on after a crash: the manifest is written incomplete before
the first byte, bytes arrive in `.part` files, a weight file gets its name only when its hash and its header are right,
`is_complete` comes last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hostler.errors import DownloadFailed, InsufficientStorage, InvalidModelFile, InvalidRequest, ModelExists
from hostler.library import describe, names
from hostler.library.disk import FreeBytes, free_bytes, sync_folder
from hostler.library.fetch import Fetch, RetryPolicy, StopSignal
from hostler.library.imported import linked_manifest, merged_metadata
from hostler.library.manifest import Manifest, ModelFile, ModelSource, check_member_path
from hostler.library.partfile import CHUNK_BYTES, PartFile
from hostler.library.progress import FileProgress, ProgressBoard
from hostler.library.shelf import Shelf
from hostler.library.unpack import find_member, unpack_member
from hostler.sources.contract import RemoteFile, ResolvedSource, SourceContext

_READ_BYTES = 1024 * 1024
Resolve = Callable[[str, SourceContext], ResolvedSource]


@dataclass(frozen=True)
class TransferLimits:
    """What tests change: how often to retry, how much disk there is, how often to sync."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    free_bytes: FreeBytes = free_bytes
    chunk_bytes: int = CHUNK_BYTES


@dataclass
class Transfer:
    """One download. Made and run in the pull's thread; `stop` may be set by any."""

    draft: Manifest
    """What to register; `source_url` and names of an earlier pull or of the catalogue included."""
    reference: str
    resolve: Resolve
    resolved: ResolvedSource | None
    """The source's answer, where it was needed before there was a thread."""
    shelf: Shelf
    context: SourceContext
    stop: StopSignal
    board: ProgressBoard
    limits: TransferLimits = TransferLimits()
    formats: frozenset[str] = frozenset()
    """As of a PullPlan."""
    _archives: list[PartFile] = field(default_factory=list)
    """Unpacked already; removed when the manifest is complete."""

    def run(self) -> Manifest:
        """Do it all.

        Returns:
            The complete manifest, which is on disk.

        Raises:
            HostlerError: Why not. What arrived is kept for the next pull, save what was found bad.
            Stopped, OSError
        """
        context = msgspec.structs.replace(self.context, should_stop=lambda: self.stop.is_set)
        resolved = self.resolved or self.resolve(self.reference, context)
        self.stop.check()
        if not resolved.files:
            raise DownloadFailed(f"{self.reference} names no file")
        self.draft = bound_draft(self.draft, resolved, self.reference)
        if resolved.is_link:
            return self._link(resolved)
        folder = self._prepare(resolved.files)
        files = tuple(self._one(folder, index, remote) for index, remote in enumerate(resolved.files))
        self.board.enter("checking")
        described = self._describe(folder, files)
        self.stop.check()
        # What somebody changed while it was downloading counts.
        now = self.shelf.get(self.draft.id) or self.draft
        complete = msgspec.structs.replace(
            now, files=files, metadata=merged_metadata(now.metadata, described), is_complete=True
        )
        self.shelf.save(complete)
        for archive in self._archives:
            archive.discard()
        return complete

    def _link(self, resolved: ResolvedSource) -> Manifest:
        found = describe.describe_path(names.path_of_file_url(resolved.files[0].url), self.formats)
        linked = linked_manifest(self.draft, found)
        self.shelf.save(linked)
        return linked

    def _prepare(self, remotes: tuple[RemoteFile, ...]) -> Path:
        """Check names and room, then register the model as incomplete."""
        for remote in remotes:
            try:
                check_member_path(remote.filename)
            except InvalidRequest as error:
                raise DownloadFailed(f"{self.reference} offers a file that cannot be kept: {error.message}") from error
        if len({remote.filename.lower() for remote in remotes}) != len(remotes):
            raise DownloadFailed(f"{self.reference} offers two files with one name")
        folder = self.shelf.folder(self.draft.id)
        here = [_size_here(folder / remote.filename) for remote in remotes]
        self.board.plan(
            [
                FileProgress(remote.filename, names.shown_url(remote.url), remote.size_bytes, size)
                for remote, size in zip(remotes, here, strict=True)
            ]
        )
        needed = sum(
            max(0, (remote.size_bytes or 0) - size) + (remote.size_bytes or 0 if remote.archive_suffix else 0)
            for remote, size in zip(remotes, here, strict=True)
        )
        available = self.limits.free_bytes(folder)
        if needed > available:
            raise InsufficientStorage(
                f"{self.draft.id} needs {needed} bytes more, {available} are free in {folder.parent}; free some, or set "
                "HOSTLER_HOME to a folder on a larger disk",
                needed_bytes=needed,
                available_bytes=available,
            )
        return self.shelf.save(self.draft)

    def _one(self, folder: Path, index: int, remote: RemoteFile) -> ModelFile:
        """Get one file, unless an earlier pull has got it."""
        target = folder / remote.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        if remote.archive_suffix is None and target.is_file():
            self.board.enter("verifying")
            kept = self._verify_existing(target, index, remote)
            if kept is not None:
                return kept
            target.unlink()
        self.board.enter("verifying")

        def report(done_bytes: int, total_bytes: int | None) -> None:
            self.board.advance(index, done_bytes, total_bytes)

        with PartFile(target, chunk_bytes=self.limits.chunk_bytes) as part:
            fetch = Fetch(
                remote,
                part,
                self.context,
                self.stop,
                report,
                self.limits.policy,
                self.limits.free_bytes,
                on_body=lambda: self.board.enter("downloading"),
            )
            fetch.run()
            if remote.archive_suffix is not None:
                part.close()
                return self._unpack(folder, part, remote.archive_suffix)
            self._check_weights(part.path, target.name, part.discard)
            size_bytes, sha256 = part.size, part.sha256
            part.finish(target)
        return ModelFile(remote.filename, size_bytes, sha256)

    def _verify_existing(self, target: Path, index: int, remote: RemoteFile) -> ModelFile | None:
        """A file that has its name already was right once; it is hashed again. None: it is not what the source has now."""
        size_bytes = target.stat().st_size
        if remote.size_bytes not in {None, size_bytes}:
            return None
        digest = hashlib.sha256()
        done = 0
        with target.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                self.stop.check()
                digest.update(block)
                done += len(block)
                self.board.advance(index, done, size_bytes)
        if remote.sha256 not in {None, digest.hexdigest()}:
            return None
        return ModelFile(remote.filename, size_bytes, digest.hexdigest())

    def _unpack(self, folder: Path, archive: PartFile, suffix: str) -> ModelFile:
        self.board.enter("unpacking")
        member = find_member(archive.path, suffix)
        target = folder / member.filename
        unpacked = target.with_name(target.name + ".unpacked")
        sha256 = unpack_member(archive.path, member, unpacked, lambda _: self.stop.check(), free_bytes=self.limits.free_bytes)
        self._check_weights(unpacked, target.name, unpacked.unlink)
        os.replace(unpacked, target)
        sync_folder(folder)
        self._archives.append(archive)
        return ModelFile(member.filename, member.size_bytes, sha256)

    def _check_weights(self, path: Path, filename: str, remove: Callable[[], None]) -> None:
        """Refuse a GGUF file whose header is not sound, before it gets a name that an engine would open."""
        if not filename.lower().endswith(".gguf"):
            return
        self.board.enter("checking")
        try:
            describe.describe_gguf((path,))
        except InvalidModelFile as error:
            remove()
            raise InvalidModelFile(
                f"{filename} from {names.shown_url(self.reference)} is no sound GGUF file and was removed: {error.message}",
                path=filename,
            ) from error

    def _describe(self, folder: Path, files: tuple[ModelFile, ...]) -> dict[str, Any]:
        if self.draft.format == describe.ONNX_GENAI:
            return describe.describe_path(folder).metadata
        paths = describe.weight_paths(folder, files)
        models = tuple(path for path in paths if path.suffix.lower() == ".gguf" and not describe.is_projector(path.name))
        if not models:
            return {"size_bytes": sum(file.size_bytes for file in files)}
        try:
            return describe.describe_gguf(models)
        except InvalidModelFile:
            for path in models:
                path.unlink(missing_ok=True)
            raise


def bound_draft(draft: Manifest, resolved: ResolvedSource, reference: str) -> Manifest:
    """The draft with what the source says of itself.

    Raises:
        ModelExists: The id belongs to a model from somewhere else.
    """
    canonical = names.normalised_source(resolved.source_url)
    if draft.source_url and names.normalised_source(draft.source_url) not in {
        canonical,
        names.normalised_source(reference),
    }:
        raise ModelExists(
            f"The id {draft.id} belongs to a model from {names.shown_url(draft.source_url)}, not from "
            f"{names.shown_url(resolved.source_url)}; choose another with --id",
            param="id",
        )
    is_first = not draft.source_url
    asked = names.normalised_source(reference)
    references = draft.references if asked in {canonical, *draft.references} else (*draft.references, asked)
    return msgspec.structs.replace(
        draft,
        # What the catalogue or the user wrote stays as it was written, where it means the same.
        source_url=resolved.source_url
        if is_first or names.normalised_source(draft.source_url) != canonical
        else draft.source_url,
        references=references,
        sources=tuple(ModelSource(file.filename, names.shown_url(file.url)) for file in resolved.files),
        format=resolved.format if draft.format == "gguf" else draft.format,
        name=resolved.name if draft.name in {"", draft.id} and resolved.name else draft.name,
        owned_by=resolved.owned_by if draft.owned_by in {"", "_"} and resolved.owned_by else draft.owned_by,
        description=draft.description or resolved.description,
        metadata={**resolved.metadata, **draft.metadata},
    )


def _size_here(target: Path) -> int:
    for path in (target, target.with_name(target.name + ".part")):
        try:
            return path.stat().st_size
        except OSError:
            continue
    return 0
