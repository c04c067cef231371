"""The body that makes a webhook. Source: spec/API.md section 10. Floor 5; pure."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from hostler.api.schema.convert import convert
from hostler.api.schema.marks import REQUIRED
from hostler.subscription import EVENT_NAMES, MAX_GLOBS, MAX_SECRET, MAX_URL, Subscription, read_subscription

_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_URL = rf"^ *[Hh][Tt][Tt][Pp][Ss]?://[A-Za-z0-9._-]+(:{_PORT}?)?([/?#][!-~]*)? *$"
_GLOBS = ["*", "model.*", "thread.*", "message.*", "assistant.*", *EVENT_NAMES]
"""Those that people need; any other glob that means an event is taken, too."""


class WebhookBody(Struct, frozen=True):
    """What a webhook asks for."""

    url: Annotated[Annotated[str, Meta(max_length=MAX_URL, extra_json_schema={"pattern": _URL})], REQUIRED] | None = None
    """Where events are sent: http or https, without user name and password."""
    secret: Annotated[str, Meta(max_length=MAX_SECRET)] | None = None
    """`whsec_` and base64, or plain text; signs deliveries as the Standard Webhooks specification says."""
    events: (
        Annotated[list[Annotated[str, Meta(extra_json_schema={"enum": _GLOBS})]], Meta(min_length=1, max_length=MAX_GLOBS)]
        | None
    ) = None
    """Globs over the names of events, such as `thread.*`; `model.*` unless said."""


def read_webhook(raw: dict[str, Any]) -> Subscription:
    """Check the body of createWebhook.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field; a secret is never shown.
    """
    body = convert({**raw, "secret": None}, WebhookBody)
    return read_subscription({"url": body.url, "secret": raw.get("secret"), "events": body.events})
