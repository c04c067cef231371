"""From a request to the body that an upstream gets, in the words that it knows.

Pure, on the engine thread. What OpenAI knows is sent under OpenAI's names. What hostler and llama.cpp know beside it is sent
where it differs from the default, as far as the kind of the upstream takes it; else it is refused, never dropped.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hostler import (
    SEED_RANDOM,
    FormatKind,
    InvalidRequest,
    Message,
    OutputFormat,
    Priority,
    RawPrompt,
    SamplingParams,
    UnsupportedParameter,
)
from hostler_remote.description import Description, Kind

CHAT = "/chat/completions"
COMPLETIONS = "/completions"
MAX_OPENAI_STOPS = 4
"""OpenAI takes no more; the worker looks for all of them anyway."""

FURTHER: dict[str, Any] = {
    "top_k": 0, "min_p": 0.0, "typ_p": 1.0, "min_keep": 0, "repeat_penalty": 1.0, "repeat_last_n": 64, "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "ignore_eos": False,
}  # fmt: skip
"""Parameters that OpenAI does not have -> the value that changes nothing."""
DEFAULTS = SamplingParams()

_ALL = {name: name for name in FURTHER}
_GPU_SERVERS = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty", "ignore_eos": "ignore_eos"}
NAMES: dict[Kind, dict[str, str]] = {
    "other": _ALL,
    "hostler": _ALL,
    "llamacpp": {**_ALL, "typ_p": "typical_p"},
    "vllm": _GPU_SERVERS,
    "sglang": _GPU_SERVERS,
    "ollama": {},
    "openai": {},
}
"""Kind -> what it takes of FURTHER, and the names there."""
KNOW_TEMPLATES = frozenset({"other", "hostler", "llamacpp", "vllm", "sglang"})
KNOW_CACHE_PROMPT = frozenset({"other", "hostler", "llamacpp"})
CUT_MAX_TOKENS = frozenset({"hostler", "llamacpp", "ollama"})
"""Kinds that cut an answer to what is left of the context instead of refusing it."""


_VLLM_FORMS = {
    FormatKind.REGEX: "structured_outputs.regex",
    FormatKind.CHOICE: "structured_outputs.choice",
    FormatKind.GBNF: "structured_outputs.grammar",
}
FORMS: dict[Kind, dict[FormatKind, str]] = {
    "other": {},
    "hostler": {**_VLLM_FORMS, FormatKind.LARK: "structured_outputs.grammar"},
    "llamacpp": {FormatKind.GBNF: "grammar"},
    "vllm": _VLLM_FORMS,
    "sglang": {FormatKind.REGEX: "regex"},
    "ollama": {},
    "openai": {},
}
"""Kind -> the forms beside JSON that it takes, and where in the body."""
FORMS_IN_COMPLETIONS = frozenset({"hostler", "vllm", "sglang"})
"""Kinds that take response_format for a plain prompt, too."""


class Call(msgspec.Struct, frozen=True):
    """One request, ready to be sent."""

    path: str
    body: dict[str, Any]
    wants_logprobs: bool
    max_tokens: int
    max_tokens_field: str

    @property
    def is_chat(self) -> bool:
        """Its answer has deltas of messages, not of text."""
        return self.path == CHAT

    def encoded(self, *, has_limit: bool = True) -> bytes:
        """The body as JSON.

        Args:
            has_limit: False: let the upstream fill what is left of its context.
        """
        body = self.body if has_limit else {name: self.body[name] for name in self.body if name != self.max_tokens_field}
        return msgspec.json.encode(body)


def call_of(
    raw: RawPrompt,
    params: SamplingParams,
    description: Description,
    *,
    cache_prompt: bool = True,
    priority: Priority = Priority.NORMAL,
) -> Call:
    """Put a request into the upstream's words.

    Priority and pins are wishes about time that change no answer: who does not know them is not told.

    Raises:
        InvalidRequest: The model only embeds.
        UnsupportedParameter: The upstream would not honour a field.
    """
    if not description.chat:
        raise InvalidRequest("This model writes no text, it only gives embeddings (POST /v1/embeddings)", param="model")
    is_chat = raw.messages is not None
    is_hostler = description.kind == "hostler" and not description.strict
    # An older completion has one field for all of OpenAI's upstreams; only chats have moved on.
    limit = description.max_tokens_field if is_chat else "max_tokens"
    body: dict[str, Any] = {
        "model": description.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": params.temperature,
        "top_p": params.top_p,
        limit: params.max_tokens,
    }
    if raw.messages is not None:
        body["messages"] = [_message(message, knows_pins=is_hostler) for message in raw.messages]
    else:
        body["prompt"] = raw.prompt
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(params, name):
            body[name] = getattr(params, name)
    if params.seed != SEED_RANDOM:
        body["seed"] = params.seed
    if params.stop:
        body["stop"] = params.stop[:MAX_OPENAI_STOPS] if description.kind == "openai" else params.stop
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    if params.logprobs is not None:
        body |= _logprobs(params.logprobs, is_chat=is_chat)
    body |= _further(params, description)
    if params.output_format is not None:
        body |= _form(params.output_format, description, is_chat=is_chat)
    if raw.template_kwargs:
        _refuse_unless(description, KNOW_TEMPLATES, "chat_template_kwargs", raw.template_kwargs)
        body["chat_template_kwargs"] = raw.template_kwargs
    if not cache_prompt:
        _refuse_unless(description, KNOW_CACHE_PROMPT, "cache_prompt", cache_prompt)
        body["cache_prompt"] = False
    if is_hostler and priority is not Priority.NORMAL:
        body["priority"] = priority
    return Call(CHAT if is_chat else COMPLETIONS, body, params.logprobs is not None, params.max_tokens, limit)


def _message(message: Message, *, knows_pins: bool) -> dict[str, Any]:
    """A turn as OpenAI's API has it; a pin under the name that another hostler knows."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    if fields.pop("is_pinned", False) and knows_pins:
        fields["cache"] = "pin"
    return fields


