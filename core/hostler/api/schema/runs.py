"""Bodies of the run routes. Source: spec/API.md section 9 and OpenAI's Assistants API, v2.

Floor 5; pure. Each field is checked by itself here; what it comes to, over the thread and its assistant, is `runplan.py`'s
question. The sampling fields are those of chats, in every spelling.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from hostler.api.schema.convert import convert, required, shown
from hostler.api.schema.forms import FORM
from hostler.api.schema.marks import exactly, rule
from hostler.api.schema.messages import MessageBody, NamedId, new_message
from hostler.api.schema.metadata import MetadataBody, read_metadata
from hostler.api.schema.sampling import read_parameters
from hostler.api.schema.threads import MAX_MESSAGES, Instructions, ModelName, ThreadBody, ThreadCall, thread_call
from hostler.api.schema.tools import ToolsBody, read_tools
from hostler.errors import InvalidRequest, MissingParameter
from hostler.records.ids import new_id
from hostler.records.objects import Metadata, NewMessage
from hostler.responseformat import read_response_format
from hostler.runplan import RunRequest

TOOL_CHOICES = ("auto", "none", "required")
MAX_OUTPUTS = 128

Tokens = Annotated[int, Meta(ge=1)]
NO_CHOICE = exactly({"enum": ["none", "auto", None]})
NO_TOOLS = rule(
    {"properties": {"tools": {"maxItems": 0}}},
    {"properties": {"tool_choice": {"const": "none"}}, "required": ["tool_choice"]},
)
"""Nothing is called yet."""


@rule(
    {"properties": {"type": {"const": "auto"}}},
    {"properties": {"last_messages": {"type": ["integer", "string"]}}, "required": ["last_messages"]},
)
class TruncationBody(Struct):
    """How a thread that is too long for the context is cut."""

    type: Literal["auto", "last_messages"]
    last_messages: Annotated[int, Meta(ge=1, description="With last_messages: exactly so many of the newest.")] | None = None


ANY_FORM = exactly({"anyOf": [{"enum": ["auto", None]}, FORM]})


class RunFields(Struct):
    """What both ways to make a run take. The sampling fields stand beside it in the body."""

    assistant_id: NamedId | None = None
    model: ModelName | None = None
    instructions: Instructions | None = None
    additional_instructions: Instructions | None = None
    tools: ToolsBody | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, NO_CHOICE] = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[str | dict[str, Any] | None, ANY_FORM] = None
    truncation_strategy: TruncationBody | None = None
    max_prompt_tokens: Tokens | None = None
    metadata: MetadataBody | None = None


@NO_TOOLS
class RunBody(RunFields):
    """A run in a thread."""

    additional_messages: Annotated[list[MessageBody], Meta(max_length=MAX_MESSAGES)] | None = None


@NO_TOOLS
class ThreadRunBody(RunFields):
    """A run in a thread that is made for it."""

    thread: ThreadBody | None = None


class RunChanges(Struct):
    """What of a run can be changed."""

    metadata: MetadataBody | None = None


class ToolOutputBody(Struct):
    """What one tool gave."""

    tool_call_id: str | None = None
    output: str | None = None


class ToolOutputsBody(Struct):
    """What the tools of a run gave."""

    tool_outputs: Annotated[list[ToolOutputBody], Meta(max_length=MAX_OUTPUTS)]
    stream: bool | None = None


class RunCall(Struct, frozen=True):
    """A run's body that makes sense."""

    request: RunRequest
    is_stream: bool
    thread: ThreadCall | None = None
    """Of a body that makes its own."""


def read_run(raw: dict[str, Any]) -> RunCall:
    """Check the body of createRun.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    body = convert(raw, RunBody)
    path = "additional_messages"
    messages = [new_message(one, f"{path}[{index}].") for index, one in enumerate(body.additional_messages or ())]
    return _call(body, raw, messages, path)


def read_thread_run(raw: dict[str, Any]) -> RunCall:
    """Check the body of createThreadAndRun; as `read_run`."""
    body = convert(raw, ThreadRunBody)
    thread = thread_call(body.thread or ThreadBody(), "thread.")
    return structs.replace(_call(body, raw, thread.messages, "thread.messages"), thread=thread)


def read_run_changes(raw: dict[str, Any]) -> Metadata | None:
    """Check the body of modifyRun: the new metadata, if there is one.

    Raises:
        InvalidRequest: With the path of the field.
    """
    body = convert(raw, RunChanges)
    return None if body.metadata is None else read_metadata(body.metadata)


def check_tool_outputs(raw: dict[str, Any]) -> None:
    """Check the body of submitToolOutputs.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    convert(raw, ToolOutputsBody)


def _call(body: RunFields, raw: dict[str, Any], messages: list[NewMessage], path: str) -> RunCall:
    parameters = read_parameters(raw)
    is_stream = parameters.pop("stream", False)
    request = RunRequest(
        assistant_id=body.assistant_id,
        model=body.model,
        instructions=body.instructions,
        additional_instructions=body.additional_instructions,
        messages=tuple(structs.replace(one, id=new_id("msg")) for one in messages),
        messages_path=path,
        parameters=parameters,
        tools=None if body.tools is None else read_tools(body.tools),
        tool_choice=_checked_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=_checked_format(body.response_format),
        max_prompt_tokens=body.max_prompt_tokens,
        last_messages=_last_messages(body.truncation_strategy),
        metadata=read_metadata(body.metadata or {}),
    )
    return RunCall(request, is_stream)


def _checked_choice(choice: str | dict[str, Any] | None) -> Any:
    if isinstance(choice, dict):
        required(choice.get("type"), "tool_choice.type")
    elif choice is not None and choice not in TOOL_CHOICES:
        raise InvalidRequest(
            f"tool_choice is {shown(choice)}; allowed: {', '.join(TOOL_CHOICES)}, or an object with a type",
            param="tool_choice",
        )
    return choice


def _checked_format(value: str | dict[str, Any] | None) -> Any:
    read_response_format(value)
    return value


def _last_messages(strategy: TruncationBody | None) -> int | None:
    if strategy is None or strategy.type == "auto":
        return None
    if strategy.last_messages is None:
        path = "truncation_strategy.last_messages"
        raise MissingParameter(f"{path} is missing; say how many of the newest messages are meant", param=path)
    return strategy.last_messages
