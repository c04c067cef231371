"""The curl lines that Jan's reference prints, verbatim but for the port. Source: spec/API.md section 13."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from support.server import serving

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

SEED = """\
curl http://localhost:1337/v1/models
curl -X POST http://localhost:1337/v1/models
curl http://localhost:1337/v1/models/zephyr-7b
curl -X DELETE http://localhost:1337/v1/models/zephyr-7b
curl -X PUT http://localhost:1337/v1/models/zephyr-7b/start
curl -X PUT http://localhost:1337/v1/models/zephyr-7b/stop
""".splitlines()

CHAT = (
    "curl -X 'POST' 'http://localhost:1337/v1/chat/completions' -H 'accept: application/json' -H 'Content-Type: "
    'application/json\' -d \'{"messages":[{"content":"You are a helpful assistant.","role":"system"},{"content":"Hello!",'
    '"role":"user"}],"model":"tinyllama-1.1b","stream":true,"max_tokens":2048,"stop":["hello"],"frequency_penalty":0,'
    '"presence_penalty":0,"temperature":0.7,"top_p":0.95}\''
)

DOWNLOAD = "curl -X 'GET' 'http://localhost:1337/v1/models/download/mistral-ins-7b-q4' -H 'accept: application/json'"

TURNS = (
    """'{"messages":[{"role":"user","content":"Hello, what is AI?","file_ids":["file-abc123"]},"""
    """{"role":"user","content":"How does AI work? Explain it in simple terms."}]}'"""
)
RECORDS = f"""\
curl -X POST http://localhost:1337/v1/threads -H "Content-Type: application/json" -d {TURNS}
curl -X POST http://localhost:1337/v1/threads/$T -H "Content-Type: application/json" -d {TURNS}
curl http://localhost:1337/v1/threads -H "Content-Type: application/json"
curl -X POST http://localhost:1337/v1/threads/$T/messages -H "Content-Type: application/json" \
-d '{{"role":"user","content":"How does AI work? Explain it in simple terms."}}'
curl http://localhost:1337/v1/threads/$T/messages/$M/files/file-abc123 -H "Content-Type: application/json"
curl http://localhost:1337/v1/assistants -H "Content-Type: application/json" -d '{{"models":[{{"model_id":"model_0"}}]}}'
curl -X DELETE http://localhost:1337/v1/assistants/$A
""".splitlines()


def run(server, line: str) -> tuple[int, str]:
    """Run a line in a shell, as a reader would; `localhost` stays, so both address families are met."""
    line = line.replace("localhost:1337", f"localhost:{server.port}")
    done = subprocess.run(
        ["sh", "-c", line + " --silent --noproxy '*' --write-out '\\n%{http_code}'"],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A fresh install; its default model is one that no network is needed to ask for, and none reaches."""
    home = tmp_path_factory.mktemp("fresh") / "home"
    with serving(home, "--proxy", "http://127.0.0.1:9") as server:
        yield server


def test_seed_lines_answer_on_a_fresh_install_as_the_contract_says(fresh):
    answers = [run(fresh, line) for line in SEED]

    assert [status for status, _ in answers] == [200, 200, 200, 404, 409, 200]
    listed, downloaded, got, deleted, started, stopped = (json.loads(body) for _, body in answers)
    assert listed == {"object": "list", "data": []}
    assert (downloaded["id"], downloaded["object"]) == ("smollm2-135m-instruct", "model")
    assert downloaded["state"] in {"downloading", "not_downloaded"}
    assert (got["id"], got["state"]) == ("zephyr-7b", "not_downloaded")
    assert deleted["error"]["code"] == "model_not_found"
    assert started["error"]["code"] == "model_not_downloaded"
    assert (stopped["id"], stopped["object"]) == ("zephyr-7b", "model")


def test_published_chat_line_is_understood_and_misses_only_the_download(fresh):
    status, body = run(fresh, CHAT)

    assert status == 404
    assert json.loads(body)["error"]["code"] == "model_not_downloaded"


def test_published_download_line_is_understood(fresh):
    status, body = run(fresh, DOWNLOAD)

    assert status == 200
    assert (json.loads(body)["id"], json.loads(body)["object"]) == ("mistral-ins-7b-q4", "model")


def test_published_lines_of_threads_messages_and_assistants_work(fresh):
    ids = {}

    def answer(line):
        for name, value in ids.items():
            line = line.replace(name, value)
        status, body = run(fresh, line)
        assert status == 200, body
        return json.loads(body)

    create, modify, list_threads, create_message, get_file, create_assistant, delete_assistant = RECORDS

    thread = answer(create)
    ids["$T"], ids["$M"] = thread["id"], thread["messages"][0]
    modified = answer(modify)
    listed = answer(list_threads)
    message = answer(create_message)
    file = answer(get_file)
    assistant = answer(create_assistant)
    ids["$A"] = assistant["id"]
    deleted = answer(delete_assistant)

    assert len(thread["messages"]) == 2
    assert (modified["id"], len(modified["messages"])) == (thread["id"], 4)
    assert [one["id"] for one in listed["data"]] == [thread["id"]]
    assert (message["thread_id"], message["role"]) == (thread["id"], "user")
    assert message["content"][0]["text"]["value"] == "How does AI work? Explain it in simple terms."
    assert (file["id"], file["object"], file["message_id"]) == ("file-abc123", "thread.message.file", ids["$M"])
    assert (assistant["model"], assistant["models"]) == ("model_0", [{"model_id": "model_0"}])
    assert deleted == {"id": assistant["id"], "object": "assistant.deleted", "deleted": True}


@pytest.mark.weights
def test_published_chat_line_streams_when_the_model_is_there(tmp_path, smollm2_path):
    from support.server import run_hostler

    home = tmp_path / "home"
    assert run_hostler(home, "import", str(smollm2_path), "--id", "my-model").returncode == 0
    with serving(home) as server:
        status, body = run(server, CHAT.replace("tinyllama-1.1b", "my-model").replace("2048", "8"))

    assert status == 200
    frames = [frame for frame in body.split("\n\n") if frame.strip() and not frame.startswith(": ")]  # comments may come
    assert all(frame.startswith("data: ") for frame in frames)
    assert frames[-1].strip() == "data: [DONE]"
