"""What is said comes back whole: characters of several tokens in streams, and as many tokens as were asked for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

TEXT = "🚂 機関車が夜の車庫で眠る。👩‍🚒 기관차 Ð ́é"
COUNTS = [1, 2, 33]


def spoken(http: httpx.Client, model: str, path: str, body: dict[str, Any]) -> list[str]:
    """The pieces of a stream, each as it came."""
    pieces = []
    with http.stream("POST", path, json={"model": model, "stream": True, "max_tokens": 200, **body}) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    pieces.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
    return pieces


def test_emoji_and_cjk_come_back_whole_in_an_answer(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="Say: ", max_tokens=200, extra_body={"guided_choice": [TEXT]})

    assert answer.choices[0].text == TEXT


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/completions", {"prompt": "Say: "}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
    ],
    ids=["completion", "chat"],
)
def test_no_piece_of_a_stream_ends_inside_a_character(
    http: httpx.Client, model: str, path: str, prompt: dict[str, Any]
) -> None:
    """The tiny models have no tokens for these characters, so each is made byte by byte.

    What is made while a client is not looking comes in one piece; among several streams some come in many.
    """
    streams = [spoken(http, model, path, {**prompt, "guided_choice": [TEXT]}) for _ in range(5)]

    assert ["".join(pieces) for pieces in streams] == [TEXT] * 5
    assert max(len([piece for piece in pieces if piece]) for pieces in streams) > 1


@pytest.mark.parametrize("n_tokens", COUNTS)
def test_an_answer_that_may_not_end_has_exactly_the_tokens_asked_for(client: openai.OpenAI, model: str, n_tokens: int) -> None:
    answer = client.completions.create(
        model=model, prompt="Hello", max_tokens=n_tokens, temperature=1.5, n=3, extra_body={"ignore_eos": True}
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * n_tokens
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 3
