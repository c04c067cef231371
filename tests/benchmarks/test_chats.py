"""Chats that go on with the real answers, and how much of what was said came out of the cache."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from answers import Reply
from chats import Chat, covered, measure, open_chats


def reply(n_prompt: int, n_cached: int, sent_s: float = 0.0, ttft_s: float = 0.1, text: str = "yes") -> Reply:
    """A finished answer of ten tokens."""
    arrival_s = [sent_s + ttft_s, sent_s + ttft_s + 1]
    return Reply(
        *(sent_s, arrival_s[-1], 200, arrival_s),
        text=text,
        prompt_tokens=n_prompt,
        completion_tokens=10,
        cached_tokens=n_cached,
        is_counted=True,
    )


def answered(one: Reply) -> Any:
    """What a script is sent."""
    return SimpleNamespace(reply=lambda: one)


def test_each_turn_sends_all_that_was_said_with_the_real_answers() -> None:
    chat = Chat(("x",), n_words=3)
    script = chat.turns("m", 3)

    first = next(script).body["messages"]
    second = script.send(answered(reply(20, 0, text="one"))).body["messages"]
    third = script.send(answered(reply(40, 0, text="two"))).body["messages"]

    assert [message["role"] for message in third] == ["user", "assistant", "user", "assistant", "user"]
    assert (third[1]["content"], third[3]["content"]) == ("one", "two")
    assert third[:3] == second
    assert second[:1] == first
    assert len({message["content"] for message in third}) == 5
    with pytest.raises(StopIteration):
        script.send(answered(reply(60, 0)))


def test_a_chat_goes_on_after_a_break_where_it_was() -> None:
    chat = Chat(("x",))
    before = chat.turns("m", 1)
    next(before)
    with pytest.raises(StopIteration):
        before.send(answered(reply(20, 0)))

    messages = next(chat.turns("m", 1)).body["messages"]

    assert [message["role"] for message in messages] == ["user", "assistant", "user"]


def test_a_turn_that_failed_ends_its_chat() -> None:
    chat = Chat(("x",))
    script = chat.turns("m", 3)
    next(script)

    with pytest.raises(StopIteration):
        script.send(answered(Reply(0.0, error="refused")))

    assert [one.error for one in chat.replies] == ["refused"]


def test_chats_of_one_round_begin_differently_and_like_those_of_the_other_server() -> None:
    def beginnings(*name: object) -> list[str]:
        return [next(chat.turns("m", 1)).body["messages"][0]["content"] for chat in open_chats(16, *name)]

    assert len(set(beginnings(1, "0")) | set(beginnings(1, "1"))) == 32
    assert beginnings(1, "0") == beginnings(1, "0")


@pytest.mark.parametrize(("n_cached", "share"), [(0, 0.0), (55, 0.5), (109, 109 / 110), (110, 1.0), (140, 1.0)])
def test_coverage_is_the_cached_share_of_all_said_before(n_cached: int, share: float) -> None:
    assert covered(reply(100, 0), reply(180, n_cached)) == pytest.approx(share)


def test_metrics_of_chats_tell_the_turn_after_the_break_apart() -> None:
    chats = [Chat(("a",), replies=[reply(100, 0), reply(180, 110), reply(260, 95, ttft_s=0.5)])]
    chats += [Chat(("b",), replies=[reply(100, 0), reply(180, 55), reply(260, 190, ttft_s=0.7)])]

    result = measure(chats, 10.0, n_before=2)

    assert result["new_tok_s"] == pytest.approx(6)
    assert result["covered"] == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert result["covered_after"] == pytest.approx(0.75)
    assert result["ttft_after"] == pytest.approx(600)
    assert result["errors"] == 0


def test_a_server_that_counts_nothing_has_no_coverage() -> None:
    replies = [reply(100, 0), reply(180, 0)]
    for one in replies:
        one.is_counted = False

    assert math.isnan(measure([Chat(("a",), replies=replies)], 1.0)["covered"])
