"""Messages and the files they name: every operation, what they refuse, and pages that give every item once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.conftest import Client as MadeClient
from api.scripted_runtime import ScriptedRuntime
from hostler.api.app import create_app
from hostler.config import load_settings
from hostler.records.objects import NewMessage, Run, Text, TextPart
from hostler.records.store import Records

Client = Any
HELLO = {"role": "user", "content": "How does AI work? Explain it in simple terms."}


@pytest.fixture
def thread(client: Client) -> str:
    return str(client.simulate_post("/v1/threads").json["id"])


def create(client: Client, thread: str, **fields: Any) -> dict[str, Any]:
    answer = client.simulate_post(f"/v1/threads/{thread}/messages", json={**HELLO, **fields})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json
    return made


def check_refusal(answer: Any, status: int, code: str, param: str | None) -> None:
    assert (answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]) == (status, code, param), (
        answer.text
    )


# -- creating and reading -----------------------------------------------------------------------------------------------


def test_a_message_is_kept_and_answered_in_full(client: Client, thread: str) -> None:
    made = create(client, thread, file_ids=["file-abc123"], metadata={"n": 1, "none": None})

    assert made.pop("id").startswith("msg_")
    assert made["created"] == made.pop("created_at") > 1_700_000_000
    del made["created"]
    assert made == {
        "object": "thread.message",
        "thread_id": thread,
        "role": "user",
        "content": [{"type": "text", "text": {"value": HELLO["content"], "annotations": []}}],
        "file_ids": ["file-abc123"],
        "attachments": [],
        "assistant_id": None,
        "run_id": None,
        "chat_completion_id": None,
        "metadata": {"n": "1"},
        "status": "completed",
        "completed_at": None,
        "incomplete_at": None,
        "incomplete_details": None,
    }


def test_a_message_is_found_again_and_its_thread_names_it(client: Client, thread: str) -> None:
    made = create(client, thread, role="assistant")

    assert client.simulate_get(f"/v1/threads/{thread}/messages/{made['id']}/").json == made
    assert client.simulate_get(f"/v1/threads/{thread}").json["messages"] == [made["id"]]


def test_parts_are_kept_in_order_bare_and_as_they_are_answered(client: Client, thread: str) -> None:
    parts = [
        {"type": "text", "text": "one"},
        {"type": "text", "text": {"value": "two", "annotations": [{"type": "file_citation"}]}},
        {"type": "text", "text": {"value": "three", "annotations": None}},
        {"type": "image_url", "image_url": {"url": "https://example.test/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
        {"type": "image_file", "image_file": {"file_id": "file-1"}},
    ]

    content = create(client, thread, content=parts)["content"]

    assert content == [
        {"type": "text", "text": {"value": "one", "annotations": []}},
        {"type": "text", "text": {"value": "two", "annotations": [{"type": "file_citation"}]}},
        {"type": "text", "text": {"value": "three", "annotations": []}},
        {"type": "image_url", "image_url": {"url": "https://example.test/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_file", "image_file": {"file_id": "file-1"}},
    ]
    assert create(client, thread, content=content)["content"] == content


@pytest.mark.parametrize(
    "text", [" ", "\n", "\u0000", "\U0001f600", "null", "a" * 3000, "<script>", "'; DROP TABLE messages; --"]
)
def test_any_text_that_is_not_empty_comes_back_as_it_was(client: Client, thread: str, text: str) -> None:
    made = create(client, thread, content=text)

    listed = client.simulate_get(f"/v1/threads/{thread}/messages").json
    assert listed["data"][0]["content"][0]["text"]["value"] == made["content"][0]["text"]["value"] == text


def test_messages_of_one_run_are_listed_alone(client: Client, records: Records, thread: str) -> None:
    create(client, thread)
    answer = NewMessage("assistant", [TextPart(Text("Software."))], run_id="run_1", assistant_id="jan", chat_completion_id="c")
    (made,) = records.messages.append(thread, [answer])

    listed = client.simulate_get(f"/v1/threads/{thread}/messages", params={"run_id": "run_1"}).json
    nothing = client.simulate_get(f"/v1/threads/{thread}/messages", params={"run_id": "run_2"}).json

    assert [message["id"] for message in listed["data"]] == [made.id]
    assert (listed["data"][0]["run_id"], listed["data"][0]["chat_completion_id"]) == ("run_1", "c")
    assert nothing["data"] == []
    assert len(client.simulate_get(f"/v1/threads/{thread}/messages?run_id=").json["data"]) == 2


def test_a_thread_that_a_run_works_on_takes_messages(client: Client, records: Records, thread: str) -> None:
    run = Run("run_1", 1, 1, thread, "jan", "in_progress", "phi", "")
    records.runs.create(run, [])

    create(client, thread)

    assert len(client.simulate_get(f"/v1/threads/{thread}/messages").json["data"]) == 1


# -- changing and deleting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_metadata_and_content_are_replaced_and_nothing_else(client: Client, thread: str, method: str) -> None:
    made = create(client, thread, metadata={"a": "1"}, file_ids=["file-1"])
    path = f"/v1/threads/{thread}/messages/{made['id']}"

    first = client.simulate_request(method, path, json={"metadata": {"b": True}, "role": "assistant", "id": "x"}).json
    second = client.simulate_request(method, path + "/", json={"content": [{"type": "text", "text": "new"}], "metadata": None})
    third = client.simulate_request(method, path)

    assert first == {**made, "metadata": {"b": "true"}}
    assert second.json == {**first, "content": [{"type": "text", "text": {"value": "new", "annotations": []}}]}
    assert third.json == second.json == client.simulate_get(path).json


def test_a_deleted_message_is_gone_and_the_others_keep_their_order(client: Client, thread: str) -> None:
    ids = [create(client, thread, content=str(n))["id"] for n in range(3)]

    answer = client.simulate_delete(f"/v1/threads/{thread}/messages/{ids[1]}")

    assert answer.json == {"id": ids[1], "object": "thread.message.deleted", "deleted": True}
    assert client.simulate_get(f"/v1/threads/{thread}").json["messages"] == [ids[0], ids[2]]
    check_refusal(client.simulate_delete(f"/v1/threads/{thread}/messages/{ids[1]}"), 404, "message_not_found", None)


# -- files --------------------------------------------------------------------------------------------------------------


def test_the_files_of_a_message_are_those_it_names_either_way(client: Client, thread: str) -> None:
    made = create(
        client,
        thread,
        file_ids=["file-abc123", "file-2", "file-2"],
        attachments=[{"file_id": "file-3", "tools": [{"type": "file_search"}]}, {"file_id": "file-2"}],
    )
    path = f"/v1/threads/{thread}/messages/{made['id']}/files"

    listed = client.simulate_get(path, params={"order": "asc"}).json
    one = client.simulate_get(f"{path}/file-abc123/").json

    assert made["file_ids"] == ["file-abc123", "file-2"]
    assert made["attachments"] == [{"file_id": "file-3", "tools": [{"type": "file_search"}]}, {"file_id": "file-2"}]
    assert [file["id"] for file in listed["data"]] == ["file-abc123", "file-2", "file-3"]
    assert one == {
        "id": "file-abc123",
        "object": "thread.message.file",
        "created_at": made["created_at"],
        "message_id": made["id"],
    }
    check_refusal(client.simulate_get(f"{path}/file-9"), 404, "file_not_found", None)


# -- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "tail", "code"),
    [
        ("GET", "nope", "message_not_found"),
        ("POST", "nope", "message_not_found"),
        ("PATCH", "nope", "message_not_found"),
        ("DELETE", "nope", "message_not_found"),
        ("GET", "nope/files", "message_not_found"),
        ("GET", "nope/files/file-1", "message_not_found"),
        ("GET", "%00", "message_not_found"),
    ],
)
def test_an_unknown_message_is_404_in_a_known_thread_and_an_unknown_thread_is_named_first(
    client: Client, thread: str, method: str, tail: str, code: str
) -> None:
    body = {"metadata": {}} if method in ("POST", "PATCH") else None

    check_refusal(client.simulate_request(method, f"/v1/threads/{thread}/messages/{tail}", json=body), 404, code, None)
    check_refusal(
        client.simulate_request(method, f"/v1/threads/nope/messages/{tail}", json=body), 404, "thread_not_found", None
    )


def test_a_message_of_another_thread_is_unknown(client: Client, thread: str) -> None:
    made = create(client, thread)
    other = client.simulate_post("/v1/threads").json["id"]

    check_refusal(client.simulate_get(f"/v1/threads/{other}/messages/{made['id']}"), 404, "message_not_found", None)


def test_no_message_goes_into_an_unknown_thread(client: Client) -> None:
    check_refusal(client.simulate_post("/v1/threads/nope/messages", json=HELLO), 404, "thread_not_found", None)
    check_refusal(client.simulate_get("/v1/threads/nope/messages"), 404, "thread_not_found", None)


CONTENT = [
    ("", "invalid_value", "content"),
    ([], "invalid_value", "content"),
    ({}, "invalid_value", "content"),
    (7, "invalid_value", "content"),
    (None, "missing_required_parameter", "content"),
    ([{"type": "text", "text": ""}], "invalid_value", "content"),
    ([{"type": "text", "text": {"value": ""}}, {"type": "text", "text": ""}], "invalid_value", "content"),
    (["hello"], "invalid_value", "content[0]"),
    ([{"text": "hello"}], "missing_required_parameter", "content[0].type"),
    ([{"type": "text"}], "missing_required_parameter", "content[0].text"),
    ([{"type": "text", "text": None}], "missing_required_parameter", "content[0].text"),
    ([{"type": "text", "text": {}}], "missing_required_parameter", "content[0].text.value"),
    ([{"type": "text", "text": 7}], "invalid_value", "content[0].text"),
    ([{"type": "text", "text": "x"}, {"type": "video"}], "invalid_value", "content[1].type"),
    ([{"type": "image_url", "image_url": {}}], "missing_required_parameter", "content[0].image_url.url"),
    ([{"type": "image_url", "image_url": {"url": ""}}], "invalid_value", "content[0].image_url.url"),
    ([{"type": "image_file", "image_file": "file-1"}], "invalid_value", "content[0].image_file"),
    ([{"type": "text", "text": "x"}] * 513, "invalid_value", "content"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "code", "param"), CONTENT, ids=lambda value: str(value)[:40])
def test_content_that_says_nothing_is_400_with_its_path(
    client: Client, make_client: Any, thread: str, content: Any, code: str, param: str
) -> None:
    client = make_client(max_body_bytes=1_000_000)
    path = f"/v1/threads/{thread}/messages"

    check_refusal(client.simulate_post(path, json={"role": "user", "content": content}), 400, code, param)
    if content is not None:
        made = create(client, thread)
        check_refusal(client.simulate_post(f"{path}/{made['id']}", json={"content": content}), 400, code, param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"role": None}, "missing_required_parameter", "role"),
        ({"role": "system"}, "invalid_value", "role"),
        ({"role": "tool"}, "invalid_value", "role"),
        ({"role": "User"}, "invalid_value", "role"),
        ({"role": ""}, "invalid_value", "role"),
        ({"role": 1}, "invalid_value", "role"),
        ({"file_ids": "file-1"}, "invalid_value", "file_ids"),
        ({"file_ids": [None]}, "invalid_value", "file_ids[0]"),
        ({"file_ids": ["x" * 257]}, "invalid_value", "file_ids[0]"),
        ({"file_ids": ["x"] * 101}, "invalid_value", "file_ids"),
        ({"attachments": [7]}, "invalid_value", "attachments[0]"),
        ({"attachments": [{"file_id": 7}]}, "invalid_value", "attachments[0].file_id"),
        ({"attachments": [{"tools": "x"}]}, "invalid_value", "attachments[0].tools"),
        ({"metadata": []}, "invalid_value", "metadata"),
        ({"metadata": {"k": {}}}, "invalid_value", "metadata.k"),
        ({"metadata": {"k" * 65: 1}}, "invalid_value", "metadata." + "k" * 64),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_is_400_with_its_path_and_nothing_is_written(
    client: Client, thread: str, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = client.simulate_post(f"/v1/threads/{thread}/messages", json={**HELLO, **fields})

    check_refusal(answer, 400, code, param)
    assert client.simulate_get(f"/v1/threads/{thread}").json["messages"] == []


def test_a_wrong_role_is_answered_with_the_right_ones(client: Client, thread: str) -> None:
    answer = client.simulate_post(f"/v1/threads/{thread}/messages", json={**HELLO, "role": "king"})

    assert answer.json["error"]["message"] == 'role is "king"; allowed: assistant, user'


def test_an_empty_body_misses_its_first_field(client: Client, thread: str) -> None:
    check_refusal(client.simulate_post(f"/v1/threads/{thread}/messages"), 400, "missing_required_parameter", "role")


# -- pages --------------------------------------------------------------------------------------------------------------

LISTS = [
    "/v1/threads",
    "/v1/assistants",
    "/v1/files",
    "/v1/threads/{thread}/messages",
    "/v1/threads/{thread}/messages/{message}/files",
]


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit=x", "limit"),
        ("limit=1.5", "limit"),
        ("limit=1_0", "limit"),
        ("limit=%D9%A1", "limit"),  # a digit, but no ASCII one
        ("limit=" + "9" * 5000, "limit"),
        ("order=up", "order"),
        ("order=DESC", "order"),
        ("after=nope", "after"),
        ("before=nope", "before"),
        ("after=%00", "after"),
    ],
)
def test_a_bad_query_of_a_list_is_400_and_names_the_parameter(
    client: Client, thread: str, path: str, query: str, param: str
) -> None:
    message = create(client, thread, file_ids=["file-1"])["id"]

    answer = client.simulate_get(path.format(thread=thread, message=message), query_string=query)

    check_refusal(answer, 400, "invalid_value", param)


@pytest.mark.parametrize("path", LISTS)
def test_a_list_ignores_what_it_does_not_know_and_takes_its_limits(client: Client, thread: str, path: str) -> None:
    message = create(client, thread)["id"]
    path = path.format(thread=thread, message=message)

    for query in ("limit=100&order=asc&after=&before=&x=y", "limit=1", "limit=007", "order=desc"):
        assert client.simulate_get(path, query_string=query).status_code == 200, query


def test_an_id_of_another_list_is_no_place_in_this_one(client: Client, thread: str) -> None:
    other = client.simulate_post("/v1/threads").json["id"]
    message = create(client, other)["id"]

    answer = client.simulate_get(f"/v1/threads/{thread}/messages", params={"after": message})

    check_refusal(answer, 400, "invalid_value", "after")


class Shelf:
    """A client over records of its own, shared by the examples of one property: they only read what they need."""

    def __init__(self, home: Path) -> None:
        chosen = load_settings(home, environ={})
        runtime = ScriptedRuntime()
        runtime.records = self.records = Records(chosen.home)
        self.client = MadeClient(create_app(runtime, chosen))  # type: ignore[arg-type]
        self.threads: dict[int, tuple[str, list[str]]] = {}

    def thread_of(self, n_messages: int) -> tuple[str, list[str]]:
        if n_messages not in self.threads:
            thread = self.client.simulate_post("/v1/threads").json["id"]
            new = [NewMessage("user", [TextPart(Text(str(n)))]) for n in range(n_messages)]
            ids = [message.id for message in self.records.messages.append(thread, new)] if new else []
            self.threads[n_messages] = (thread, ids)
        return self.threads[n_messages]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Shelf(tmp_path_factory.mktemp("shelf"))
    yield made
    made.records.close()


@settings(max_examples=40, deadline=None)
@given(n_messages=st.integers(0, 12), limit=st.integers(1, 14), is_ascending=st.booleans(), is_back=st.booleans())
def test_walking_all_pages_gives_every_message_once_and_in_order(
    shelf: Shelf, n_messages: int, limit: int, is_ascending: bool, is_back: bool
) -> None:
    thread, ids = shelf.thread_of(n_messages)
    expected = ids if is_ascending else ids[::-1]
    query: dict[str, Any] = {"limit": limit, "order": "asc" if is_ascending else "desc"}
    seen: list[str] = []
    if is_back and ids:
        seen, query["before"] = [expected[-1]], expected[-1]

    for _ in range(n_messages + 1):
        page = shelf.client.simulate_get(f"/v1/threads/{thread}/messages", params=query).json
        found = [message["id"] for message in page["data"]]
        assert len(found) <= limit
        assert (page["first_id"], page["last_id"]) == ((found[0], found[-1]) if found else (None, None))
        seen = found + seen if is_back else seen + found
        if not page["has_more"]:
            break
        assert len(found) == limit
        query["before" if is_back else "after"] = page["first_id"] if is_back else page["last_id"]
    else:
        pytest.fail("the pages never end")

    assert seen == expected


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_after_and_before_together_give_what_lies_between(shelf: Shelf, data: st.DataObject) -> None:
    thread, ids = shelf.thread_of(9)
    is_ascending = data.draw(st.booleans())
    listed = ids if is_ascending else ids[::-1]
    first, last = sorted(data.draw(st.lists(st.integers(0, 8), min_size=2, max_size=2, unique=True)))

    page = shelf.client.simulate_get(
        f"/v1/threads/{thread}/messages",
        params={"order": "asc" if is_ascending else "desc", "after": listed[first], "before": listed[last], "limit": 100},
    ).json

    assert [message["id"] for message in page["data"]] == listed[first + 1 : last]
    assert page["has_more"] is False
