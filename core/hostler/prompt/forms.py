"""Jan's prompt forms: a conversation without Jinja, from texts in front of each turn (spec/API.md 5.0).

Floor 2; used in the worker's preparation thread, `parse_prompt_template` also in the host, to refuse a bad setting
early. Behaviour follows Jan's splitting of `prompt_template` and Nitro's concatenation (janhq/nitro,
controllers/llamaCPP.cc): the system text goes first, nothing is put between turns, and the answer ends where a user's
turn would begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hostler.domain import Message
from hostler.errors import InvalidRequest
from hostler.prompt.conversation import as_turns, fold_system
from hostler.prompt.segments import ControlTexts, Marker, Prompt, strings_in

SYSTEM_MARKER = "{system_message}"
PROMPT_MARKER = "{prompt}"


@dataclass(frozen=True)
class PromptForm:
    """The texts around the turns."""

    pre_prompt: str = ""
    """Before everything but the system text."""
    system_prompt: str | None = "SYSTEM: "
    """None: there is no place for a system text; it goes in front of the user's."""
    user_prompt: str = "USER: "
    ai_prompt: str = "ASSISTANT: "
    is_system_required: bool = False
    """The user's text closes the system's turn, so the turn must be there, if empty."""

    def render(
        self, messages: Sequence[Message], special_texts: Sequence[str] = (), max_prompt_bytes: int = 32 * 1024 * 1024
    ) -> Prompt:
        """Turn a conversation into a prompt that asks for the assistant's next turn.

        Raises:
            InvalidRequest: A tool message, for which these forms have no place, or too much text.
        """
        turns = as_turns(messages)
        for index, turn in enumerate(turns):
            if turn["role"] == "tool":
                raise InvalidRequest(
                    "This model's prompt form has no place for tool messages; set a chat template that has",
                    param=f"messages[{index}].role",
                )
        if self.system_prompt is None:
            turns = fold_system(turns)
        marker = Marker(ControlTexts(special_texts), [text for turn in turns for text in strings_in(turn)], str(self))
        system = "\n\n".join(marker.marked(turn["content"] or "") for turn in turns if turn["role"] == "system")
        has_system = any(turn["role"] == "system" for turn in turns)
        pieces = []
        if self.system_prompt is not None and (has_system or self.is_system_required):
            pieces += [self.system_prompt, system]
        pieces.append(self.pre_prompt)
        for turn in turns:
            if turn["role"] != "system":
                front = self.user_prompt if turn["role"] == "user" else self.ai_prompt
                pieces += [front, marker.marked(turn["content"] or "")]
        pieces.append(self.ai_prompt)
        text = "".join(pieces)
        if len(text.encode("utf-8", "replace")) > max_prompt_bytes:
            raise InvalidRequest(f"The prompt is over {max_prompt_bytes} bytes; shorten the messages", param="messages")
        stop = self.user_prompt.strip()
        return Prompt(marker.segments(text), (stop,) if stop else ())


def parse_prompt_template(text: str) -> PromptForm:
    """Split the setting `prompt_template` at its markers.

    Raises:
        InvalidRequest: There is no `{prompt}`, or `{system_message}` comes after it.
    """
    before, found, after = text.partition(PROMPT_MARKER)
    if not found:
        raise InvalidRequest(
            f"prompt_template has no {PROMPT_MARKER} marker; write the text before the user's message, {PROMPT_MARKER}, "
            f"and the text that begins the answer",
            param="settings.prompt_template",
        )
    if SYSTEM_MARKER in after:
        raise InvalidRequest(
            f"prompt_template has {SYSTEM_MARKER} after {PROMPT_MARKER}; the system text must come first",
            param="settings.prompt_template",
        )
    system, found, user = before.partition(SYSTEM_MARKER)
    if not found:
        return PromptForm(system_prompt=None, user_prompt=before, ai_prompt=after)
    return PromptForm(system_prompt=system, user_prompt=user, ai_prompt=after, is_system_required=True)
