"""The query of a list: `limit`, `order`, `after`, `before`. Source: spec/API.md section 2, "Lists". Floor 5; pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta

from hostler.api.operation import Query
from hostler.errors import InvalidRequest
from hostler.records.objects import MAX_PAGE, PageRequest

DEFAULT_LIMIT = 20
PAGING = (
    Query("limit", Annotated[int, Meta(ge=1, le=MAX_PAGE)], f"Most items of a page; {DEFAULT_LIMIT} unless said."),
    Query("order", Literal["asc", "desc"], "By creation; desc, the newest first, unless said."),
    Query("after", str, "An item's id: the page begins behind it."),
    Query("before", str, "An item's id: the page ends in front of it."),
)
"""What /openapi.json says of it."""

_NUMBER = re.compile(r"[0-9]{1,9}")


def read_page(query: Callable[[str], str | None]) -> PageRequest:
    """Check the query.

    Args:
        query: Gives the value of a name, None where it is absent; falcon's `req.get_param`.

    Raises:
        InvalidRequest: Naming the parameter.
    """
    limit, order = query("limit"), query("order")
    n_items = DEFAULT_LIMIT if limit is None else int(limit) if _NUMBER.fullmatch(limit) else 0
    if not 1 <= n_items <= MAX_PAGE:
        raise InvalidRequest(f"limit is {limit!r}; allowed: a whole number from 1 to {MAX_PAGE}", param="limit")
    if order not in (None, "asc", "desc"):
        raise InvalidRequest(f"order is {order!r}; allowed: asc, desc", param="order")
    return PageRequest(
        limit=n_items,
        order="asc" if order == "asc" else "desc",
        # An empty id names nothing: clients fill a form's field in or leave it empty.
        after=query("after") or None,
        before=query("before") or None,
    )
