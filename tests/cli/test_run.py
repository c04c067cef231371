"""The conversation that `hostler run` keeps, against a scripted API."""

from __future__ import annotations

import click
import pytest

from hostler.cli.run import Chat, ensure_here, read_turn, show_speed, talk


def piece(text):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


END = [
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
]


class ScriptedClient:
    """Answers each request with the next script: events, or exceptions to raise among them."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.bodies = []
        self.n_closed = 0

    def stream(self, path, body):
        self.bodies.append({**body, "messages": [dict(message) for message in body["messages"]]})
        try:
            for event in self.scripts.pop(0):
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.n_closed += 1


def lines(*texts):
    """Stands for input(): gives the texts, then the end; exceptions among them are raised."""
    left = list(texts)

    def read(prompt):
        if not left:
            raise EOFError
        text = left.pop(0)
        if isinstance(text, BaseException):
            raise text
        return text

    return read


def test_answer_is_printed_as_it_comes_and_both_turns_are_kept(capsys):
    client = ScriptedClient([piece("Hel"), piece("lo"), *END])
    chat = Chat(client, "m", "Be brief.", {"seed": 1})

    assert chat.answer("Hi")

    assert capsys.readouterr().out == "Hello\n"
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == "Hello"
    assert client.bodies[0]["seed"] == 1
    assert client.bodies[0]["stream"] is True


def test_next_turn_sends_the_turns_before_it():
    client = ScriptedClient([piece("one"), *END], [piece("two"), *END])

    talk(Chat(client, "m", None, {}), lines("first", "second", "/bye", "never"))

    contents = [message["content"] for message in client.bodies[1]["messages"]]
    assert contents == ["first", "one", "second"]


def test_ctrl_c_ends_the_answer_hangs_up_and_leaves_the_conversation_usable():
    client = ScriptedClient([piece("half"), KeyboardInterrupt(), piece("never")], [piece("whole"), *END])
    chat = Chat(client, "m", None, {})

    talk(chat, lines("first", "second"))

    assert client.n_closed == 2
    assert [message["content"] for message in chat.messages] == ["first", "half", "second", "whole"]


def test_ctrl_c_at_the_prompt_does_not_leave(capsys):
    client = ScriptedClient([piece("here"), *END])

    talk(Chat(client, "m", None, {}), lines(KeyboardInterrupt(), "still", EOFError()))

    assert capsys.readouterr().out.startswith("here")


def test_ctrl_c_before_the_first_text_forgets_the_question():
    client = ScriptedClient([KeyboardInterrupt()])
    chat = Chat(client, "m", None, {})

    assert chat.answer("Hi") is False
    assert chat.messages == []


def test_failed_answer_is_shown_and_the_conversation_goes_on_without_it(capsys):
    client = ScriptedClient([click.ClickException("too long")], [piece("fine"), *END])
    chat = Chat(client, "m", None, {})

    talk(chat, lines("bad", "good"))

    assert "too long" in capsys.readouterr().err
    assert [message["content"] for message in chat.messages] == ["good", "fine"]


def test_clear_forgets_all_but_the_system_text():
    client = ScriptedClient([piece("one"), *END])
    chat = Chat(client, "m", "Be brief.", {})

    talk(chat, lines("first", "/clear"))

    assert [message["content"] for message in chat.messages] == ["Be brief."]


def test_unknown_slash_word_is_not_sent_to_the_model(capsys):
    client = ScriptedClient()

    talk(Chat(client, "m", None, {}), lines("/nope", "", "/help"))

    err = capsys.readouterr().err
    assert "/nope" in err
    assert "/clear" in err
    assert client.bodies == []


@pytest.mark.parametrize(
    ("typed", "turn"),
    [(("a",), "a"), (('"""a', "b", 'c"""'), "a\nb\nc"), (('"""', "  b", '"""'), "\n  b\n"), (('"""a"""',), "a")],
)
def test_three_quotes_enclose_several_lines(typed, turn):
    assert read_turn(lines(*typed)) == turn


def test_speed_leaves_the_first_token_to_the_prefill():
    timings = {"prompt_n": 10, "cached_n": 5, "prompt_ms": 100.0, "predicted_n": 11, "predicted_ms": 1000.0}

    assert show_speed({"timings": timings}) == "15 prompt tokens (5 cached) in 100 ms, 11 new, 10.0 tokens/s"
    assert "tokens/s" not in show_speed({"timings": {**timings, "predicted_n": 1, "predicted_ms": 0.0}})
    assert show_speed({"usage": {"prompt_tokens": 3, "completion_tokens": 2}}) == "3 prompt tokens, 2 new"


def test_model_that_is_here_is_not_downloaded():
    class Here:
        def get(self, path, **query):
            assert path == "/v1/models/org%2Fm"
            return {"id": "org/m", "lifecycle": "stopped"}

    assert ensure_here(Here(), "org/m") == "org/m"
