"""Imports of records: who may, what is kept, what becomes of taken ids, and that a bad object keeps nobody else out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Client = Any
TOKEN = "token-of-the-command-line"
T0 = 1700123404


@pytest.fixture
def cli(make_client: Callable[..., Any]) -> Client:
    """The app with a command line, and room for what it sends."""
    return make_client(cli_token=TOKEN, max_body_bytes=1_000_000)


def post(cli: Client, *objects: Any, **body: Any) -> Any:
    return cli.simulate_post(
        "/v1/records/import", json={"objects": list(objects), **body}, headers={"Authorization": f"Bearer {TOKEN}"}
    )


def bring_in(cli: Client, *objects: Any, **body: Any) -> list[dict[str, Any]]:
    answer = post(cli, *objects, **body)
    assert answer.status_code == 200, answer.text
    assert answer.json["object"] == "records.import"
    found: list[dict[str, Any]] = answer.json["data"]
    return found


def thread(id: str = "jan_1", **more: Any) -> dict[str, Any]:
    return {"object": "thread", "id": id, "created_at": T0, "updated": T0 + 9, "title": "A talk", **more}


def message(id: str | None, text: Any = "Hi", thread_id: str | None = "jan_1", **more: Any) -> dict[str, Any]:
    value = {
        "object": "thread.message",
        "id": id,
        "thread_id": thread_id,
        "role": "user",
        "created_at": T0 + 1,
        "content": text,
    }
    return {**value, **more}


def assistant(id: str = "poet", **more: Any) -> dict[str, Any]:
    return {"object": "assistant", "id": id, "created_at": T0, "name": "Poet", "model": "phi", **more}


def outcomes(results: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["object"], one["outcome"], one["n_messages"], one["n_skipped"]) for one in results]


def ids(cli: Client, path: str) -> list[str]:
    return [item["id"] for item in cli.simulate_get(path, params={"order": "asc", "limit": "100"}).json["data"]]


# -- who may --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_only_the_command_line_of_this_home_may_import(cli: Client, headers: dict[str, str]) -> None:
    answer = cli.simulate_post("/v1/records/import", json={"objects": [thread()]}, headers=headers)

    assert answer.status_code == 403
    assert answer.json["error"]["code"] == "command_line_only"
    assert "hostler threads import" in answer.json["error"]["message"]
    assert ids(cli, "/v1/threads") == []


# -- what is kept -----------------------------------------------------------------------------------------------------------


def test_a_thread_comes_with_its_messages_ids_times_and_order(cli: Client) -> None:
    first = message("m1", "Hi", metadata={"a": "b"}, file_ids=["file-x"])
    second = message("m2", [{"type": "text", "text": {"value": "Hello", "annotations": [1]}}], role="assistant",
                     assistant_id="jan", run_id="run_x", chat_completion_id="chatcmpl-1", status="incomplete",
                     incomplete_at=T0 + 5, incomplete_details={"reason": "run_cancelled"})  # fmt: skip

    (result,) = bring_in(cli, thread(metadata={"k": "v"}), first, second)

    assert result["error"] is None
    assert outcomes([result]) == [("thread", "imported", 2, 0)]
    kept = cli.simulate_get("/v1/threads/jan_1").json
    assert (kept["created_at"], kept["created"], kept["updated"]) == (T0, T0, T0 + 9)
    assert (kept["title"], kept["metadata"], kept["messages"]) == ("A talk", {"k": "v"}, ["m1", "m2"])
    one, two = cli.simulate_get("/v1/threads/jan_1/messages", params={"order": "asc"}).json["data"]
    assert (one["created_at"], one["metadata"], one["file_ids"], one["completed_at"]) == (T0 + 1, {"a": "b"}, ["file-x"], None)
    for name in ("role", "content", "assistant_id", "run_id", "chat_completion_id", "status", "incomplete_at"):
        assert two[name] == second[name]
    assert two["incomplete_details"] == {"reason": "run_cancelled"}


def test_what_is_answered_can_be_imported_as_it_is(cli: Client, records: Any) -> None:
    bring_in(cli, thread(), message("m1"), assistant())
    said = cli.simulate_get("/v1/threads/jan_1").json
    lines = cli.simulate_get("/v1/threads/jan_1/messages").json["data"]
    poet = cli.simulate_get("/v1/assistants/poet").json
    cli.simulate_delete("/v1/threads/jan_1")
    cli.simulate_delete("/v1/assistants/poet")

    bring_in(cli, said, *lines, poet)

    assert cli.simulate_get("/v1/threads/jan_1").json == said
    assert cli.simulate_get("/v1/threads/jan_1/messages").json["data"] == lines
    assert cli.simulate_get("/v1/assistants/poet").json == poet


def test_an_empty_message_comes_back_though_nobody_could_write_one(cli: Client) -> None:
    empty = message("m1", [{"type": "text", "text": {"value": "", "annotations": []}}], role="assistant", status="incomplete")

    bring_in(cli, thread(), empty, message("m2", []), message("m3", ""))

    assert ids(cli, "/v1/threads/jan_1/messages") == ["m1", "m2", "m3"]


def test_what_was_being_written_elsewhere_is_incomplete_here(cli: Client) -> None:
    bring_in(cli, thread(), message("m1", role="assistant", status="in_progress"))

    assert cli.simulate_get("/v1/threads/jan_1/messages/m1").json["status"] == "incomplete"


def test_milliseconds_are_told_from_seconds_and_missing_times_are_the_thread_s(cli: Client) -> None:
    value = thread(created_at=None, created=T0 * 1000 + 7, updated=None)

    bring_in(cli, value, message("m1", created_at=None))

    kept = cli.simulate_get("/v1/threads/jan_1").json
    assert (kept["created_at"], kept["updated"]) == (T0, T0)
    assert cli.simulate_get("/v1/threads/jan_1/messages/m1").json["created_at"] == T0


def test_lines_written_by_hand_get_ids(cli: Client) -> None:
    (result,) = bring_in(
        cli, {"object": "thread", "title": "By hand"}, message(None, thread_id=None), message(None, thread_id=None)
    )

    assert (result["id"], result["outcome"]) == (None, "imported")
    assert result["new_id"].startswith("thread_")
    assert len(ids(cli, f"/v1/threads/{result['new_id']}/messages")) == 2


# -- taken ids --------------------------------------------------------------------------------------------------------------


def test_a_thread_that_is_here_fails_and_stays_as_it_was(cli: Client) -> None:
    bring_in(cli, thread(), message("m1"))

    (result,) = bring_in(cli, thread(title="Another"), message("m2"))

    assert (result["outcome"], result["n_failed"], result["error"]["code"]) == ("failed", 1, "record_exists")
    assert cli.simulate_get("/v1/threads/jan_1").json["title"] == "A talk"
    assert ids(cli, "/v1/threads/jan_1/messages") == ["m1"]


def test_skip_keeps_what_is_here_and_adds_the_messages_that_are_missing(cli: Client) -> None:
    bring_in(cli, thread(), message("m1", "old"))

    results = bring_in(cli, thread(title="Another"), message("m1", "new"), message("m2"), on_conflict="skip")
    again = bring_in(cli, thread(title="Another"), message("m1", "new"), message("m2"), on_conflict="skip")

    assert outcomes(results) == [("thread", "skipped", 1, 1)]
    assert outcomes(again) == [("thread", "skipped", 0, 2)]
    assert cli.simulate_get("/v1/threads/jan_1").json["title"] == "A talk"
    assert ids(cli, "/v1/threads/jan_1/messages") == ["m1", "m2"]
    assert cli.simulate_get("/v1/threads/jan_1/messages/m1").json["content"][0]["text"]["value"] == "old"


def test_copy_gives_a_new_id_and_takes_the_messages_along_those_of_the_same_request_too(cli: Client) -> None:
    bring_in(cli, thread(), message("m1"))

    copied, more = bring_in(cli, thread(), message("m1"), assistant(), message("m2", thread_id="jan_1"), on_conflict="copy")[
        0::2
    ]

    assert (copied["outcome"], more["outcome"]) == ("copied", "imported")
    assert copied["new_id"] != "jan_1"
    assert ids(cli, f"/v1/threads/{copied['new_id']}/messages") == ["m1", "m2"]
    assert ids(cli, "/v1/threads/jan_1/messages") == ["m1"]


@pytest.mark.parametrize(
    ("on_conflict", "outcome", "n_here"), [("fail", "failed", 1), ("skip", "imported", 2), ("copy", "imported", 3)]
)
def test_messages_alone_go_to_the_end_of_a_thread_that_is_here(
    cli: Client, on_conflict: str, outcome: str, n_here: int
) -> None:
    bring_in(cli, thread(), message("m1"))

    (result,) = bring_in(cli, message("m1"), message("m2"), on_conflict=on_conflict)

    assert result["outcome"] == outcome
    listed = ids(cli, "/v1/threads/jan_1/messages")
    assert len(set(listed)) == len(listed) == n_here
    assert listed[0] == "m1"


def test_messages_of_a_thread_that_is_not_here_fail(cli: Client) -> None:
    (result,) = bring_in(cli, message("m1", thread_id="nope"))

    assert result["error"]["code"] == "thread_not_found"
    assert result["error"]["message"] == "The thread nope does not exist"


def test_an_assistant_that_is_here_just_so_is_no_conflict(cli: Client) -> None:
    bring_in(cli, assistant())

    assert outcomes(bring_in(cli, assistant())) == [("assistant", "skipped", 0, 0)]
    (changed,) = bring_in(cli, assistant(name="Bard"))
    assert changed["error"]["code"] == "record_exists"
    assert cli.simulate_get("/v1/assistants/poet").json["name"] == "Poet"


def test_the_default_assistant_gives_way_as_long_as_nobody_has_changed_it(cli: Client) -> None:
    first = bring_in(cli, assistant("jan", name="Mine", instructions="In verse.", model=""))
    second = bring_in(cli, assistant("jan", name="Other"), on_conflict="skip")
    (third,) = bring_in(cli, assistant("jan", name="Other"), on_conflict="copy")

    assert outcomes(first + second) == [("assistant", "imported", 0, 0), ("assistant", "skipped", 0, 0)]
    kept = cli.simulate_get("/v1/assistants/jan").json
    assert (kept["name"], kept["instructions"], kept["model"], kept["models"]) == ("Mine", "In verse.", "", [])
    assert cli.simulate_get(f"/v1/assistants/{third['new_id']}").json["name"] == "Other"


@pytest.mark.parametrize(
    ("said", "model"),
    [
        ({"model": "", "models": []}, ""),
        ({"model": None, "models": [{"model_id": ""}]}, ""),
        ({"model": None, "models": None}, ""),
        ({"model": "phi", "models": []}, "phi"),
    ],
)
def test_an_assistant_without_a_model_and_one_in_either_spelling_are_kept(
    cli: Client, said: dict[str, Any], model: str
) -> None:
    (result,) = bring_in(cli, assistant(**said))

    assert result["error"] is None
    kept = cli.simulate_get("/v1/assistants/poet").json
    assert (kept["model"], kept["models"]) == (model, [{"model_id": model}] if model else [])


# -- dry runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_conflict", ["fail", "skip", "copy"])
def test_a_dry_run_says_what_would_become_of_everything_and_changes_nothing(cli: Client, on_conflict: str) -> None:
    bring_in(cli, thread(), message("m1"), assistant())
    objects = [
        thread(), message("m1"), message("m2"), thread("jan_2"), message("m1", thread_id="jan_2"),
        assistant(name="Bard"), assistant("new"), message("m3", thread_id="jan_2"), message("m4", thread_id="later"),
        message("m5", thread_id="nope"),
    ]  # fmt: skip

    dry = bring_in(cli, *objects, on_conflict=on_conflict, dry_run=True, assume=["later"])

    assert ids(cli, "/v1/threads") == ["jan_1"]
    assert ids(cli, "/v1/threads/jan_1/messages") == ["m1"]
    bring_in(cli, thread("later"))
    real = bring_in(cli, *objects, on_conflict=on_conflict)
    assert outcomes(dry) == outcomes(real)
    assert [one["outcome"] for one in real][-1] == "failed"


# -- bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (message("m2", role="system"), "role"),
        (message("m2", 7), "content"),
        (message("m2", metadata={"k": "v" * 600}), "metadata.k"),
        (message("a/b"), "id"),
        (message("m2", status="ready"), "status"),
        (message("m1"), "id"),
        (message("m2", created_at=-1), "created_at"),
    ],
)
def test_one_bad_message_keeps_its_thread_out_and_nobody_else(cli: Client, bad: dict[str, Any], param: str) -> None:
    results = bring_in(cli, thread("before"), thread(), message("m1"), bad, message("m9"), thread("after"))

    assert [one["outcome"] for one in results] == ["imported", "failed", "imported"]
    assert (results[1]["index"], results[1]["error"]["param"], results[1]["n_failed"]) == (3, param, 3)
    assert ids(cli, "/v1/threads") == ["before", "after"]


@pytest.mark.parametrize(
    "bad",
    [
        {"object": "vector_store", "id": "x"},
        {},
        {"object": ["thread"]},
        {"object": {"thread": 1}},
        {"object": "thread", "id": ["x"]},
        message("m", thread_id=["jan_1"]),
        message("m", role=["user"]),
        thread("runs"),
        thread(".."),
        thread("a\nb"),
        thread("x" * 300),
        thread(title="t" * 600),
        thread(assistants=[{"assistant_id": "jan", "model": {"parameters": {"top_p": 99}}}]),
        assistant(""),
        {"object": "assistant", "name": "no id"},
        assistant(tools=[{"type": "telepathy"}]),
        {"object": "thread.message", "role": "user", "content": "of no thread"},
    ],
)
def test_objects_that_cannot_be_kept_are_told_with_their_place(cli: Client, bad: dict[str, Any]) -> None:
    fine, result = bring_in(cli, assistant(), bad)

    assert fine["outcome"] == "imported"
    assert (result["outcome"], result["index"]) == ("failed", 1)
    assert result["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "objects"),
        ({"objects": "x"}, "objects"),
        ({"objects": [1]}, "objects[0]"),
        ({"objects": [], "on_conflict": "overwrite"}, "on_conflict"),
        ({"objects": [], "dry_run": "perhaps"}, "dry_run"),
    ],
)
def test_a_body_that_is_no_import_is_400(cli: Client, body: dict[str, Any], param: str) -> None:
    answer = cli.simulate_post("/v1/records/import", json=body, headers={"Authorization": f"Bearer {TOKEN}"})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)


def test_a_database_that_is_gone_ends_the_import_with_503(cli: Client, records: Any) -> None:
    bring_in(cli, thread())
    records.close()

    assert post(cli, thread("jan_2")).status_code == 503
