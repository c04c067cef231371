"""Bodies of the thread routes. Source: spec/API.md section 8.

Floor 5; pure. A thread's assistants may be ids or objects, in Jan's spelling (`assistant_id`, `model: {id}`) or Cortex's
(`id`, `model: "..."`). What they do not say stays unsaid, so that the assistant's own words count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from hostler.api.schema.convert import convert, shown
from hostler.api.schema.marks import PARAMETERS_GROUP, SETTINGS_GROUP
from hostler.api.schema.messages import MAX_ID_LENGTH, MessageBody, NamedId, new_message
from hostler.api.schema.metadata import MetadataBody, read_metadata
from hostler.api.schema.settings import read_settings
from hostler.api.schema.tools import ToolsBody, read_tools
from hostler.errors import InvalidRequest
from hostler.library.fields import validate_parameters
from hostler.records.objects import DEFAULT_ASSISTANT, Metadata, NewMessage, ThreadAssistant, ThreadModel

MAX_TITLE_LENGTH = 512
MAX_NAME_LENGTH = 256
MAX_INSTRUCTIONS_LENGTH = 256_000
MAX_MODEL_LENGTH = 2048
"""A model may be named by its URL."""
MAX_MESSAGES = 1000
"""Messages of one request: they are written in one transaction, for which every other writer waits."""
MAX_ASSISTANTS = 100
ADDRESSABLE = r"^[^/\x00-\x1f\x7f]+$"
"""An id that a path can name."""

Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
ModelName = Annotated[str, Meta(max_length=MAX_MODEL_LENGTH)]
Instructions = Annotated[str, Meta(max_length=MAX_INSTRUCTIONS_LENGTH)]


class ThreadModelBody(Struct):
    """The model of a thread's assistant."""

    id: ModelName | None = None
    settings: Annotated[dict[str, Any] | None, SETTINGS_GROUP] = None
    parameters: Annotated[dict[str, Any] | None, PARAMETERS_GROUP] = None
    engine: Name | None = None


class AssistantChanges(Struct):
    """What a thread says of one of its assistants."""

    assistant_name: Name | None = None
    name: Name | None = None
    """Cortex's spelling."""
    instructions: Instructions | None = None
    model: ModelName | ThreadModelBody | None = None
    tools: ToolsBody | None = None


class ThreadAssistantBody(AssistantChanges):
    """An assistant of a thread."""

    assistant_id: NamedId | None = None
    id: NamedId | None = None
    """Cortex's spelling."""


class ThreadMessageBody(MessageBody):
    """A message of a thread: a new one, or one that is there, named by its id."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH, pattern=ADDRESSABLE)] | None = None


class ThreadFields(Struct):
    """What a thread is made of, its messages apart; all of it optional."""

    title: Annotated[str, Meta(max_length=MAX_TITLE_LENGTH)] | None = None
    assistants: Annotated[list[NamedId | ThreadAssistantBody], Meta(max_length=MAX_ASSISTANTS)] | None = None
    metadata: MetadataBody | None = None
    tool_resources: dict[str, Any] | None = None


class ThreadBody(ThreadFields):
    """A new thread."""

    messages: Annotated[list[MessageBody], Meta(max_length=MAX_MESSAGES)] | None = None


class ThreadChanges(ThreadFields):
    """What of a thread can be changed. A message whose id the thread has is changed, every other one is appended."""

    messages: Annotated[list[ThreadMessageBody], Meta(max_length=MAX_MESSAGES)] | None = None


class Assistantship(Struct, frozen=True):
    """What a request says of one assistant of a thread; UNSET is what it does not say."""

    assistant_id: str
    assistant_name: str | UnsetType
    instructions: str | UnsetType
    tools: list[dict[str, Any]] | UnsetType
    model_id: str | UnsetType
    engine: str | UnsetType
    settings: dict[str, Any]
    """Native types; merged into what is there."""
    parameters: dict[str, Any]

    def over(self, entry: ThreadAssistant) -> ThreadAssistant:
        """The entry of the same assistant with this said of it."""
        model = entry.model
        return ThreadAssistant(
            assistant_id=entry.assistant_id,
            assistant_name=_said(self.assistant_name, entry.assistant_name),
            instructions=_said(self.instructions, entry.instructions),
            model=ThreadModel(
                id=_said(self.model_id, model.id),
                settings={**model.settings, **self.settings},
                parameters={**model.parameters, **self.parameters},
                engine=_said(self.engine, model.engine),
            ),
            tools=_said(self.tools, entry.tools),
        )


class ThreadCall(Struct, frozen=True):
    """A thread's body that makes sense; UNSET is what it does not say."""

    title: str | UnsetType
    assistants: list[Assistantship] | UnsetType
    metadata: Metadata | UnsetType
    tool_resources: dict[str, Any] | UnsetType
    messages: list[NewMessage]


