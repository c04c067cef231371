"""What upstreams refuse and break, and what comes of it: errors, retries, the breaker, starts that fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hostler import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    EngineSettings,
    EngineUnavailable,
    FinishReason,
    HostlerError,
    InvalidModelFile,
    InvalidRequest,
    ModelFiles,
    ModelLoadFailed,
    QueueFull,
    RequestCancelled,
    RequestTooLarge,
    SamplingParams,
    UnsupportedParameter,
    Usage,
)
from hostler_remote.engine import RemoteEngine

from .conftest import Asked, Load, chat, failed
from .scripted import MODEL, Exchange, ScriptedUpstream, refuse, say

# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manner", "kind", "words"),
    [
        (refuse(400, "Bad temperature"), InvalidRequest, "Bad temperature"),
        (refuse(400, "The context is full", "context_length_exceeded"), ContextLengthExceeded, "The context is full"),
        (
            refuse(400, "This model's maximum context length is 10 tokens. However, you requested 99", 400),
            ContextLengthExceeded,
            "maximum context length is 10",
        ),
        (refuse(400, "No such field", "unsupported_parameter"), UnsupportedParameter, "No such field"),
        (lambda e: e.answer(422, {"detail": [{"loc": ["body", "top_k"], "msg": "bad"}]}), InvalidRequest, "top_k"),
        (refuse(401, "Wrong key"), ConfigError, "does not let this server in (401 Unauthorized): Wrong key"),
        (refuse(403, "Not you"), ConfigError, "403 Forbidden"),
        (refuse(404, "No such model"), EngineFailed, f"does not have {MODEL} any more"),
        (refuse(413, "Too much"), RequestTooLarge, "Too much"),
        (refuse(429, "Slow down", retry_after="7"), QueueFull, "is busy (429 Too Many Requests): Slow down"),
        (refuse(499, "gone"), RequestCancelled, "gone"),
        (refuse(500, "Oops"), EngineUnavailable, "failed (500 Internal Server Error): Oops"),
        (refuse(503, "Later", retry_after="3"), EngineUnavailable, "failed (503 Service Unavailable): Later"),
        (lambda e: e.answer(502, b"<html>nginx</html>", content_type="text/html"), EngineUnavailable, "502 Bad Gateway)"),
        (lambda e: e.answer(200, {"error": {"message": "loading", "code": 503}}), EngineUnavailable, "loading"),
        (lambda e: e.answer(307, b"", location="https://elsewhere.example/v1?key=x"), ConfigError, "redirects to https://else"),
        (lambda e: e.reset(), EngineUnavailable, "cannot be reached"),
    ],
)
def test_a_refusal_is_told_to_whom_it_belongs(
    upstream: ScriptedUpstream, asked: Asked, manner: Callable[[Exchange], None], kind: type[HostlerError], words: str
) -> None:
    upstream.manner = manner

    error = failed(asked)

    assert type(error) is kind
    assert words in error.message
    assert "key=x" not in error.message
    assert upstream.url.removesuffix("/v1") in error.message or kind in {
        InvalidRequest, ContextLengthExceeded, UnsupportedParameter, RequestTooLarge,
    }  # fmt: skip


def test_a_refusal_says_when_to_come_again(upstream: ScriptedUpstream, asked: Asked) -> None:
    upstream.script += [refuse(429, retry_after="7"), refuse(503, retry_after="3"), refuse(503)]

    assert [failed(asked).retry_after_s for _ in range(3)] == [7.0, 3.0, 1.0]


def test_an_unwell_upstream_is_named_with_the_keys_variable(
    upstream: ScriptedUpstream, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-far-0123456789")
    asked = load(key_env="FAR_KEY")
    upstream.manner = refuse(401, "Incorrect API key provided: sk-far-0123456789.")

    error = failed(asked)

    assert "the environment variable FAR_KEY" in error.message
    assert "sk-far-0123456789" not in error.message
    assert upstream.got[0].headers["authorization"] == "Bearer sk-far-0123456789"


def test_max_tokens_beyond_the_context_is_cut_as_for_any_model(upstream: ScriptedUpstream, asked: Asked) -> None:
    """As hostler's own models do: vLLM refuses what a hostler would cut."""
    too_much = refuse(400, "maximum context length is 100 tokens. However, you requested 2058 tokens", 400)
    upstream.script += [too_much, say("fits", reason="length")]

    sequence = asked.ask()

    assert (sequence.text, sequence.reason) == ("fits", FinishReason.LENGTH)
    assert upstream.got[0].body["max_tokens"] == 2048
    assert "max_tokens" not in upstream.got[1].body


