"""Starting, stopping, crashing: whole processes and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from hostler.home import ADDRESS_FILE
from support.server import (
    DEADLINE_S,
    Server,
    add_echo,
    eventually,
    hostler_environment,
    is_alive,
    run_hostler,
    serving,
    text_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

FLOOD = "[[echo: flood delay_s=0.02]] la "


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    add_echo(home)
    return home


def test_server_prints_a_curl_that_works(home):
    with serving(home, "--default-model", "echo") as server:
        curl = server.said[server.said.index("curl ") :].strip()
        assert f"{server.url}/v1/chat/completions" in curl

        done = subprocess.run(["bash", "-c", f"{curl} --silent --fail-with-body"], capture_output=True, check=False)

        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "Hello!", done


def test_sigterm_ends_it_with_0_and_leaves_no_address_and_no_worker(home):
    with serving(home) as server:
        assert server.chat("echo", "hi").status_code == 200
        worker = server.worker_pid("echo")
        assert is_alive(worker)

        assert server.stop() == 0

        assert not is_alive(worker)
        assert not (home / ADDRESS_FILE).exists()


def test_sigterm_lets_running_answers_end_and_refuses_new_ones(home):
    with serving(home) as server, server.stream("echo", "[[echo: delay_s=0.01]]" + "x" * 200) as stream:
        first = stream.first_text()
        server.signal(signal.SIGTERM)
        eventually(lambda: server.call("GET", "/readyz").status_code == 503, "readiness goes down")

        refused = server.chat("echo", "too late")
        rest = "".join(text_of(event) for event in stream)

        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert first + rest == "x" * 200
        assert stream.is_done
        assert server.wait() == 0


def test_second_signal_does_not_wait_for_running_answers(home):
    with serving(home, "--drain-timeout-s", "3600") as server, server.stream("echo", FLOOD, max_tokens=20000) as stream:
        stream.first_text()
        server.signal(signal.SIGTERM)
        eventually(lambda: server.call("GET", "/readyz").status_code == 503, "readiness goes down")

        server.signal(signal.SIGTERM)

        assert server.wait() == 0
        assert not stream.is_done


def test_running_answers_are_given_up_after_the_drain_timeout(home):
    with serving(home, "--drain-timeout-s", "0.5") as server, server.stream("echo", FLOOD, max_tokens=20000) as stream:
        stream.first_text()

        assert server.stop() == 0

        assert not stream.is_done


def test_kill_9_of_the_host_leaves_no_worker_and_the_next_server_starts(home):
    with serving(home) as server:
        assert server.chat("echo", "hi").status_code == 200
        worker = server.worker_pid("echo")

        server.signal(signal.SIGKILL)
        server.wait()

        eventually(lambda: not is_alive(worker), "the worker follows its host")
        assert (home / ADDRESS_FILE).exists()
    with serving(home) as server:
        assert server.chat("echo", "again").json()["choices"][0]["message"]["content"] == "again"
        assert server.stop() == 0


def test_kill_9_of_the_host_in_the_middle_of_a_load_leaves_no_worker(home):
    add_echo(home, "slow", manners={"load_s": 3600.0})
    with serving(home) as server:
        server.call("PUT", "/v1/models/slow/start", {"wait": False})
        worker = eventually(lambda: (server.model("slow")["hostler"] or {}).get("pid"), "the worker is spawned")

        server.signal(signal.SIGKILL)
        server.wait()

        eventually(lambda: not is_alive(worker), "the worker follows its host")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="where POSIX shared memory shows")
def test_shared_memory_leaves_no_names_behind(home):
    before = set(os.listdir("/dev/shm"))
    with serving(home) as server:
        assert server.chat("echo", "hi").status_code == 200
        during = set(os.listdir("/dev/shm"))
        server.signal(signal.SIGKILL)
        server.wait()

    assert {name for name in during - before if "hostler" in name} == set()


def test_second_server_on_one_home_names_the_first_and_leaves_it_alone(home):
    with serving(home) as server:
        done = run_hostler(home, "serve", "--port", "0")

        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert str(server.pid) in line
        assert server.url in line
        assert server.call("GET", "/readyz").status_code == 200
        assert json.loads((home / ADDRESS_FILE).read_text())["pid"] == server.pid


def test_taken_port_is_one_line_and_the_home_is_free_afterwards(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        done = run_hostler(home, "serve", "--port", str(port))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"port {port}" in line
    with serving(home):
        pass


def test_ready_after_start_and_models_named_by_model_are_started(home):
    with serving(home, "--model", "echo") as server:
        assert server.call("GET", "/readyz").status_code == 200

        eventually(lambda: server.model("echo")["lifecycle"] == "running", "the model runs")


def test_model_named_by_model_that_does_not_exist_stops_nobody(home):
    with serving(home, "--model", "nope") as server:
        eventually(lambda: "nope could not be started" in server.log, "the log says so")
        assert server.chat("echo", "hi").status_code == 200


def test_worker_killed_mid_stream_fails_that_stream_alone_and_the_next_request_works(home):
    add_echo(home, "other")
    with serving(home) as server, server.stream("other", FLOOD, max_tokens=20000) as bystander:
        bystander.first_text()
        with server.stream("echo", FLOOD, max_tokens=20000) as victim:
            victim.first_text()
            worker = server.worker_pid("echo")

            os.kill(worker, signal.SIGKILL)
            *_, last = victim

        assert last["error"]["code"] == "engine_unavailable"
        assert "SIGKILL" in last["error"]["message"]
        assert not victim.is_done
        assert bystander.first_text()
        assert server.chat("echo", "alive").json()["choices"][0]["message"]["content"] == "alive"
        assert server.worker_pid("echo") != worker


@pytest.mark.parametrize("manner", ["die=SIGSEGV at=3", "die=SIGABRT at=3", "exit=3 at=3", "raise=oops at=3"])
def test_engine_that_crashes_in_whatever_way_costs_its_own_model_only(home, manner):
    with serving(home) as server:
        with server.stream("echo", f"[[echo: {manner}]]" + "x" * 50) as stream:
            *_, last = stream

        assert last["error"]["code"] in {"engine_unavailable", "engine_failed"}
        assert server.call("GET", "/readyz").status_code == 200
        assert server.chat("echo", "alive").json()["choices"][0]["message"]["content"] == "alive"


def test_engine_that_keeps_crashing_backs_off_with_retry_after(home):
    with serving(home) as server:
        statuses = [server.chat("echo", "[[echo: die=SIGSEGV at=-1]] x").status_code for _ in range(4)]

        answer = server.chat("echo", "hi")

        assert statuses == [503] * 4
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert "SIGSEGV" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1


def test_crash_before_the_first_byte_is_503_with_retry_after(tmp_path):
    home = tmp_path / "home"
    add_echo(home)
    with serving(home) as server:
        answer = server.chat("echo", "[[echo: die=SIGSEGV at=-1]] x")

        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert server.model("echo")["lifecycle"] in {"starting", "running"}


def test_model_that_refuses_to_load_says_why(home):
    add_echo(home, "picky", manners={"load_refuse": "it is Sunday"})
    with serving(home) as server:
        answer = server.call("PUT", "/v1/models/picky/start")

        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "model_load_failed"
        assert "it is Sunday" in answer.json()["error"]["message"]
        assert "it is Sunday" in server.call("GET", "/v1/models/picky").json()["last_error"]


def test_worker_output_is_kept_in_the_home(home):
    add_echo(home, "chatty", manners={"load_print": "words of the engine"})
    with serving(home) as server:
        assert server.chat("chatty", "hi").json()["choices"][0]["message"]["content"] == "hi"

    assert any("words of the engine" in path.read_text() for path in (home / "logs").iterdir())


def test_workers_are_direct_children_of_the_server(home):
    import psutil

    with serving(home) as server:
        server.chat("echo", "hi")

        assert psutil.Process(server.worker_pid("echo")).ppid() == server.pid


def test_one_log_line_tells_each_generation(home):
    with serving(home, "--log-json") as server:
        answer = server.chat("echo", "hello")
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines()]

    (line,) = [line for line in lines if line["logger"] == "hostler.request"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["model"] == "echo"
    assert line["completion_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert line["end_reason"] == "stop"


def test_models_and_settings_survive_kill_9(home):
    with serving(home) as server:
        before = server.call("GET", "/v1/models/echo").json()
        server.signal(signal.SIGKILL)
        server.wait()
    with serving(home) as server:
        after = server.call("GET", "/v1/models/echo").json()

    assert after == before


def test_delete_of_a_running_model_stops_it_first(home):
    with serving(home) as server:
        server.chat("echo", "hi")
        worker = server.worker_pid("echo")

        answer = server.call("DELETE", "/v1/models/echo")

        assert answer.json() == {"id": "echo", "object": "model", "deleted": True, "message": "Deleted successfully!"}
        assert not is_alive(worker)
        assert server.call("GET", "/v1/models/echo").status_code == 404
    assert list(home.with_name("home.models").iterdir())  # linked, so it stays where it is


def test_sixteen_callers_of_a_model_at_rest_share_one_start(home):
    add_echo(home, "slow", manners={"load_s": 0.5})
    with serving(home) as server:
        answers: list[int] = []
        callers = [threading.Thread(target=lambda: answers.append(server.chat("slow", "hi").status_code)) for _ in range(16)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(DEADLINE_S)

        assert answers == [200] * 16
        assert server.log.count("slow runs in echo") == 1


def test_ctrl_c_of_a_foreground_server_is_an_orderly_end(home):
    server = Server(home)
    server.environment = hostler_environment()
    try:
        server.start()
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    finally:
        server.clean_up()


def test_openai_client_raises_when_the_worker_dies_mid_stream(home):
    import openai

    with (
        serving(home) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0) as client,
        client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": FLOOD}], stream=True, max_tokens=20000
        ) as stream,
    ):
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        os.kill(server.worker_pid("echo"), signal.SIGKILL)

        with pytest.raises(openai.APIError) as caught:
            list(stream)

        assert caught.value.code == "engine_unavailable"
