"""What a plugin's listener is: a function that hears of events, and which of them. Floor 2 (a leaf of it).

`hostler.listeners` calls it, on a thread of its own. Source of the events: spec/API.md section 10.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.subscription import DEFAULT_EVENTS


class Event(msgspec.Struct, frozen=True):
    """Something that happened; what webhooks and `GET /v1/events` tell, too."""

    id: int
    """Its place in the log of events; rises."""
    created: int
    """Unix seconds."""
    name: str
    """`model.running`, `thread.created`, ..."""
    subject: str
    """The id of the model, assistant or thread it is about; of a message its thread's."""
    data: dict[str, Any]
    """The object as the API shows it; after a deletion with `"deleted": true`."""


class ListenerSpec(msgspec.Struct, frozen=True):
    """What a plugin registers."""

    listener: str
    """`package.module:function`, imported when the first event comes; called with each Event, one at a time."""
    events: tuple[str, ...] = DEFAULT_EVENTS
    """Which events, as globs: `model.*`, `thread.created`, `*`."""
