"""Who goes first, as a request says it: hostler's `priority`, or OpenAI's `service_tier`. Floor 5; pure."""

from __future__ import annotations

from typing import Literal

from hostler.domain import Priority

PriorityName = Literal["interactive", "normal", "batch"]

_TIERS = {"priority": Priority.INTERACTIVE, "flex": Priority.BATCH}
"""Of OpenAI's tiers those that ask for another place than the usual one."""


def read_priority(priority: PriorityName | None, service_tier: str | None = None) -> Priority:
    """The request's priority: its own word for it wins, an unknown tier is the usual one."""
    if priority is not None:
        return Priority(priority)
    return _TIERS.get(service_tier or "", Priority.NORMAL)
