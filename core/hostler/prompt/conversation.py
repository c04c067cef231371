"""What every form of prompt needs of a conversation: plain dictionaries, one spelling of roles, folded system texts.

Floor 2; used in the worker's preparation thread. It knows no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hostler.domain import Message
from hostler.errors import InvalidRequest

ROLES = frozenset({"system", "user", "assistant", "tool"})


def as_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates know them: `developer` is `system`, tool calls have their arguments as objects.

    Raises:
        InvalidRequest: No message, or an unknown role; with the path.
    """
    if not messages:
        raise InvalidRequest("messages is empty; send at least one message", param="messages")
    return [_as_turn(message, index) for index, message in enumerate(messages)]


def _as_turn(message: Message, index: int) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if role not in ROLES:
        # A role goes into the prompt beside the control tokens, so only known ones may.
        raise InvalidRequest(
            f"messages[{index}].role is {message.role!r}; use system, developer, user, assistant or tool",
            param=f"messages[{index}].role",
        )
    content = message.content
    if content is None and not message.tool_calls:
        content = ""
    turn: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [_with_object_arguments(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _with_object_arguments(call: dict[str, Any]) -> dict[str, Any]:
    # On the wire arguments are JSON text; templates write `arguments | tojson`, which would quote a text once more.
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except msgspec.DecodeError:
        return call  # the model once wrote broken JSON; the template shows it as it was
    return {**call, "function": {**function, "arguments": arguments}}


def fold_system(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation for a model without a system role: each system text goes in front of the next user turn."""
    folded: list[dict[str, Any]] = []
    waiting: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            waiting.append(turn["content"] or "")
        elif turn["role"] == "user" and waiting:
            folded.append({**turn, "content": "\n\n".join([*waiting, turn["content"] or ""])})
            waiting = []
        else:
            folded.append(turn)
    if waiting:
        folded.append({"role": "user", "content": "\n\n".join(waiting)})
    return folded
