"""Short ways to write and to read messages, for tests of records and of what stands on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hostler.records.objects import Message, NewMessage, Run, Text, TextPart


def says(words: str, role: Any = "user", **fields: Any) -> NewMessage:
    """A message of one text."""
    return NewMessage(role=role, content=[TextPart(Text(words))], **fields)


def words_of(messages: Iterable[Message]) -> list[str]:
    """The texts of messages, each of one part."""
    return [message.content[0].text.value for message in messages]


def run_of(thread_id: str, id: str = "run_1", **fields: Any) -> Run:
    """A run that waits for its turn."""
    known: dict[str, Any] = {"assistant_id": "jan", "status": "queued", "model": "smollm2", "instructions": ""}
    return Run(id, fields.pop("created_at", 1), 1, thread_id, **{**known, **fields})
