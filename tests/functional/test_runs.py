"""Runs of whole servers: killed, stopped, started again; and the real model, as its users meet it."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

import httpx
import openai
import pytest

from support.server import DEADLINE_S, add_echo, eventually, serving

FLOOD = "[[echo: flood delay_s=0.02]] la "
OVER = {"completed", "failed", "cancelled", "incomplete"}
ROUNDS = 8

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    add_echo(home)
    return home


def new_thread(server, *texts):
    messages = [{"role": "user", "content": text} for text in texts]
    return server.call("POST", "/v1/threads", {"messages": messages}).json()["id"]


def start(server, thread_id, **body):
    answer = server.call("POST", f"/v1/threads/{thread_id}/runs", {"model": "echo", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def run_of(server, run):
    return server.call("GET", f"/v1/threads/{run['thread_id']}/runs/{run['id']}").json()


def ended(server, run):
    return eventually(lambda: (found := run_of(server, run))["status"] in OVER and found, "the run's end")


def messages_of(server, thread_id):
    """(role, status, text) of each, in order."""
    listed = server.call("GET", f"/v1/threads/{thread_id}/messages", params={"order": "asc", "limit": 100}).json()["data"]
    return [(one["role"], one["status"], "".join(part["text"]["value"] for part in one["content"])) for one in listed]


def wait_for_decode(server):
    server.wait_for_requests("decode")


# -- crashes and stops --------------------------------------------------------------------------------------------------


@posix_only
@pytest.mark.slow
def test_a_run_cut_by_kill_9_is_failed_after_the_restart_and_its_thread_goes_on(home):
    with serving(home) as server:
        thread_id = new_thread(server, FLOOD)
        run = start(server, thread_id)
        wait_for_decode(server)
        server.signal(signal.SIGKILL)
        server.wait()

    with serving(home) as server:
        found = run_of(server, run)
        assert (found["status"], found["last_error"]["code"]) == ("failed", "server_error")
        assert found["failed_at"] >= found["created_at"]
        assert messages_of(server, thread_id) == [("user", "completed", FLOOD)]
        (step,) = server.call("GET", f"/v1/threads/{thread_id}/runs/{run['id']}/steps").json()["data"]
        assert step["status"] == "failed"

        more = [{"role": "user", "content": "And now?"}]
        assert ended(server, start(server, thread_id, additional_messages=more))["status"] == "completed"
        assert messages_of(server, thread_id)[-1] == ("assistant", "completed", "And now?")


@posix_only
@pytest.mark.slow
def test_whenever_a_host_is_killed_what_it_said_of_runs_is_there_and_what_is_there_is_whole(home):
    dice = random.Random(20261126)
    texts = {}
    for number in range(ROUNDS):
        with serving(home, "--model", "echo") as server:
            said = []

            def ask(lane, server=server, said=said, number=number):
                for turn in range(100):
                    text = f"[[echo: delay_s=0.001]] round {number} lane {lane} turn {turn} " + "x" * dice.randrange(60)
                    body = {"thread": {"messages": [{"role": "user", "content": text}]}, "model": "echo", "temperature": 0}
                    try:
                        answer = server.call("POST", "/v1/threads/runs", body)
                    except httpx.HTTPError:
                        return
                    said.append((answer.json(), text))

            lanes = [threading.Thread(target=ask, args=(lane,)) for lane in range(4)]
            for lane in lanes:
                lane.start()
            eventually(lambda said=said: len(said) >= 4, "the first runs")
            time.sleep(dice.uniform(0.0, 0.3))  # the moment is what is drawn here
            server.signal(signal.SIGKILL)
            server.wait()
            for lane in lanes:
                lane.join(DEADLINE_S)
            texts.update({run["id"]: (run, text) for run, text in said})

    with serving(home) as server:
        assert len(texts) >= 4 * ROUNDS
        for run, text in texts.values():
            found = run_of(server, run)
            spoken = text.partition("]] ")[2]
            whole = [("user", "completed", text), ("assistant", "completed", spoken)]
            assert found["status"] in {"completed", "failed"}
            assert messages_of(server, run["thread_id"]) == (whole if found["status"] == "completed" else whole[:1])
            assert (found["usage"] is None) == (found["status"] == "failed")


@posix_only
@pytest.mark.slow
def test_sigterm_lets_a_run_finish_and_a_restart_finds_its_answer(home):
    with serving(home) as server:
        thread_id = new_thread(server, "[[echo: delay_s=0.02]] Good night, all of you")
        run = start(server, thread_id)
        wait_for_decode(server)

        assert server.stop() == 0

    with serving(home) as server:
        assert run_of(server, run)["status"] == "completed"
        assert messages_of(server, thread_id)[-1] == ("assistant", "completed", "Good night, all of you")


@posix_only
@pytest.mark.slow
def test_what_the_drain_time_cuts_is_failed_and_its_stream_is_told(home):
    with serving(home, "--drain-timeout-s", "0.2") as server:
        thread_id = new_thread(server, FLOOD)
        body = {"model": "echo", "temperature": 0, "stream": True}
        with server.client() as client, client.stream("POST", f"/v1/threads/{thread_id}/runs", json=body) as answer:
            lines = []
            for line in answer.iter_lines():
                lines.append(line)
                if line == "event: thread.message.delta" and lines.count(line) == 3:
                    server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "event: thread.run.failed" in lines
        assert lines[-2] == "data: [DONE]"

    with serving(home) as server:
        (run,) = server.call("GET", f"/v1/threads/{thread_id}/runs").json()["data"]
        assert run["status"] == "failed"
        assert messages_of(server, thread_id) == [("user", "completed", FLOOD)]


@posix_only
@pytest.mark.slow
def test_a_worker_killed_under_its_runs_fails_them_and_the_next_ones_are_served(home):
    with serving(home) as server:
        runs = [start(server, new_thread(server, FLOOD)) for _ in range(3)]
        server.wait_for_requests(*["decode"] * 3)

        os.kill(server.worker_pid("echo"), signal.SIGKILL)

        assert [ended(server, run)["status"] for run in runs] == ["failed"] * 3
        assert ended(server, start(server, new_thread(server, "Hello")))["status"] == "completed"


@pytest.mark.slow
def test_a_run_of_a_model_that_is_being_loaded_waits_for_it(home):
    add_echo(home, "lazy", manners={"load_s": 0.7})
    with serving(home) as server:
        run = start(server, new_thread(server, "Hello"), model="lazy")

        assert ended(server, run)["status"] == "completed"
        assert messages_of(server, run["thread_id"])[-1] == ("assistant", "completed", "Hello")


@pytest.mark.slow
def test_many_threads_are_answered_side_by_side_each_in_its_own(home):
    with serving(home) as server:
        threads = [new_thread(server, f"[[echo: delay_s=0.002]] I am thread {number}") for number in range(20)]
        runs = [start(server, thread_id) for thread_id in threads]

        assert [ended(server, run)["status"] for run in runs] == ["completed"] * 20
        for number, thread_id in enumerate(threads):
            assert messages_of(server, thread_id)[-1] == ("assistant", "completed", f"I am thread {number}")
        assert server.requests() == []


# -- the real model -----------------------------------------------------------------------------------------------------

QUESTION = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}


@pytest.mark.weights
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_model_answers_threads_polled_and_streamed_and_remembers_what_was_said(smollm2_server):
    with openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="none needed", max_retries=0) as client:
        beta = client.beta
        assistant = beta.assistants.create(
            model="smol", instructions="You are a helpful assistant.", temperature=0, name="Guide"
        )
        thread = beta.threads.create(messages=[QUESTION])

        run = beta.threads.runs.create_and_poll(
            thread_id=thread.id, assistant_id=assistant.id, max_completion_tokens=24, poll_interval_ms=50
        )

        assert run.status in {"completed", "incomplete"}
        (answer,) = beta.threads.messages.list(thread.id, run_id=run.id)
        assert "Paris" in answer.content[0].text.value
        assert run.usage.prompt_tokens > 20
        assert 0 < run.usage.completion_tokens <= 24

        more = [{"role": "user", "content": "And of Italy?"}]
        with beta.threads.runs.stream(
            thread_id=thread.id, assistant_id=assistant.id, additional_messages=more, max_completion_tokens=24
        ) as stream:
            said = "".join(stream.text_deltas)
            second = stream.get_final_run()

        assert second.status in {"completed", "incomplete"}
        assert second.usage.prompt_tokens > run.usage.prompt_tokens
        assert "Rome" in said or "Italy" in said
        listed = [message.content[0].text.value for message in beta.threads.messages.list(thread.id, order="asc")]
        assert listed == [QUESTION["content"], answer.content[0].text.value, "And of Italy?", said]


@pytest.mark.weights
def test_a_long_thread_with_the_real_model_is_cut_by_its_own_tokens(smollm2_server):
    server = smollm2_server
    messages = []
    for number in range(120):
        messages.append({"role": "user", "content": f"Fact {number}: " + "the sky is blue and the grass is green. " * 6})
        messages.append({"role": "assistant", "content": "I will remember that."})
    thread_id = server.call("POST", "/v1/threads", {"messages": [*messages, QUESTION]}).json()["id"]
    n_ctx = server.model("smol")["settings"]["ctx_len"]

    run = start(server, thread_id, model="smol", max_completion_tokens=8, instructions="Be brief.", max_prompt_tokens=1000)
    run = ended(server, run)

    n_kept = 241 - run["left_out_count"]
    assert n_ctx > 1000
    assert run["usage"]["prompt_tokens"] <= 1000
    assert run["usage"]["prompt_tokens"] > 1000 - 2 * (1000 / n_kept) - 40  # one turn more would not have fitted
    listed = server.call("GET", f"/v1/threads/{thread_id}/messages", params={"order": "desc", "limit": 100}).json()["data"]
    kept_and_older = [message["id"] for message in listed if message["run_id"] is None]
    assert kept_and_older[n_kept : n_kept + 5] == run["left_out"][::-1][:5]
    assert len(run["left_out"]) == 100

    answer = server.call(
        "POST",
        f"/v1/threads/{thread_id}/runs",
        {"model": "smol", "truncation_strategy": {"type": "last_messages", "last_messages": 240}, "max_prompt_tokens": 1000},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
