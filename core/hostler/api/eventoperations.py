"""What `/openapi.json` says of the routes of webhooks and events. Floor 5; pure values."""

from __future__ import annotations

from hostler.api.operation import Operation, Query
from hostler.api.schema.paging import PAGING
from hostler.api.schema.webhooks import WebhookBody
from hostler.api.tags import EVENTS, WEBHOOKS
from hostler.events import Gap, ModelObject
from hostler.records.objects import Assistant, Deleted, Message, Page, Thread, Webhook, WebhookDetail, WebhookTest

CREATE_WEBHOOK = Operation(
    "createWebhook", WEBHOOKS, "Create webhook", body=WebhookBody, answer=WebhookDetail, statuses=(400, 409)
)
LIST_WEBHOOKS = Operation("listWebhooks", WEBHOOKS, "List webhooks", answer=Page[Webhook], query=PAGING, statuses=(400,))
GET_WEBHOOK = Operation("retrieveWebhook", WEBHOOKS, "Retrieve webhook", answer=WebhookDetail, statuses=(404,))
DELETE_WEBHOOK = Operation("deleteWebhook", WEBHOOKS, "Delete webhook", answer=Deleted, statuses=(404, 409))
TEST_WEBHOOK = Operation(
    "testWebhook", WEBHOOKS, "Send a test event to a webhook", answer=WebhookTest, statuses=(404, 429)
)
STREAM_EVENTS = Operation(
    "streamEvents",
    EVENTS,
    "Stream events as they happen",
    query=(
        Query("types", str, "Globs over the names of events, such as `model.*,thread.*`; all unless said."),
        Query("last_event_id", str, "Go on behind this event; without it only what comes from now on is sent."),
        Query("Last-Event-ID", str, "The same, as browsers send it; wins over the query.", "header"),
    ),
    statuses=(400, 429),
    media=("text/event-stream",),
    event=(ModelObject, Thread, Message, Assistant, Gap),
)
