"""Imports of records: objects go to the API batch by batch, in the order they came, and what became of them is told.

Floor 6; the process of one command. One thread with its messages is one transaction, save where it is longer than
`lines.PART_BYTES`; the route is `POST /v1/records/import`, which takes ids and times as they are.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from hostler.cli.lines import ASSISTANT, MESSAGE, PART_BYTES, THREAD, Item, batches, read_lines
from hostler.cli.options import print_json, read_settings
from hostler.records.ids import new_id

if TYPE_CHECKING:
    from hostler.cli.client import Client

ROUTE = "/v1/records/import"
CONFLICTS = ("fail", "skip", "copy")
PLURALS = {THREAD: "threads", MESSAGE: "messages", ASSISTANT: "assistants"}
SHOWN_FAILURES = 10
WORDS = {
    "imported": "imported",
    "copied": "imported under a new id",
    "skipped": "already here",
    "failed": "not imported",
}
DRY_WORDS = {
    "imported": "would be imported",
    "copied": "would be imported under a new id",
    "skipped": "already here",
    "failed": "could not be imported",
}

Report = Callable[[str, str], None]
"""Takes the place of something that cannot be imported, and why."""


class Import:
    """One import: sends batches and counts. A dry one changes nothing."""

    def __init__(
        self, client: Client, report: Report, *, on_conflict: str = "fail", is_dry: bool = False, part_bytes: int = PART_BYTES
    ) -> None:
        """Prepare it.

        Args:
            on_conflict: What to do with an id that is taken: `fail`, `skip`, `copy`.
            report: Called for each object that was refused; may raise.
            part_bytes: Longest request.
        """
        self._client = client
        self._report = report
        self._on_conflict = on_conflict
        self._is_dry = is_dry
        self._part_bytes = part_bytes
        self._threads: set[str] = set()
        self._moved: dict[str, str] = {}
        """Threads that were copied: old id -> new id, for messages of theirs that come in a later request."""
        self.has_conflict = False
        """An id was taken, and nobody said what to do then."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """(kind, outcome) -> how many; outcomes are `imported`, `skipped`, `copied`, `failed`."""

    def send(self, items: Iterable[Item]) -> None:
        """Import all of it.

        Raises:
            Refused: The server does not take it, whatever it is.
        """
        for batch in batches(items, self._part_bytes):
            self._send_batch(batch)

    def _send_batch(self, batch: list[Item]) -> None:
        objects = [self._moved_object(item.value) for item in batch]
        body = {"objects": objects, "on_conflict": self._on_conflict, "dry_run": self._is_dry}
        if self._is_dry:
            # A dry run has not made the threads of earlier requests.
            body["assume"] = sorted({str(value.get("thread_id")) for value in objects} & self._threads)
            self._threads |= {str(value.get("id")) for value in objects if value.get("object") == THREAD}
        for result in self._client.post(ROUTE, body)["data"]:
            self._take(batch, result)

    def _moved_object(self, value: dict[str, Any]) -> dict[str, Any]:
        thread = self._moved.get(str(value.get("thread_id")))
        return value if thread is None else {**value, "thread_id": thread}

    def _take(self, batch: list[Item], result: dict[str, Any]) -> None:
        kind, outcome = result["object"], result["outcome"]
        if kind != MESSAGE:
            self.counts[kind, outcome] += 1
        self.counts[MESSAGE, "imported"] += result["n_messages"]
        self.counts[MESSAGE, "skipped"] += result["n_skipped"]
        if outcome == "copied" and kind == THREAD:
            self._moved[result["id"]] = result["new_id"]
        if outcome == "failed":
            self.counts[MESSAGE, "failed"] += result["n_failed"]
            self.has_conflict |= result["error"]["code"] == "record_exists"
            self._report(batch[result["index"]].place, result["error"]["message"])


# -- import of a file of lines --------------------------------------------------------------------------------------------


def import_options(function: Any) -> Any:
    """Add what every import of a file takes."""
    for add in (
        click.option("--dry-run", "is_dry", is_flag=True, help="Check the whole file and say what would be done."),
        click.option(
            "--on-conflict",
            type=click.Choice(CONFLICTS),
            default="fail",
            metavar="|".join(CONFLICTS),
            help="When an id is taken: import nothing at all; keep what is here and add what is missing; or import under "
            "a new id [fail].",
        ),
        click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)),
    ):
        function = add(function)
    return function


def import_file(
    purpose: str,
    file: Path,
    kinds: set[str],
    *,
    on_conflict: str,
    is_dry: bool,
    is_json: bool,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Import what a file has of some kinds: all of it is checked before the first object is written.

    Args:
        purpose: The command's name.
        kinds: Kinds of objects to take; others are left out, and counted.
        change: Applied to each object first.
    """
    from hostler.cli.client import connect

    left_out: Counter[str] = Counter()

    def items(stream: BinaryIO) -> Iterator[Item]:
        stream.seek(0)
        left_out.clear()
        above = ThreadAbove()
        seen: dict[tuple[Any, Any], str] = {}
        for item in read_lines(stream, name, failures.add):
            kind, record_id = item.value.get("object"), item.value.get("id")
            if not isinstance(kind, str) or kind not in PLURALS:
                failures.add(item.place, "`object` says neither thread, thread.message nor assistant")
            elif kind not in kinds:
                left_out[PLURALS[kind]] += 1
            elif kind != MESSAGE and isinstance(record_id, str) and (kind, record_id) in seen:
                failures.add(item.place, f"the {kind} {record_id} was on {seen[kind, record_id]} before")
            else:
                if kind != MESSAGE and isinstance(record_id, str):
                    seen[kind, record_id] = f"line {item.place.rpartition(':')[2]}"
                yield item._replace(value=above.named(change(item.value)))

    settings = read_settings()
    part_bytes = min(PART_BYTES, settings.max_body_bytes // 2)
    name = "stdin" if str(file) == "-" else str(file)
    failures = Failures()
    with open_twice(file) as stream, connect(settings, purpose) as client:
        check = Import(client, failures.add, on_conflict=on_conflict, is_dry=True, part_bytes=part_bytes)
        check.send(items(stream))
        advice = ". --on-conflict skip keeps what is here and adds the rest, copy imports it under a new id"
        failures.raise_any(f"nothing was imported{advice if check.has_conflict else ''}")
        done = check
        if not is_dry:
            done = Import(client, failures.add, on_conflict=on_conflict, part_bytes=part_bytes)
            try:
                done.send(items(stream))
            except click.ClickException as error:
                message = f"{error.message}; what was imported before stays, --on-conflict skip goes on from there"
                raise click.ClickException(message) from error
    tell(done.counts, left_out, is_dry=is_dry, is_json=is_json)
    failures.raise_any("the rest was imported")


class ThreadAbove:
    """Says of each message which thread it belongs to: one that names none belongs to the thread of the line above, which may
    have gone in an earlier request."""

    def __init__(self) -> None:
        self._id: Any = None

    def named(self, value: dict[str, Any]) -> dict[str, Any]:
        """The object, or a copy with what it left unsaid."""
        is_message = value.get("object") == MESSAGE
        name = "thread_id" if is_message else "id"
        if value.get("object") == ASSISTANT:
            return value
        if value.get(name) is None:
            value = {**value, name: self._id if is_message else new_id("thread")}
        self._id = value[name]
        return value


class Failures:
    """What could not be imported, kept until the end."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []

    def add(self, place: str, reason: str) -> None:
        """Keep one, with the number of its line."""
        self._found.append((int(place.rpartition(":")[2]), f"{place}: {reason}"))

    def raise_any(self, consequence: str) -> None:
        """Show them and give up, if there are any.

        Raises:
            click.ClickException: Exit code 1.
        """
        if not self._found:
            return
        *shown, last = [line for _, line in sorted(self._found)][:SHOWN_FAILURES]
        for line in shown:
            click.echo(f"Error: {line}", err=True)
        n_more = len(self._found) - SHOWN_FAILURES
        more = f"; {n_more} more lines are like that" if n_more > 0 else ""
        raise click.ClickException(f"{last}{more}; {consequence}")


def open_twice(file: Path) -> BinaryIO:
    """Open a file so that it can be read from its beginning again; stdin and pipes are kept in a temporary file."""
    stream: BinaryIO = sys.stdin.buffer if str(file) == "-" else file.open("rb")
    if stream.seekable() and str(file) != "-":
        return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    while chunk := stream.read(1 << 20):
        copy.write(chunk)
    return copy


def tell(counts: Counter[tuple[str, str]], left_out: Counter[str], *, is_dry: bool, is_json: bool) -> None:
    """Say what became of everything."""
    found: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in counts.items():
        if count:
            found.setdefault(PLURALS[kind], {})[outcome] = count
    if is_json:
        print_json({"dry_run": is_dry, **{plural: found.get(plural, {}) for plural in PLURALS.values()}, "left_out": left_out})
        return
    for plural, outcomes in found.items():
        click.echo(f"{plural}: {show_outcomes(outcomes, is_dry=is_dry)}")
    if not found:
        click.echo("There was nothing to import.")
    for plural, count in left_out.items():
        click.echo(f"{count} {plural} were left out: import them with `hostler {plural} import`", err=True)


def show_outcomes(outcomes: dict[str, int], *, is_dry: bool) -> str:
    """`3 imported, 2 already here`."""
    words = DRY_WORDS if is_dry else WORDS
    return ", ".join(f"{count} {words[outcome]}" for outcome in words if (count := outcomes.get(outcome))) or "none"
