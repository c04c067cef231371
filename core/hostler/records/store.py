"""Records of one home: assistants, threads, messages, files, runs, webhooks, and the log of events.

Floor 1; any thread. Made when the runtime is, and costs nothing then: SQLAlchemy is imported, and the database opened, by
the first who asks for a store, or by the server's thread that opens it after the address was announced.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from hostler import typeinfo
from hostler.errors import HostlerError, StorageUnavailable
from hostler.library.disk import write_atomically
from hostler.records.database import Database
from hostler.records.location import locate
from hostler.records.sqlitefile import look_at

if TYPE_CHECKING:
    from hostler.records.assistants import AssistantStore
    from hostler.records.events import EventLog
    from hostler.records.files import FileStore
    from hostler.records.messages import MessageStore
    from hostler.records.runs import RunStore
    from hostler.records.threads import ThreadStore
    from hostler.records.webhooks import WebhookStore

log = logging.getLogger("hostler.records")

RETRY_S = 1.0
"""For so long a database that could not be opened counts as such: a PostgreSQL that does not answer takes seconds to say
so, and requests that came meanwhile would wait for it one after the other."""
HOME_FILE = "home.id"
"""In a home: its name among those that share a PostgreSQL."""


class _Stores(Struct, frozen=True):
    """One store a noun, on an open database."""

    assistants: AssistantStore
    threads: ThreadStore
    messages: MessageStore
    files: FileStore
    runs: RunStore
    events: EventLog
    webhooks: WebhookStore


class Records:
    """What users keep. Each store opens the database when it is first asked for."""

    def __init__(self, home: Path, url: str = "", *, default_model: str = "") -> None:
        """Read nothing yet.

        Args:
            home: Data folder; the SQLite file and the bytes of files lie there.
            url: The setting `database`; empty: HOME/hostler.db.
            default_model: For assistants that are made without a model.

        Raises:
            ConfigError: hostler keeps no records in what the URL names.
        """
        self.is_owner = True
        """This process has the home's lock. One that only reads leaves what a crash left: it may be another's work."""
        self._home = home
        self._default_model = default_model
        self.database = Database(locate(home, url))
        self.on_open: list[Callable[[WebhookStore], None]] = []
        """Called once the tables are there and before anything is written, on the thread that opens. They get the store of
        webhooks, for this object cannot be asked for it yet."""
        self.on_event: list[Callable[[int], None]] = []
        """Called with the newest event's id when a transaction that logged events is committed, on its thread. They must
        not wait."""
        self._opening = threading.Lock()  # held while the database is opened; protects _stores and _failure
        self._stores: _Stores | None = None
        self._failure: tuple[float, HostlerError] | None = None

    def check(self) -> None:
        """Look whether the database can be served, before a server says that it serves. A file costs a few milliseconds.

        Raises:
            StorageUnavailable: Damaged, newer than this program, read-only, or a PostgreSQL that does not answer; the text
                has the way back.
        """
        location = self.database.location
        if location.path is not None:
            look_at(location.path)
            return
        from hostler.records.revisions import refuse_unknown
        from hostler.records.upgrade import stored_revision

        with self.database.read() as connection:
            revision = stored_revision(connection)
        if revision is not None:
            refuse_unknown(revision, location.where)

    def open(self) -> None:
        """Bring the database to this program's tables, and settle what a crash left. Idempotent; a failure may be retried.

        Raises:
            StorageUnavailable: With the reason and the way back.
        """
        self._opened()

    def close(self) -> None:
        """Close the database; whoever asks a store later is refused."""
        self.database.close()

    @property
    def assistants(self) -> AssistantStore:
        """Assistants; `jan` is always there."""
        return self._opened().assistants

    @property
    def threads(self) -> ThreadStore:
        """Threads."""
        return self._opened().threads

    @property
    def messages(self) -> MessageStore:
        """The messages of threads."""
        return self._opened().messages

    @property
    def files(self) -> FileStore:
        """Uploaded files."""
        return self._opened().files

    @property
    def runs(self) -> RunStore:
        """Runs and their steps."""
        return self._opened().runs

    @property
    def events(self) -> EventLog:
        """What happened."""
        return self._opened().events

    @property
    def webhooks(self) -> WebhookStore:
        """Webhooks, and what they have not been told yet."""
        return self._opened().webhooks

    def _opened(self) -> _Stores:
        stores = self._stores
        if stores is not None:
            return stores
        with self._opening:
            if self._stores is None:
                if self._failure is not None and time.monotonic() - self._failure[0] < RETRY_S:
                    raise self._failure[1].copy()
                try:
                    self._stores = self._open()
                except HostlerError as error:
                    self._failure = (time.monotonic(), error)
                    raise
            return self._stores

    def _open(self) -> _Stores:
        from hostler.records.assistants import AssistantStore
        from hostler.records.events import EventLog
        from hostler.records.files import FileStore
        from hostler.records.messages import MessageStore
        from hostler.records.runs import RunStore
        from hostler.records.threads import ThreadStore
        from hostler.records.upgrade import bring_up_to_date
        from hostler.records.webhooks import WebhookStore

        database = self.database
        bring_up_to_date(database)
        home = self._name_of_home()
        events = EventLog(database, self.on_event)
        stores = _Stores(
            assistants=AssistantStore(database, events, self._default_model),
            threads=ThreadStore(database, events),
            messages=MessageStore(database, events),
            files=FileStore(database, self._home),
            runs=RunStore(database, events, home),
            events=events,
            webhooks=WebhookStore(database, home),
        )
        typeinfo.build()  # before several threads read rows
        for opened in self.on_open:
            opened(stores.webhooks)
        stores.assistants.ensure_default()
        if self.is_owner:
            stores.files.sweep()
            for run in stores.runs.fail_interrupted():
                log.warning("the run %s was going on when hostler stopped; it is now failed", run.id)
        return stores

    def _name_of_home(self) -> str:
        """What tells this home's runs and webhooks from another's."""
        path = self._home / HOME_FILE
        try:
            if not path.exists():
                self._home.mkdir(parents=True, exist_ok=True)
                write_atomically(path, secrets.token_hex(8).encode() + b"\n")
            name = path.read_bytes().strip()
        except OSError as error:
            raise StorageUnavailable(
                f"{path} cannot be used: {error.strerror}; give this user the right to write there, or choose another folder "
                f"with --home"
            ) from error
        if not name.isalnum():
            raise StorageUnavailable(
                f"{path} is damaged; put a copy of it back, or remove it: hostler makes a new one then, and this home's "
                f"webhooks, save those of the configuration, must be made anew"
            )
        return name.decode("ascii")
