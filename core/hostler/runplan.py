"""What a run was asked for, and what that means: request over thread over assistant (over model over server).

Floor 4; pure. The model's own parameters and the server's defaults come in last, by `library/sampling.py`, once it is known
which model that is.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, structs

from hostler.domain import OutputFormat
from hostler.errors import InvalidRequest, UnsupportedParameter
from hostler.library.fields import validate_parameters, validate_settings
from hostler.records.objects import DEFAULT_ASSISTANT, Assistant, Metadata, NewMessage, ThreadAssistant
from hostler.responseformat import read_response_format

ANY_MODEL = "*"
"""Jan's own assistant names its model so: whichever is there."""


class RunRequest(Struct, frozen=True):
    """What a client asks for, each field checked by itself; None is what it does not say."""

    assistant_id: str | None = None
    model: str | None = None
    """Any name the library resolves."""
    instructions: str | None = None
    additional_instructions: str | None = None
    messages: tuple[NewMessage, ...] = ()
    """Appended to the thread together with the run, each with an id already."""
    messages_path: str = "additional_messages"
    """What the request calls them."""
    parameters: dict[str, Any] = {}
    """Sampling fields, native types."""
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    response_format: Any = None
    max_prompt_tokens: int | None = None
    last_messages: int | None = None
    """Of `truncation_strategy`: exactly so many; None: as many as fit."""
    metadata: Metadata = {}


class NewThread(Struct, frozen=True):
    """A thread that is made together with its first run."""

    title: str = ""
    assistants: list[ThreadAssistant] = []
    """Empty: the run's assistant."""
    metadata: Metadata = {}
    tool_resources: dict[str, Any] | None = None


class RunPlan(Struct, frozen=True):
    """The request, resolved."""

    assistant_id: str
    model: str
    """Any name; empty: nobody named one, and the server has no default_model."""
    instructions: str
    parameters: dict[str, Any]
    """Over the model's own."""
    settings: dict[str, Any]
    """For the model's start, should it not run yet."""
    tools: list[dict[str, Any]]
    tool_choice: Any
    response_format: Any
    output_format: OutputFormat | None
    """What `response_format` means."""


def assistant_of(request: RunRequest, assistants: list[ThreadAssistant]) -> str:
    """Whom the run is for: whom the request names, else the thread's first assistant, else the default one."""
    if request.assistant_id:
        return request.assistant_id
    return assistants[0].assistant_id if assistants else DEFAULT_ASSISTANT


def resolve(
    request: RunRequest, assistants: list[ThreadAssistant], assistant: Assistant, default_model: str
) -> RunPlan:
    """Put the levels together.

    Args:
        assistants: The thread's.
        assistant: Whom `assistant_of` named.
        default_model: The server's.

    Raises:
        InvalidRequest: A parameter of the thread or of the assistant is out of range.
        UnsupportedParameter: It comes to tools, which this release does not have.
    """
    index, entry = _entry(assistants, assistant.id)
    path = f"assistants[{index}].model"
    tools, owner = _first(
        (request.tools, "the request"), (entry.tools, "the thread's assistant"), (assistant.tools, f"assistant {assistant.id}")
    )
    response_format, _ = _first((request.response_format, ""), (assistant.response_format, ""), ("auto", ""))
    tool_choice = "auto" if request.tool_choice is None else request.tool_choice
    _refuse_tools(tools, owner, tool_choice)
    output_format = read_response_format(response_format)
    instructions, _ = _first((request.instructions, ""), (entry.instructions, ""), (assistant.instructions, ""), ("", ""))
    more = request.additional_instructions
    return RunPlan(
        assistant_id=assistant.id,
        model=_model(request.model, entry.model.id, assistant.model, default_model),
        instructions="\n\n".join(text for text in (instructions, more) if text),
        parameters={
            **_of_assistant(assistant),
            **validate_parameters(entry.model.parameters, f"{path}.parameters"),
            **request.parameters,
        },
        settings=validate_settings(entry.model.settings, f"{path}.settings"),
        tools=tools,
        tool_choice=tool_choice,
        response_format=response_format,
        output_format=output_format,
    )


def entry_of(assistant: Assistant) -> ThreadAssistant:
    """The assistant as a thread that is made for it knows it: nothing is overridden."""
    return ThreadAssistant(assistant_id=assistant.id, assistant_name=assistant.name or assistant.id)


def with_assistant(thread: NewThread, assistant: Assistant) -> NewThread:
    """The thread, with the run's assistant where it names none."""
    return thread if thread.assistants else structs.replace(thread, assistants=[entry_of(assistant)])


def _entry(assistants: list[ThreadAssistant], assistant_id: str) -> tuple[int, ThreadAssistant]:
    for index, entry in enumerate(assistants):
        if entry.assistant_id == assistant_id:
            return index, entry
    return 0, ThreadAssistant(assistant_id=assistant_id)


def _first(*levels: tuple[Any, str]) -> tuple[Any, str]:
    """The first level that says something."""
    return next((level for level in levels if level[0] is not None), levels[-1])


def _model(*names: str | None) -> str:
    return next((name for name in names if name and name != ANY_MODEL), "")


def _of_assistant(assistant: Assistant) -> dict[str, Any]:
    own = {"temperature": assistant.temperature, "top_p": assistant.top_p}
    values = {**assistant.parameters, **{name: value for name, value in own.items() if value is not None}}
    return validate_parameters(values, "assistant.parameters")


def _refuse_tools(tools: list[dict[str, Any]], owner: str, tool_choice: Any) -> None:
    if tools and tool_choice != "none":
        raise UnsupportedParameter(
            f'tools are not supported in this release, and {owner} has some; send tools [] or tool_choice "none"',
            param="tools",
        )
    if tool_choice not in ("auto", "none"):
        raise InvalidRequest(f"tool_choice is {tool_choice!r}, and the run has no tools to call", param="tool_choice")
