"""Body of `POST /v1/records/import`: objects as hostler answers them, so that what was exported comes back as it was.

Floor 5; pure. The limits are those of the routes that make such objects, save that a message may be empty: a run that was
cancelled early leaves one. Times may be in milliseconds, as Jan wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hostler.api.schema.assistants import one_model, read_assistant
from hostler.api.schema.convert import convert, required, shown
from hostler.api.schema.messages import (
    MAX_PARTS,
    ImageFilePartBody,
    ImageUrlPartBody,
    MessageBody,
    NamedId,
    TextPartBody,
    new_message,
)
from hostler.api.schema.server_answers import ErrorDetail
from hostler.api.schema.threads import ThreadBody, thread_call
from hostler.errors import HostlerError, InvalidRequest
from hostler.records.objects import Assistant, AssistantModel, NewMessage, Thread, ThreadAssistant
from hostler.records.times import whole_seconds

ROUTE_NAMES = frozenset({".", "..", "runs"})
"""Ids that a path could not name."""

Time = Annotated[float, Meta(ge=0, le=1e15)]


class ImportBody(Struct):
    """What to import, and how."""

    objects: Annotated[
        list[dict[str, Any]],
        Meta(description="Threads, messages and assistants; a thread's messages follow it, in their order."),
    ]
    on_conflict: Literal["fail", "skip", "copy"] | None = None
    dry_run: bool | None = None
    assume: list[str] | None = None
    """Threads that a dry run shall take for being here."""


class ThreadRecord(ThreadBody):
    """A thread as it is answered."""

    id: NamedId | None = None
    created_at: Time | None = None
    created: Time | None = None
    updated: Time | None = None
    messages: Any = None
    """Ids, in an answer; the messages themselves follow."""


class MessageRecord(MessageBody):
    """A message as it is answered."""

    content: str | Annotated[list[TextPartBody | ImageUrlPartBody | ImageFilePartBody], Meta(max_length=MAX_PARTS)]
    id: NamedId | None = None
    thread_id: NamedId | None = None
    created_at: Time | None = None
    created: Time | None = None
    assistant_id: NamedId | None = None
    run_id: NamedId | None = None
    chat_completion_id: NamedId | None = None
    status: Literal["in_progress", "incomplete", "completed"] | None = None
    completed_at: Time | None = None
    incomplete_at: Time | None = None
    incomplete_details: dict[str, Any] | None = None


class AssistantRecord(Struct):
    """What an answered assistant has beside the fields of `AssistantBody`."""

    id: NamedId | None = None
    version: int | None = None
    created_at: Time | None = None
    created: Time | None = None


class ImportResult(Struct, frozen=True):
    """What became of one thread with its messages, of messages for one thread, or of one assistant."""

    object: str
    """`thread`, `thread.message`, `assistant`."""
    index: int
    """Of its first object in the request, or of the object to blame."""
    id: str | None
    outcome: str
    """`imported`; `skipped`, it was here; `copied`, under `new_id`; `failed`, see `error`."""
    new_id: str | None = None
    n_messages: int = 0
    """Written, or in a dry run: to be written."""
    n_skipped: int = 0
    """Messages that were here."""
    n_failed: int = 0
    error: ErrorDetail | None = None


class ImportAnswer(Struct, frozen=True):
    """The answer."""

    data: list[ImportResult]
    object: str = "records.import"


class Unit(Struct, frozen=True):
    """What is imported as one: a thread with its messages, messages of a thread that is here, or an assistant."""

    kind: str
    """`thread`, `thread.message`, `assistant`."""
    index: int
    """Of its first object; of the object to blame, when there is an error."""
    id: str | None
    """The thread's or the assistant's; None: it has none yet."""
    n_messages: int = 0
    thread: Thread | None = None
    assistant: Assistant | None = None
    messages: tuple[NewMessage, ...] = ()
    error: HostlerError | None = None
    """Why it cannot be imported, whatever is here."""


def read_import(raw: dict[str, Any]) -> ImportBody:
    """Check the body, not yet its objects.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    return convert(raw, ImportBody)


def read_units(objects: list[dict[str, Any]], now: int) -> Iterator[Unit]:
    """Group the objects, and check each.

    Args:
        now: Unix seconds, for what has no time.
    """
    group: list[tuple[int, dict[str, Any]]] = []
    for index, raw in enumerate(objects):
        if group and not _belongs(group[0][1], raw):
            yield _unit(group, now)
            group = []
        group.append((index, raw))
    if group:
        yield _unit(group, now)


