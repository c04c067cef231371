"""The body of `POST /completions`. Source: spec/API.md section 7 and OpenAI's legacy completions. Floor 5; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from hostler.api.schema.chat import Choices, LogitBias, StreamOptions
from hostler.api.schema.convert import convert, required
from hostler.api.schema.forms import FormFields, read_form
from hostler.api.schema.marks import REQUIRED, exactly, rule
from hostler.api.schema.priority import PriorityName, read_priority
from hostler.api.schema.sampling import read_logit_bias, read_parameters
from hostler.domain import OutputFormat, Priority
from hostler.errors import InvalidRequest, UnsupportedParameter
from hostler.library.sampling import LARGEST

DEFAULT_MAX_TOKENS = 16
"""OpenAI's; the model's own limit is for chats."""
MAX_LOGPROBS = 5
MAX_PROMPTS = 2048

TokenId = Annotated[int, Meta(ge=0, le=LARGEST)]
Prompt = str | tuple[int, ...]


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": LARGEST}}
_TEXT_OR_IDS = {
    "anyOf": [
        {"type": "string"},
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"anyOf": [{"type": "string"}, _IDS]}},
    ]
}


@rule({"properties": {"best_of": {"type": "null"}}}, {"properties": {"n": {"enum": [1, "1", None]}}})
@rule(
    {"properties": {"echo": {"enum": [False, 0, "0", "false", None]}}},
    {
        "properties": {
            "logprobs": {"type": "null"},
            "prompt": {"type": ["string", "array"], "items": {"type": "string"}},
        }
    },
)
class CompletionBody(FormFields):
    """Everything but the sampling fields."""

    model: Annotated[str | None, REQUIRED] = None
    prompt: Annotated[str | list[str | TokenId | list[TokenId]] | None, REQUIRED, exactly(_TEXT_OR_IDS)] = None
    suffix: Annotated[str | None, exactly({"enum": ["", None]})] = None
    echo: bool | None = None
    best_of: Annotated[int | None, exactly({"enum": [1, "1", None], "description": "Only what `n` is."})] = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    logit_bias: LogitBias | None = None
    cache_prompt: bool | None = None
    priority: PriorityName | None = None
    service_tier: str | None = None


class CompletionCall(Struct, frozen=True):
    """A completion request that makes sense."""

    model: str
    prompts: tuple[Prompt, ...]
    parameters: dict[str, Any]
    """Sampling fields of the request, native, without `stream`."""
    is_stream: bool
    include_usage: bool
    n: int
    logprobs: int | None
    logit_bias: dict[int, float]
    output_format: OutputFormat | None
    is_echo: bool
    cache_prompt: bool
    priority: Priority


def read_completion(raw: dict[str, Any]) -> CompletionCall:
    """Check a body.

    Raises:
        InvalidRequest, MissingParameter, UnsupportedParameter: With the path of the field.
    """
    body = convert(raw, CompletionBody)
    parameters = read_parameters(raw)
    model = required(body.model, "model", "name one that GET /v1/models lists")
    prompts = _prompts(required(body.prompt, "prompt"))
    n = body.n or 1
    if body.suffix:
        raise UnsupportedParameter("suffix is not supported: this server does not fill in the middle", param="suffix")
    if body.best_of is not None and body.best_of != n:
        raise UnsupportedParameter(f"best_of is {body.best_of} and n is {n}; only equal values are supported", param="best_of")
    if body.echo:
        _check_echo(body, prompts)
    return CompletionCall(
        model=model,
        prompts=prompts,
        parameters=parameters,
        is_stream=parameters.pop("stream", False),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        n=n,
        logprobs=body.logprobs,
        logit_bias=read_logit_bias(body.logit_bias),
        output_format=read_form(body),
        is_echo=bool(body.echo),
        cache_prompt=body.cache_prompt is not False,
        priority=read_priority(body.priority, body.service_tier),
    )


def _prompts(prompt: str | Sequence[str | int | list[int]]) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise InvalidRequest("prompt is an empty array; give a string, strings, token ids or arrays of them", param="prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return (tuple(ids),)
    if ids:
        raise InvalidRequest("prompt mixes token ids with strings or arrays; send one kind", param="prompt")
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt holds {len(prompt)} prompts; at most {MAX_PROMPTS} are allowed", param="prompt")
    found: list[Prompt] = []
    for index, item in enumerate(prompt):
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list) and item:
            found.append(tuple(item))
        else:
            raise InvalidRequest(f"prompt[{index}] is empty; a prompt needs at least one token", param=f"prompt[{index}]")
    return tuple(found)


def _check_echo(body: CompletionBody, prompts: tuple[Prompt, ...]) -> None:
    if body.logprobs is not None:
        raise UnsupportedParameter("echo with logprobs is not supported: prompts have no log probabilities here", param="echo")
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise UnsupportedParameter("echo of token ids is not supported; send the prompt as text", param="echo")