def test_a_prompt_beyond_the_context_stays_a_400_with_its_text(upstream: ScriptedUpstream, asked: Asked) -> None:
    upstream.manner = refuse(400, "maximum context length is 100 tokens; the prompt has 500", "context_length_exceeded")

    error = failed(asked)

    assert isinstance(error, ContextLengthExceeded)
    assert error.message == "maximum context length is 100 tokens; the prompt has 500"
    assert len(upstream.got) == 2


def test_an_upstream_that_cuts_answers_itself_is_not_asked_twice(upstream: ScriptedUpstream, load: Load) -> None:
    upstream.manner = refuse(400, "maximum context length is 100 tokens", "context_length_exceeded")

    assert isinstance(failed(load(kind="hostler")), ContextLengthExceeded)
    assert len(upstream.got) == 1


# -- streams that go wrong --------------------------------------------------------------------------------------------


def drop(exchange: Exchange) -> None:
    exchange.begin(length=10_000)
    exchange.text("Once")


def end_early(exchange: Exchange) -> None:
    exchange.begin()
    exchange.text("Once")


def babble(exchange: Exchange) -> None:
    exchange.begin()
    exchange.text("Once")
    exchange.event(b'{"choices": [{"delta": {"content": 7')


def fail_in_stream(exchange: Exchange) -> None:
    exchange.begin()
    exchange.text("Once")
    exchange.event({"error": {"message": "CUDA out of memory", "type": "InternalServerError", "code": 500}})


def be_endless(exchange: Exchange) -> None:
    exchange.begin()
    exchange.text("Once")
    for _ in range(200):
        exchange.write(b"data: " + b"x" * 65536 if _ == 0 else b"x" * 65536)


