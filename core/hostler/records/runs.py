"""Runs and their steps. Floor 1; any thread. Imports SQLAlchemy.

A run is active until `finish`, which writes its answer and its end in one transaction: who sees the run over sees the
answer, and after a crash there are both or neither. A thread has one active run at most; the database itself holds to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs
from sqlalchemy import ColumnElement, Connection, insert, select, update

from hostler.errors import InvalidRequest, RecordExists, RunInProgress, RunNotFound, StepNotFound, ThreadNotFound
from hostler.records.database import Database
from hostler.records.events import EventLog
from hostler.records.messages import check_thread, insert_messages, make_messages, touch_thread
from hostler.records.objects import (
    ACTIVE_RUN,
    Message,
    Metadata,
    NewMessage,
    Page,
    PageRequest,
    Run,
    RunError,
    RunStatus,
    RunStep,
    Thread,
)
from hostler.records.paging import fetch_page, page_of
from hostler.records.rows import insert_new, now, object_of
from hostler.records.tables import runs, steps
from hostler.records.threads import insert_thread, make_thread

INTERRUPTED = RunError("server_error", "hostler was stopped while this run was going on")

_LOST = ("queued", "in_progress", "cancelling")
"""What only lives in a process. A run that waits for its tools' outputs waits in the database."""
_TIMES = {
    "completed": "completed_at",
    "failed": "failed_at",
    "cancelled": "cancelled_at",
    "incomplete": "completed_at",
}


class RunStore:
    """Runs of all threads."""

    def __init__(self, database: Database, events: EventLog, home: str) -> None:
        """Take the database.

        Args:
            database, events: Where they are kept, and what tells of new messages.
            home: Names the home whose process works on the runs made here.
        """
        self._database = database
        self._events = events
        self._home = home

    def create(self, run: Run, messages: Sequence[NewMessage] = ()) -> Run:
        """Write a new run, and the messages that come with it, in one transaction.

        Raises:
            ThreadNotFound
            RunInProgress: The thread has a run that is not over.
            RecordExists: An id is taken.
        """
        with self._database.write() as connection:
            made = make_messages(run.thread_id, messages)
            insert_messages(connection, self._events, run.thread_id, made)  # locks the thread, so the next line holds
            active = _active(connection, run.thread_id)
            if active is not None:
                raise RunInProgress(
                    f"The thread {run.thread_id} already has an active run {active.id}, which is {active.status}; wait for "
                    f"its end or cancel it"
                )
            self._insert(connection, run)
        return run

    def create_with_thread(self, run: Run, messages: Sequence[NewMessage], **fields: Any) -> tuple[Thread, Run]:
        """Write a new run and the thread that is made for it, in one transaction: there is no such thread without its run.

        Args:
            run: `thread_id` is the thread's new id.
            messages, fields: Of the thread, as in ThreadStore.create.

        Raises:
            RecordExists: An id is taken.
        """
        thread, made = make_thread(id=run.thread_id, messages=messages, **fields)
        with self._database.write() as connection:
            insert_thread(connection, self._events, thread, made)
            self._insert(connection, run)
        return thread, run

    def _insert(self, connection: Connection, run: Run) -> None:
        row = {"id": run.id, "created_at": run.created_at, "home": self._home, **_values(run)}
        insert_new(connection, runs, row, RecordExists(f"There is a run {run.id} already"))

    def get(self, thread_id: str, run_id: str) -> Run:
        """One run.

        Raises:
            ThreadNotFound, RunNotFound
        """
        with self._database.read() as connection:
            return _find(connection, thread_id, run_id)

    def active(self, thread_id: str) -> Run | None:
        """The thread's run that is not over, if it has one.

        Raises:
            ThreadNotFound
        """
        with self._database.read() as connection:
            check_thread(connection, thread_id)
            return _active(connection, thread_id)

    def list(self, thread_id: str, page: PageRequest) -> Page[Run]:
        """A page of a thread's runs, by the time they were created.

        Raises:
            ThreadNotFound, InvalidRequest
        """
        order = (runs.c.created_at, runs.c.seq)
        with self._database.read() as connection:
            check_thread(connection, thread_id)
            rows, has_more = fetch_page(
                connection, runs, [runs.c.body], page, runs.c.thread_id == thread_id, order=order, what="run"
            )
        return page_of([_run(row) for row in rows], has_more=has_more)

    def modify(self, thread_id: str, run_id: str, metadata: Metadata) -> Run:
        """Replace a run's metadata, whatever its status.

        Raises:
            ThreadNotFound, RunNotFound
        """
        with self._database.write() as connection:
            run = _lock(connection, run_id, thread_id)
            return _save(connection, structs.replace(run, metadata=metadata))

    def set_status(self, run_id: str, status: RunStatus, **changes: Any) -> Run:
        """Go on with an active run.

        Args:
            run_id: Which.
            status: Its new status; one that ends it belongs to `finish`.
            changes: Further fields of `Run`, such as `started_at` or `required_action`.

        Raises:
            RunNotFound: It is gone, with its thread.
            InvalidRequest: It is over.
        """
        with self._database.write() as connection:
            run = _lock(connection, run_id)
            _refuse_over(run)
            return _save(connection, structs.replace(run, status=status, **changes))

    def finish(
        self,
        run_id: str,
        *,
        status: RunStatus,
        message: NewMessage | None = None,
        step: RunStep | None = None,
        **changes: Any,
    ) -> tuple[Run, Message | None]:
        """End a run: its answer, its step and its last fields, all of it or nothing.

        Args:
            run_id: Which.
            status: One that ends it; its time (`completed_at`, `failed_at`, ...) is now.
            message: The answer, appended to the thread; its run and assistant are filled in.
            step: As it shall be then; one that `add_step` wrote is replaced.
            changes: Further fields of `Run`: `usage`, `last_error`, `incomplete_details`, `left_out`, ...

        Raises:
            RunNotFound: It was deleted with its thread meanwhile; nothing is written.
            InvalidRequest: It is over already.
        """
        time = now()
        if status in _TIMES:
            changes.setdefault(_TIMES[status], time)
        with self._database.write() as connection:
            run = _lock(connection, run_id)
            _refuse_over(run)
            written: Message | None = None
            if message is not None:
                answer = structs.replace(message, run_id=run_id, assistant_id=message.assistant_id or run.assistant_id or None)
                (written,) = insert_messages(connection, self._events, run.thread_id, make_messages(run.thread_id, [answer]))
            if step is not None:
                _put_step(connection, step)
            run = _save(connection, structs.replace(run, status=status, **{"required_action": None, **changes}))
        return run, written

    def fail_interrupted(self) -> Sequence[Run]:
        """End the runs that a process of this home left behind: `failed`, their steps, too.

        Called once, before new ones begin. In the home's own file every such run counts: nobody else works on it.
        """
        scope: Sequence[ColumnElement[bool]] = [runs.c.status.in_(_LOST)]
        if not self._database.location.is_private:
            scope = [*scope, runs.c.home == self._home]
        with self._database.read() as connection:
            ids = list(connection.execute(select(runs.c.id).where(*scope).order_by(runs.c.seq)).scalars())
        return [run for run_id in ids if (run := self._fail_interrupted(run_id)) is not None]

    def _fail_interrupted(self, run_id: str) -> Run | None:
        time = now()
        with self._database.write() as connection:
            try:
                run = _lock(connection, run_id)
            except RunNotFound:
                return None
            for step in _steps_of(connection, run_id):
                if step.status == "in_progress":
                    _put_step(connection, structs.replace(step, status="failed", failed_at=time, last_error=INTERRUPTED))
            return _save(connection, structs.replace(run, status="failed", failed_at=time, last_error=INTERRUPTED))

    # -- steps ------------------------------------------------------------------------------------------------------

    def add_step(self, step: RunStep) -> RunStep:
        """Write a step of an active run.

        Raises:
            RunNotFound
        """
        with self._database.write() as connection:
            _lock(connection, step.run_id)
            _put_step(connection, step)
        return step

    def steps(self, thread_id: str, run_id: str, page: PageRequest) -> Page[RunStep]:
        """A page of a run's steps.

        Raises:
            ThreadNotFound, RunNotFound, InvalidRequest
        """
        with self._database.read() as connection:
            _find(connection, thread_id, run_id)
            rows, has_more = fetch_page(
                connection, steps, [steps.c.body], page, steps.c.run_id == run_id, order=[steps.c.seq], what="step"
            )
        return page_of([_step(row) for row in rows], has_more=has_more)

    def step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        """One step.

        Raises:
            ThreadNotFound, RunNotFound, StepNotFound
        """
        query = select(steps.c.body).where(steps.c.run_id == run_id, steps.c.id == step_id)
        with self._database.read() as connection:
            _find(connection, thread_id, run_id)
            row = connection.execute(query).one_or_none()
        if row is None:
            raise StepNotFound(f"The run {run_id} has no step {step_id}")
        return _step(row)


