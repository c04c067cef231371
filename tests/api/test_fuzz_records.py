"""Whatever a client sends to the routes of records, the answer is one of the contract's, and never a 500."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.conftest import Client
from api.scripted_runtime import ScriptedRuntime
from api.test_fuzz import check, values
from hostler.api.app import create_app
from hostler.api.schema.assistants import AssistantBody
from hostler.api.schema.messages import MessageBody
from hostler.api.schema.threads import AssistantChanges, ThreadChanges
from hostler.config import load_settings
from hostler.records.store import Records

NAMES = {
    "/v1/threads": list(ThreadChanges.__struct_fields__),
    "/v1/threads/{thread}": list(ThreadChanges.__struct_fields__),
    "/v1/threads/{thread}/assistants/jan": list(AssistantChanges.__struct_fields__),
    "/v1/threads/{thread}/messages": list(MessageBody.__struct_fields__),
    "/v1/threads/{thread}/messages/{message}": ["content", "metadata", "role"],
    "/v1/assistants": ["in" if name == "in_" else name for name in AssistantBody.__struct_fields__],
    "/v1/assistants/jan": list(AssistantBody.__struct_fields__),
}
INNER = [
    "role",
    "content",
    "type",
    "text",
    "value",
    "image_url",
    "url",
    "file_id",
    "model",
    "id",
    "parameters",
    "top_k",
    "name",
]
WORDS = ["user", "assistant", "text", "image_url", "image_file", "function", "code_interpreter", "auto", "json_schema", "jan"]

shapes = values | st.recursive(
    values | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4),
    max_leaves=12,
)
"""More often of the sort that passes the first checks."""


class Place:
    """A client, and a thread with a message to write into."""

    def __init__(self, records: Records) -> None:
        runtime = ScriptedRuntime()
        runtime.records = records
        runtime.settings = load_settings(records.database.location.path.parent, environ={})  # type: ignore[union-attr]
        self.client = Client(create_app(runtime, runtime.settings))  # type: ignore[arg-type]
        made = self.client.simulate_post("/v1/threads", json={"messages": [{"role": "user", "content": "x"}]}).json
        self.thread, self.message = made["id"], made["messages"][0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    records = Records(tmp_path_factory.mktemp("fuzz"))
    yield Place(records)
    records.close()


@pytest.mark.parametrize("path", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_json_makes_a_500(place: Place, path: str, data: st.DataObject) -> None:
    body = data.draw(st.dictionaries(st.sampled_from(NAMES[path]), shapes, max_size=4))
    if data.draw(st.booleans()):
        body = {"role": "user", "content": "x", **body}

    method = data.draw(st.sampled_from(["POST", "POST", "PATCH"]))
    answer = place.client.simulate_request(method, path.format(thread=place.thread, message=place.message), json=body)

    check(answer, {200, 400, 405, 409})
    for known in (f"/v1/threads/{place.thread}", f"/v1/threads/{place.thread}/messages/{place.message}", "/v1/assistants"):
        assert place.client.simulate_get(known).status_code == 200  # what was written can be read


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD"]),
    parts=st.lists(
        st.sampled_from(["threads", "messages", "files", "content", "assistants", "runs", "nope", "%00", "%2F", "..", "%ff"]),
        max_size=6,
    ),
    query=st.dictionaries(
        st.sampled_from(["limit", "order", "after", "before", "run_id", "purpose"]),
        st.sampled_from(WORDS) | st.text(max_size=4),
    ),
)
def test_no_path_and_no_query_makes_a_500(place: Place, method: str, parts: list[str], query: dict[str, str]) -> None:
    answer = place.client.simulate_request(method, "/v1/" + "/".join(parts), params=query)

    assert answer.status_code in {200, 201, 400, 404, 405}, answer.text


@settings(max_examples=150, deadline=None)
@given(
    body=st.lists(
        st.sampled_from(
            [b"--b", b"--b--", b"\r\n", b"\r\n\r\n", b"Content-Disposition: form-data; ", b'name="file"; filename="']
        )
        | st.sampled_from([b'name="purpose"', b'"', b"\xff", b"filename*=utf-8''%ff", b"filename*=hex''00", b"filename*=x''y"])
        | st.binary(max_size=5),
        max_size=16,
    ).map(b"".join)
)
def test_no_form_makes_a_500(place: Place, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    check(place.client.simulate_post("/v1/files", body=body, headers=headers), {200, 400})
