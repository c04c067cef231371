"""What library, host and plugins know of a model or a download, put together at one moment. Floor 4; any thread."""

from __future__ import annotations

from hostler.domain import Lifecycle
from hostler.engine import EngineSpec
from hostler.hosted import HostedModel
from hostler.library.fields import settings_with_defaults
from hostler.library.pulls import PullJob
from hostler.library.store import LibraryEntry
from hostler.placement import context_limit, wanted_ctx_len
from hostler.views import ModelView, PullView


def view_of(
    entry: LibraryEntry, hosted: HostedModel | None, spec: EngineSpec | None, *, pull_error: str | None
) -> ModelView:
    """A model as it is now.

    Args:
        hosted: Its state, if it was started at least once.
        spec: The engine that takes its format.
        pull_error: What ended its last download, if anything did.
    """
    manifest = entry.manifest
    settings = settings_with_defaults(manifest.settings)
    if hosted is None or not entry.is_downloaded or hosted.lifecycle in {Lifecycle.DOWNLOADED, Lifecycle.STOPPED}:
        at_rest = hosted.resting if hosted is not None and entry.is_downloaded else entry.lifecycle
        return ModelView(
            manifest=manifest,
            lifecycle=at_rest,
            resting=at_rest,
            engine=spec.name if spec is not None else "",
            ctx_len=wanted_ctx_len(settings["ctx_len"], context_limit(None, None, manifest), spec),
            n_parallel=settings["n_parallel"],
            last_error=hosted.last_error if hosted is not None else pull_error,
            is_catalogue=entry.is_catalogue,
        )
    with hosted.changed:
        running = {**settings, **(hosted.chosen if hosted.worker is not None else {})}
        limit = context_limit(None, None, manifest)
        wanted = wanted_ctx_len(running["ctx_len"], limit, spec)
        is_changed = running["ctx_len"] != settings["ctx_len"]
        n_in_flight, n_queued = hosted.queue.n_in_flight, hosted.queue.n_queued
        return ModelView(
            manifest=manifest,
            lifecycle=hosted.lifecycle,
            resting=hosted.resting,
            engine=hosted.engine or (spec.name if spec is not None else ""),
            ctx_len=hosted.info.n_ctx if hosted.info else hosted.grant.ctx_len if hosted.grant else wanted,
            n_parallel=hosted.info.n_slots if hosted.info else running["n_parallel"],
            next_ctx_len=wanted_ctx_len(settings["ctx_len"], limit, spec) if is_changed else 0,
            run=running,
            last_error=hosted.last_error,
            pid=hosted.worker.pid if hosted.worker is not None else None,
            info=hosted.info,
            memory_bytes=hosted.grant.total_bytes if hosted.grant else 0,
            n_active=n_in_flight - n_queued,
            n_queued=n_queued,
            idle_s=hosted.clock() - hosted.last_used if hosted.is_idle else None,
            is_catalogue=entry.is_catalogue,
            started_at=hosted.started_at,
        )


def pull_view(job: PullJob) -> PullView:
    """A download as it is now."""
    progress = job.progress()
    return PullView(
        id=progress.id,
        lifecycle=progress.lifecycle,
        files=tuple((file.filename, file.url, file.total_bytes, file.done_bytes) for file in progress.files),
        total_bytes=progress.total_bytes,
        done_bytes=progress.done_bytes,
        speed=progress.speed,
        elapsed_s=progress.elapsed_s,
        error=progress.error,
    )
