"""`cache`: the prompts' beginnings that are kept on disk. Floor 6; see cli/__init__.py.

It looks at the files themselves, which may be removed under a model that runs: no server is needed, and none is in the way.
"""

from __future__ import annotations

from typing import Any

import click

from hostler.cli.options import home_option, json_option, print_json, print_table, read_settings, show_bytes, show_seconds
from hostler.hookspecs import hookimpl


@click.group()
def cache() -> None:
    """Prompts' beginnings kept on disk, so that they need not be evaluated again after a restart."""


@cache.command(name="list")
@json_option("Print a JSON object: folder, limit_bytes, free_bytes, and models, each with id, n_prefixes, n_bytes, in_use.")
@home_option
def list_(is_json: bool) -> None:
    """Show what is kept of which model."""
    import time

    from hostler.keptprefixes import kept_prefixes
    from hostler.library.disk import free_bytes

    settings = read_settings()
    kept = kept_prefixes(settings)
    models = kept.models()
    if is_json:
        print_json(
            {
                "folder": str(kept.folder),
                "limit_bytes": settings.cache_disk_bytes,
                "free_bytes": free_bytes(kept.folder),
                "models": [_as_dict(model) for model in models],
            }
        )
        return
    total = sum(model.n_bytes for model in models)
    click.echo(f"{show_bytes(total)} of {show_bytes(settings.cache_disk_bytes)} in {kept.folder}")
    if models:
        now = time.time()
        rows = [
            [
                model.model,
                str(model.n_prefixes),
                show_bytes(model.n_bytes),
                f"{show_seconds(max(0.0, now - model.last_used))} ago",
            ]
            for model in models
        ]
        print_table(["MODEL", "PREFIXES", "SIZE", "WRITTEN"], rows)


@cache.command()
@click.argument("model", required=False)
@json_option("Print a JSON object: n_bytes, what was freed.")
@home_option
def clear(model: str | None, is_json: bool) -> None:
    """Remove what is kept of MODEL, or of all models.

    A model that runs goes on with what it has in memory; stop it to be rid of that, too.
    """
    from hostler.cli.client import connect, model_path
    from hostler.keptprefixes import kept_prefixes

    settings = read_settings()
    kept = kept_prefixes(settings)
    if model is None:
        n_bytes = kept.clear_all()
    else:
        names = {kept_model.model for kept_model in kept.models()}
        if model not in names:  # an alias, or another spelling
            with connect(settings, "cache clear", is_reading=True) as client:
                model = str(client.get(model_path(model))["id"])
        n_bytes = kept.clear(model)
    if is_json:
        print_json({"n_bytes": n_bytes})
    else:
        click.echo(f"{show_bytes(n_bytes)} are free again")


def _as_dict(model: Any) -> dict[str, Any]:
    return {
        "id": model.model,
        "n_prefixes": model.n_prefixes,
        "n_bytes": model.n_bytes,
        "last_used": int(model.last_used),
        "in_use": model.is_in_use,
    }


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `cache`."""
    cli.add_command(cache)
