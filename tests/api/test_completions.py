"""Completions, whole and streamed: one prompt or several, text or token ids, echo, legacy log probabilities."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.scripted_runtime import Pause, ScriptedGeneration, finish, prefill, text, view
from hostler.api.fanout import ManyPrompts
from hostler.domain import FinishReason, GenerateRequest, TextEvent, TokenLogprob, TopLogprob, Usage
from hostler.errors import EngineUnavailable, InvalidRequest, QueueFull


def frames(answer: Any) -> list[Any]:
    parts = answer.text.removesuffix("\n\n").split("\n\n")
    assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def error_of(answer: Any) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]


def test_an_answer_has_the_contracts_shape(client: Any, runtime: Any) -> None:
    body = client.complete().json

    assert body["id"].startswith("cmpl-")
    assert body["timings"]["predicted_n"] == 2
    del body["timings"]
    assert body == {
        "id": runtime.asked[0].id,
        "object": "text_completion",
        "created": 1700193928,
        "model": "phi",
        "system_fingerprint": "fp_hostler",
        "choices": [{"index": 0, "text": "Hello user.", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 33,
            "completion_tokens": 2,
            "total_tokens": 35,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    }


def test_a_stream_has_the_same_object_name_and_ends_with_done(client: Any) -> None:
    chunks = frames(client.complete(stream=True, stream_options={"include_usage": True}))

    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert choices == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": " user.", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 3
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 35)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 16), ({"max_tokens": 3}, 3), ({"max_completion_tokens": "4"}, 4)],
)
def test_sixteen_tokens_unless_the_request_says_otherwise(
    client: Any, runtime: Any, fields: dict[str, Any], expected: int
) -> None:
    runtime.views["phi"] = view("phi", manifest={"parameters": {"token_limit": 99, "temperature": 0.1}})

    client.complete(**fields)

    assert (runtime.asked[0].params.max_tokens, runtime.asked[0].params.temperature) == (expected, 0.1)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Once", ["Once"]),
        ("", [""]),
        ([1, 2, 3], [(1, 2, 3)]),
        (["a", "b"], ["a", "b"]),
        (["12", "true"], ["12", "true"]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
    ],
)
def test_prompts_are_text_or_token_ids_one_or_several(client: Any, runtime: Any, prompt: Any, expected: list[Any]) -> None:
    body = client.complete(prompt=prompt).json

    assert [request.prompt for request in runtime.asked] == expected
    assert [request.messages for request in runtime.asked] == [None] * len(expected)
    assert len(body["choices"]) == len(expected)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt[0]"),
        ({"prompt": ["a", []]}, "invalid_value", "prompt[1]"),
        ({"prompt": [1, "a"]}, "invalid_value", "prompt"),
        ({"prompt": [1, -2]}, "invalid_value", "prompt[1]"),
        ({"prompt": [[1, 2**40]]}, "invalid_value", "prompt[0][1]"),
        ({"prompt": [[1, "x"]]}, "invalid_value", "prompt[0][1]"),
        ({"prompt": [True]}, "invalid_value", "prompt[0]"),
        ({"prompt": {"text": "x"}}, "invalid_value", "prompt"),
        ({"logprobs": 6}, "invalid_value", "logprobs"),
        ({"n": 9}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"echo": True, "logprobs": 1}, "unsupported_parameter", "echo"),
        ({"echo": True, "prompt": [1, 2]}, "unsupported_parameter", "echo"),
    ],
    ids=str,
)
def test_a_bad_field_is_400_with_its_path(client: Any, runtime: Any, fields: dict[str, Any], code: str, param: str) -> None:
    assert error_of(client.complete(**fields)) == (400, code, param)
    assert runtime.asked == []


@pytest.mark.parametrize(
    "fields", [{"suffix": ""}, {"suffix": None}, {"best_of": 1}, {"n": 2, "best_of": 2}, {"echo": False}], ids=str
)
def test_fields_that_change_nothing_are_accepted(client: Any, runtime: Any, fields: dict[str, Any]) -> None:
    n = fields.get("n", 1)
    runtime.enqueue(*(text("x", index) for index in range(n)), *(finish(index) for index in range(n)))

    assert client.complete(**fields).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_each_prompt_before_its_answers(client: Any, runtime: Any, stream: bool) -> None:
    for _ in range(2):
        runtime.enqueue(text("x", 0), text("y", 1), finish(0), finish(1))

    answer = client.complete(prompt=["A", "B"], n=2, echo=True, stream=stream)

    texts = ["", "", "", ""]
    for chunk in frames(answer) if stream else [answer.json]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["Ax", "Ay", "Bx", "By"]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_older_form_with_offsets_through_the_whole_answer(
    client: Any, runtime: Any, stream: bool
) -> None:
    first = TokenLogprob(1, b"He", -0.5, (TopLogprob(1, b"He", -0.5), TopLogprob(2, b"Ho", -1.0)))
    half = TokenLogprob(3, b"\xc3", -0.1, (TopLogprob(4, b"x", -3.0),))
    rest = TokenLogprob(5, b"\xa9!", -0.2)
    runtime.enqueue(text("He", logprobs=(first,)), text("\u00e9!", logprobs=(half, rest)), finish())

    answer = client.complete(logprobs=2, stream=stream)

    merged: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in frames(answer) if stream else [answer.json]:
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            merged[name] += values
    assert runtime.asked[0].params.logprobs == 2
    assert merged == {
        "tokens": ["He", "bytes:\\xc3", "bytes:\\xa9!".replace("!", "\\x21")],
        "token_logprobs": [-0.5, -0.1, -0.2],
        "top_logprobs": [{"He": -0.5, "Ho": -1.0}, {"x": -3.0, "bytes:\\xc3": -0.1}, {"bytes:\\xa9\\x21": -0.2}],
        "text_offset": [0, 2, 2],
    }


# -- several prompts --------------------------------------------------------------------------------------------------


def test_several_prompts_make_prompts_times_n_choices_and_one_usage(client: Any, runtime: Any) -> None:
    for name in ("a", "b", "c"):
        usage = Usage(10, 2, 4)
        runtime.enqueue(
            text(f"{name}0", 0), text(f"{name}1", 1), finish(1, usage=usage), finish(0, FinishReason.LENGTH, usage=usage)
        )

    body = client.complete(prompt=["A", "B", "C"], n=2).json

    assert [(one["index"], one["text"], one["finish_reason"]) for one in body["choices"]] == [
        (0, "a0", "length"), (1, "a1", "stop"), (2, "b0", "length"), (3, "b1", "stop"), (4, "c0", "length"), (5, "c1", "stop"),
    ]  # fmt: skip
    assert body["usage"]["prompt_tokens"] == 30
    assert body["usage"]["completion_tokens"] == 12
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 12
    base = body["id"]
    assert [request.id for request in runtime.asked] == [base, f"{base}-1", f"{base}-2"]
    assert all(generation.closed.is_set() for generation in runtime.generations)


def test_an_error_of_one_prompt_is_the_error_of_all_and_frees_the_others(client: Any, runtime: Any) -> None:
    runtime.enqueue(None, text("a"), None, None, finish())
    runtime.enqueue(EngineUnavailable("died"))
    runtime.enqueue(*[None] * 50, finish())

    answer = client.complete(prompt=["A", "B", "C"])

    assert error_of(answer)[:2] == (503, "engine_unavailable")
    assert len(runtime.generations) == 3
    assert all(generation.closed.is_set() for generation in runtime.generations)


@pytest.mark.parametrize(
    ("blamed", "param"), [("prompt", "prompt[1]"), ("prompt[7]", "prompt[1][7]"), ("logit_bias", "logit_bias")]
)
def test_a_bad_prompt_among_several_is_named_by_its_place(client: Any, runtime: Any, blamed: str, param: str) -> None:
    runtime.enqueue(None, text("a"), finish())
    runtime.enqueue(InvalidRequest("bad", param=blamed))

    assert error_of(client.complete(prompt=["A", "B"])) == (400, "invalid_value", param)


def many(scripts: list[tuple[Any, ...]], n_parallel: int, n: int = 1) -> tuple[ManyPrompts, list[ScriptedGeneration]]:
    made: list[ScriptedGeneration] = []

    def generate(index: int) -> ScriptedGeneration:
        script = scripts[index]
        if isinstance(script[0], QueueFull):
            scripts[index] = script[1:]
            raise script[0]
        made.append(ScriptedGeneration(GenerateRequest(f"c-{index}", "phi", n=n), view("phi", n_parallel=n_parallel), script))
        return made[-1]

    return ManyPrompts(generate, len(scripts), n), made


def test_prompts_run_side_by_side_as_the_model_has_slots_and_the_next_starts_when_one_ends() -> None:
    pause = Pause()
    prompts, made = many([(text("a"), pause, finish()), (text("b"), finish()), (text("c"), finish())], n_parallel=2)

    seen = []
    for event in prompts.events(1.0):
        if isinstance(event, TextEvent):
            seen.append((event.index, event.text))
        if seen == [(0, "a"), (1, "b"), (2, "c")]:
            pause.go_on.set()

    assert seen == [(0, "a"), (1, "b"), (2, "c")]
    assert [generation.n_closed for generation in made] == [1, 1, 1]


def test_never_more_prompts_run_than_there_are_slots_for_their_answers() -> None:
    prompts, made = many([(text("x", 0), text("x", 1), finish(0), finish(1))] * 5, n_parallel=4, n=2)

    for _ in prompts.events(1.0):
        assert sum(not generation.closed.is_set() for generation in made) <= 2

    assert len(made) == 5


def test_a_prompt_that_finds_the_queue_full_waits_for_its_siblings() -> None:
    prompts, made = many([(text("a"), finish()), (QueueFull("full"), text("b"), finish())], n_parallel=4)

    assert [event.text for event in prompts.events(1.0) if isinstance(event, TextEvent)] == ["a", "b"]
    assert len(made) == 2


def test_closing_many_prompts_closes_those_that_run_and_starts_no_more() -> None:
    prompts, made = many([(text("a"), Pause()), (text("b"), Pause()), (text("c"),)], n_parallel=2)
    events = prompts.events(1.0)
    next(events)
    next(events)

    prompts.close()

    assert [generation.closed.is_set() for generation in made] == [True, True]
    assert list(events) == []


def test_silence_of_all_prompts_is_told_so_that_the_caller_can_look_at_its_client() -> None:
    prompts, _ = many([(prefill(), None, finish()), (prefill(), None, finish())], n_parallel=2)

    assert None in list(prompts.events(1.0))
