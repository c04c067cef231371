"""Lists in pages, as OpenAI has them. Floor 1; imports SQLAlchemy.

`after` gives what follows that id in the asked order, `before` the page that ends just before it; with both, the list
between them from its start. `has_more` says whether the list goes on in the direction that was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Table, literal, select, tuple_

from hostler.errors import InvalidRequest
from hostler.records.objects import Page, PageRequest

T = TypeVar("T")


def fetch_page(
    connection: Connection,
    table: Table,
    columns: Sequence[Column[Any]],
    page: PageRequest,
    *scope: ColumnElement[bool],
    order: Sequence[Column[Any]],
    what: str,
) -> tuple[list[Any], bool]:
    """Read one page of a table.

    Args:
        connection: Of a read.
        table: Its column `id` is what `after` and `before` name.
        columns: What the rows shall have.
        page: Which part.
        scope: Which rows belong to the list.
        order: Columns that together are unique, in the order of the list's keys; an index has them.
        what: The object, for an error: `thread`.

    Returns:
        The rows in the asked order, and whether there are more.

    Raises:
        InvalidRequest: `after` or `before` is no id of this list.
    """

    def place(id: str, param: str) -> Sequence[Any]:
        found = connection.execute(select(*order).where(table.c.id == id, *scope)).one_or_none()
        if found is None:
            raise InvalidRequest(f"{param} is {id!r}, and this list has no {what} of that id", param=param)
        return found

    is_back = page.before is not None and page.after is None
    is_ascending = page.order == "asc"
    query = select(*columns).where(*scope)
    if page.after is not None:
        query = query.where(_beyond(order, place(page.after, "after"), is_greater=is_ascending))
    if page.before is not None:
        query = query.where(_beyond(order, place(page.before, "before"), is_greater=not is_ascending))
    keys = [key.asc() if is_ascending != is_back else key.desc() for key in order]
    rows = list(connection.execute(query.order_by(*keys).limit(page.limit + 1)))
    has_more = len(rows) > page.limit
    del rows[page.limit :]
    if is_back:
        rows.reverse()
    return rows, has_more


def _beyond(order: Sequence[Column[Any]], place: Sequence[Any], *, is_greater: bool) -> ColumnElement[bool]:
    keys: Any
    values: Any
    if len(order) == 1:
        keys, values = order[0], place[0]
    else:
        keys, values = tuple_(*order), tuple_(*(literal(value) for value in place))
    beyond: ColumnElement[bool] = keys > values if is_greater else keys < values
    return beyond


def page_of(data: list[T], *, has_more: bool) -> Page[T]:
    """Make the answer; the objects have ids."""
    ids = [data[0].id, data[-1].id] if data else [None, None]  # type: ignore[attr-defined]
    return Page(data, ids[0], ids[1], has_more)


def page_in_memory(objects: Sequence[T], page: PageRequest) -> Page[T]:
    """The same for a short list that is here already, in ascending order, such as a message's files.

    Raises:
        InvalidRequest
    """
    listed = list(objects) if page.order == "asc" else list(reversed(objects))
    ids = [item.id for item in listed]  # type: ignore[attr-defined]
    for param, id in (("after", page.after), ("before", page.before)):
        if id is not None and id not in ids:
            raise InvalidRequest(f"{param} is {id!r}, and this list has nothing of that id", param=param)
    start = ids.index(page.after) + 1 if page.after is not None else 0
    end = ids.index(page.before) if page.before is not None else len(listed)
    if page.before is not None and page.after is None:
        return page_of(listed[max(0, end - page.limit) : end], has_more=end > page.limit)
    return page_of(listed[start : min(end, start + page.limit)], has_more=end - start > page.limit)
