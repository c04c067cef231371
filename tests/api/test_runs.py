"""Runs: every operation, what they refuse, and their streams, frame by frame. Generations are scripted, records are real."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.beta.threads import Run as OpenAIRun
from openai.types.beta.threads.runs import RunStep as OpenAIRunStep

from api.scripted_runtime import DEADLINE_S, Pause, finish, prefill, text
from hostler.domain import FinishReason, Message
from hostler.errors import EngineUnavailable, ModelLoadFailed
from support.workers import wait_until

Client = Any
Runtime = Any
Serve = Callable[..., str]
TOOL = {"type": "function", "function": {"name": "look_up"}}
USAGE = {
    "prompt_tokens": 33, "completion_tokens": 2, "total_tokens": 35, "prompt_token_details": {"cached_tokens": 8},
}  # fmt: skip


def create_thread(client: Client, *texts: str, **body: Any) -> str:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": content} for role, content in zip(roles, texts, strict=False)]
    return str(client.simulate_post("/v1/threads", json={"messages": messages, **body}).json["id"])


def start(client: Client, thread_id: str, **body: Any) -> Any:
    return client.simulate_post(f"/v1/threads/{thread_id}/runs", json=body)


def ended(client: Client, run: dict[str, Any]) -> dict[str, Any]:
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
    active = ("queued", "in_progress", "cancelling")
    wait_until(lambda: client.simulate_get(path).json["status"] not in active, "the run's end")
    found: dict[str, Any] = client.simulate_get(path).json
    return found


def messages_of(client: Client, thread_id: str) -> list[dict[str, Any]]:
    listed = client.simulate_get(f"/v1/threads/{thread_id}/messages", params={"order": "asc"}).json
    return list(listed["data"])


def events_of(body: str) -> list[tuple[str, Any]]:
    """Name and data of each event; comments and `[DONE]` as they stand. Fails on anything that is no event."""
    assert body.endswith("\n\n")
    found: list[tuple[str, Any]] = []
    for frame in body[:-2].split("\n\n"):
        if frame.startswith(":"):
            found.append((frame, None))
            continue
        name, data = frame.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        value = data.removeprefix("data: ")
        found.append((name.removeprefix("event: "), value if value == "[DONE]" else json.loads(value)))
    return found


def check_refusal(answer: Any, status: int, code: str, param: str | None) -> str:
    error = answer.json["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text
    return str(error["message"])


# -- whole answers ------------------------------------------------------------------------------------------------------


def test_a_run_is_answered_at_once_and_goes_on_by_itself(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "Hello!")
    pause = Pause()
    runtime.enqueue(prefill(), pause, text("Hello"), finish())

    answer = start(client, thread_id, metadata={"n": 1}, max_completion_tokens=50, max_prompt_tokens=500)

    assert answer.status_code == 200
    assert answer.headers["x-hostler-model"] == "zephyr-7b"
    run = answer.json
    assert run["id"].startswith("run_")
    assert run["created"] == run["created_at"]
    assert run["status"] in ("queued", "in_progress")
    expected = {
        "object": "thread.run", "thread_id": thread_id, "assistant_id": "jan", "model": "zephyr-7b", "instructions": "",
        "tools": [], "metadata": {"n": "1"}, "completed_at": None, "failed_at": None, "cancelled_at": None,
        "expires_at": None, "required_action": None, "last_error": None, "incomplete_details": None, "usage": None,
        "temperature": 0.7, "top_p": 0.95, "max_completion_tokens": 50, "max_prompt_tokens": 500, "tool_choice": "auto",
        "parallel_tool_calls": True, "response_format": "auto", "left_out": [], "left_out_count": 0,
        "truncation_strategy": {"type": "auto", "last_messages": None},
    }  # fmt: skip
    assert {name: run[name] for name in expected} == expected
    OpenAIRun.model_validate(run, strict=True)
    assert messages_of(client, thread_id)[-1]["role"] == "user"

    pause.go_on.set()

    done = ended(client, run)
    assert (done["status"], done["usage"]) == ("completed", USAGE)
    message = messages_of(client, thread_id)[-1]
    assert (message["content"][0]["text"]["value"], message["run_id"]) == ("Hello", run["id"])
    assert message["chat_completion_id"] == runtime.asked[0].id


def test_what_the_model_is_asked_is_the_thread_with_the_instructions_before_it(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "One", "Two")

    more = [{"role": "user", "content": [{"type": "text", "text": "Three"}, {"type": "text", "text": "and four"}]}]
    run = start(client, thread_id, instructions="Be brief.", additional_messages=more, model="phi-alias", top_k="7").json

    ended(client, run)
    (asked,) = runtime.asked
    assert asked.messages == (
        Message("system", "Be brief."),
        Message("user", "One"),
        Message("assistant", "Two"),
        Message("user", "Three\nand four"),
    )
    assert (asked.model, asked.params.top_k, run["model"]) == ("phi", 7, "phi")


def test_a_thread_and_its_run_are_made_together(client: Client, runtime: Runtime) -> None:
    made = client.simulate_post("/v1/assistants", json={"name": "Tutor", "model": "phi", "instructions": "Teach."}).json
    thread = {"messages": [{"role": "user", "content": "Hello!"}], "title": "Birds", "metadata": {"a": "b"}}

    answer = client.simulate_post("/v1/threads/runs", json={"assistant_id": made["id"], "thread": thread})

    run = answer.json
    assert (answer.status_code, run["assistant_id"], run["model"], run["instructions"]) == (200, made["id"], "phi", "Teach.")
    kept = client.simulate_get(f"/v1/threads/{run['thread_id']}").json
    assert (kept["title"], kept["metadata"], kept["assistant_ids"]) == ("Birds", {"a": "b"}, [made["id"]])
    assert kept["assistants"][0]["assistant_name"] == "Tutor"
    assert ended(client, run)["status"] == "completed"


def test_a_thread_made_for_a_run_may_name_its_assistants_itself(client: Client) -> None:
    thread = {"messages": [{"role": "user", "content": "Hello!"}], "assistants": [{"assistant_id": "jan", "model": "phi"}]}

    run = client.simulate_post("/v1/threads/runs", json={"thread": thread}).json

    assert (run["assistant_id"], run["model"]) == ("jan", "phi")
    ended(client, run)


def test_a_run_needs_no_body(client: Client) -> None:
    thread_id = create_thread(client, "Hello!")

    answer = client.simulate_post(f"/v1/threads/{thread_id}/runs/")

    assert answer.status_code == 200
    assert ended(client, answer.json)["assistant_id"] == "jan"


# -- lists, metadata, steps -----------------------------------------------------------------------------------------------


def test_runs_are_listed_the_newest_first_in_pages(client: Client) -> None:
    thread_id = create_thread(client, "Hello!")
    ids = [ended(client, start(client, thread_id).json)["id"] for _ in range(3)]

    first = client.simulate_get(f"/v1/threads/{thread_id}/runs", params={"limit": 2}).json
    rest = client.simulate_get(f"/v1/threads/{thread_id}/runs", params={"limit": 2, "after": first["last_id"]}).json

    assert [run["id"] for run in (*first["data"], *rest["data"])] == ids[::-1]
    assert (first["object"], first["has_more"], rest["has_more"]) == ("list", True, False)
    check_refusal(client.simulate_get(f"/v1/threads/{thread_id}/runs", params={"limit": 101}), 400, "invalid_value", "limit")


def test_a_runs_metadata_can_be_changed_while_it_works_and_after_it(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "Hello!")
    pause = Pause()
    runtime.enqueue(pause, text("Hello"), finish())
    run = start(client, thread_id, metadata={"a": "b"}).json
    path = f"/v1/threads/{thread_id}/runs/{run['id']}"

    assert client.simulate_post(path, json={"metadata": {"c": "d"}}).json["metadata"] == {"c": "d"}
    pause.go_on.set()

    assert ended(client, run)["metadata"] == {"c": "d"}
    assert client.simulate_post(path).json["metadata"] == {"c": "d"}
    assert client.simulate_post(path, json={"metadata": {}}).json["metadata"] == {}
    check_refusal(client.simulate_post(path, json={"metadata": {"k": "x" * 513}}), 400, "invalid_value", "metadata.k")


def test_a_run_has_one_step_the_making_of_its_message(client: Client) -> None:
    thread_id = create_thread(client, "Hello!")
    run = ended(client, start(client, thread_id).json)
    path = f"/v1/threads/{thread_id}/runs/{run['id']}/steps"

    (step,) = client.simulate_get(path).json["data"]

    message = messages_of(client, thread_id)[-1]
    expected = {
        "object": "thread.run.step", "run_id": run["id"], "thread_id": thread_id, "assistant_id": "jan",
        "type": "message_creation", "status": "completed", "usage": USAGE, "last_error": None, "cancelled_at": None,
        "failed_at": None, "expired_at": None, "metadata": {},
        "step_details": {"type": "message_creation", "message_creation": {"message_id": message["id"]}},
    }  # fmt: skip
    assert {name: step[name] for name in expected} == expected
    assert step["id"].startswith("step_")
    OpenAIRunStep.model_validate(step, strict=True)
    assert client.simulate_get(f"{path}/{step['id']}").json == step
    check_refusal(client.simulate_get(f"{path}/step_none"), 404, "step_not_found", None)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "/v1/threads/thread_none/runs", "thread_not_found"),
        ("GET", "/v1/threads/thread_none/runs", "thread_not_found"),
        ("GET", "/v1/threads/thread_none/runs/run_none", "thread_not_found"),
        ("GET", "/v1/threads/THREAD/runs/run_none", "run_not_found"),
        ("POST", "/v1/threads/THREAD/runs/run_none", "run_not_found"),
        ("POST", "/v1/threads/THREAD/runs/run_none/cancel", "run_not_found"),
        ("GET", "/v1/threads/THREAD/runs/run_none/steps", "run_not_found"),
        ("GET", "/v1/threads/THREAD/runs/run_none/steps/step_none", "run_not_found"),
    ],
)
def test_unknown_ids_are_404_with_the_objects_kind(client: Client, method: str, path: str, code: str) -> None:
    path = path.replace("THREAD", create_thread(client, "Hello!"))

    check_refusal(client.simulate_request(method, path), 404, code, None)


def test_a_run_of_another_thread_is_not_found(client: Client) -> None:
    run = ended(client, start(client, create_thread(client, "Hello!")).json)

    check_refusal(client.simulate_get(f"/v1/threads/{create_thread(client)}/runs/{run['id']}"), 404, "run_not_found", None)


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"assistant_id": "asst_none"}, 404, "assistant_not_found", None),
        ({"model": "nope"}, 404, "model_not_found", None),
        ({"model": "catalogue-only"}, 404, "model_not_downloaded", None),
        ({"tools": [TOOL]}, 400, "unsupported_parameter", "tools"),
        ({"tools": [{"type": "nonsense"}]}, 400, "invalid_value", "tools[0].type"),
        ({"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
        ({"tool_choice": "sometimes"}, 400, "invalid_value", "tool_choice"),
        ({"tool_choice": {}}, 400, "missing_required_parameter", "tool_choice.type"),
        ({"response_format": {"type": "json_schema"}}, 400, "missing_required_parameter", "response_format.json_schema"),
        ({"response_format": {"type": 1}}, 400, "invalid_value", "response_format.type"),
        ({"response_format": "json"}, 400, "invalid_value", "response_format"),
        ({"truncation_strategy": {"type": "middle"}}, 400, "invalid_value", "truncation_strategy.type"),
        ({"truncation_strategy": {}}, 400, "missing_required_parameter", "truncation_strategy.type"),
        (
            {"truncation_strategy": {"type": "last_messages"}},
            400, "missing_required_parameter", "truncation_strategy.last_messages",
        ),
        (
            {"truncation_strategy": {"type": "last_messages", "last_messages": 0}},
            400, "invalid_value", "truncation_strategy.last_messages",
        ),
        ({"max_prompt_tokens": 0}, 400, "invalid_value", "max_prompt_tokens"),
        ({"max_completion_tokens": 0}, 400, "invalid_value", "max_completion_tokens"),
        ({"temperature": 3}, 400, "invalid_value", "temperature"),
        ({"metadata": {"k" * 65: "v"}}, 400, "invalid_value", f"metadata.{'k' * 64}"),
        ({"stream": "perhaps"}, 400, "invalid_value", "stream"),
        ({"additional_messages": [{"role": "system", "content": "x"}]}, 400, "invalid_value", "additional_messages[0].role"),
        ({"additional_messages": [{"role": "user", "content": ""}]}, 400, "invalid_value", "additional_messages[0].content"),
        (
            {"additional_messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            400, "unsupported_parameter", "additional_messages[0].content[0]",
        ),
        ({"instructions": ["x"]}, 400, "invalid_value", "instructions"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_run_is_refused_with_the_path_streamed_or_not(
    client: Client, runtime: Runtime, body: dict[str, Any], status: int, code: str, param: str | None, stream: bool
) -> None:
    thread_id = create_thread(client, "Hello!")

    answer = start(client, thread_id, **{"stream": stream, **body})

    check_refusal(answer, status, code, param)
    assert runtime.asked == []
    assert len(messages_of(client, thread_id)) == 1
    assert client.simulate_get(f"/v1/threads/{thread_id}/runs").json["data"] == []
    assert runtime.n_free == 8


def test_a_bad_thread_of_a_run_is_refused_with_its_own_path(client: Client) -> None:
    def create(**thread: Any) -> Any:
        return client.simulate_post("/v1/threads/runs", json={"thread": thread})

    check_refusal(create(messages=[{"role": "robot", "content": "x"}]), 400, "invalid_value", "thread.messages[0].role")
    check_refusal(create(metadata={"k": "x" * 513}), 400, "invalid_value", "thread.metadata.k")
    image = {"type": "image_file", "image_file": {"file_id": "file-1"}}
    answer = create(messages=[{"role": "user", "content": [image]}])
    check_refusal(answer, 400, "unsupported_parameter", "thread.messages[0].content[0]")
    assert client.simulate_get("/v1/threads").json["data"] == []


def test_a_prompt_that_does_not_fit_is_400_with_both_numbers(client: Client) -> None:
    thread_id = create_thread(client, "x" * 3000)

    message = check_refusal(start(client, thread_id), 400, "context_length_exceeded", None)

    assert "2048 tokens" in message
    assert "3001 tokens" in message


def test_a_second_run_is_409_and_clients_are_told_not_to_retry(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "Hello!")
    pause = Pause()
    runtime.enqueue(pause, text("Hello"), finish())
    run = start(client, thread_id).json

    second = start(client, thread_id)

    assert run["id"] in check_refusal(second, 409, "run_in_progress", None)
    assert second.headers["x-should-retry"] == "false"
    message = {"role": "user", "content": "Meanwhile"}
    assert client.simulate_post(f"/v1/threads/{thread_id}/messages", json=message).status_code == 200
    pause.go_on.set()
    assert ended(client, run)["status"] == "completed"


def test_tool_outputs_are_refused_because_no_run_asks_for_any(client: Client) -> None:
    run = ended(client, start(client, create_thread(client, "Hello!")).json)
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}/submit_tool_outputs"

    answer = client.simulate_post(path, json={"tool_outputs": [{"tool_call_id": "call_1", "output": "7"}]})

    assert "requires_action" in check_refusal(answer, 400, "unsupported_parameter", "tool_outputs")
    check_refusal(client.simulate_post(path), 400, "missing_required_parameter", "tool_outputs")


# -- cancel, deletion ---------------------------------------------------------------------------------------------------


def test_a_cancelled_run_keeps_the_text_it_has(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "Hello!")
    pause = Pause()
    runtime.enqueue(prefill(), text("Hel"), pause)
    run = start(client, thread_id).json
    assert pause.reached.wait(DEADLINE_S)
    path = f"/v1/threads/{thread_id}/runs/{run['id']}/cancel"

    cancelled = client.simulate_post(path)

    assert (cancelled.status_code, cancelled.json["status"]) == (200, "cancelled")
    message = messages_of(client, thread_id)[-1]
    assert (message["content"][0]["text"]["value"], message["status"]) == ("Hel", "incomplete")
    assert message["incomplete_details"] == {"reason": "run_cancelled"}
    assert "is cancelled" in check_refusal(client.simulate_post(path), 400, "invalid_value", "run_id")


def test_deleting_a_thread_cancels_its_run(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "Hello!")
    pause = Pause()
    runtime.enqueue(prefill(), text("Hel"), pause)
    run = start(client, thread_id).json
    assert pause.reached.wait(DEADLINE_S)

    assert client.simulate_delete(f"/v1/threads/{thread_id}").status_code == 200

    assert runtime.generations[0].closed.wait(DEADLINE_S)
    check_refusal(client.simulate_get(f"/v1/threads/{thread_id}/runs/{run['id']}"), 404, "thread_not_found", None)
    wait_until(lambda: not runtime.runs.is_busy, "the end of the run")


# -- streams ------------------------------------------------------------------------------------------------------------


def test_a_stream_has_openais_events_frame_by_frame(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "Hello!")
    pause = Pause()
    runtime.enqueue(prefill(), text("Gr\u00fc"), text(""), text("\u00dfe"), finish())

    answer = start(client, thread_id, stream=True)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert answer.headers["x-hostler-model"] == "zephyr-7b"
    events = events_of(answer.text)
    names = [name for name, _ in events if name != "thread.message.delta"]
    assert names == [
        "thread.run.created", "thread.run.queued", "thread.run.in_progress", "thread.run.step.created",
        "thread.run.step.in_progress", "thread.message.created", "thread.message.in_progress", "thread.message.completed",
        "thread.run.step.completed", "thread.run.completed", "done",
    ]  # fmt: skip
    data = dict(events)
    assert data["done"] == "[DONE]"
    message = messages_of(client, thread_id)[-1]
    assert data["thread.message.created"]["content"] == []
    assert (data["thread.message.created"]["id"], data["thread.message.created"]["status"]) == (message["id"], "in_progress")
    assert data["thread.message.completed"] == message
    run_id = data["thread.run.created"]["id"]
    assert data["thread.run.completed"] == client.simulate_get(f"/v1/threads/{thread_id}/runs/{run_id}").json
    deltas = [delta for name, delta in events if name == "thread.message.delta"]
    assert "".join(delta["delta"]["content"][0]["text"]["value"] for delta in deltas) == "Gr\u00fc\u00dfe"
    for delta in deltas:
        value = delta["delta"]["content"][0]["text"]["value"]
        part = {"index": 0, "type": "text", "text": {"value": value, "annotations": []}}
        assert delta == {"id": message["id"], "object": "thread.message.delta", "delta": {"content": [part]}}
    assert not pause.reached.is_set()
    assert runtime.n_free == 8


def test_a_stream_of_a_new_thread_begins_with_it(client: Client) -> None:
    body = {"thread": {"messages": [{"role": "user", "content": "Hello!"}]}, "stream": "true"}

    events = events_of(client.simulate_post("/v1/threads/runs", json=body).text)

    assert [name for name, _ in events[:2]] == ["thread.created", "thread.run.created"]
    assert events[0][1]["id"] == events[1][1]["thread_id"]
    assert events[-1] == ("done", "[DONE]")


@pytest.mark.parametrize(
    ("script", "names", "status"),
    [
        (
            (prefill(), text("Hello"), finish(reason=FinishReason.LENGTH)),
            ["thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete"],
            "incomplete",
        ),
        (
            (prefill(), text("Hello"), EngineUnavailable("The engine of zephyr-7b died")),
            ["thread.run.step.failed", "thread.run.failed"],
            "failed",
        ),
        ((prefill(), EngineUnavailable("The engine of zephyr-7b died")), ["thread.run.failed"], "failed"),
        ((ModelLoadFailed("no such layer"),), ["thread.run.failed"], "failed"),
        ((prefill(), text("Hello"), RuntimeError("a bug")), ["thread.run.step.failed", "thread.run.failed"], "failed"),
        (
            (prefill(), text("Hello"), finish(reason=FinishReason.CANCELLED)),
            ["thread.message.incomplete", "thread.run.step.cancelled", "thread.run.cancelled"],
            "cancelled",
        ),
    ],
)
def test_a_stream_tells_every_other_end_too_and_then_that_it_is_done(
    client: Client, runtime: Runtime, script: tuple[Any, ...], names: list[str], status: str
) -> None:
    thread_id = create_thread(client, "Hello!")
    runtime.enqueue(*script)

    events = events_of(start(client, thread_id, stream=True).text)

    assert [name for name, _ in events][-len(names) - 1 :] == [*names, "done"]
    run = events[-2][1]
    assert run == client.simulate_get(f"/v1/threads/{thread_id}/runs/{run['id']}").json
    assert run["status"] == status
    OpenAIRun.model_validate(run, strict=True)
    assert (run["last_error"] is not None) == (status == "failed")
    kept = [message["content"][0]["text"]["value"] for message in messages_of(client, thread_id)]
    assert kept == (["Hello!"] if status == "failed" else ["Hello!", "Hello"])


def test_a_run_has_its_line_in_the_log(client: Client, runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hostler.runs")
    run = ended(client, start(client, create_thread(client, "Hello!")).json)

    def lines() -> list[Any]:
        return [record for record in caplog.records if record.name == "hostler.runs"]

    wait_until(lines, "the line")
    (line,) = lines()
    assert (line.generation_id, line.run_id, line.end_reason) == (runtime.asked[0].id, run["id"], "completed")
    assert line.getMessage() == f"{runtime.asked[0].id} zephyr-7b 33+2 tokens, {run['id']} completed"


def test_a_bug_is_told_to_nobody_but_the_log(client: Client, runtime: Runtime) -> None:
    runtime.enqueue(prefill(), RuntimeError("secret"))

    run = ended(client, start(client, create_thread(client, "Hello!")).json)

    assert run["last_error"]["code"] == "server_error"
    assert "secret" not in run["last_error"]["message"]


def test_a_stream_ends_with_an_error_event_when_its_thread_is_deleted(serve: Serve, runtime: Runtime) -> None:
    pause = Pause()
    runtime.enqueue(prefill(), text("Hel"), pause)
    with httpx.Client(base_url=serve(), timeout=DEADLINE_S) as http:
        thread_id = http.post("/v1/threads", json={"messages": [{"role": "user", "content": "Hello!"}]}).json()["id"]
        with http.stream("POST", f"/v1/threads/{thread_id}/runs", json={"stream": True}) as answer:
            body, is_deleted = "", False
            for piece in answer.iter_text():
                body += piece
                if not is_deleted and "thread.message.delta" in body:
                    assert pause.reached.wait(DEADLINE_S)
                    httpx.delete(f"{http.base_url}/v1/threads/{thread_id}", timeout=DEADLINE_S)
                    is_deleted = True

    name, data = events_of(body)[-1]
    assert (name, data["error"]["code"]) == ("error", "thread_not_found")


def test_a_stream_holds_a_place_and_is_refused_without_one(client: Client, runtime: Runtime) -> None:
    thread_id = create_thread(client, "Hello!")
    events_of(start(client, thread_id, stream=True).text)
    assert runtime.held == ["run stream"]

    runtime.n_free = 0
    check_refusal(start(client, thread_id, stream=True), 429, "queue_full", None)
    assert len(client.simulate_get(f"/v1/threads/{thread_id}/runs").json["data"]) == 1


def test_a_stream_is_kept_alive_while_its_model_loads_and_while_it_is_silent(serve: Serve, runtime: Runtime) -> None:
    pause = Pause()
    runtime.may_count.clear()
    runtime.enqueue(prefill(), pause, text("Hello"), finish())
    lines: list[str] = []
    with httpx.Client(base_url=serve(keep_alive_s=0.05), timeout=DEADLINE_S) as http:
        thread_id = http.post("/v1/threads", json={"messages": [{"role": "user", "content": "Hello!"}]}).json()["id"]
        with http.stream("POST", f"/v1/threads/{thread_id}/runs", json={"stream": True}) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if lines.count(": keep-alive") == 2:
                    runtime.may_count.set()
                if pause.reached.is_set() and line == ": keep-alive":
                    pause.go_on.set()

    assert answer.status_code == 200
    comments = [index for index, line in enumerate(lines) if line == ": keep-alive"]
    begun = lines.index("event: thread.run.in_progress")
    assert comments[0] == 0
    assert any(index > begun for index in comments)
    assert lines[-2] == "data: [DONE]"


def test_a_refusal_after_a_comment_is_an_error_event(serve: Serve, runtime: Runtime) -> None:
    runtime.may_count.clear()
    with httpx.Client(base_url=serve(keep_alive_s=0.05), timeout=DEADLINE_S) as http:
        thread_id = http.post("/v1/threads", json={"messages": [{"role": "user", "content": "x" * 3000}]}).json()["id"]
        with http.stream("POST", f"/v1/threads/{thread_id}/runs", json={"stream": True}) as answer:
            body = ""
            for piece in answer.iter_text():
                body += piece
                runtime.may_count.set()

    events = events_of(body)
    assert events[0][0] == ": keep-alive"
    name, data = events[-1]
    assert (name, data["error"]["code"]) == ("error", "context_length_exceeded")


def test_a_client_that_leaves_its_stream_frees_its_thread_and_the_run_goes_on(serve: Serve, runtime: Runtime) -> None:
    pause = Pause()
    runtime.enqueue(prefill(), text("Hel"), pause, text("lo"), finish())
    with httpx.Client(base_url=serve(), timeout=DEADLINE_S) as http:
        thread_id = http.post("/v1/threads", json={"messages": [{"role": "user", "content": "Hello!"}]}).json()["id"]
        with http.stream("POST", f"/v1/threads/{thread_id}/runs", json={"stream": True}) as answer:
            for piece in answer.iter_text():
                if "thread.message.delta" in piece:
                    break
        wait_until(lambda: runtime.n_free == 8, "the end of the stream")
        pause.go_on.set()

        def answers() -> Any:
            listed = http.get(f"/v1/threads/{thread_id}/messages").json()["data"]
            return [one["content"][0]["text"]["value"] for one in listed if one["role"] == "assistant"]

        wait_until(lambda: answers() == ["Hello"], "the answer")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_its_run_is_recorded_gets_it_all_the_same(
    serve: Serve, runtime: Runtime, stream: bool
) -> None:
    runtime.may_count.clear()
    with httpx.Client(base_url=serve(), timeout=DEADLINE_S) as http:
        thread_id = http.post("/v1/threads", json={"messages": [{"role": "user", "content": "Hello!"}]}).json()["id"]
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"/v1/threads/{thread_id}/runs", json={"stream": stream}, timeout=0.2)
        wait_until(lambda: runtime.n_free == 8, "the end of the stream")

        runtime.may_count.set()

        wait_until(lambda: len(http.get(f"/v1/threads/{thread_id}/messages").json()["data"]) == 2, "the answer")


def test_many_streams_at_once_each_get_their_own_text(serve: Serve, runtime: Runtime) -> None:
    url = serve(max_requests=16)
    runtime.n_free = 16
    texts: dict[int, str] = {}

    def run(number: int) -> None:
        body = {"thread": {"messages": [{"role": "user", "content": f"Hello {number}!"}]}, "stream": True}
        answer = httpx.post(f"{url}/v1/threads/runs", json=body, timeout=DEADLINE_S)
        events = events_of(answer.text)
        texts[number] = dict(events)["thread.message.completed"]["content"][0]["text"]["value"]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert texts == dict.fromkeys(range(12), "Hello user.")


# -- OpenAI's client ----------------------------------------------------------------------------------------------------


@pytest.fixture
def openai_client(serve: Serve) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="unused", timeout=DEADLINE_S, max_retries=0) as made:
        yield made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI is leaving this API; hostler's users are not
def test_openais_client_creates_polls_lists_and_cancels(openai_client: openai.OpenAI, runtime: Runtime) -> None:
    beta = openai_client.beta
    assistant = beta.assistants.create(model="phi", name="Tutor", instructions="Teach.")
    thread = beta.threads.create(messages=[{"role": "user", "content": "Hello!"}])

    run = beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=10)

    assert (run.status, run.model, run.instructions) == ("completed", "phi", "Teach.")
    assert [one.id for one in beta.threads.runs.list(thread.id)] == [run.id]
    (step,) = beta.threads.runs.steps.list(run.id, thread_id=thread.id)
    (message,) = beta.threads.messages.list(thread.id, run_id=run.id)
    assert step.step_details.message_creation.message_id == message.id  # type: ignore[union-attr]
    assert message.content[0].text.value == "Hello user."  # type: ignore[union-attr]
    pause = Pause()
    runtime.enqueue(prefill(), text("Hel"), pause)
    second = beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
    assert pause.reached.wait(DEADLINE_S)
    assert beta.threads.runs.cancel(second.id, thread_id=thread.id).status == "cancelled"
    assert beta.threads.runs.update(second.id, thread_id=thread.id, metadata={"a": "b"}).metadata == {"a": "b"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_client_streams_with_its_event_handler(openai_client: openai.OpenAI) -> None:
    thread = {"messages": [{"role": "user", "content": "Hello!"}]}

    with openai_client.beta.threads.create_and_run_stream(assistant_id="jan", thread=thread) as stream:  # type: ignore[arg-type]
        said = "".join(stream.text_deltas)
        messages = stream.get_final_messages()
        steps = stream.get_final_run_steps()
        run = stream.get_final_run()

    assert said == "Hello user."
    assert messages[0].content[0].text.value == "Hello user."  # type: ignore[union-attr]
    assert (len(messages), len(steps)) == (1, 1)
    assert run.status == "completed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_client_raises_on_an_error_event(openai_client: openai.OpenAI, runtime: Runtime) -> None:
    beta = openai_client.beta
    thread = beta.threads.create(messages=[{"role": "user", "content": "Hello!"}])
    pause = Pause()
    runtime.enqueue(prefill(), text("Hel"), pause)

    def read_on() -> None:
        for event in beta.threads.runs.create(thread_id=thread.id, assistant_id="jan", stream=True):
            if event.event == "thread.message.delta":
                beta.threads.delete(thread.id)

    with pytest.raises(openai.APIError) as raised:
        read_on()

    assert raised.value.code == "thread_not_found"