def read_thread(raw: dict[str, Any]) -> ThreadCall:
    """Check the body of createThread.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    return thread_call(convert(raw, ThreadBody))


def read_thread_changes(raw: dict[str, Any]) -> ThreadCall:
    """Check the body of modifyThread; as `read_thread`."""
    return thread_call(convert(raw, ThreadChanges))


def read_assistant_changes(raw: dict[str, Any], assistant_id: str) -> Assistantship:
    """Check the body of postThreadAssistants; as `read_thread`."""
    return _assistantship(convert(raw, AssistantChanges), assistant_id, "")


def thread_call(body: ThreadBody | ThreadChanges, prefix: str = "") -> ThreadCall:
    """A thread of a body whose types are right.

    Args:
        prefix: Begins the path in an error: `thread.`; empty: `title`.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    return ThreadCall(
        title=UNSET if body.title is None else body.title,
        assistants=UNSET if body.assistants is None else _assistants(body.assistants, f"{prefix}assistants"),
        metadata=UNSET if body.metadata is None else read_metadata(body.metadata, f"{prefix}metadata"),
        tool_resources=UNSET if body.tool_resources is None else body.tool_resources,
        messages=_messages(body.messages or (), f"{prefix}messages"),
    )


def _messages(items: Sequence[MessageBody], path: str) -> list[NewMessage]:
    found: list[NewMessage] = []
    ids: set[str] = set()
    for index, item in enumerate(items):
        id = item.id if isinstance(item, ThreadMessageBody) else None
        if id is not None and id in ids:
            raise InvalidRequest(f"{path}[{index}].id is {shown(id)} a second time", param=f"{path}[{index}].id")
        ids |= {id} if id is not None else set()
        found.append(new_message(item, f"{path}[{index}].", id=id))
    return found


def _assistants(items: list[str | ThreadAssistantBody], path: str) -> list[Assistantship]:
    found: dict[str, Assistantship] = {}
    for index, item in enumerate(items):
        place = f"{path}[{index}]"
        if isinstance(item, str):
            one = _assistantship(AssistantChanges(), item, f"{place}.")
        else:
            one = _assistantship(item, item.assistant_id or item.id or DEFAULT_ASSISTANT, f"{place}.")
        if one.assistant_id in found:
            raise InvalidRequest(f"{place} names {one.assistant_id} a second time; name each assistant once", param=place)
        found[one.assistant_id] = one
    return list(found.values())


def _assistantship(body: AssistantChanges, assistant_id: str, prefix: str) -> Assistantship:
    model = ThreadModelBody(id=body.model) if isinstance(body.model, str) else body.model or ThreadModelBody()
    name = body.name if body.assistant_name is None else body.assistant_name
    return Assistantship(
        assistant_id=assistant_id,
        assistant_name=UNSET if name is None else name,
        instructions=UNSET if body.instructions is None else body.instructions,
        tools=UNSET if body.tools is None else read_tools(body.tools, f"{prefix}tools"),
        model_id=UNSET if model.id is None else model.id,
        engine=UNSET if model.engine is None else model.engine,
        settings=read_settings(model.settings or {}, f"{prefix}model.settings"),
        parameters=validate_parameters(model.parameters or {}, f"{prefix}model.parameters"),
    )


def _said(value: Any, otherwise: Any) -> Any:
    return otherwise if value is UNSET else value
