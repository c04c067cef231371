"""The objects that records hold, field by field as Jan and OpenAI name them: what is stored is what is answered.

Floor 1; pure values. Source: spec/API.md sections 8 and 9. A model's manifest follows the same rule: its fields are Jan's,
so that a file, a row, an event and an answer never need translating. Every object carries both `created` and `created_at`,
in whole Unix seconds.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")

MAX_PAGE = 100
MAX_MESSAGE_IDS = 100
"""A thread names its newest messages only."""
DEFAULT_ASSISTANT = "jan"
"""The id of the assistant that always exists."""

OCTETS = "application/octet-stream"
"""The content type of bytes that nothing is known of."""

Metadata = dict[str, str]
"""At most 16 keys of at most 64 characters, values of at most 512: OpenAI's limits, checked by the API."""


# -- pages --------------------------------------------------------------------------------------------------------------


class PageRequest(Struct, frozen=True):
    """Which part of a list is wanted. `after` and `before` are ids of the list; an unknown one is an error."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


class Page(Struct, Generic[T], frozen=True):
    """Part of a list in OpenAI's form; without `has_more` its clients would ask for ever."""

    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class Deleted(Struct, frozen=True):
    """The answer of a deletion; `object` is `thread.deleted` and the like."""

    id: str
    object: str
    deleted: bool = True


# -- messages -----------------------------------------------------------------------------------------------------------


class Text(Struct, frozen=True):
    """The inside of a text part."""

    value: str
    annotations: list[Any] = []


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Text."""

    text: Text


class ImageUrlPart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image by its URL; kept, but no model of this release sees it."""

    image_url: dict[str, Any]


class ImageFilePart(Struct, frozen=True, tag_field="type", tag="image_file"):
    """An image by the id of a file; kept, but no model of this release sees it."""

    image_file: dict[str, Any]


ContentPart = TextPart | ImageUrlPart | ImageFilePart


class Message(Struct, frozen=True):
    """One turn of a thread."""

    id: str
    """`msg_` and 24 letters or digits; imported ids are kept."""
    created_at: int
    created: int
    thread_id: str
    role: Literal["user", "assistant"]
    content: list[ContentPart]
    file_ids: list[str] = []
    """Kept as given: a file need not exist."""
    attachments: list[dict[str, Any]] = []
    assistant_id: str | None = None
    run_id: str | None = None
    chat_completion_id: str | None = None
    """The generation that made it, as `GET /v1/requests` and the log name it."""
    metadata: Metadata = {}
    status: Literal["in_progress", "incomplete", "completed"] = "completed"
    completed_at: int | None = None
    incomplete_at: int | None = None
    incomplete_details: dict[str, Any] | None = None
    object: Literal["thread.message"] = "thread.message"


class NewMessage(Struct, frozen=True):
    """A message to be written; what is None is filled in when it is."""

    role: Literal["user", "assistant"]
    content: list[ContentPart]
    file_ids: list[str] = []
    attachments: list[dict[str, Any]] = []
    metadata: Metadata = {}
    id: str | None = None
    """Given by an import, or by who must name it before it is written."""
    created_at: int | None = None
    assistant_id: str | None = None
    run_id: str | None = None
    chat_completion_id: str | None = None
    status: Literal["in_progress", "incomplete", "completed"] = "completed"
    completed_at: int | None = None
    incomplete_at: int | None = None
    incomplete_details: dict[str, Any] | None = None


class MessageFile(Struct, frozen=True):
    """That a message names a file."""

    id: str
    created_at: int
    message_id: str
    object: Literal["thread.message.file"] = "thread.message.file"


# -- threads and assistants -----------------------------------------------------------------------------------------------


class ThreadModel(Struct, frozen=True):
    """The model a thread's assistant uses. Settings and parameters override the assistant's, these the model's."""

    id: str = ""
    settings: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    engine: str | None = None


class ThreadAssistant(Struct, frozen=True):
    """An assistant as a thread knows it: what is set here wins over the assistant's own."""

    assistant_id: str = DEFAULT_ASSISTANT
    assistant_name: str = "Jan"
    instructions: str | None = None
    model: ThreadModel = ThreadModel()
    tools: list[dict[str, Any]] | None = None
    """None: the assistant's own."""


class Thread(Struct, frozen=True):
    """A conversation."""

    id: str
    """`thread_` and 24 letters or digits; imported ids are kept."""
    created_at: int
    created: int
    updated: int
    title: str = ""
    assistants: list[ThreadAssistant] = []
    assistant_ids: list[str] = []
    metadata: Metadata = {}
    messages: list[str] = []
    """Ids in order, at most the newest MAX_MESSAGE_IDS."""
    tool_resources: dict[str, Any] | None = None
    object: Literal["thread"] = "thread"


class AssistantModel(Struct, frozen=True):
    """Jan's way to name a model."""

    model_id: str


class AssistantEvents(Struct, frozen=True):
    """Jan's event names, kept as given."""

    in_: list[str] = msgspec.field(default_factory=list, name="in")
    out: list[str] = []


