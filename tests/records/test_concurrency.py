"""Many at once: nothing is lost, nothing is doubled, nobody waits for ever."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from hostler.errors import HostlerError, RunInProgress, ThreadNotFound, UploadNotFound
from hostler.records.objects import PageRequest
from hostler.records.store import Records
from support.records import run_of, says, words_of

N_WRITERS = 8
N_EACH = 10
DEADLINE_S = 60


def at_once(n: int, work: Callable[[int], object]) -> list[object]:
    """Run work(0) to work(n - 1), all starting at one barrier; what each returned, or the error of ours it raised."""
    barrier = threading.Barrier(n)
    results: list[object] = [None] * n

    def run(index: int) -> None:
        barrier.wait(DEADLINE_S)
        try:
            results[index] = work(index)
        except HostlerError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "it waits for ever"
    return results


def test_writers_on_one_thread_lose_nothing_and_each_keeps_its_order(records):
    thread = records.threads.create().id

    def write(writer):
        for number in range(N_EACH):
            records.messages.append(thread, [says(f"{writer} {number} a"), says(f"{writer} {number} b")])

    at_once(N_WRITERS, write)

    words = words_of(records.messages.all(thread))
    assert len(words) == N_WRITERS * N_EACH * 2
    for writer in range(N_WRITERS):
        own = [text for text in words if text.startswith(f"{writer} ")]
        assert own == [f"{writer} {number} {letter}" for number in range(N_EACH) for letter in "ab"]
    # What was appended together stands together.
    assert all(one[:-1] == two[:-1] for one, two in zip(words[::2], words[1::2], strict=True))


def test_two_processes_on_one_database_lose_nothing(home, url, records):
    """Two objects share no lock of ours, as two processes do not."""
    thread, assistant = records.threads.create().id, records.assistants.create(model="m").id
    fields = ["name", "description", "avatar", "instructions"]
    other = Records(home, url)
    other.is_owner = False
    try:
        both = [records, other]

        def write(writer):
            for number in range(N_EACH):
                both[writer % 2].messages.append(thread, [says(f"{writer} {number}")])
                # This one reads before it writes: what it has read must still be so.
                both[writer % 2].assistants.modify(assistant, **{fields[writer]: str(number)})

        assert at_once(4, write) == [None] * 4
    finally:
        other.close()

    assert len(words_of(records.messages.all(thread))) == 4 * N_EACH
    found = records.assistants.get(assistant)
    assert {field: getattr(found, field) for field in fields} == dict.fromkeys(fields, str(N_EACH - 1))


def test_who_pages_while_others_write_sees_each_message_once(records):
    thread = records.threads.create(messages=[says(f"old {number}") for number in range(30)]).id
    over = threading.Event()

    def work(index):
        if index:
            while not over.is_set():
                records.messages.append(thread, [says("new")])
            return None
        seen, after = [], None
        while True:
            page = records.messages.list(thread, PageRequest(4, "desc", after))
            seen += words_of(page.data)
            after = page.last_id
            if not page.has_more:
                over.set()
                return seen

    seen = at_once(3, work)[0]

    old = [text for text in seen if text.startswith("old")]
    assert old == [f"old {number}" for number in reversed(range(30))]


def test_of_many_runs_begun_at_once_one_begins(records):
    thread = records.threads.create().id

    results = at_once(N_WRITERS, lambda index: records.runs.create(run_of(thread, f"run_{index}"), [says(f"for {index}")]))

    (winner,) = [result for result in results if not isinstance(result, HostlerError)]
    assert Counter(type(result) for result in results if result is not winner) == {RunInProgress: N_WRITERS - 1}
    assert records.runs.active(thread) == winner
    assert words_of(records.messages.all(thread)) == [f"for {winner.id.removeprefix('run_')}"]


def test_of_many_ends_of_a_run_one_counts(records):
    thread = records.threads.create().id
    records.runs.create(run_of(thread))

    results = at_once(
        N_WRITERS, lambda index: records.runs.finish("run_1", status="completed", message=says(str(index), "assistant"))
    )

    assert len([result for result in results if not isinstance(result, HostlerError)]) == 1
    assert len(list(records.messages.all(thread))) == 1


def test_a_thread_deleted_under_its_writers_is_gone_whole(records):
    thread = records.threads.create(messages=[says("x")]).id
    records.runs.create(run_of(thread))

    def work(index):
        if index == 0:
            return records.threads.delete(thread)
        if index == 1:
            return records.runs.finish("run_1", status="completed", message=says("!", "assistant"))
        return [records.messages.append(thread, [says(str(number))]) for number in range(N_EACH)]

    at_once(N_WRITERS, work)

    with pytest.raises(ThreadNotFound):
        records.messages.all(thread)
    with records.database.read() as connection:
        for table in ("messages", "runs", "steps"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0


def test_changes_of_different_fields_at_once_all_stay(records):
    made = records.assistants.create(model="m")
    fields = ["name", "description", "avatar", "instructions", "thread_location"]

    at_once(len(fields), lambda index: records.assistants.modify(made.id, **{fields[index]: "new"}))

    found = records.assistants.get(made.id)
    assert {field: getattr(found, field) for field in fields} == dict.fromkeys(fields, "new")


def test_a_file_with_a_row_has_its_bytes_while_equal_ones_come_and_go(records):
    kept: list[str] = []

    def work(index):
        for number in range(N_EACH):
            data = b"%d" % (number % 2)
            made = records.files.create(io.BytesIO(data), filename="a", purpose="x", max_bytes=10)
            if (index + number) % 3:
                records.files.delete(made.id)
            else:
                kept.append(made.id)
            try:
                assert records.files.path(made.id).read_bytes() == data
            except UploadNotFound:
                pass

    at_once(4, work)

    for file_id in kept:
        assert len(records.files.path(file_id).read_bytes()) == 1


def test_who_follows_the_log_while_many_write_misses_nothing(records):
    start = records.events.last_id()
    threads = [records.threads.create().id for _ in range(N_WRITERS)]
    n_expected = N_WRITERS + N_WRITERS * N_EACH

    def work(index):
        if index < N_WRITERS:
            return [records.messages.append(threads[index], [says("x")]) for _ in range(N_EACH)]
        seen, last = 0, start
        while seen < n_expected and records.events.wait(last, DEADLINE_S):
            found = records.events.after(last, 1000)
            seen += len(found)
            last = found[-1].id
        return seen

    assert at_once(N_WRITERS + 1, work)[-1] == n_expected


def test_everything_at_once_ends_without_a_deadlock(records):
    """PostgreSQL would break a circle of locks with an error of ours, SQLite with a lock nobody gives back."""
    threads = [records.threads.create(messages=[says("x", id="m")]).id for _ in range(2)]

    def writes(thread, run_id):
        yield lambda: records.threads.modify(thread, title="a", messages=[says("y", id="m"), says("new")])
        yield lambda: records.messages.modify(thread, "m", metadata={"k": "v"})
        yield lambda: records.runs.create(run_of(thread, run_id), [says("q")])
        yield lambda: records.runs.finish(run_id, status="completed", message=says("!", "assistant"))
        yield lambda: records.assistants.modify("jan", name=run_id)
        yield lambda: records.events.prune(50)

    def work(index):
        answers = []
        for number in range(N_EACH):
            for write in writes(threads[(index + number) % 2], f"run_{index}_{number}"):
                try:
                    write()
                except HostlerError as error:
                    answers.append(error.code)
        return answers

    codes = Counter(code for answers in at_once(6, work) for code in answers)

    assert set(codes) <= {"run_in_progress", "run_not_found"}
