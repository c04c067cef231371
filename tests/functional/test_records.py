"""Threads, messages, assistants and files over a real server: OpenAI's own client, and what only sockets can show."""

from __future__ import annotations

import hashlib
import http.client
import socket

import openai
import pytest

from support.server import DEADLINE_S, serving

# OpenAI's client calls its Assistants API deprecated; here it is the API of Jan.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("records") / "home"
    with serving(home, "--max-file-bytes", "3000000", "--max-body-bytes", "100000") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed", timeout=DEADLINE_S) as client:
        yield client


# -- OpenAI's client --------------------------------------------------------------------------------------------------


def test_openais_client_keeps_assistants(client):
    made = client.beta.assistants.create(
        model="zephyr-7b",
        name="Math Tutor",
        instructions="Be concise",
        tools=[{"type": "code_interpreter"}],
        metadata={"k": "v"},
        temperature=0.5,
    )
    changed = client.beta.assistants.update(made.id, model="phi", name="Physics Tutor")

    assert made.id.startswith("asst_")
    assert (made.model, made.tools[0].type, made.metadata) == ("zephyr-7b", "code_interpreter", {"k": "v"})
    assert (changed.id, changed.model, changed.name, changed.instructions) == (made.id, "phi", "Physics Tutor", "Be concise")
    assert client.beta.assistants.retrieve(made.id) == changed
    assert {assistant.id for assistant in client.beta.assistants.list(limit=1)} == {"jan", made.id}
    assert client.beta.assistants.delete(made.id).deleted is True
    with pytest.raises(openai.NotFoundError) as gone:
        client.beta.assistants.update(made.id, name="x")
    assert gone.value.code == "assistant_not_found"
    with pytest.raises(openai.ConflictError) as kept:
        client.beta.assistants.delete("jan")
    assert kept.value.code == "default_assistant"


def test_openais_client_keeps_threads_and_walks_their_messages(client):
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "0"}], metadata={"a": "1"})
    for n in range(1, 25):
        message = client.beta.threads.messages.create(thread.id, role="user", content=[{"type": "text", "text": str(n)}])
        assert message.thread_id == thread.id
        assert message.status == "completed"

    walked = [message.content[0].text.value for message in client.beta.threads.messages.list(thread.id, limit=7, order="asc")]
    assert walked == [str(n) for n in range(25)]
    assert [message.content[0].text.value for message in client.beta.threads.messages.list(thread.id)] == walked[::-1]

    updated = client.beta.threads.update(thread.id, metadata={"b": "2"})
    assert (updated.id, updated.metadata) == (thread.id, {"b": "2"})
    assert client.beta.threads.retrieve(thread.id).metadata == {"b": "2"}
    changed = client.beta.threads.messages.update(message.id, thread_id=thread.id, metadata={"seen": "yes"})
    assert client.beta.threads.messages.retrieve(message.id, thread_id=thread.id) == changed
    assert client.beta.threads.messages.delete(message.id, thread_id=thread.id).deleted is True
    assert client.beta.threads.delete(thread.id).deleted is True
    with pytest.raises(openai.NotFoundError) as gone:
        client.beta.threads.retrieve(thread.id)
    assert gone.value.code == "thread_not_found"


def test_openais_client_is_told_which_field_is_wrong(client):
    with pytest.raises(openai.BadRequestError) as bad:
        client.beta.threads.create(messages=[{"role": "user", "content": "x"}, {"role": "king", "content": "x"}])

    assert (bad.value.code, bad.value.param) == ("invalid_value", "messages[1].role")


def test_openais_client_uploads_lists_reads_and_deletes_files(client):
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(65_536))[:2_000_000]

    made = client.files.create(file=("über.bin", data), purpose="assistants")
    small = client.files.create(file=("small.txt", b"x"), purpose="batch")

    assert (made.bytes, made.filename, made.purpose, made.status) == (len(data), "über.bin", "assistants", "processed")
    assert client.files.content(made.id).read() == data
    assert client.files.retrieve(made.id) == made
    assert [file.id for file in client.files.list(limit=1)] == [small.id, made.id]
    assert [file.id for file in client.files.list(purpose="assistants")] == [made.id]
    assert client.files.wait_for_processing(made.id).id == made.id
    assert client.files.delete(made.id).deleted is True
    with pytest.raises(openai.NotFoundError) as gone:
        client.files.content(made.id)
    assert gone.value.code == "file_not_found"
    client.files.delete(small.id)


