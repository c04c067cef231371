"""Runs over real workers with echo, and over real records: what is recorded when, and how each of them can end."""

from __future__ import annotations

import functools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hostler.liverun
from hostler.config import load_settings
from hostler.domain import Lifecycle, Message
from hostler.errors import (
    AssistantNotFound,
    ContextLengthExceeded,
    EngineUnavailable,
    HostlerError,
    InvalidRequest,
    MissingParameter,
    ModelLoadFailed,
    ModelNotDownloaded,
    ModelNotFound,
    QueueFull,
    RunInProgress,
    RunNotFound,
    StorageUnavailable,
    ThreadNotFound,
    UnsupportedParameter,
)
from hostler.liverun import LiveRun, RunEvent, TextDelta
from hostler.plugins import get_plugins
from hostler.records.ids import new_id
from hostler.records.objects import (
    ACTIVE_RUN,
    ImageUrlPart,
    NewMessage,
    PageRequest,
    Run,
    RunStep,
    Text,
    TextPart,
    ThreadAssistant,
    ThreadModel,
)
from hostler.records.objects import Message as StoredMessage
from hostler.runplan import NewThread, RunRequest
from hostler.runtime import Runtime
from support import workers

DEADLINE_S = 60.0
GREEDY = {"temperature": 0.0}
FLOOD = "[[echo: flood delay_s=0.005]] x"
EVERYTHING = PageRequest(limit=100, order="asc")
wait_until = functools.partial(workers.wait_until, deadline_s=DEADLINE_S)

MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def make_runtime(tmp_path: Path) -> Iterator[MakeRuntime]:
    """Makes runtimes on one home, one after the other, with the echo model `parrot`."""
    made: list[Runtime] = []

    def make(model: str = "{}", **settings: object) -> Runtime:
        for before in made:
            before.close(0)
        base = load_settings(tmp_path / "home", environ={})
        runtime = Runtime(base.replace(stop_timeout_s=2, default_model="parrot", **settings), get_plugins())
        made.append(runtime)
        path = tmp_path / "parrot.echo"
        path.write_text(model)
        runtime.import_model(str(path))
        return runtime

    yield make
    for runtime in made:
        runtime.close(0)


@pytest.fixture
def runtime(make_runtime: MakeRuntime) -> Runtime:
    return make_runtime()


def said(text: str, role: Any = "user") -> NewMessage:
    return NewMessage(role=role, content=[TextPart(Text(text))], id=new_id("msg"))


def new_thread(runtime: Runtime, *texts: str, **fields: Any) -> str:
    """A thread in which user and assistant have said these texts in turn."""
    roles = ["user", "assistant"] * len(texts)
    messages = [said(text, role) for text, role in zip(texts, roles, strict=False)]
    return runtime.records.threads.create(messages=messages, **fields).id


def request(text: str | None = None, **fields: Any) -> RunRequest:
    messages = () if text is None else (said(text),)
    return RunRequest(messages=messages, parameters=fields.pop("parameters", GREEDY), **fields)


def start(runtime: Runtime, thread_id: str, text: str | None = None, **fields: Any) -> LiveRun:
    """A run that is recorded."""
    is_followed = fields.pop("is_followed", False)
    live = runtime.runs.start(thread_id, request(text, **fields), is_followed=is_followed)
    assert live.wait_recorded(DEADLINE_S) is not None
    return live


def ended(live: LiveRun) -> Run:
    """The run when it is over."""
    assert live.wait_over(DEADLINE_S)
    assert live.run is not None
    return live.run


def answer(runtime: Runtime, thread_id: str, text: str | None = None, **fields: Any) -> Run:
    return ended(start(runtime, thread_id, text, **fields))


def texts(runtime: Runtime, thread_id: str) -> list[str]:
    return [text_of(message) for message in runtime.records.messages.all(thread_id)]


def text_of(message: StoredMessage) -> str:
    return "".join(part.text.value for part in message.content if isinstance(part, TextPart))


def newest(runtime: Runtime, thread_id: str) -> StoredMessage:
    return list(runtime.records.messages.all(thread_id))[-1]


def steps(runtime: Runtime, run: Run) -> list[RunStep]:
    return runtime.records.runs.steps(run.thread_id, run.id, EVERYTHING).data


def events(live: LiveRun) -> list[RunEvent]:
    return [event for news in live.follow(0.1) if news is not None for event in news]


