"""The body of `POST /chat/completions`. Source: spec/API.md section 6.

Floor 5; pure. This release takes text: what hostler knows but cannot honour (tools, images) is refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from hostler.api.schema.convert import convert, required, shown
from hostler.api.schema.forms import FormFields, read_form
from hostler.api.schema.marks import REQUIRED, exactly, rule
from hostler.api.schema.priority import PriorityName, read_priority
from hostler.api.schema.sampling import BIAS_LIMIT, read_logit_bias, read_parameters
from hostler.api.schema.tables import number_text
from hostler.domain import Message, OutputFormat, Priority
from hostler.errors import InvalidRequest, MissingParameter, UnsupportedParameter
from hostler.library.fields import portable

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
UNSUPPORTED_PARTS = frozenset(
    {"image_url", "image_file", "input_image", "input_audio", "audio", "file", "doc_url", "video_url"}
)
PIN = "pin"
"""What `cache` of a message may say: the conversation up to it stays in the prefix cache."""
MAX_N = 8
MAX_TOP_LOGPROBS = 20

Choices = Annotated[int, Meta(ge=1, le=MAX_N)]
LogitBias = Annotated[
    dict[str, Any],
    exactly(
        {
            "type": "object",
            "description": "Token id -> what is added to its logit.",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {
                "anyOf": [
                    {"type": "number", "minimum": -BIAS_LIMIT, "maximum": BIAS_LIMIT},
                    number_text(-BIAS_LIMIT, BIAS_LIMIT, is_whole=False),
                ]
            },
        }
    ),
]


class StreamOptions(Struct):
    """What a stream carries beside text."""

    include_usage: bool | None = None


@rule(
    {"properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["text"]},
    {"properties": {"type": {"const": "refusal"}, "refusal": {"type": "string"}}, "required": ["refusal"]},
)
class ContentPart(Struct):
    """One part of a message."""

    type: Annotated[str | None, REQUIRED, exactly({"enum": ["text", "refusal"]})] = None
    text: str | None = None
    refusal: str | None = None


@rule(
    {"properties": {"content": {"type": ["string", "array"]}}, "required": ["content"]},
    {
        "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
        "required": ["tool_calls"],
    },
    {"properties": {"role": {"const": "assistant"}, "refusal": {"type": "string"}}, "required": ["refusal"]},
)
class WireMessage(Struct):
    """One turn, as sent. Only an assistant's may have no content: one that called tools, or refused."""

    role: Annotated[str | None, REQUIRED, exactly({"enum": list(ROLES)})] = None
    content: str | Annotated[list[ContentPart], Meta(extra_json_schema={"minItems": 1})] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    cache: Annotated[str | None, exactly({"enum": [PIN, None]})] = None


NO_TOOLS = exactly({"type": ["array", "null"], "description": "Empty, unless the choice is none: nothing is called yet."})
NO_CHOICE = exactly({"enum": ["none", "auto", None]})


@rule(
    {"properties": {"tools": {"maxItems": 0}}},
    {"properties": {"tool_choice": {"const": "none"}}, "required": ["tool_choice"]},
)
@rule(
    {"properties": {"functions": {"maxItems": 0}}},
    {"properties": {"function_call": {"const": "none"}}, "required": ["function_call"]},
)
@rule(
    {"properties": {"top_logprobs": {"enum": [0, "0", None]}}},
    {"properties": {"logprobs": {"enum": [True, 1, "1", "true"]}}, "required": ["logprobs"]},
)
class ChatBody(FormFields):
    """Everything but the sampling fields. All optional here; what must be there is asked for below, by path."""

    model: Annotated[str | None, REQUIRED] = None
    messages: Annotated[Annotated[list[WireMessage], Meta(extra_json_schema={"minItems": 1})] | None, REQUIRED] = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    logit_bias: LogitBias | None = None
    tools: Annotated[list[Any] | None, NO_TOOLS] = None
    tool_choice: Annotated[str | dict[str, Any] | None, NO_CHOICE] = None
    functions: Annotated[list[Any] | None, NO_TOOLS] = None
    function_call: Annotated[str | dict[str, Any] | None, NO_CHOICE] = None
    modalities: Annotated[list[str] | None, exactly({"enum": [[], ["text"], None]})] = None
    web_search_options: Annotated[dict[str, Any] | None, exactly({"type": "null"})] = None
    cache_prompt: bool | None = None
    priority: PriorityName | None = None
    service_tier: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatCall(Struct, frozen=True):
    """A chat request that makes sense."""

    model: str
    messages: tuple[Message, ...]
    parameters: dict[str, Any]
    """Sampling fields of the request, native, without `stream`."""
    is_stream: bool
    include_usage: bool
    n: int
    logprobs: int | None
    logit_bias: dict[int, float]
    output_format: OutputFormat | None
    cache_prompt: bool
    priority: Priority
    template_kwargs: dict[str, Any]


