"""What `/openapi.json` says of one route: the types that decode its body and make its answer, its query, its statuses.

Floor 5; pure values, written beside the route in `routes.py` and read by `openapi.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Query(NamedTuple):
    """One parameter of the query string, or a header."""

    name: str
    kind: Any
    """Its type, as msgspec understands it: `bool`, `Literal["asc", "desc"]`, `Annotated[int, Meta(ge=1, le=100)]`."""
    help: str
    place: str = "query"
    """`query` or `header`."""


class Operation(NamedTuple):
    """One operation."""

    id: str
    """operationId; unique."""
    tag: str
    """`Models`, `Chat Completion`, `Messages`, `Threads`, `Assistants`, ..."""
    summary: str
    body: Any = None
    """The struct (or union of structs) that decodes the body; None: there is none."""
    answer: Any = None
    """The struct of a 200's JSON; None: an open object."""
    query: tuple[Query, ...] = ()
    statuses: tuple[int, ...] = ()
    """Error statuses beside those that every operation may have."""
    media: tuple[str, ...] = ("application/json",)
    """Content types of a 200; `text/event-stream` beside JSON where `stream` asks for it."""
    body_media: str = "application/json"
    success: int = 200
