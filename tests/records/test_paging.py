"""Pages: every list in either direction, whole and without doubles."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hostler.errors import InvalidRequest
from hostler.records.objects import PageRequest
from hostler.records.paging import page_in_memory
from support.records import says

N = 7


@pytest.fixture(params=["threads", "messages", "assistants", "memory"])
def listing(request, records):
    """A list of N things: how to ask for a page, and its ids in ascending order."""
    if request.param == "threads":
        ids = [records.threads.create(created_at=5).id for _ in range(N)]
        return records.threads.list, ids
    if request.param == "messages":
        thread = records.threads.create(messages=[says(str(number)) for number in range(N)])
        return lambda page: records.messages.list(thread.id, page), thread.messages
    if request.param == "assistants":
        ids = [records.assistants.create(created_at=5 + number // 2, model="m").id for number in range(N - 1)]
        return records.assistants.list, [*ids, "jan"]
    things = [SimpleNamespace(id=str(number)) for number in range(N)]
    return lambda page: page_in_memory(things, page), [thing.id for thing in things]


def ids_of(page):
    ids = [item.id for item in page.data]
    assert (page.first_id, page.last_id) == ((ids[0], ids[-1]) if ids else (None, None))
    return ids


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 3, N, N + 1])
def test_following_after_gives_everything_once(listing, order, limit):
    ask, ids = listing
    seen: list[str] = []
    after = None
    while True:
        page = ask(PageRequest(limit, order, after))
        seen += ids_of(page)
        assert page.has_more == (len(seen) < N)
        if not page.has_more:
            break
        after = page.last_id

    assert seen == (ids if order == "asc" else ids[::-1])


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_before_gives_the_page_that_ends_just_before(listing, order):
    ask, ids = listing
    ids = ids if order == "asc" else ids[::-1]

    page = ask(PageRequest(3, order, before=ids[5]))
    first = ask(PageRequest(3, order, before=ids[2]))
    nothing = ask(PageRequest(3, order, before=ids[0]))

    assert (ids_of(page), page.has_more) == (ids[2:5], True)
    assert (ids_of(first), first.has_more) == (ids[:2], False)
    assert (ids_of(nothing), nothing.has_more) == ([], False)


def test_after_and_before_together_give_what_lies_between_from_its_start(listing):
    ask, ids = listing

    page = ask(PageRequest(2, "asc", after=ids[1], before=ids[5]))
    rest = ask(PageRequest(2, "asc", after=ids[3], before=ids[5]))

    assert (ids_of(page), page.has_more) == (ids[2:4], True)
    assert (ids_of(rest), rest.has_more) == ([ids[4]], False)


def test_a_cursor_of_another_list_is_refused(listing):
    ask, _ = listing

    for param in ("after", "before"):
        with pytest.raises(InvalidRequest) as caught:
            ask(PageRequest(**{param: "something else"}))
        assert caught.value.param == param


def test_a_cursor_of_another_thread_is_refused(records):
    one, other = (records.threads.create(messages=[says("x")]) for _ in range(2))

    with pytest.raises(InvalidRequest, match="this list has no message of that id"):
        records.messages.list(one.id, PageRequest(after=other.messages[0]))


@pytest.mark.parametrize("names", [["threads_by_time"], ["messages", "sqlite_autoindex_messages"]])
def test_the_index_gives_the_rows_of_a_page_in_their_order(sqlite_records, names):
    """Without one, SQLite would sort the whole list for each page."""
    from sqlalchemy import literal, select, tuple_

    from hostler.records.tables import messages, threads

    sqlite_records.open()
    query = {
        "threads_by_time": select(threads.c.body)
        .where(tuple_(threads.c.created_at, threads.c.seq) < tuple_(literal(1), literal(2)))
        .order_by(threads.c.created_at.desc(), threads.c.seq.desc()),
        "messages": select(messages.c.body)
        .where(messages.c.thread_id == "t", messages.c.position < 5)
        .order_by(messages.c.position.desc()),
    }[names[0]].limit(20)

    with sqlite_records.database.read() as connection:
        text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
        plan = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]

    assert len(plan) == 1, plan
    assert plan[0].startswith("SEARCH"), plan
    assert any(name in plan[0] for name in names), plan
