"""A line in the server's log for each event of a model, with the event's id, so that the log and `GET /v1/events` can be read
side by side.

Floor 2; a plugin as any other, the first user of `register_events`. `note` runs on its listener's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hostler.hookspecs import hookimpl
from hostler.listening import Event, ListenerSpec

log = logging.getLogger("hostler.journal")


@hookimpl
def register_events() -> Iterable[ListenerSpec]:
    """One listener."""
    return (ListenerSpec("hostler.journal:note", ("model.*",)),)


def note(event: Event) -> None:
    """Write the line: `model.running smollm2 (event 7)`, after a failure with its reason."""
    reason = event.data.get("last_error")
    log.info(
        "%s %s (event %d)%s", event.name, event.subject, event.id, f": {reason}" if reason else "",
        extra={"event": event.name, "event_id": event.id, "model": event.subject},
    )  # fmt: skip
