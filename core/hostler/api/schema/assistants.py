"""Bodies of the assistant routes. Source: spec/API.md section 9.

Floor 5; pure. Jan names the model in `models[0].model_id`, OpenAI in `model`; here the two become one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from hostler.api.schema.convert import convert, required, shown
from hostler.api.schema.marks import PARAMETERS_GROUP, exactly
from hostler.api.schema.messages import FileIds
from hostler.api.schema.metadata import MetadataBody, read_metadata
from hostler.api.schema.threads import Instructions, ModelName, Name
from hostler.api.schema.tools import ToolsBody, read_tools
from hostler.errors import InvalidRequest
from hostler.library.fields import validate_parameters
from hostler.records.objects import Assistant, AssistantEvents, AssistantModel

MAX_DESCRIPTION_LENGTH = 512
MAX_AVATAR_LENGTH = 256 * 1024
"""An avatar may be a data: URL."""
MAX_MODELS = 100
MAX_EVENTS = 100
RESPONSE_FORMATS = ("text", "json_object", "json_schema")

ResponseFormat = Annotated[
    dict[str, Any],
    exactly(
        {
            "type": "object",
            "required": ["type"],
            "anyOf": [
                {"properties": {"type": {"enum": [word for word in RESPONSE_FORMATS if word != "json_schema"]}}},
                {
                    "properties": {"type": {"const": "json_schema"}, "json_schema": {"type": "object"}},
                    "required": ["json_schema"],
                },
            ],
        }
    ),
]
EventNames = Annotated[list[Name], Meta(max_length=MAX_EVENTS)]


class AssistantModelBody(Struct):
    """Jan's way to name a model."""

    model_id: ModelName


class EventsBody(Struct):
    """Jan's event names."""

    in_: EventNames | None = field(default=None, name="in")
    out: EventNames | None = None


class AssistantBody(Struct):
    """What an assistant is made of; all of it optional."""

    name: Name | None = None
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION_LENGTH)] | None = None
    avatar: Annotated[str, Meta(max_length=MAX_AVATAR_LENGTH)] | None = None
    model: ModelName | None = None
    models: Annotated[list[ModelName | AssistantModelBody], Meta(min_length=1, max_length=MAX_MODELS)] | None = None
    instructions: Instructions | None = None
    tools: ToolsBody | None = None
    tool_resources: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    response_format: Literal["auto"] | ResponseFormat | None = None
    parameters: Annotated[dict[str, Any] | None, PARAMETERS_GROUP] = None
    events: EventsBody | None = None
    file_ids: FileIds | None = None
    thread_location: Annotated[str, Meta(max_length=1024)] | None = None
    metadata: MetadataBody | None = None


def read_assistant(raw: dict[str, Any]) -> dict[str, Any]:
    """Check the body of createAssistant or modifyAssistant.

    Returns:
        Fields of an Assistant, those that the body names; `model` and `models` as it names them, see `one_model`.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    body = convert(raw, AssistantBody)
    said = {name: getattr(body, name) for name in AssistantBody.__struct_fields__}
    fields = {name: value for name, value in said.items() if value is not None}
    if body.tools is not None:
        fields["tools"] = read_tools(body.tools)
    if body.metadata is not None:
        fields["metadata"] = read_metadata(body.metadata)
    if body.parameters is not None:
        fields["parameters"] = validate_parameters(body.parameters)
    if isinstance(body.response_format, dict):
        _check_response_format(body.response_format)
    if body.events is not None:
        fields["events"] = AssistantEvents(body.events.in_ or [], body.events.out or [])
    if body.models is not None:
        names = [one if isinstance(one, str) else one.model_id for one in body.models]
        fields["models"] = [AssistantModel(name) for name in names if name]  # an empty name means the server's default
    return fields


def one_model(fields: dict[str, Any], before: Assistant | None = None) -> dict[str, Any]:
    """The fields with `model` or `models`, not both: the store keeps the other equal.

    Args:
        fields: From `read_assistant`.
        before: What the assistant was until now. A client that sends back the whole object has changed one of the two only:
            that one is meant.

    Raises:
        InvalidRequest: They name two different new models.
    """
    model: str | None = fields.get("model")
    models: list[AssistantModel] | None = fields.get("models")
    if model is None or models is None:
        return fields
    first = models[0].model_id if models else ""
    if model == first or (before is not None and model == before.model):
        return {name: value for name, value in fields.items() if name != "model"}
    if before is not None and first == before.model:
        return {name: value for name, value in fields.items() if name != "models"}
    raise InvalidRequest(
        f"model is {shown(model)}, but models[0].model_id is {shown(first)}; they must be equal, or send one of them",
        param="models[0].model_id",
    )


def _check_response_format(value: dict[str, Any]) -> None:
    kind = required(value.get("type"), "response_format.type")
    if kind not in RESPONSE_FORMATS:
        raise InvalidRequest(
            f"response_format.type is {shown(kind)}; allowed: {', '.join(RESPONSE_FORMATS)}", param="response_format.type"
        )
    if kind == "json_schema" and not isinstance(required(value.get("json_schema"), "response_format.json_schema"), dict):
        raise InvalidRequest(
            f"response_format.json_schema is {shown(value['json_schema'])}; expected an object",
            param="response_format.json_schema",
        )
