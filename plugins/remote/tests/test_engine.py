"""The engine against a scripted upstream: what is sent and what comes back, cancellation, slow readers."""

from __future__ import annotations

import threading

import pytest

from hostler import (
    FinishReason,
    Message,
    RawPrompt,
    SamplingParams,
    UnsupportedParameter,
    Usage,
)

from .conftest import Asked, Load, chat, failed
from .scripted import MODEL, Exchange, ScriptedUpstream, say

# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_chat_is_sent_in_openais_words_and_its_answer_streamed(upstream: ScriptedUpstream, asked: Asked) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Hi."))

    sequence = asked.ask(raw=RawPrompt(messages=messages), params=SamplingParams(temperature=0.5, max_tokens=7, seed=3))

    assert (sequence.text, sequence.reason) == ("Hello there.", FinishReason.STOP)
    assert sequence.pieces == [b"Hello", b" there", b"."]
    assert sequence.usage == Usage(11, 3, 4)
    (sent,) = upstream.got
    assert (sent.method, sent.path) == ("POST", "/v1/chat/completions")
    assert sent.body == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.95,
        "max_tokens": 7,
        "seed": 3,
    }


@pytest.mark.parametrize("prompt", ["Once upon", (5, 6, 7)])
def test_a_plain_prompt_goes_to_completions_as_text_or_token_ids(
    upstream: ScriptedUpstream, asked: Asked, prompt: str | tuple[int, ...]
) -> None:
    sequence = asked.ask(raw=RawPrompt(prompt=prompt))

    assert sequence.text == "Hello there."
    assert upstream.got[0].path == "/v1/completions"
    assert upstream.got[0].body["prompt"] == (prompt if isinstance(prompt, str) else list(prompt))


def test_length_is_passed_on_and_usage_comes_from_the_last_chunk_that_has_it(
    upstream: ScriptedUpstream, asked: Asked
) -> None:
    upstream.manner = say("a", "b", reason="length", usage={"prompt_tokens": 9, "completion_tokens": 2})

    sequence = asked.ask()

    assert (sequence.reason, sequence.usage) == (FinishReason.LENGTH, Usage(9, 2, 0))


def test_without_usage_nothing_is_claimed_and_pieces_count(upstream: ScriptedUpstream, asked: Asked) -> None:
    upstream.manner = say("a", "b", usage=None)

    sequence = asked.ask()

    assert (sequence.usage, sequence.pieces) == (None, [b"a", b"b"])


def test_a_stop_string_is_sent_and_looked_for_all_the_same(upstream: ScriptedUpstream, asked: Asked) -> None:
    hang_ups: list[Exchange] = []

    def go_past_it(exchange: Exchange) -> None:
        exchange.begin()
        exchange.text("one two E")
        exchange.text("ND three")
        hang_ups.append(exchange)
        exchange.wait_for_hang_up()

    upstream.manner = go_past_it

    sequence = asked.ask(params=SamplingParams(stop=("END",)))

    assert upstream.got[0].body["stop"] == ["END"]
    assert (sequence.text, sequence.stop_string, sequence.reason) == ("one two ", "END", FinishReason.STOP)
    assert hang_ups[0].has_hung_up.wait(30), "the upstream was left talking"


def test_an_answer_that_comes_whole_is_understood(upstream: ScriptedUpstream, asked: Asked) -> None:
    upstream.manner = lambda exchange: exchange.answer(
        200,
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "All at once."}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 4},
        },
    )

    sequence = asked.ask()

    assert (sequence.text, sequence.usage) == ("All at once.", Usage(2, 4))


def test_reasoning_comes_as_models_here_write_it(upstream: ScriptedUpstream, asked: Asked) -> None:
    def think(exchange: Exchange) -> None:
        exchange.begin()
        for delta in ({"reasoning_content": "Well"}, {"reasoning_content": "..."}, {"content": "Yes."}):
            exchange.event({"choices": [{"index": 0, "delta": delta}]})
        exchange.finish()

    upstream.manner = think

    assert asked.ask().text == "<think>\nWell...\n</think>\n\nYes."


def test_characters_split_over_chunks_and_lines_over_packets_come_out_whole(
    upstream: ScriptedUpstream, asked: Asked
) -> None:
    def dribble(exchange: Exchange) -> None:
        exchange.begin()
        exchange.write(b": a comment\r\n\r\n")
        event = 'data: {"choices":[{"index":0,"delta":{"content":"Grüße 🦙"}}]}\r\n\r\n'.encode()
        for index in range(0, len(event), 7):
            exchange.write(event[index : index + 7])
        exchange.finish()

    upstream.manner = dribble

    assert asked.ask().text == "Grüße 🦙"