def wait_for_text(runtime: Runtime) -> None:
    """Wait until an answer has begun."""
    wait_until(lambda: any(view.state == "decode" for view in runtime.requests()), "the first text")


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
        ({"response_format": {"type": "json_object"}}, UnsupportedParameter, "response_format"),
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


# -- one run at a time --------------------------------------------------------------------------------------------------


def test_a_thread_with_a_run_takes_messages_but_no_second_run(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)

    with pytest.raises(RunInProgress, match=str(live.run and live.run.id)):
        runtime.runs.start(thread_id, request("Second"))
    runtime.records.messages.append(thread_id, [said("Meanwhile")])

    assert live.run is not None
    runtime.runs.cancel(thread_id, live.run.id)
    assert texts(runtime, thread_id)[:2] == [FLOOD, "Meanwhile"]
    assert answer(runtime, thread_id, "Now").status == "completed"


def test_of_many_who_ask_at_once_exactly_one_gets_its_run(runtime: Runtime) -> None:
    runtime.start_model("parrot")
    thread_id = new_thread(runtime, "Hello")
    barrier = threading.Barrier(6)
    outcomes: list[LiveRun | HostlerError] = []

    def ask(number: int) -> None:
        barrier.wait(DEADLINE_S)
        try:
            live = runtime.runs.start(thread_id, request(f"{FLOOD} {number}"))
            live.wait_recorded(DEADLINE_S)
            outcomes.append(live)
        except HostlerError as error:
            outcomes.append(error)

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(DEADLINE_S)

    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, LiveRun)]
    assert sum(isinstance(outcome, RunInProgress) for outcome in outcomes) == 5
    assert len(texts(runtime, thread_id)) == 2
    assert winner.run is not None
    runtime.runs.cancel(thread_id, winner.run.id)
    wait_until(lambda: runtime.requests() == [], "the end of what the others had begun")
    assert runtime.budget.n_held == 0


def test_runs_on_postgresql_are_the_same(make_runtime: MakeRuntime, cleared_postgresql: str) -> None:
    runtime = make_runtime(database=cleared_postgresql)
    runtime.start_model("parrot", {"ctx_len": 128})
    thread_id = new_thread(runtime, *("x" * 18 for _ in range(9)))
    ids = [message.id for message in runtime.records.messages.all(thread_id)]

    run = answer(runtime, thread_id)

    assert (run.status, run.left_out, run.left_out_count) == ("completed", ids[:6], 6)
    assert run == runtime.records.runs.get(thread_id, run.id)
    assert newest(runtime, thread_id).run_id == run.id
    live = start(runtime, thread_id, FLOOD)
    wait_for_text(runtime)
    with pytest.raises(RunInProgress):
        runtime.runs.start(thread_id, request("Second"))
    runtime.records.threads.delete(thread_id)
    runtime.runs.thread_deleted(thread_id)
    with pytest.raises(ThreadNotFound):
        events(live)


# -- cancel -------------------------------------------------------------------------------------------------------------


def test_a_run_is_cancelled_while_it_waits_for_a_slot(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"n_parallel": 1})
    first = start(runtime, new_thread(runtime, FLOOD))
    wait_for_text(runtime)
    fillers = [start(runtime, new_thread(runtime, FLOOD)) for _ in range(9)]  # prepared ahead in the worker
    thread_id = new_thread(runtime, "Hello")
    live = start(runtime, thread_id, is_followed=True)
    assert live.run is not None
    assert live.run.status == "queued"

    run = runtime.runs.cancel(thread_id, live.run.id)

    assert (run.status, run.started_at) == ("cancelled", None)
    assert run.cancelled_at is not None
    assert texts(runtime, thread_id) == ["Hello"]
    assert steps(runtime, run) == []
    names = [event.name for event in events(live)]
    assert names == ["thread.run.created", "thread.run.queued", "thread.run.cancelling", "thread.run.cancelled"]
    for other in (first, *fillers):
        assert other.run is not None
        runtime.runs.cancel(other.thread_id, other.run.id)


def test_a_run_is_cancelled_in_its_prefill(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"delay_s": 0.05}}')
    runtime.library.update("parrot", settings={"n_batch": 1})
    thread_id = new_thread(runtime, "x" * 2000)
    live = start(runtime, thread_id)
    assert live.run is not None
    wait_until(lambda: [view.state for view in runtime.requests()] == ["prefill"], "the prefill")

    run = runtime.runs.cancel(thread_id, live.run.id)

    assert run.status == "cancelled"
    assert run.started_at is not None
    assert (texts(runtime, thread_id), steps(runtime, run)) == (["x" * 2000], [])


