"""The real model and the official client: answers in twenty schemas that nobody wrote, and in a Pydantic model."""

from __future__ import annotations

import json
import random
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

pytestmark = pytest.mark.weights

MODEL = "smol"
MAX_TOKENS = 600
WORDS = ("name", "colour", "size", "speed", "origin", "rating", "owner", "parts")


class Wheel(pydantic.BaseModel):
    diameter: int = pydantic.Field(ge=1, le=99)
    kind: Literal["steel", "wood"]


class Engine(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    is_steam: bool
    wheels: list[Wheel] = pydantic.Field(min_length=1, max_length=2)
    builder: str | None = pydantic.Field(max_length=20)


@pytest.fixture(scope="module")
def client(smollm2_server):
    with openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


def schema_of(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """Any schema whose answers are short: objects, arrays, enums, ranges, unions, optional properties."""
    kinds = ["string", "integer", "number", "boolean", "enum", "pattern", "union"]
    kind = "object" if depth == 0 else chance.choice([*kinds, "object", "array"] if depth < 3 else kinds)
    low = chance.randint(-50, 50)
    match kind:
        case "string":
            return {"type": "string", "maxLength": chance.randint(3, 12)}
        case "integer":
            return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 500)}
        case "number":
            return {"type": "number", "minimum": low, "maximum": low + 2.5, "multipleOf": 0.5}
        case "boolean":
            return {"type": "boolean"}
        case "enum":
            return {"enum": chance.sample(["red", "green", 3, 7.5, None, True, "a longer text"], 3)}
        case "pattern":
            return {"type": "string", "pattern": chance.choice(["^[A-Z]{2}[0-9]{3}$", "^(x|yz){1,3}$", "^[a-f]{4}-[0-9]$"])}
        case "union":
            return {"anyOf": [schema_of(chance, depth + 2), {"type": "null"}]}
        case "array":
            return {"type": "array", "items": schema_of(chance, depth + 1), "minItems": chance.randint(0, 2), "maxItems": 3}
    names = chance.sample(WORDS, chance.randint(1, 4))
    required = [name for name in names if chance.random() < 0.7]
    properties = {name: schema_of(chance, depth + 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_valid_by_a_schema_that_was_drawn(client: openai.OpenAI, seed: int) -> None:
    schema = schema_of(random.Random(seed))
    form: Any = {"type": "json_schema", "json_schema": {"name": "drawn", "schema": schema, "strict": True}}

    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe a locomotive as JSON."}],
        response_format=form,
        temperature=0.8,
        seed=seed,
        max_tokens=MAX_TOKENS,
    )

    (choice,) = answer.choices
    assert choice.finish_reason == "stop", choice.message.content
    jsonschema.validate(json.loads(choice.message.content or ""), schema)


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_official_clients_parse_gives_a_pydantic_model(client: openai.OpenAI, temperature: float) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe a locomotive."}],
        response_format=Engine,
        temperature=temperature,
        max_tokens=MAX_TOKENS,
    )

    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Engine)
    assert 1 <= len(parsed.wheels) <= 2


def test_the_official_clients_stream_helper_gives_the_same_model(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe a locomotive."}],
        response_format=Engine,
        temperature=0,
        max_tokens=MAX_TOKENS,
    ) as stream:
        final = stream.get_final_completion()

    assert isinstance(final.choices[0].message.parsed, Engine)
