"""Bodies of the message routes, and the messages inside the bodies of threads and runs. Source: spec/API.md section 8.

Floor 5; pure. Content is text or parts; it is kept, whatever a model can see of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from hostler.api.schema.convert import convert
from hostler.api.schema.metadata import MetadataBody, read_metadata
from hostler.api.schema.tools import MAX_TOOLS
from hostler.errors import InvalidRequest
from hostler.records.objects import ContentPart, ImageFilePart, ImageUrlPart, Metadata, NewMessage, Text, TextPart

MAX_PARTS = 512
"""Parts of one message."""
MAX_FILES = 100
"""Files that one message or assistant names."""
MAX_ID_LENGTH = 256
"""Of an id that a body names and hostler keeps as given."""

NamedId = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]
FileIds = Annotated[list[NamedId], Meta(max_length=MAX_FILES, description="Ids of files, kept as given.")]


class TextBody(Struct):
    """The inside of a text part."""

    value: str
    annotations: list[Any] | None = None


class TextPartBody(Struct, tag_field="type", tag="text"):
    """Text: bare as OpenAI's clients send it, or as it is answered."""

    text: str | TextBody


class ImageUrlBody(Struct):
    """Where an image is."""

    url: Annotated[str, Meta(min_length=1)]
    detail: str | None = None


class ImageUrlPartBody(Struct, tag_field="type", tag="image_url"):
    """An image by its URL."""

    image_url: Annotated[str, Meta(min_length=1)] | ImageUrlBody


class ImageFileBody(Struct):
    """Which file an image is."""

    file_id: NamedId
    detail: str | None = None


class ImageFilePartBody(Struct, tag_field="type", tag="image_file"):
    """An image by the id of its file."""

    image_file: ImageFileBody


_NOT_EMPTY = {
    "anyOf": [
        {"properties": {"type": {"enum": ["image_url", "image_file"]}}},
        {"properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]},
        {
            "properties": {"text": {"type": "object", "properties": {"value": {"type": "string", "minLength": 1}}}},
            "required": ["text"],
        },
    ]
}
"""What at least one part must be."""

Content = (
    Annotated[str, Meta(min_length=1)]
    | Annotated[
        list[TextPartBody | ImageUrlPartBody | ImageFilePartBody],
        Meta(min_length=1, max_length=MAX_PARTS, extra_json_schema={"contains": _NOT_EMPTY}),
    ]
)


class AttachmentBody(Struct):
    """A file and the tools that may use it."""

    file_id: NamedId | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None


class MessageBody(Struct):
    """A new message."""

    role: Literal["user", "assistant"]
    content: Content
    file_ids: FileIds | None = None
    attachments: Annotated[list[AttachmentBody], Meta(max_length=MAX_FILES)] | None = None
    metadata: MetadataBody | None = None


class MessageChanges(Struct):
    """What of a message can be changed."""

    content: Content | None = None
    metadata: MetadataBody | None = None


def read_new_message(raw: dict[str, Any]) -> NewMessage:
    """Check the body of createMessage.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    return new_message(convert(raw, MessageBody))


def read_message_changes(raw: dict[str, Any]) -> tuple[list[ContentPart] | UnsetType, Metadata | UnsetType]:
    """Check the body of modifyMessage.

    Returns:
        Content and metadata, UNSET where the body says nothing.

    Raises:
        InvalidRequest: With the path of the field.
    """
    body = convert(raw, MessageChanges)
    return (
        UNSET if body.content is None else read_content(body.content, "content"),
        UNSET if body.metadata is None else read_metadata(body.metadata),
    )


def new_message(body: MessageBody, prefix: str = "", *, id: str | None = None, may_be_empty: bool = False) -> NewMessage:
    """A message of a body whose types are right.

    Args:
        prefix: Begins the path in an error: `messages[0].`; empty: `content`.
        id: Of the message it stands for, where it may be one that is there.
        may_be_empty: It is a record that comes back.

    Raises:
        InvalidRequest: With the path of the field.
    """
    return NewMessage(
        role=body.role,
        content=read_content(body.content, f"{prefix}content", may_be_empty=may_be_empty),
        file_ids=list(dict.fromkeys(body.file_ids or ())),
        attachments=[_attachment(one) for one in body.attachments or ()],
        metadata=read_metadata(body.metadata or {}, f"{prefix}metadata"),
        id=id,
    )


def read_content(content: Any, path: str, *, may_be_empty: bool = False) -> list[ContentPart]:
    """Content as sent -> parts as kept.

    Args:
        content: What `Content` decodes to.
        path: To blame.
        may_be_empty: Whether no text at all is fine.

    Raises:
        InvalidRequest: Nothing but empty text.
    """
    parts: list[ContentPart] = [TextPart(Text(content))] if isinstance(content, str) else [_part(part) for part in content]
    if not may_be_empty and all(isinstance(part, TextPart) and not part.text.value for part in parts):
        raise InvalidRequest(f"{path} is empty; a message needs text or an image", param=path)
    return parts


def _part(part: TextPartBody | ImageUrlPartBody | ImageFilePartBody) -> ContentPart:
    if isinstance(part, TextPartBody):
        text = part.text
        return TextPart(Text(text) if isinstance(text, str) else Text(text.value, text.annotations or []))
    if isinstance(part, ImageUrlPartBody):
        image = part.image_url
        return ImageUrlPart({"url": image} if isinstance(image, str) else _without_null(url=image.url, detail=image.detail))
    return ImageFilePart(_without_null(file_id=part.image_file.file_id, detail=part.image_file.detail))


def _attachment(one: AttachmentBody) -> dict[str, Any]:
    return _without_null(file_id=one.file_id, tools=one.tools)


def _without_null(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
