"""`hostler import-jan`: a data folder of Jan's becomes threads, assistants and models of this home."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hostler.cli.importing import PLURALS, Import
from hostler.cli.lines import PART_BYTES
from hostler.cli.options import home_option, json_option, print_json, read_settings
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.cli.client import Client
    from hostler.cli.janfolder import JanFolder, JanModel

PARTS = ("assistants", "threads", "models")
SHOWN_MODELS = 5
"""Models without weights that are named; Jan lists many that it only offers."""


@click.command(name="import-jan")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@click.option(
    "--only",
    type=click.Choice(PARTS),
    multiple=True,
    metavar="|".join(PARTS),
    help="Import nothing else. May be given several times.",
)
@click.option("--dry-run", "is_dry", is_flag=True, help="Say what would be imported and what would not; change nothing.")
@json_option("Print counts, what was left out and why, as JSON.")
@home_option
def import_jan(path: Path | None, only: tuple[str, ...], is_dry: bool, is_json: bool) -> None:
    """Import the threads, assistants and models of Jan's data folder.

    Without PATH it is looked for where Jan keeps it. The folder is only read. Ids are kept, so the command can be repeated:
    what is here already stays as it is, and a thread that has grown gets its new messages. Models are linked, not copied.
    What cannot be read is named and left out; the rest is imported.
    """
    from hostler.cli.client import connect
    from hostler.cli.janfolder import JanFolder, is_jan_folder

    folder_path = (path or find_folder()).absolute()
    if not is_jan_folder(folder_path):
        raise click.ClickException(
            f"{folder_path} is no data folder of Jan's: it has none of threads/*/thread.json, assistants/*/assistant.json, "
            f"models/*/model.json"
        )
    settings = read_settings()
    left_out: list[dict[str, str]] = []
    folder = JanFolder(folder_path, lambda place, reason: left_out.append({"place": place, "reason": reason}))
    wanted = only or PARTS
    with connect(settings, "import-jan") as client:
        part_bytes = min(PART_BYTES, settings.max_body_bytes // 2)
        records = Import(client, folder.report, on_conflict="skip", is_dry=is_dry, part_bytes=part_bytes)
        if "assistants" in wanted:
            records.send(folder.assistants())
        if "threads" in wanted:
            records.send(folder.threads())
        models = Models(client, folder, is_dry=is_dry)
        if "models" in wanted:
            models.bring_in()
    counts = {plural: _outcomes(records.counts, kind) for kind, plural in PLURALS.items() if plural in (*wanted, "messages")}
    if "models" in wanted:
        counts["models"] = dict(models.counts)
    if is_json:
        print_json({
            "path": str(folder_path), "dry_run": is_dry, **counts, "without_weights": models.without_weights,
            "notes": folder.notes, "left_out": left_out,
        })  # fmt: skip
        return
    _tell(folder, counts, models, left_out, is_dry=is_dry)


def find_folder() -> Path:
    """Where Jan keeps its data on this system, the newest place first.

    Raises:
        click.UsageError: It is in none of them.
    """
    from hostler.cli.janfolder import is_jan_folder

    places = list(_places())
    for place in places:
        if is_jan_folder(place):
            return place
    raise click.UsageError(f"Jan's data folder is not at {', '.join(map(str, places))}; give its PATH")


def _places() -> Iterator[Path]:
    if sys.platform == "darwin":
        yield Path.home() / "Library" / "Application Support" / "Jan" / "data"
    elif sys.platform == "win32":
        yield Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "Jan" / "data"
    else:
        yield Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "Jan" / "data"
        yield Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "Jan" / "data"
    yield Path.home() / "jan"


class Models:
    """The models of one folder on their way in."""

    def __init__(self, client: Client, folder: JanFolder, *, is_dry: bool) -> None:
        self._client = client
        self._folder = folder
        self._is_dry = is_dry
        self.counts: Counter[str] = Counter()
        self.without_weights: list[dict[str, str]] = []
        """Id and source of those that Jan only offers."""

    def bring_in(self) -> None:
        """Link each model whose weights are here."""
        for model in self._folder.models():
            if not model.paths:
                self.without_weights.append({"id": model.id, "source_url": model.source_url})
            elif self._is_here(model.id):
                self.counts["skipped"] += 1
            elif self._is_dry or self._link(model):
                self.counts["imported"] += 1
            else:
                self.counts["failed"] += 1

    def _is_here(self, model_id: str) -> bool:
        from hostler.cli.client import Refused, model_path

        try:
            return str(self._client.get(model_path(model_id))["lifecycle"]) != "not_downloaded"
        except Refused as refused:
            if refused.status != 404:
                raise
            return False

    def _link(self, model: JanModel) -> bool:
        from hostler.cli.client import Refused, model_path

        for path in model.paths:
            body = {"modelPath": str(path), "model": model.id, "name": model.name, "option": "symlink"}
            try:
                self._client.post("/v1/models/import", body)
            except Refused as refused:
                if refused.status not in {400, 409}:
                    raise
                reason = str(refused)
                continue
            if not path.is_dir() and (model.settings or model.parameters):
                # A folder's model.json has been read by the import itself.
                self._client.patch(model_path(model.id), {"settings": model.settings, "parameters": model.parameters})
            return True
        self._folder.report(model.place, reason)
        return False


def _outcomes(counts: Counter[tuple[str, str]], wanted: str) -> dict[str, int]:
    return {outcome: count for (kind, outcome), count in counts.items() if kind == wanted and count}


def _tell(
    folder: JanFolder, counts: dict[str, dict[str, int]], models: Models, left_out: list[dict[str, str]], *, is_dry: bool
) -> None:
    from hostler.cli.importing import show_outcomes

    for entry in left_out:
        click.echo(f"left out: {entry['place']}: {entry['reason']}", err=True)
    for note, count in folder.notes.items():
        click.echo(f"note: {note} ({count})", err=True)
    if models.without_weights:
        names = [entry["id"] for entry in models.without_weights]
        more = f" and {len(names) - SHOWN_MODELS} more" if len(names) > SHOWN_MODELS else ""
        click.echo(
            f"note: models without weights in the folder: {', '.join(names[:SHOWN_MODELS])}{more}; "
            f"`hostler pull URL --id ID` downloads one",
            err=True,
        )
    for plural, outcomes in counts.items():
        click.echo(f"{plural}: {show_outcomes(outcomes, is_dry=is_dry)}")


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `import-jan`."""
    cli.add_command(import_jan)