def test_openais_client_is_told_that_a_file_is_too_large(client):
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("a", b"x" * 3_000_001), purpose="assistants")

    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")


# -- sockets ----------------------------------------------------------------------------------------------------------


def upload(server, data: bytes) -> str:
    answer = server.call("POST", "/v1/files", files={"file": ("a.bin", data)}, data={"purpose": "assistants"})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def test_other_bodies_keep_their_own_limit_beside_that_of_files(server):
    file_id = upload(server, b"x" * 2_900_000)
    for path in ("/v1/threads", "/v1/assistants", f"/v1/files/{file_id}"):
        answer = server.call("POST", path, content=b" " * 100_001)

        assert answer.status_code == 413
        assert "max_body_bytes" in answer.json()["error"]["message"]


def test_chunked_upload_is_taken_like_an_announced_one(server):
    edge = b"--x\r\n"
    head = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    pieces = [edge, head, *[b"y" * 50_000] * 10, b"\r\n--x--\r\n"]

    answer = server.call(
        "POST", "/v1/files", content=iter(pieces), headers={"content-type": "multipart/form-data; boundary=x"}
    )

    assert (answer.status_code, answer.json()["bytes"]) == (200, 500_000)


def test_range_is_sent_from_the_disk_and_the_connection_goes_on(server):
    data = bytes(range(256)) * 4000
    file_id = upload(server, data)

    with server.client() as client:
        for wanted, expected in (("bytes=1000-2000", data[1000:2001]), ("bytes=-9", data[-9:]), ("bytes=0-", data)):
            answer = client.get(f"/v1/files/{file_id}/content", headers={"range": wanted})
            assert (answer.status_code, answer.content) == (206, expected)
        assert client.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=1024000-"}).status_code == 416
        assert client.head(f"/v1/files/{file_id}/content").headers["content-length"] == "1024000"
        whole = client.get(f"/v1/files/{file_id}/content")
        assert whole.content == data
        assert whole.headers["content-type"] == "application/octet-stream"
        assert whole.headers["x-content-type-options"] == "nosniff"


def test_empty_file_is_a_file(server):
    file_id = upload(server, b"")

    answer = server.call("GET", f"/v1/files/{file_id}/content")

    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


def test_reader_of_a_file_who_takes_nothing_holds_no_thread(tmp_path):
    """One place for requests, eight threads more: twenty such readers would take them all."""
    with serving(tmp_path / "home", "--max-requests", "1") as server:
        file_id = upload(server, b"z" * 8_000_000)
        readers = []
        try:
            for _ in range(20):
                reader = socket.socket()
                readers.append(reader)
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.settimeout(DEADLINE_S)
                reader.connect(("127.0.0.1", server.port))
                reader.sendall(f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert reader.recv(1) == b"H"

            assert server.call("GET", "/healthz").status_code == 200
            assert server.call("POST", "/v1/threads").status_code == 200
        finally:
            for reader in readers:
                reader.close()


def test_file_that_is_deleted_while_it_is_read_is_read_to_its_end(server):
    data = hashlib.sha256(b"").digest() * 90_000
    file_id = upload(server, data)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    try:
        connection.request("GET", f"/v1/files/{file_id}/content")
        answer = connection.getresponse()
        begun = answer.read(10)

        assert server.call("DELETE", f"/v1/files/{file_id}").status_code == 200

        assert begun + answer.read() == data
    finally:
        connection.close()


def test_everything_is_there_after_a_restart(tmp_path):
    home = tmp_path / "home"
    with serving(home) as server:
        assistant = server.call("POST", "/v1/assistants", {"name": "Tutor", "model": "m"}).json()
        file_id = upload(server, b"kept")
        body = {"assistants": [assistant["id"]], "messages": [{"role": "user", "content": "hi", "file_ids": [file_id]}]}
        thread = server.call("POST", "/v1/threads", body).json()
        messages = server.call("GET", f"/v1/threads/{thread['id']}/messages").json()
        server.process.kill()
        server.process.wait()

    with serving(home) as server:
        assert server.call("GET", f"/v1/assistants/{assistant['id']}").json() == assistant
        assert server.call("GET", f"/v1/threads/{thread['id']}").json() == thread
        assert server.call("GET", f"/v1/threads/{thread['id']}/messages").json() == messages
        assert server.call("GET", f"/v1/files/{file_id}/content").content == b"kept"