def test_a_run_is_cancelled_in_its_answer_and_keeps_what_there_is(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id, is_followed=True)
    assert live.run is not None
    wait_for_text(runtime)

    run = runtime.runs.cancel(thread_id, live.run.id)

    assert run.status == "cancelled"
    message = newest(runtime, thread_id)
    assert text_of(message).startswith("x")
    assert (message.status, message.incomplete_details) == ("incomplete", {"reason": "run_cancelled"})
    assert [step.status for step in steps(runtime, run)] == ["cancelled"]
    told = events(live)
    assert [event.name for event in told][-4:] == [
        "thread.run.cancelling",
        "thread.message.incomplete",
        "thread.run.step.cancelled",
        "thread.run.cancelled",
    ] or told[-4].name == "thread.message.delta"  # a piece that was on its way when the cancel came
    shown = "".join(event.data.text for event in told if isinstance(event.data, TextDelta))
    assert shown == text_of(message)


def test_a_cancelled_request_ends_its_run_as_cancelled(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)
    (view,) = runtime.requests()

    runtime.cancel_request(view.id)

    assert ended(live).status == "cancelled"
    assert newest(runtime, thread_id).chat_completion_id == view.id


def test_what_is_over_cannot_be_cancelled(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "Hello")
    run = answer(runtime, thread_id)

    with pytest.raises(InvalidRequest, match="it is completed"):
        runtime.runs.cancel(thread_id, run.id)
    with pytest.raises(RunNotFound):
        runtime.runs.cancel(thread_id, "run_none")


