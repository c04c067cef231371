"""The body of `POST /embeddings` and its answer. Source: spec/API.md section 7 and OpenAI's embeddings. Floor 5; pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from hostler.api.schema.convert import convert, required
from hostler.api.schema.marks import REQUIRED, exactly
from hostler.api.schema.priority import PriorityName, read_priority
from hostler.domain import EmbedResult, Priority
from hostler.errors import InvalidRequest
from hostler.library.sampling import LARGEST

MAX_INPUTS = 2048
"""OpenAI's."""

TokenId = Annotated[int, Meta(ge=0, le=LARGEST)]
Input = str | tuple[int, ...]

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_TOKENS: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": LARGEST}}
_INPUT_SCHEMA: dict[str, Any] = {
    "description": "A text, texts, token ids, or arrays of them; none of them empty.",
    "anyOf": [
        _TEXT,
        {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": _TEXT},
        _TOKENS,
        {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": _TOKENS},
    ],
}
AnyInput = Annotated[str | list[str | TokenId | list[TokenId]], exactly(_INPUT_SCHEMA)]


class EmbeddingBody(Struct):
    """All that is understood; `user` is accepted and ignored, as every other field."""

    model: Annotated[str | None, REQUIRED] = None
    input: Annotated[AnyInput | None, REQUIRED] = None
    encoding_format: Literal["float", "base64"] | None = None
    """`base64`: little-endian float32."""
    dimensions: Annotated[int, Meta(ge=1, le=LARGEST)] | None = None
    """The model's own number; another one is refused, for vectors are not shortened."""
    user: str | None = None
    priority: PriorityName | None = None


class EmbeddingCall(Struct, frozen=True):
    """A request for embeddings that makes sense."""

    model: str
    inputs: tuple[Input, ...]
    is_single: bool
    """One input that did not stand in an array: errors call it `input`, not `input[0]`."""
    is_base64: bool
    dimensions: int | None
    priority: Priority


class EmbeddingItem(Struct, frozen=True, forbid_unknown_fields=True):
    """The vector of one input; its length is 1."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or with `encoding_format: base64` their float32, little-endian."""


class EmbeddingUsage(Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens of all inputs, those that the model puts around each included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, frozen=True, forbid_unknown_fields=True):
    """One vector for each input, in the inputs' order."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


def read_embeddings(raw: dict[str, Any]) -> EmbeddingCall:
    """Check a body.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field.
    """
    body = convert(raw, EmbeddingBody)
    model = required(body.model, "model", "name one that GET /v1/models lists")
    inputs, is_single = _inputs(required(body.input, "input", "send a text, texts, or token ids"))
    priority = read_priority(body.priority)
    return EmbeddingCall(model, inputs, is_single, body.encoding_format == "base64", body.dimensions, priority)


def _inputs(value: str | Sequence[str | int | list[int]]) -> tuple[tuple[Input, ...], bool]:
    if isinstance(value, str):
        if not value:
            raise InvalidRequest("input is empty; send some text", param="input")
        return (value,), True
    if not value:
        raise InvalidRequest("input is an empty array; give a string, strings, token ids or arrays of them", param="input")
    ids = [item for item in value if isinstance(item, int)]
    if len(ids) == len(value):
        return (tuple(ids),), True
    if len(value) > MAX_INPUTS:
        raise InvalidRequest(f"input holds {len(value)} inputs; at most {MAX_INPUTS} are allowed", param="input")
    kinds = {type(item) for item in value}
    if len(kinds) > 1:
        raise InvalidRequest("input mixes strings, token ids and arrays of them; send one kind", param="input")
    for index, item in enumerate(value):
        if not item:
            raise InvalidRequest(
                f"input[{index}] is empty; an input needs some text or at least one token", param=f"input[{index}]"
            )
    return tuple(item if isinstance(item, str) else tuple(cast("list[int]", item)) for item in value), False


def render_embeddings(result: EmbedResult, model: str, *, is_base64: bool) -> bytes:
    """The answer's JSON. PERF: each vector is encoded at once, so that no more than one is a list of Python's numbers."""
    render = _in_base64 if is_base64 else _in_numbers
    items = [EmbeddingItem("embedding", index, render(vector)) for index, vector in enumerate(result.vectors)]
    usage = EmbeddingUsage(result.n_tokens, result.n_tokens)
    return msgspec.json.encode(EmbeddingList("list", model, items, usage))


def _in_numbers(vector: bytes) -> list[float]:
    numbers = struct.unpack(f"<{len(vector) // 4}f", vector)
    # For the encoder only, which takes these bytes for the list that they are.
    return cast("list[float]", msgspec.Raw(msgspec.json.encode(numbers)))


def _in_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
