"""Chat templates: the Jinja source that a model's files carry, rendered in a sandbox.

Floor 2; used in the worker's preparation thread, which sets the time limit: a template is a stranger's program.
Rendering follows transformers' `apply_chat_template` (same environment options, globals and `tojson`), because that is
what models are trained and templates are tested with.

It must not know engines or the wire.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hostler.domain import Message
from hostler.errors import InvalidRequest
from hostler.prompt.conversation import as_turns, fold_system
from hostler.prompt.segments import ControlTexts, Marker, Prompt, strings_in

_RESERVED = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"})
"""Variables that are ours to set; a request that names one in its template arguments is told so."""
_MAX_BITS = 1 << 16
"""Whole numbers a template may compute; beyond, one operation could take minutes and hold the interpreter's lock."""


class TemplateRefusal(jinja2.TemplateError):
    """The template called raise_exception: its author's own words."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a limit on what one multiplication may make."""

    # PERF: only these two pass through call_binop; it also keeps the compiler from computing them ahead of time.
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, max_length: int) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation], cache_size=0
        )
        self._max_length = max_length
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise SecurityError(f"{operator} would make a number of {bits} bits")
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                is_repeat = isinstance(times, int) and isinstance(sequence, str | bytes | list | tuple)
                if is_repeat and len(sequence) * times > self._max_length:
                    raise SecurityError(f"* would make {len(sequence) * times} items")
        return super().call_binop(context, operator, left, right)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class ChatTemplate:
    """One model's template. One thread at a time."""

    def __init__(
        self,
        source: str,
        *,
        bos_text: str = "",
        eos_text: str = "",
        special_texts: Sequence[str] = (),
        max_prompt_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        """Nothing is compiled yet: the first `render` does that, so that its time limit covers it.

        Args:
            source: Jinja.
            special_texts: Texts of control tokens, which stay text inside a user's message.
            max_prompt_bytes: Longest prompt, UTF-8.
        """
        self._source = source
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        self._controls = ControlTexts(special_texts)
        self._max_bytes = max_prompt_bytes
        self._compiled: jinja2.Template | None = None

    def render(
        self, messages: Sequence[Message], template_kwargs: dict[str, Any] | None = None, *, folds_system: bool = True
    ) -> Prompt:
        """Turn a conversation into a prompt that asks for the assistant's next turn.

        A template that refuses a conversation with system messages gets it once more with the system texts in front of
        the user's, unless `folds_system` is false.

        Raises:
            InvalidRequest: The template is broken, refuses the messages (with its own words), or makes too much.
        """
        kwargs = template_kwargs or {}
        for name in kwargs:
            if name in _RESERVED:
                raise InvalidRequest(
                    f"chat_template_kwargs sets {name!r}, which hostler sets itself; leave it out",
                    param=f"chat_template_kwargs.{name}",
                )
        turns = as_turns(messages)
        try:
            try:
                return self._render(turns, kwargs)
            except TemplateRefusal as refusal:
                if not folds_system or not any(turn["role"] == "system" for turn in turns):
                    raise
                try:
                    return self._render(fold_system(turns), kwargs)
                except TemplateRefusal:
                    raise refusal from None
        except TemplateRefusal as refusal:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {refusal.message}", param="messages"
            ) from refusal
        except jinja2.TemplateSyntaxError as error:
            raise InvalidRequest(
                f"The model's chat template is not valid Jinja: line {error.lineno}: {error.message}; "
                f"set prompt_template in the model's settings to use another",
                param="settings.prompt_template",
            ) from error
        except InvalidRequest:
            raise
        except Exception as error:  # a stranger's program may raise anything
            raise InvalidRequest(
                f"The model's chat template fails on these messages: {type(error).__name__}: {error}", param="messages"
            ) from error

    def _render(self, turns: list[dict[str, Any]], kwargs: dict[str, Any]) -> Prompt:
        if self._compiled is None:
            self._compiled = _Environment(self._max_bytes).from_string(self._source)
        texts = [text for turn in turns for key, value in turn.items() if key != "role" for text in strings_in(value)]
        marker = Marker(self._controls, [*texts, *strings_in(kwargs)], self._source)
        marked_turns = [{**marker.marked(turn), "role": turn["role"]} for turn in turns]
        pieces = []
        size = 0
        variables = {
            **marker.marked(kwargs), **self._tokens,
            "messages": marked_turns, "tools": None, "documents": None, "add_generation_prompt": True,
        }  # fmt: skip
        for piece in self._compiled.generate(variables):
            size += len(piece)
            if size > self._max_bytes:
                break
            pieces.append(piece)
        text = "".join(pieces)
        if size > self._max_bytes or len(text.encode("utf-8", "replace")) > self._max_bytes:
            raise InvalidRequest(
                f"The chat template makes a prompt of over {self._max_bytes} bytes of these messages; shorten them",
                param="messages",
            )
        return Prompt(marker.segments(text))