def test_two_cancels_at_once_end_it_once(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    run_id = live.run.id if live.run is not None else ""
    wait_for_text(runtime)
    results: list[str] = []

    def cancel() -> None:
        try:
            results.append(runtime.runs.cancel(thread_id, run_id).status)
        except InvalidRequest:
            results.append("too late")

    cancels = [threading.Thread(target=cancel) for _ in range(4)]
    for thread in cancels:
        thread.start()
    for thread in cancels:
        thread.join(DEADLINE_S)

    assert "cancelled" in results
    assert set(results) <= {"cancelled", "too late"}
    assert len(texts(runtime, thread_id)) == 2


# -- failures -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_fails_its_run_and_leaves_no_half_message(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "[[echo: die=SIGSEGV at=5]] Hello there")
    live = start(runtime, thread_id, is_followed=True)

    run = ended(live)

    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "server_error"
    assert "SIGSEGV" in run.last_error.message
    assert run.failed_at is not None
    assert len(texts(runtime, thread_id)) == 1
    (step,) = steps(runtime, run)
    assert (step.status, step.last_error) == ("failed", run.last_error)
    assert [event.name for event in events(live)][-2:] == ["thread.run.step.failed", "thread.run.failed"]
    assert answer(runtime, new_thread(runtime, "Still here")).status == "completed"


def test_an_engine_that_gives_up_on_a_run_fails_it(runtime: Runtime) -> None:
    run = answer(runtime, new_thread(runtime, "[[echo: fail='no more ideas' at=2]] Hello"))

    assert (run.status, run.last_error and run.last_error.message) == ("failed", "no more ideas")


def test_a_model_that_is_stopped_fails_its_runs(runtime: Runtime) -> None:
    live = start(runtime, new_thread(runtime, FLOOD))
    wait_for_text(runtime)

    runtime.stop_model("parrot")

    run = ended(live)
    assert run.status == "failed"
    assert "was stopped" in str(run.last_error)


def test_a_thread_deleted_during_its_run_ends_it_and_nothing_is_written(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id, is_followed=True)
    wait_for_text(runtime)

    runtime.records.threads.delete(thread_id)
    runtime.runs.thread_deleted(thread_id)

    with pytest.raises(ThreadNotFound, match="was deleted"):
        events(live)
    assert runtime.requests() == []
    with pytest.raises(ThreadNotFound):
        runtime.records.messages.list(thread_id, EVERYTHING)
    with pytest.raises(ThreadNotFound):
        runtime.runs.cancel(thread_id, live.run.id if live.run else "")


@pytest.mark.parametrize("asked", ["get", "start"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_database_that_is_busy_at_the_end_of_a_run_is_waited_for_or_made_up_for(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, is_lost: bool, asked: str
) -> None:
    """The end is tried several times; one that is lost all the same does not block its thread, or who polls it, for ever."""
    monkeypatch.setattr(hostler.liverun, "RETRIES_S", (0.01,) * (2 if is_lost else 1000))
    runtime.records.database.busy_timeout_s = 0.05
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)
    path = runtime.records.database.location.path
    assert path is not None
    assert live.run is not None
    blocker = sqlite3.connect(path, isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        live.cancel()
        if is_lost:
            assert live.wait_over(DEADLINE_S)
        else:
            assert not live.wait_over(0.5)
        blocker.execute("ROLLBACK")
    finally:
        blocker.close()

    if not is_lost:
        assert ended(live).status == "cancelled"
        return
    with pytest.raises(StorageUnavailable):
        events(live)
    assert runtime.records.runs.get(thread_id, live.run.id).status in ACTIVE_RUN
    if asked == "get":
        assert runtime.runs.get(thread_id, live.run.id).status == "failed"
    assert answer(runtime, thread_id, "Hello").status == "completed"
    lost = runtime.records.runs.get(thread_id, live.run.id)
    assert (lost.status, "lost" in str(lost.last_error)) == ("failed", True)


# -- stopping -----------------------------------------------------------------------------------------------------------


def test_a_stop_lets_a_run_finish_within_the_drain_time(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "[[echo: delay_s=0.02]] Hello there")
    live = start(runtime, thread_id)
    wait_for_text(runtime)

    runtime.close(DEADLINE_S)

    assert live.run is not None
    assert live.run.status == "completed"


def test_what_a_stop_cuts_is_failed_in_the_records_and_after_a_restart_the_thread_goes_on(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    thread_id = new_thread(runtime, FLOOD)
    live = start(runtime, thread_id)
    wait_for_text(runtime)
    assert live.run is not None

    again = make_runtime()  # closes the first at once

    run = again.records.runs.get(thread_id, live.run.id)
    assert (run.status, run.last_error and run.last_error.code) == ("failed", "server_error")
    assert texts(again, thread_id) == [FLOOD]
    assert [step.status for step in steps(again, run)] == ["failed"]
    assert answer(again, thread_id, "Hello").status == "completed"


def test_no_run_begins_while_hostler_stops(runtime: Runtime) -> None:
    thread_id = new_thread(runtime, "Hello")
    runtime.is_ready = False

    with pytest.raises(EngineUnavailable, match="stopping"):
        runtime.runs.start(thread_id, request())


# -- counting -----------------------------------------------------------------------------------------------------------

CHAT = (Message("system", "Be brief."), Message("user", "Hello"))


def test_counting_starts_a_model_once_for_all_who_ask(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.3}}')
    sizes: list[tuple[int, int]] = []

    def count() -> None:
        size = runtime.count_tokens("parrot", CHAT)
        sizes.append((size.n_tokens, size.n_ctx))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert sizes == [(len("Be brief.Hello") + 2 + 2 + 1, runtime.model("parrot").ctx_len)] * 4
    assert runtime.budget.n_held == 0
    assert runtime.model("parrot").idle_s is not None


def test_counting_starts_no_model_where_autostart_is_off(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(autostart=False)

    with pytest.raises(EngineUnavailable, match="autostart"):
        runtime.count_tokens("parrot", CHAT)
    assert runtime.model("parrot").lifecycle is Lifecycle.DOWNLOADED


def test_counting_is_bounded_by_max_requests(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_requests=1)
    with runtime.hold("test"), pytest.raises(QueueFull, match="this count"):
        runtime.count_tokens("parrot", CHAT)


def test_counting_waits_for_no_slot(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"n_parallel": 1})
    live = start(runtime, new_thread(runtime, FLOOD))
    wait_for_text(runtime)

    assert runtime.count_tokens("parrot", CHAT).n_tokens > 0

    assert live.run is not None
    runtime.runs.cancel(live.thread_id, live.run.id)


def test_a_stop_ends_a_count_that_waits_for_its_model(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_hang": true}}')
    errors: list[HostlerError] = []

    def count() -> None:
        try:
            runtime.count_tokens("parrot", CHAT)
        except HostlerError as error:
            errors.append(error)

    thread = threading.Thread(target=count)
    thread.start()
    wait_until(lambda: runtime.model("parrot").pid is not None, "the worker")
    runtime.stop_model("parrot")
    thread.join(DEADLINE_S)

    assert len(errors) == 1
    assert runtime.budget.n_held == 0
