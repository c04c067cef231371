"""What `/openapi.json` says of one route: the types that decode its body and make its answer, its query, its statuses.

Floor 5; pure values, written beside the route in `routes.py` and read by `openapi.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hostler.library.fields import Field


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
    """The struct that decodes the body, or a tuple of alternatives; None: there is none."""
    answer: Any = None
    """The struct of a 200's JSON, or a tuple of alternatives; None: an open object."""
    query: tuple[Query, ...] = ()
    statuses: tuple[int, ...] = ()
    """Error statuses beside those that every operation may have."""
    media: tuple[str, ...] = ("application/json",)
    """Content types of a 200; `text/event-stream` beside JSON where `stream` asks for it."""
    body_media: str = "application/json"
    success: int = 200
    further: tuple[int, ...] = ()
    """Other statuses of success, with the same answer."""
    fields: tuple[Field, ...] = ()
    """Rows of library/fields.py that the body takes beside its struct's fields."""
    example: Any = None
    """A body to begin with."""
    event: Any = None
    """The struct of one event of a `text/event-stream`, or a tuple of several."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Other paths that lead here, each with an operationId of its own; only the document tells them apart."""