class Assistant(Struct, frozen=True):
    """Instructions, a model and its parameters under one id. `model` and `models[0].model_id` are kept equal."""

    id: str
    """`asst_` and 24 letters or digits; `jan` and imported ids are kept."""
    created_at: int
    created: int
    version: int = 1
    name: str | None = None
    description: str | None = None
    avatar: str | None = None
    model: str = ""
    """Need not exist; empty: the server's default_model at the time of the run."""
    models: list[AssistantModel] = []
    instructions: str | None = None
    tools: list[dict[str, Any]] = []
    tool_resources: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    response_format: Any = None
    parameters: dict[str, Any] = {}
    """Jan's further parameters, as a model has them."""
    events: AssistantEvents = AssistantEvents()
    file_ids: list[str] = []
    thread_location: str | None = None
    metadata: Metadata = {}
    object: Literal["assistant"] = "assistant"


# -- files --------------------------------------------------------------------------------------------------------------


class File(Struct, frozen=True):
    """An uploaded file; its bytes lie under the data folder by their SHA-256."""

    id: str
    """`file-` and 24 letters or digits."""
    bytes: int
    created_at: int
    created: int
    filename: str
    purpose: str
    content_type: str = OCTETS
    """hostler's own: what its name says it is, else its sender. It is served as bytes to save, whatever it is."""
    status: Literal["processed"] = "processed"
    object: Literal["file"] = "file"


# -- runs ---------------------------------------------------------------------------------------------------------------

RunStatus = Literal[
    "queued", "in_progress", "requires_action", "cancelling", "cancelled", "failed", "completed", "incomplete", "expired"
]
ACTIVE_RUN = frozenset({"queued", "in_progress", "requires_action", "cancelling"})
"""A thread has at most one run in one of these."""


class RunError(Struct, frozen=True):
    """Why a run failed."""

    code: str
    message: str


class Run(Struct, frozen=True):
    """One answer of an assistant in a thread."""

    id: str
    """`run_` and 24 letters or digits."""
    created_at: int
    created: int
    thread_id: str
    assistant_id: str
    status: RunStatus
    model: str
    instructions: str
    tools: list[dict[str, Any]] = []
    metadata: Metadata = {}
    started_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelled_at: int | None = None
    expires_at: int | None = None
    required_action: dict[str, Any] | None = None
    last_error: RunError | None = None
    incomplete_details: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    max_prompt_tokens: int | None = None
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    response_format: Any = "auto"
    truncation_strategy: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "auto"})
    left_out: list[str] = []
    """hostler's own: ids of the thread's messages that did not fit into the context and were left out, oldest first; of
    more than MAX_MESSAGE_IDS the newest. What is older than one that was left out was left out, too."""
    left_out_count: int = 0
    """hostler's own: how many were left out in all."""
    parameters: dict[str, Any] = {}
    """hostler's own: the sampling parameters the run was resolved to, native types."""
    object: Literal["thread.run"] = "thread.run"


class RunStep(Struct, frozen=True):
    """What a run did; here always the making of one message."""

    id: str
    """`step_` and 24 letters or digits."""
    created_at: int
    created: int
    run_id: str
    thread_id: str
    assistant_id: str
    status: Literal["in_progress", "cancelled", "failed", "completed", "expired"]
    step_details: dict[str, Any]
    """`{"type": "message_creation", "message_creation": {"message_id": ...}}`."""
    type: Literal["message_creation"] = "message_creation"
    completed_at: int | None = None
    failed_at: int | None = None
    cancelled_at: int | None = None
    expired_at: int | None = None
    last_error: RunError | None = None
    usage: dict[str, Any] | None = None
    metadata: Metadata = {}
    object: Literal["thread.run.step"] = "thread.run.step"


# -- webhooks -----------------------------------------------------------------------------------------------------------


class PendingDelivery(Struct, frozen=True):
    """An event that its webhook has not taken yet."""

    id: str
    """What the receiver gets as `webhook-id`, the same at every attempt."""
    created_at: int
    event: str
    """Its name: `model.running`."""
    event_id: int
    """Its id in `GET /v1/events`."""
    subject: str
    """The model or the thread it is about; events of one subject are delivered in their order."""
    n_attempts: int
    next_attempt_at: int | None
    """Unix seconds; null: it waits behind an earlier event of its subject."""
    last_error: str | None
    object: Literal["webhook.delivery"] = "webhook.delivery"


class Webhook(Struct, frozen=True):
    """A URL that gets events, and how it fares."""

    id: str
    """`webhook_` and 24 letters or digits."""
    created_at: int
    created: int
    url: str
    secret: str | None
    """Masked; null: deliveries are not signed."""
    events: list[str]
    """Globs over the names of events."""
    source: Literal["api", "config"]
    """Who made it; one of the configuration can only be changed there."""
    last_status: int | None
    """HTTP status of the last attempt; null: none yet, or it got no answer."""
    last_error: str | None
    """Why the last attempt does not count; null: it does."""
    last_delivery_at: int | None
    """When the last attempt ended, whatever came of it."""
    n_delivered: int
    n_pending: int
    n_dropped: int
    """Events given up after their last attempt, or because too many were pending."""
    object: Literal["webhook"] = "webhook"


class WebhookDetail(Webhook, frozen=True):
    """One webhook with the oldest events it has not taken yet."""

    pending: list[PendingDelivery] = []


class WebhookTest(Struct, frozen=True):
    """What a webhook's receiver said to a test event."""

    id: str
    url: str
    is_delivered: bool
    status: int | None
    error: str | None
    elapsed_ms: int
    answer: str
    """The beginning of its body."""
    object: Literal["webhook.test"] = "webhook.test"