def problem_of(raw: dict[str, Any]) -> HostlerError | None:
    """Why one object cannot be imported; None: nothing is wrong with it."""
    return next(read_units([raw], 1)).error


def _belongs(first: dict[str, Any], raw: dict[str, Any]) -> bool:
    """Whether a message continues the group of an object before it; one that names no thread means the one before."""
    if raw.get("object") != "thread.message" or first.get("object") not in ("thread", "thread.message"):
        return False
    named = raw.get("thread_id")
    return named is None or named == first.get("id" if first["object"] == "thread" else "thread_id")


def _unit(group: list[tuple[int, dict[str, Any]]], now: int) -> Unit:
    index, first = group[0]
    kind = first.get("object")
    n_messages = sum(raw.get("object") == "thread.message" for _, raw in group)
    named = first.get("thread_id" if kind == "thread.message" else "id")
    unit = Unit(str(kind), index, named if isinstance(named, str) else None, n_messages)
    try:
        if kind == "assistant":
            return msgspec.structs.replace(unit, assistant=_assistant(first, now))
        if kind == "thread":
            unit = msgspec.structs.replace(unit, thread=_thread(first, now))
            group = group[1:]
        elif kind == "thread.message":
            _check_id(required(convert(first, MessageRecord).thread_id, "thread_id"), "thread_id")
        else:
            raise InvalidRequest(f"object is {shown(kind)}; allowed: thread, thread.message, assistant", param="object")
        messages: list[NewMessage] = []
        seen: set[str] = set()
        for index, raw in group:  # noqa: B007 - the handler below blames it
            message = _message(raw, now if unit.thread is None else unit.thread.created_at)
            if message.id is not None and message.id in seen:
                raise InvalidRequest(f"id is {shown(message.id)}, as of a message before it", param="id")
            seen.add(message.id or "")
            messages.append(message)
        return msgspec.structs.replace(unit, messages=tuple(messages))
    except HostlerError as error:
        return msgspec.structs.replace(unit, index=index, error=error)


def _thread(raw: dict[str, Any], now: int) -> Thread:
    body = convert(raw, ThreadRecord)
    call = thread_call(msgspec.structs.replace(body, messages=None))
    created = whole_seconds(body.created_at, body.created) or now
    assistants = [
        one.over(ThreadAssistant(assistant_id=one.assistant_id, assistant_name=one.assistant_id))
        for one in (call.assistants or ())
    ]
    return Thread(
        id=_check_id(body.id, "id") if body.id is not None else "",
        created_at=created,
        created=created,
        updated=whole_seconds(body.updated) or created,
        title=body.title or "",
        assistants=assistants,
        assistant_ids=[one.assistant_id for one in assistants],
        metadata=call.metadata or {},
        tool_resources=body.tool_resources,
    )


def _message(raw: dict[str, Any], thread_created: int) -> NewMessage:
    body = convert(raw, MessageRecord)
    created = whole_seconds(body.created_at, body.created) or thread_created
    # What was being written when it was exported is not being written here.
    status = "incomplete" if body.status == "in_progress" else body.status or "completed"
    return msgspec.structs.replace(
        new_message(body, may_be_empty=True),
        id=_check_id(body.id, "id") if body.id is not None else None,
        created_at=created,
        assistant_id=body.assistant_id,
        run_id=body.run_id,
        chat_completion_id=body.chat_completion_id,
        status=status,
        completed_at=whole_seconds(body.completed_at),
        incomplete_at=whole_seconds(body.incomplete_at),
        incomplete_details=body.incomplete_details,
    )


def _assistant(raw: dict[str, Any], now: int) -> Assistant:
    body = convert(raw, AssistantRecord)
    created = whole_seconds(body.created_at, body.created) or now
    # No model at all is fine: it is whichever is the default when somebody asks.
    fields = one_model(read_assistant({name: value for name, value in raw.items() if not (name == "models" and not value)}))
    models = fields.pop("models", None)
    model = models[0].model_id if models else fields.pop("model", "")
    return Assistant(
        **fields,
        id=_check_id(required(body.id, "id"), "id"),
        version=1 if body.version is None else body.version,
        created_at=created,
        created=created,
        model=model,
        models=models or ([AssistantModel(model)] if model else []),
    )


def _check_id(value: str, path: str) -> str:
    if "/" in value or "\\" in value or value in ROUTE_NAMES or not value.isprintable():
        raise InvalidRequest(f"{path} is {shown(value)}, which no path of the API could name", param=path)
    return value