def _logprobs(n_top: int, *, is_chat: bool) -> dict[str, Any]:
    if not is_chat:
        return {"logprobs": n_top}
    return {"logprobs": True, "top_logprobs": n_top} if n_top else {"logprobs": True}


def _form(form: OutputFormat, description: Description, *, is_chat: bool) -> dict[str, Any]:
    """The form of the answer as the upstream says it; it is the upstream that holds to it."""
    if form.kind in (FormatKind.JSON_OBJECT, FormatKind.JSON_SCHEMA):
        if not is_chat and (description.strict or description.kind not in FORMS_IN_COMPLETIONS):
            raise _unsupported(description, form.param, form.kind)
        if form.kind is FormatKind.JSON_OBJECT:
            return {"response_format": {"type": "json_object"}}
        schema: dict[str, Any] = {"name": form.name or "answer", "schema": msgspec.json.decode(form.source)}
        if form.description:
            schema["description"] = form.description
        if form.is_strict is not None:
            schema["strict"] = form.is_strict
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    path = "" if description.strict else FORMS[description.kind].get(form.kind, "")
    if not path:
        raise _unsupported(description, form.param, form.source)
    value = msgspec.json.decode(form.source) if form.kind is FormatKind.CHOICE else form.source
    outer, _, inner = path.partition(".")
    return {outer: {inner: value} if inner else value}


def _further(params: SamplingParams, description: Description) -> dict[str, Any]:
    names = {} if description.strict else NAMES[description.kind]
    found = {}
    for name, neutral in FURTHER.items():
        value = getattr(params, name)
        if value == getattr(DEFAULTS, name):
            continue
        if name in names:
            found[names[name]] = value
        elif value != neutral:
            raise _unsupported(description, name, value)
    return found


def _refuse_unless(description: Description, kinds: frozenset[str], name: str, value: Any) -> None:
    if description.strict or description.kind not in kinds:
        raise _unsupported(description, name, value)


def _unsupported(description: Description, name: str, value: Any) -> UnsupportedParameter:
    why = "is strict" if description.strict else f"is of kind {description.kind}, which does not take it"
    return UnsupportedParameter(
        f"{name} is {value!r}, and the upstream of this model {why}; leave it at its default", param=name
    )
