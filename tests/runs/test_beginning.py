"""Runs over real workers with echo, and over real records: what they answer, tell, refuse and leave out."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.errors import (
    AssistantNotFound,
    ContextLengthExceeded,
    HostlerError,
    InvalidRequest,
    MissingParameter,
    ModelLoadFailed,
    ModelNotDownloaded,
    ModelNotFound,
    QueueFull,
    ThreadNotFound,
    UnsupportedParameter,
)
from hostler.liverun import TextDelta
from hostler.records.objects import (
    ImageUrlPart,
    NewMessage,
    Run,
    Text,
    TextPart,
    ThreadAssistant,
    ThreadModel,
)
from hostler.runplan import NewThread, RunRequest
from hostler.runtime import Runtime
from support.runs import (
    DEADLINE_S,
    EVERYTHING,
    FLOOD,
    GREEDY,
    MakeRuntime,
    answer,
    ended,
    events,
    new_thread,
    newest,
    request,
    said,
    start,
    steps,
    text_of,
    texts,
)

# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_run_answers_the_thread_and_its_answer_is_the_next_message(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "What is AI?", metadata={"a": "b"})

    run = answer(runtime, thread_id, metadata={"x": "y"})

    assert run == runtime.records.runs.get(thread_id, run.id)
    assert (run.status, run.model, run.assistant_id, run.metadata) == ("completed", "parrot", "jan", {"x": "y"})
    assert run.id.startswith("run_")
    assert run.created_at <= (run.started_at or 0) <= (run.completed_at or 0)
    assert (run.failed_at, run.cancelled_at, run.last_error, run.incomplete_details) == (None, None, None, None)
    assert run.usage is not None
    assert run.usage["completion_tokens"] == len("What is AI?")
    assert run.usage["total_tokens"] == run.usage["prompt_tokens"] + run.usage["completion_tokens"]
    assert texts(runtime, thread_id) == ["What is AI?", "What is AI?"]
    message = newest(runtime, thread_id)
    assert (message.role, message.status, message.run_id, message.assistant_id) == ("assistant", "completed", run.id, "jan")
    assert str(message.chat_completion_id).startswith("chatcmpl-")
    assert message.completed_at is not None
    (step,) = steps(runtime, run)
    assert (step.status, step.usage, step.run_id, step.thread_id) == ("completed", run.usage, run.id, thread_id)
    assert step.step_details == {"type": "message_creation", "message_creation": {"message_id": message.id}}
    assert runtime.requests() == []
    assert runtime.budget.n_held == 0


def test_messages_of_the_request_are_in_the_thread_before_the_answer(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "First", "Second")

    answer(runtime, thread_id, "Third")

    assert texts(runtime, thread_id) == ["First", "Second", "Third", "Third"]


def test_a_thread_is_made_together_with_its_first_run(runtime: Runtime) -> None:
    new = NewThread(title="Birds", metadata={"a": "b"})
    live = runtime.runs.start_with_thread(new, request("Hello"))

    run = ended(live)

    thread = runtime.records.threads.get(run.thread_id)
    assert (thread.title, thread.metadata, thread.assistant_ids) == ("Birds", {"a": "b"}, ["jan"])
    assert texts(runtime, run.thread_id) == ["Hello", "Hello"]


def test_a_thread_is_not_made_when_its_run_is_refused(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"ctx_len": 128})
    live = runtime.runs.start_with_thread(NewThread(), request("x" * 500))

    with pytest.raises(ContextLengthExceeded):
        live.wait_recorded(DEADLINE_S)

    assert runtime.records.threads.list(EVERYTHING).data == []


def test_instructions_are_the_system_text_of_the_prompt(make_runtime: MakeRuntime) -> None:
    # This model says the whole prompt, because it holds no user's message in its own spelling.
    runtime = make_runtime('{"chat_template": "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"}')
    made = runtime.records.assistants.create(instructions="Be brief.", model="parrot")
    thread_id = new_thread(runtime, "Hi")

    run = answer(runtime, thread_id, assistant_id=made.id, additional_instructions="Rhyme.")

    assert run.instructions == "Be brief.\n\nRhyme."
    assert text_of(newest(runtime, thread_id)) == "system=Be brief.\n\nRhyme.;user=Hi;"
    assert newest(runtime, thread_id).assistant_id == made.id


def test_parameters_come_from_the_request_the_thread_the_assistant_the_model_and_the_server(runtime: Runtime) -> None:
    runtime.library.update("parrot", parameters={"top_k": 5, "temperature": 0.5, "min_p": 0.5})
    made = runtime.records.assistants.create(model="parrot", temperature=0.4, top_p=0.4, parameters={"seed": 4})
    entry = ThreadAssistant(made.id, model=ThreadModel("parrot", {}, {"temperature": 0.3, "seed": 3}))
    thread_id = new_thread(runtime, "Hi", assistants=[entry])

    run = answer(runtime, thread_id, parameters={"temperature": 0.0, "token_limit": 50})

    expected = {"temperature": 0.0, "seed": 3, "top_p": 0.4, "top_k": 5, "min_p": 0.5, "repeat_penalty": 1.0}
    assert {name: run.parameters[name] for name in expected} == expected
    assert (run.temperature, run.top_p, run.max_completion_tokens) == (0.0, 0.4, 50)
    assert "stream" not in run.parameters


def test_a_threads_settings_are_used_when_its_run_starts_the_model_and_only_then(runtime: Runtime) -> None:
    entry = ThreadAssistant("jan", model=ThreadModel("parrot", {"ctx_len": 512}, {}))
    thread_id = new_thread(runtime, "Hi", assistants=[entry])
    answer(runtime, thread_id)
    assert runtime.model("parrot").ctx_len == 512

    first = runtime.start_model("parrot", {"ctx_len": 1024})
    assert answer(runtime, thread_id, "More").status == "completed"

    assert (runtime.model("parrot").ctx_len, runtime.model("parrot").pid) == (1024, first.pid)


def test_an_answer_that_reaches_its_limit_is_incomplete_and_kept(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "A long story")

    run = answer(runtime, thread_id, parameters={"temperature": 0.0, "token_limit": 6})

    assert (run.status, run.incomplete_details) == ("incomplete", {"reason": "max_completion_tokens"})
    message = newest(runtime, thread_id)
    assert (text_of(message), message.status, message.incomplete_details) == (
        "A long", "incomplete", {"reason": "max_tokens"},
    )  # fmt: skip
    assert message.incomplete_at is not None
    assert [step.status for step in steps(runtime, run)] == ["completed"]


def test_an_empty_answer_is_an_answer(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"script": ""}')
    thread_id = new_thread(runtime, "Say nothing.")

    run = answer(runtime, thread_id)

    assert run.status == "completed"
    assert (newest(runtime, thread_id).role, newest(runtime, thread_id).content) == ("assistant", [])
    assert len(steps(runtime, run)) == 1
    assert answer(runtime, thread_id, "And now?").status == "completed"  # an empty turn is no obstacle later on


# -- events -----------------------------------------------------------------------------------------------------------


def test_events_tell_the_run_in_openais_order(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "Good morning")

    told = events(start(runtime, thread_id, is_followed=True))

    names = [event.name for event in told if not isinstance(event.data, TextDelta)]
    assert names == [
        "thread.run.created",
        "thread.run.queued",
        "thread.run.in_progress",
        "thread.run.step.created",
        "thread.run.step.in_progress",
        "thread.message.created",
        "thread.message.in_progress",
        "thread.message.completed",
        "thread.run.step.completed",
        "thread.run.completed",
    ]
    assert "".join(event.data.text for event in told if isinstance(event.data, TextDelta)) == "Good morning"
    deltas = [index for index, event in enumerate(told) if isinstance(event.data, TextDelta)]
    assert deltas == list(range(7, 7 + len(deltas)))
    statuses = [event.data.status for event in told if isinstance(event.data, Run)]
    assert statuses == ["queued", "queued", "in_progress", "completed"]
    assert told[-1].data == runtime.records.runs.list(thread_id, EVERYTHING).data[0]
    assert next(event.data for event in told if event.name == "thread.message.completed") == newest(runtime, thread_id)


def test_events_of_a_new_thread_begin_with_the_thread(runtime: Runtime) -> None:
    live = runtime.runs.start_with_thread(NewThread(title="Birds"), request("Hello"), is_followed=True)

    told = events(live)

    assert [event.name for event in told][:3] == ["thread.created", "thread.run.created", "thread.run.queued"]
    assert told[0].data.id == live.thread_id  # type: ignore[union-attr]


def test_a_run_that_nobody_follows_keeps_no_events_and_comes_to_its_end(runtime: Runtime) -> None:
    live = start(runtime, new_thread(runtime, "Hello"))

    assert ended(live).status == "completed"
    assert events(live) == []


def test_a_new_run_may_begin_as_soon_as_the_end_of_the_last_is_told(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "Hello")
    for number in range(5):
        told = events(start(runtime, thread_id, f"number {number}", is_followed=True))
        assert told[-1].name == "thread.run.completed"


# -- what is refused before anything is recorded ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"assistant_id": "asst_none"}, AssistantNotFound, None),
        ({"model": "nope"}, ModelNotFound, None),
        ({"tools": [{"type": "file_search"}]}, UnsupportedParameter, "tools"),
        ({"response_format": {"type": "json_schema"}}, MissingParameter, "response_format.json_schema"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_at_once(
    runtime: Runtime, fields: dict[str, Any], kind: type[HostlerError], param: str | None
) -> None:
    thread_id = new_thread(runtime, "Hello")

    with pytest.raises(kind) as caught:
        runtime.runs.start(thread_id, request("More", **fields))

    assert caught.value.param == param
    assert texts(runtime, thread_id) == ["Hello"]
    assert runtime.records.runs.list(thread_id, EVERYTHING).data == []


def test_an_unknown_thread_is_told(runtime: Runtime) -> None:
    with pytest.raises(ThreadNotFound, match="thread_none"):
        runtime.runs.start("thread_none", request())
    with pytest.raises(ThreadNotFound):
        runtime.runs.cancel("thread_none", "run_none")


def test_a_model_that_is_not_downloaded_is_refused_and_nothing_recorded(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "Hello")
    live = runtime.runs.start(thread_id, request("More", model="smollm2"))

    with pytest.raises(ModelNotDownloaded, match="hostler pull"):
        live.wait_recorded(DEADLINE_S)

    assert texts(runtime, thread_id) == ["Hello"]
    assert runtime.runs.is_busy is False


def test_a_model_that_cannot_be_started_is_refused_and_nothing_recorded(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_refuse": "the moon is wrong"}}')
    thread_id = new_thread(runtime, "Hello")
    live = runtime.runs.start(thread_id, request("More"))

    with pytest.raises(ModelLoadFailed, match="the moon is wrong"):
        live.wait_recorded(DEADLINE_S)

    assert texts(runtime, thread_id) == ["Hello"]
    assert runtime.records.runs.active(thread_id) is None
    assert runtime.budget.n_held == 0


def test_no_model_anywhere_is_a_missing_parameter(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.settings = runtime.settings.replace(default_model="")
    made = runtime.records.assistants.create(model="*")

    with pytest.raises(MissingParameter, match="no default_model") as caught:
        runtime.runs.start(new_thread(runtime, "Hello"), request(assistant_id=made.id))
    assert caught.value.param == "model"


def test_a_thread_without_messages_is_answered_if_the_models_template_can(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    thread_id = new_thread(runtime)
    assert answer(runtime, thread_id, instructions="Tell a joke.").status == "completed"
    assert answer(runtime, new_thread(runtime)).status == "completed"

    runtime = make_runtime('{"chat_template": "{{ messages[0].content }}"}')
    live = runtime.runs.start(new_thread(runtime), request())
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        live.wait_recorded(DEADLINE_S)


def test_an_image_is_refused_with_its_path_where_it_would_be_seen(runtime: Runtime) -> None:
    image = NewMessage("user", [TextPart(Text("See")), ImageUrlPart({"url": "https://example.test/a.png"})], id="msg_image")
    thread_id = new_thread(runtime, "Hello", "Hi")
    live = runtime.runs.start(thread_id, RunRequest(messages=(said("And"), image)))
    with pytest.raises(UnsupportedParameter) as caught:
        live.wait_recorded(DEADLINE_S)
    assert caught.value.param == "additional_messages[1].content[1]"

    runtime.records.messages.append(thread_id, [image, said("I see.", "assistant")])
    live = runtime.runs.start(thread_id, request("More"))
    with pytest.raises(UnsupportedParameter) as caught:
        live.wait_recorded(DEADLINE_S)
    assert caught.value.param == "messages.msg_image.content[1]"

    assert answer(runtime, thread_id, "More", last_messages=1).status == "completed"


def test_a_full_queue_refuses_a_run_before_it_is_recorded(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(queue_len=0)
    runtime.start_model("parrot", {"n_parallel": 1})
    first = start(runtime, new_thread(runtime, FLOOD))
    other = new_thread(runtime, "Hello")
    live = runtime.runs.start(other, request("More"))

    with pytest.raises(QueueFull):
        live.wait_recorded(DEADLINE_S)

    assert texts(runtime, other) == ["Hello"]
    assert first.run is not None
    runtime.runs.cancel(first.thread_id, first.run.id)


# -- the context --------------------------------------------------------------------------------------------------------


def test_the_oldest_messages_are_left_out_and_named(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"ctx_len": 128})
    # Each message has 2 tokens beside its text, the beginning of the answer 1.
    thread_id = new_thread(runtime, *("x" * 18 for _ in range(9)))
    ids = [message.id for message in runtime.records.messages.all(thread_id)]

    run = answer(runtime, thread_id, instructions="x" * 13)

    # 128 less a quarter for the answer is 96; 15 of the instructions and 1 leave 80: 4 messages, the user's first of them.
    assert run.left_out == ids[:6]
    assert run.left_out_count == 6
    assert run.usage is not None
    assert run.usage["prompt_tokens"] == 15 + 3 * 20 + 1
    assert run.status == "completed"


def test_messages_of_the_request_can_be_left_out_too(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"ctx_len": 128})
    thread_id = new_thread(runtime, "a" * 18, "b" * 18)
    given = tuple(said("c" * 58) for _ in range(3))

    live = runtime.runs.start(thread_id, RunRequest(messages=given, parameters=GREEDY))
    run = ended(live)

    before = [message.id for message in runtime.records.messages.all(thread_id)][:2]
    assert run.left_out == [*before, given[0].id, given[1].id]
    assert run.left_out_count == 4


def test_a_thread_of_thousands_names_the_newest_of_those_left_out_and_counts_them_all(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"ctx_len": 256})
    thread_id = new_thread(runtime)
    runtime.records.messages.append(thread_id, [said("x" * 18) for _ in range(1000)])
    ids = [message.id for message in runtime.records.messages.all(thread_id)]

    run = answer(runtime, thread_id)

    n_kept = (256 - 64 - 1) // 20
    assert run.left_out_count == 1000 - n_kept
    assert run.left_out == ids[: 1000 - n_kept][-100:]


def test_last_messages_keeps_so_many_or_refuses_with_both_numbers(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"ctx_len": 128})
    thread_id = new_thread(runtime, *("x" * 18 for _ in range(9)))

    run = answer(runtime, thread_id, last_messages=6)
    assert run.truncation_strategy == {"type": "last_messages", "last_messages": 6}
    assert (run.usage or {})["prompt_tokens"] == 6 * 20 + 1
    assert run.left_out_count == 3

    live = runtime.runs.start(thread_id, request("x" * 18, last_messages=7))
    with pytest.raises(ContextLengthExceeded, match=r"128 tokens.* 1\d\d tokens"):
        live.wait_recorded(DEADLINE_S)
    assert len(texts(runtime, thread_id)) == 10


def test_max_prompt_tokens_bounds_the_prompt(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, *("x" * 18 for _ in range(9)))

    run = answer(runtime, thread_id, max_prompt_tokens=61)

    assert (run.usage or {})["prompt_tokens"] == 61
    assert (run.max_prompt_tokens, run.left_out_count) == (61, 6)