def test_answers_run_side_by_side_and_a_slow_one_keeps_nobody_waiting(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(n_parallel=3)

    def slow(exchange: Exchange) -> None:
        exchange.begin()
        exchange.text("slow")
        exchange.wait_for_hang_up()

    upstream.script += [slow, say("quick"), say("quicker")]
    driver = asked.driver()
    first, second, third = chat("1"), chat("2"), chat("3")
    driver.add(first)
    driver.step()
    upstream.wait_for(1)
    driver.add(second)
    driver.add(third)

    driver.step_until(lambda: second.is_over and third.is_over)

    assert {second.text, third.text} == {"quick", "quicker"}
    assert not first.is_over
    driver.cancel_all()


# -- log probabilities ------------------------------------------------------------------------------------------------


def test_log_probabilities_of_a_chat_are_passed_through(upstream: ScriptedUpstream, asked: Asked) -> None:
    def likely(exchange: Exchange) -> None:
        exchange.begin()
        entry = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": [{"token": "Hi", "logprob": -0.1}]}
        exchange.text("Hi", logprobs={"content": [entry]})
        exchange.finish()

    upstream.manner = likely

    sequence = asked.ask(params=SamplingParams(logprobs=1))

    assert (upstream.got[0].body["logprobs"], upstream.got[0].body["top_logprobs"]) == (True, 1)
    (logprob,) = sequence.logprobs
    assert logprob is not None
    assert (logprob.token, logprob.logprob, logprob.top[0].token) == (b"Hi", -0.1, b"Hi")


def test_log_probabilities_that_were_asked_for_and_do_not_come_are_a_400(asked: Asked) -> None:
    error = failed(asked, params=SamplingParams(logprobs=0))

    assert isinstance(error, UnsupportedParameter)
    assert error.param == "logprobs"


# -- parameters -------------------------------------------------------------------------------------------------------


def test_what_openai_does_not_know_is_sent_where_it_differs_from_the_default(
    upstream: ScriptedUpstream, asked: Asked
) -> None:
    asked.ask(params=SamplingParams(top_k=40, min_p=0.0, repeat_penalty=1.1))

    body = upstream.got[0].body
    assert (body["top_k"], body["min_p"], body["repeat_penalty"]) == (40, 0.0, 1.1)
    assert "mirostat" not in body


def test_a_strict_upstream_gets_nothing_strange_and_the_client_a_400(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(strict=True)

    with pytest.raises(UnsupportedParameter, match="top_k is 40") as caught:
        asked.engine.add(chat(params=SamplingParams(top_k=40)))

    assert caught.value.param == "top_k"
    assert upstream.got == []


def test_the_setting_extra_makes_a_run_strict(load: Load) -> None:
    asked = load(extra={"strict": True, "colour": "red"})

    with pytest.raises(UnsupportedParameter):
        asked.engine.add(chat(params=SamplingParams(top_k=40)))
    assert asked.info.warnings == ("the setting 'colour' means nothing to remote",)


# -- cancellation and slow readers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("says_something", [False, True])
def test_a_cancelled_answer_closes_its_connection_at_once(
    upstream: ScriptedUpstream, asked: Asked, says_something: bool
) -> None:
    def wait(exchange: Exchange) -> None:
        if says_something:
            exchange.begin()
            exchange.text("Well")
        exchange.wait_for_hang_up()

    upstream.manner = wait
    driver = asked.driver()
    sequence = chat()
    driver.add(sequence)
    driver.step()
    exchange = upstream.wait_for(1)
    if says_something:
        driver.step_until(lambda: bool(sequence.pieces))

    driver.cancel(sequence)

    assert exchange.has_hung_up.wait(30)
    assert not driver.step()
    assert sequence.violations == []


def test_a_request_that_is_cancelled_before_it_was_sent_is_never_sent(upstream: ScriptedUpstream, asked: Asked) -> None:
    driver = asked.driver()
    sequence = chat("never")
    driver.add(sequence)
    driver.cancel(sequence)
    asked.ask("then")

    assert [exchange.body["messages"][0]["content"] for exchange in upstream.got] == ["then"]


def test_a_slow_reader_slows_its_upstream_down_and_loses_nothing(upstream: ScriptedUpstream, asked: Asked) -> None:
    n_chunks, size = 200, 80_000
    n_written = 0

    def flood(exchange: Exchange) -> None:
        nonlocal n_written
        exchange.begin()
        for _ in range(n_chunks):
            exchange.text("x" * size)
            n_written += 1
        exchange.finish()

    upstream.manner = flood
    driver = asked.driver()
    sequence = chat(params=SamplingParams(max_tokens=n_chunks))
    driver.add(sequence)
    driver.step_until(lambda: bool(sequence.pieces))
    sequence.pause()
    seen = -1
    while n_written != seen:  # until the sockets are full
        seen = n_written
        driver.step()
        threading.Event().wait(0.3)
    assert n_written < n_chunks, "16 MB went somewhere while nobody read"
    sequence.resume()
    driver.run()

    assert len(sequence.text) == n_chunks * size
    assert sequence.reason is FinishReason.STOP