# -- inside -------------------------------------------------------------------------------------------------------------


def _values(run: Run) -> dict[str, Any]:
    return {"thread_id": run.thread_id, "status": run.status, "body": run}


def _run(row: Any) -> Run:
    return object_of(row, Run)


def _step(row: Any) -> RunStep:
    return object_of(row, RunStep)


def _not_found(run_id: str) -> RunNotFound:
    return RunNotFound(f"The run {run_id} does not exist")


def _find(connection: Connection, thread_id: str, run_id: str) -> Run:
    row = connection.execute(select(runs.c.body).where(runs.c.id == run_id, runs.c.thread_id == thread_id)).one_or_none()
    if row is None:
        check_thread(connection, thread_id)
        raise _not_found(run_id)
    return _run(row)


def _lock(connection: Connection, run_id: str, thread_id: str | None = None) -> Run:
    """Lock a run for the rest of the transaction, its thread first: the same order everywhere."""
    if thread_id is None:
        thread_id = connection.execute(select(runs.c.thread_id).where(runs.c.id == run_id)).scalar_one_or_none()
        if thread_id is None:
            raise _not_found(run_id)
        try:
            touch_thread(connection, thread_id)
        except ThreadNotFound as error:
            raise _not_found(run_id) from error
    else:
        touch_thread(connection, thread_id)
    return _find(connection, thread_id, run_id)


def _active(connection: Connection, thread_id: str) -> Run | None:
    query = select(runs.c.body).where(runs.c.thread_id == thread_id, runs.c.status.in_(sorted(ACTIVE_RUN)))
    row = connection.execute(query).first()
    return None if row is None else _run(row)


def _refuse_over(run: Run) -> None:
    if run.status not in ACTIVE_RUN:
        raise InvalidRequest(f"The run {run.id} is over: it is {run.status}")


def _save(connection: Connection, run: Run) -> Run:
    connection.execute(update(runs).where(runs.c.id == run.id).values(_values(run)))
    return run


def _steps_of(connection: Connection, run_id: str) -> list[RunStep]:
    rows = connection.execute(select(steps.c.body).where(steps.c.run_id == run_id).order_by(steps.c.seq))
    return [_step(row) for row in rows]


def _put_step(connection: Connection, step: RunStep) -> None:
    is_known = connection.execute(update(steps).where(steps.c.id == step.id).values(body=step)).rowcount
    if not is_known:
        connection.execute(insert(steps).values(id=step.id, run_id=step.run_id, body=step))