def filter_out(exchange: Exchange) -> None:
    exchange.begin()
    exchange.text("Once")
    exchange.finish("content_filter")


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        (drop, "broke off"),
        (end_early, "broke off: it ended without an end"),
        (babble, "broke off: it sent what is no chunk of an answer"),
        (fail_in_stream, "CUDA out of memory"),
        (be_endless, "broke off: it sent an event of more than 8388608 bytes"),
        (filter_out, "finish_reason is content_filter"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error_after_its_text_and_is_not_tried_again(
    upstream: ScriptedUpstream, load: Load, manner: Callable[[Exchange], None], words: str
) -> None:
    asked = load(retries=3)
    upstream.manner = manner

    sequence = asked.ask()

    assert sequence.text == "Once"
    assert words in sequence.message
    assert len(upstream.got) == 1


def test_an_end_without_done_is_an_end(upstream: ScriptedUpstream, asked: Asked) -> None:
    def end(exchange: Exchange) -> None:
        exchange.begin()
        exchange.text("Hi")
        exchange.finish(is_done=False)

    upstream.manner = end

    assert (asked.ask().text, asked.ask().usage) == ("Hi", Usage(11, 3, 4))


def test_an_upstream_that_does_not_know_max_tokens_is_cut(upstream: ScriptedUpstream, asked: Asked) -> None:
    def go_on(exchange: Exchange) -> None:
        exchange.begin()
        while not exchange.go_on.is_set():
            exchange.text("on ")

    upstream.manner = go_on

    sequence = asked.ask(params=SamplingParams(max_tokens=10))

    assert sequence.reason is FinishReason.LENGTH
    assert 10 < len(sequence.pieces) < 100_000


def test_a_first_byte_that_does_not_come_is_given_up(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(first_byte_timeout_s=0.2, connect_timeout_s=0.1)
    upstream.manner = lambda exchange: void(exchange.wait_for_hang_up())

    error = failed(asked)

    assert isinstance(error, EngineUnavailable)
    assert "sent no answer for 0.2 s" in error.message
    assert upstream.got[0].has_hung_up.wait(30)


def test_a_next_byte_that_does_not_come_is_given_up(upstream: ScriptedUpstream, load: Load) -> None:
    def stall(exchange: Exchange) -> None:
        exchange.begin()
        exchange.text("Well")
        exchange.wait_for_hang_up()

    asked = load(idle_timeout_s=0.2)
    upstream.manner = stall

    sequence = asked.ask()

    assert sequence.text == "Well"
    assert "sent nothing more for 0.2 s" in sequence.message


def test_usage_that_does_not_come_after_the_end_is_waited_for_only_so_long(upstream: ScriptedUpstream, load: Load) -> None:
    def stay(exchange: Exchange) -> None:
        exchange.begin()
        exchange.text("Hi")
        exchange.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        exchange.wait_for_hang_up()

    asked = load(idle_timeout_s=0.2)
    upstream.manner = stay

    sequence = asked.ask()

    assert (sequence.text, sequence.reason, sequence.usage) == ("Hi", FinishReason.STOP, None)


def test_comments_keep_a_silent_upstream_alive(upstream: ScriptedUpstream, load: Load) -> None:
    def think_long(exchange: Exchange) -> None:
        exchange.begin()
        for _ in range(10):
            exchange.write(b": keep-alive\n\n")
            exchange.go_on.wait(0.1)
        exchange.text("Done")
        exchange.finish()

    asked = load(idle_timeout_s=0.6)
    upstream.manner = think_long

    assert asked.ask().text == "Done"


def void(_: object) -> None:
    """Drop a value."""


# -- retries and the breaker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_passing_trouble_is_tried_again(upstream: ScriptedUpstream, load: Load, status: int) -> None:
    asked = load(retries=2)
    upstream.script += [refuse(status), refuse(status), say("at last")]

    assert asked.ask().text == "at last"
    assert len(upstream.got) == 3


def test_a_connection_that_breaks_before_an_answer_is_tried_again(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(retries=1)
    upstream.script += [lambda exchange: exchange.reset(), say("at last")]

    assert asked.ask().text == "at last"


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_what_would_fail_again_is_not_tried_again(upstream: ScriptedUpstream, load: Load, status: int) -> None:
    asked = load(retries=3)
    upstream.manner = refuse(status)

    failed(asked)

    assert len(upstream.got) == 1


def test_retry_after_is_waited_for_and_a_long_one_is_told_instead(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(retries=1)
    upstream.script += [refuse(429, retry_after="1"), say("after a second"), refuse(429, retry_after="300")]
    began = time.monotonic()

    assert asked.ask().text == "after a second"
    assert time.monotonic() - began >= 1.0
    error = failed(asked)
    assert (error.code, error.retry_after_s) == ("queue_full", 300.0)
    assert len(upstream.got) == 3


def test_a_request_that_waits_to_be_tried_again_can_be_cancelled(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(retries=1)
    upstream.script += [refuse(429, retry_after="15")]
    driver = asked.driver()
    sequence = chat()
    driver.add(sequence)
    driver.step()
    upstream.wait_for(1)

    driver.cancel(sequence)

    assert asked.ask("another").text == "Hello there."
    assert len(upstream.got) == 2


def test_an_upstream_that_keeps_failing_is_left_alone_then_probed_by_one(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(breaker_failures=3, breaker_pause_s=0.5)
    upstream.manner = refuse(500)
    for _ in range(3):
        failed(asked)
    assert len(upstream.got) == 3

    error = failed(asked)

    assert isinstance(error, EngineUnavailable)
    assert "failed several times in a row" in error.message
    assert error.retry_after_s is not None
    assert len(upstream.got) == 3, "somebody was sent there all the same"

    upstream.manner = say("well again")
    time.sleep(0.6)  # the pause; its end is what is tested

    assert asked.ask().text == "well again"
    assert asked.ask().text == "well again"


def test_answers_that_keep_breaking_off_open_the_breaker_too(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(breaker_failures=2, breaker_pause_s=60)
    upstream.manner = drop

    failed(asked)
    failed(asked)

    assert "left alone" in failed(asked).message


def test_clients_faults_do_not_open_the_breaker(upstream: ScriptedUpstream, load: Load) -> None:
    asked = load(breaker_failures=2, breaker_pause_s=60)
    upstream.script += [refuse(400)] * 5 + [refuse(429)] * 5

    for _ in range(10):
        failed(asked)

    assert asked.ask().text == "Hello there."


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "n_ctx"),
    [
        ({}, 0),
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 131072}, 131072),
        ({"lifecycle": "running", "settings": {"ctx_len": "2048"}}, 2048),
        ({"settings": {"ctx_len": "2048"}}, 0),
        ({"max_model_len": None, "context_length": "many"}, 0),
    ],
)
def test_the_context_is_what_the_upstream_tells(
    upstream: ScriptedUpstream, load: Load, entry: dict[str, object], n_ctx: int
) -> None:
    upstream.models = [{"id": "other"}, {"id": MODEL, **entry}]

    assert load().info.n_ctx == n_ctx
    assert load(ctx_len=1024).info.n_ctx == 1024


def test_a_model_that_is_not_listed_may_be_there_by_another_name(upstream: ScriptedUpstream, load: Load) -> None:
    def on_get(exchange: Exchange) -> None:
        is_list = exchange.path.endswith("/models")
        exchange.answer(200, {"data": [{"id": "canonical"}]} if is_list else {"id": "canonical", "max_model_len": 77})

    upstream.on_get = on_get

    assert load(model="an/alias").info.n_ctx == 77


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        (refuse(401, "Who are you?"), "does not let this server in (401 Unauthorized): Who are you?"),
        (refuse(500, "Oops"), "failed (500 Internal Server Error): Oops"),
        (lambda e: e.answer(200, b"<html>a page</html>"), "gives no list of models"),
        (lambda e: e.answer(301, b"", location="https://elsewhere.example/"), "redirects to https://elsewhere.example/"),
        (lambda e: e.reset(), "cannot be reached"),
        (
            lambda e: e.answer(200 if e.path.endswith("/models") else 404, {"data": [{"id": "one"}, {"id": "two"}]}),
            f"does not have {MODEL}; it has one, two",
        ),
    ],
)
def test_a_start_fails_early_with_the_reason(
    upstream: ScriptedUpstream, load: Load, manner: Callable[[Exchange], None], words: str
) -> None:
    upstream.on_get = manner

    with pytest.raises(ModelLoadFailed) as caught:
        load()

    assert words in caught.value.message


def test_an_upstream_without_a_list_of_models_is_believed_with_a_warning(upstream: ScriptedUpstream, load: Load) -> None:
    upstream.on_get = lambda exchange: exchange.answer(404, {})

    assert "lists no models" in load().info.warnings[0]


def test_a_url_that_lacks_its_v1_is_found_out(upstream: ScriptedUpstream, load: Load) -> None:
    upstream.on_get = lambda exchange: exchange.answer(200 if exchange.path == "/v1/models" else 404, {"data": []})

    with pytest.raises(ModelLoadFailed, match=r"should its url be http://.*/v1"):
        load(url=upstream.url.removesuffix("/v1"))


def test_nobody_at_all_is_told_with_the_address(load: Load) -> None:
    with pytest.raises(ModelLoadFailed, match=r"http://127\.0\.0\.1:9, cannot be reached"):
        load(url="http://127.0.0.1:9/v1")


def test_a_key_that_is_not_there_stops_the_start_and_names_its_variable(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)

    with pytest.raises(ModelLoadFailed, match=r"the environment variable FAR_KEY, which holds the key"):
        load(key_env="FAR_KEY")


def test_a_load_that_is_not_wanted_any_more_ends(upstream: ScriptedUpstream, write: Callable[..., Path]) -> None:
    upstream.on_get = lambda exchange: void(exchange.wait_for_hang_up())
    calls: list[float] = []

    def progress(fraction: float) -> bool:
        calls.append(fraction)
        return len(calls) < 3

    engine = RemoteEngine()
    with pytest.raises(ModelLoadFailed, match="called off"):
        engine.load(ModelFiles(str(write()), "remote"), EngineSettings(ctx_len=0), progress)

    assert len(calls) == 3


def test_a_device_cannot_be_demanded(write: Callable[..., Path]) -> None:
    with pytest.raises(ModelLoadFailed, match="the upstream chooses its devices"):
        RemoteEngine().load(ModelFiles(str(write()), "remote"), EngineSettings(ctx_len=0, device="cuda"), lambda _: True)


def test_a_bad_value_in_extra_is_refused(write: Callable[..., Path]) -> None:
    settings = EngineSettings(ctx_len=0, extra={"retries": "many"})

    with pytest.raises(InvalidModelFile, match=r"extra of this model does not fit: .*retries"):
        RemoteEngine().load(ModelFiles(str(write()), "remote"), settings, lambda _: True)


def test_headers_of_the_description_are_sent(upstream: ScriptedUpstream, load: Load) -> None:
    load(headers={"x-team": "blue"}).ask()

    assert upstream.got[0].headers["x-team"] == "blue"
    assert upstream.got[0].headers["user-agent"].startswith("hostler-remote/")


# -- embeddings -------------------------------------------------------------------------------------------------------


def embed(exchange: Exchange) -> None:
    inputs = exchange.body["input"]
    data = [{"index": index, "embedding": [float(len(one)), 1.0]} for index, one in enumerate(inputs)]
    exchange.answer(200, {"data": data[::-1], "usage": {"prompt_tokens": 10 * len(inputs), "total_tokens": 0}})


def test_inputs_are_embedded_in_batches_and_counted(upstream: ScriptedUpstream, load: Load) -> None:
    upstream.manner = embed
    asked = load(embeddings=True, embed_batch=2)
    assert (asked.info.can_embed, asked.info.n_embd) == (True, 2)

    vectors, n_tokens = asked.embed(["a", "bbb", (1, 2), "cc"])

    assert vectors == [[1.0, 1.0], [3.0, 1.0], [2.0, 1.0], [2.0, 1.0]]
    assert n_tokens == 40
    assert [exchange.body["input"] for exchange in upstream.got[1:]] == [["a", "bbb"], [[1, 2]], ["cc"]]


def test_an_embedding_that_nobody_wants_any_more_hangs_up(upstream: ScriptedUpstream, load: Load) -> None:
    upstream.script.append(embed)
    asked = load(embeddings=True)
    upstream.manner = lambda exchange: void(exchange.wait_for_hang_up())

    pieces = asked.engine.embed(["a"])
    assert next(pieces) == []
    exchange = upstream.wait_for(2)
    pieces.close()

    assert exchange.has_hung_up.wait(30)


@pytest.mark.parametrize(
    ("manner", "kind"),
    [
        (refuse(400, "too long"), InvalidRequest),
        (refuse(503), EngineUnavailable),
        (lambda e: e.answer(200, {"data": []}), EngineFailed),
        (lambda e: e.answer(200, b"nonsense"), EngineFailed),
        (lambda e: e.reset(), EngineUnavailable),
    ],
)
def test_embeddings_that_go_wrong_are_told(
    upstream: ScriptedUpstream, load: Load, manner: Callable[[Exchange], None], kind: type[HostlerError]
) -> None:
    upstream.script.append(embed)
    asked = load(embeddings=True)
    upstream.manner = manner

    with pytest.raises(kind):
        asked.embed(["a"])


def test_a_model_that_does_not_embed_says_how_to_say_so(asked: Asked) -> None:
    with pytest.raises(UnsupportedParameter, match="'embeddings': true"):
        asked.engine.embed(["a"])


def test_a_model_that_only_embeds_answers_no_chat(upstream: ScriptedUpstream, load: Load) -> None:
    upstream.manner = embed
    asked = load(chat=False, embeddings=True)

    assert not asked.info.can_generate
    with pytest.raises(InvalidRequest, match="only gives embeddings"):
        asked.engine.add(chat())


def test_toml_is_read_too(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    path = tmp_path / "far.remote"
    path.write_text(f"url = {json.dumps(upstream.url)}\nmodel = {json.dumps(MODEL)}\n")

    asked = Asked(path, EngineSettings(ctx_len=0))

    assert asked.ask().text == "Hello there."
    asked.engine.close()
