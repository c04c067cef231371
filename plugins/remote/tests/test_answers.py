"""Chunks of an upstream's answer: OpenAI's two forms, and what other servers make of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from hostler import EngineFailed, FinishReason, Message, RawPrompt, SamplingParams, UnsupportedParameter, Usage
from hostler_remote.answers import Piece, Reading, UpstreamError
from hostler_remote.description import Description
from hostler_remote.dialect import call_of

DESCRIPTION = Description(url="https://api.example/v1", model="m")


def reading(*, is_chat: bool = True, logprobs: int | None = None) -> Reading:
    raw = RawPrompt(messages=(Message("user", "Hi."),)) if is_chat else RawPrompt(prompt="Hi.")
    return Reading(call_of(raw, SamplingParams(logprobs=logprobs), DESCRIPTION))


def take(reader: Reading, **chunk: Any) -> list[bytes | Piece]:
    return list(reader.take(json.dumps(chunk).encode()))


def delta(reader: Reading, **fields: Any) -> list[bytes | Piece]:
    choice = {name: fields.pop(name) for name in ("finish_reason", "logprobs") if name in fields}
    return take(reader, choices=[{"index": 0, "delta": fields, **choice}])


def test_a_chat_gives_its_contents_and_its_end() -> None:
    reader = reading()

    assert delta(reader, role="assistant", content="") == []
    assert delta(reader, content="Hi") == [b"Hi"]
    assert delta(reader, content="", finish_reason="length") == []
    assert take(reader, choices=[], usage={"prompt_tokens": 3, "completion_tokens": 1}) == []
    assert list(reader.take(b"[DONE]")) == []
    assert reader.is_done
    assert (reader.ending().reason, reader.ending().usage) == (FinishReason.LENGTH, Usage(3, 1, 0))


def test_an_empty_finish_reason_is_none() -> None:
    reader = reading()

    assert delta(reader, content="a", finish_reason="") == [b"a"]
    assert reader.reason is None


def test_log_probabilities_with_gaps_do_no_harm() -> None:
    entries = [{"token": "a", "logprob": None, "bytes": None, "top_logprobs": None}]

    (piece,) = delta(reading(logprobs=0), content="a", logprobs={"content": entries})

    assert isinstance(piece, Piece)
    assert (piece.logprob.logprob, piece.logprob.top) == (0.0, ())


def test_a_refusal_is_what_it_says() -> None:
    assert delta(reading(), refusal="I cannot.") == [b"I cannot."]


def test_fields_that_nobody_knows_do_no_harm() -> None:
    chunk = {"id": 1, "x": {}, "choices": [{"index": 0, "delta": {"content": "a", "y": 1}, "stop_reason": 3}], "usage": None}

    assert take(reading(), **chunk) == [b"a"]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_closed_where_the_answer_begins_or_ends(name: str) -> None:
    reader = reading()

    assert delta(reader, **{name: "Hm"}) == [b"<think>\nHm"]
    assert delta(reader, **{name: "m"}) == [b"m"]
    assert delta(reader, content="So", **{name: None}) == [b"\n</think>\n\n", b"So"]
    only = reading()
    delta(only, **{name: "Hm"})
    assert delta(only, finish_reason="length") == [b"\n</think>\n\n"]


def test_legacy_log_probabilities_become_the_same_values() -> None:
    logprobs = {
        "tokens": [" a", "bytes:\\xf0\\x9f"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{" b": -1.0, " a": -0.5}, None],
        "text_offset": [0, 2],
    }

    first, second = take(reading(is_chat=False, logprobs=2), choices=[{"text": " a\ufffd", "logprobs": logprobs}])

    assert isinstance(first, Piece)
    assert isinstance(second, Piece)
    assert (first.logprob.token, first.logprob.logprob) == (b" a", -0.5)
    assert [(top.token, top.logprob) for top in first.logprob.top] == [(b" a", -0.5), (b" b", -1.0)]
    assert (second.logprob.token, second.logprob.logprob, second.logprob.top) == (b"\xf0\x9f", 0.0, ())
    assert first.text + second.text == " a\ufffd".encode(), "the text is what the upstream says it is"


def test_tokens_that_are_the_text_are_pieces_of_it() -> None:
    entries = [{"token": "He", "logprob": -0.1}, {"token": "y", "logprob": -0.2}]

    pieces = delta(reading(logprobs=0), content="Hey", logprobs={"content": entries})

    assert [piece.text for piece in pieces if isinstance(piece, Piece)] == [b"He", b"y"]


def test_tokens_whose_text_is_held_back_come_all_the_same() -> None:
    entries = [{"token": "<", "logprob": -0.1}]

    (piece,) = delta(reading(logprobs=0), content="", logprobs={"content": entries})

    assert isinstance(piece, Piece)
    assert (piece.text, piece.logprob.token) == (b"", b"<")


@pytest.mark.parametrize("logprobs", [None, {"content": None}, {"content": []}])
def test_text_without_the_log_probabilities_that_were_asked_for_is_refused(logprobs: Any) -> None:
    with pytest.raises(UnsupportedParameter):
        delta(reading(logprobs=0), content="Hi", logprobs=logprobs)


def test_an_error_in_the_stream_is_one() -> None:
    with pytest.raises(UpstreamError) as caught:
        take(reading(), error={"message": "no"})

    assert caught.value.error == {"message": "no"}


@pytest.mark.parametrize("reason", ["content_filter", "abort", "error"])
def test_an_end_that_is_none_is_an_error(reason: str) -> None:
    with pytest.raises(EngineFailed, match=reason):
        delta(reading(), finish_reason=reason)


@pytest.mark.parametrize("reason", ["stop", "eos_token", "end_turn"])
def test_every_other_end_is_the_models_own(reason: str) -> None:
    reader = reading()
    delta(reader, finish_reason=reason)

    assert reader.reason is FinishReason.STOP


@pytest.mark.parametrize("payload", [b"", b"{", b"7", b'{"choices": 7}', b'{"choices":[{"delta":{"content":[]}}]}', b"\xff"])
def test_what_is_no_chunk_is_found_out(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        list(reading().take(payload))


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(5, 2, 5)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(5, 2, 0)),
        ({"prompt_tokens": 5}, None),
        ({"prompt_tokens": -5, "completion_tokens": -1}, Usage(0, 0, 0)),
    ],
)
def test_usage_is_taken_as_far_as_it_makes_sense(usage: dict[str, Any], expected: Usage | None) -> None:
    reader = reading()
    take(reader, choices=[], usage=usage)
    delta(reader, finish_reason="stop")

    assert reader.ending().usage == expected