def read_chat(raw: dict[str, Any]) -> ChatCall:
    """Check a body.

    Raises:
        InvalidRequest, MissingParameter, UnsupportedParameter: With the path of the field.
    """
    body = convert(raw, ChatBody)
    parameters = read_parameters(raw)
    model = required(body.model, "model", "name one that GET /v1/models lists")
    messages = required(body.messages, "messages")
    if not messages:
        raise InvalidRequest("messages is empty; a chat needs at least one message", param="messages")
    _refuse_unsupported(body)
    return ChatCall(
        model=model,
        messages=tuple(read_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
        parameters=parameters,
        is_stream=parameters.pop("stream", False),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        n=body.n or 1,
        logprobs=_logprobs(body),
        logit_bias=read_logit_bias(body.logit_bias),
        output_format=read_form(body),
        cache_prompt=body.cache_prompt is not False,
        priority=read_priority(body.priority, body.service_tier),
        template_kwargs=_portable(body.chat_template_kwargs or {}, "chat_template_kwargs"),
    )


def read_message(message: WireMessage, path: str) -> Message:
    """Check one turn.

    Raises:
        InvalidRequest, MissingParameter, UnsupportedParameter: With the path of the field.
    """
    role = required(message.role, f"{path}.role")
    if role not in ROLES:
        raise InvalidRequest(f"{path}.role is {shown(role)}; allowed: {', '.join(ROLES)}", param=f"{path}.role")
    content = message.content
    if isinstance(content, list):
        content = _joined(content, f"{path}.content")
    elif content is None and role == "assistant":
        content = message.refusal
    if content is None and not (role == "assistant" and message.tool_calls):
        raise MissingParameter(f"{path}.content is missing", param=f"{path}.content")
    if message.cache not in (None, PIN):
        raise InvalidRequest(f"{path}.cache is {shown(message.cache)}; allowed: {PIN}", param=f"{path}.cache")
    return Message(
        role=ROLES[role],
        content=content,
        name=message.name,
        tool_calls=tuple(_portable(message.tool_calls, f"{path}.tool_calls")) if message.tool_calls else None,
        tool_call_id=message.tool_call_id,
        is_pinned=message.cache == PIN,
    )


def _portable(value: Any, path: str) -> Any:
    try:
        return portable(value)
    except OverflowError:
        raise InvalidRequest(f"{path} holds a number that is too large", param=path) from None


def _joined(parts: list[ContentPart], path: str) -> str:
    if not parts:
        raise InvalidRequest(f"{path} is an empty array; it needs at least one part", param=path)
    return "\n".join(_text_of(part, f"{path}[{index}]") for index, part in enumerate(parts))


def _text_of(part: ContentPart, path: str) -> str:
    kind = required(part.type, f"{path}.type")
    if kind == "text":
        return required(part.text, f"{path}.text")
    if kind == "refusal":
        return required(part.refusal, f"{path}.refusal")
    if kind in UNSUPPORTED_PARTS:
        raise UnsupportedParameter(f"{path} is a part of type {kind}; this release takes text only", param=path)
    raise InvalidRequest(f"{path}.type is {shown(kind)}; allowed: text, refusal", param=f"{path}.type")


def _logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest(
            f"top_logprobs is {body.top_logprobs} without logprobs; set logprobs to true", param="top_logprobs"
        )
    return None


def _refuse_unsupported(body: ChatBody) -> None:
    if body.tools and body.tool_choice != "none":
        raise UnsupportedParameter(
            'tools are not supported in this release; leave them out or send tool_choice "none"', param="tools"
        )
    if body.functions and body.function_call != "none":
        raise UnsupportedParameter(
            'functions are not supported in this release; leave them out or send function_call "none"', param="functions"
        )
    for name, choice in (("tool_choice", body.tool_choice), ("function_call", body.function_call)):
        if choice is not None and choice not in ("none", "auto"):
            raise InvalidRequest(f"{name} is {shown(choice)}, and the request has no tools to call", param=name)
    if body.modalities and body.modalities != ["text"]:
        raise UnsupportedParameter(
            f"modalities is {shown(body.modalities)}; this release answers with text only", param="modalities"
        )
    if body.web_search_options is not None:
        raise UnsupportedParameter("web_search_options: this server does not search the web", param="web_search_options")
