"""Files: forms in every order and shape, names that are made safe, bytes that come back as they were."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hostler.api.bodylimits import FORM_BYTES
from hostler.api.filenames import MAX_NAME_LENGTH, attachment, clean_filename
from hostler.config import Settings

Client = Any
EDGE = "a-boundary"
EVERY_BYTE = bytes(range(256)) * 40


def field(name: str, value: bytes | str, *, filename: str | bytes | None = None, more: bytes = b"") -> bytes:
    """One part of a form."""
    head = f'Content-Disposition: form-data; name="{name}"'.encode()
    if filename is not None:
        head += b'; filename="' + (filename if isinstance(filename, bytes) else filename.encode()) + b'"'
        head += b"\r\nContent-Type: text/plain"
    data = value if isinstance(value, bytes) else value.encode()
    return b"--" + EDGE.encode() + b"\r\n" + head + more + b"\r\n\r\n" + data + b"\r\n"


def form(*fields: bytes) -> bytes:
    return b"".join(fields) + b"--" + EDGE.encode() + b"--\r\n"


def send(client: Client, body: bytes, kind: str = f"multipart/form-data; boundary={EDGE}", path: str = "/v1/files") -> Any:
    return client.simulate_post(path, body=body, headers={"Content-Type": kind})


def upload(client: Client, data: bytes, filename: str = "a.txt", purpose: str = "assistants") -> dict[str, Any]:
    answer = send(client, form(field("purpose", purpose), field("file", data, filename=filename)))
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json
    return made


def check_refusal(answer: Any, status: int, code: str, param: str | None) -> str:
    assert (answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]) == (status, code, param), (
        answer.text
    )
    return str(answer.json["error"]["message"])


@pytest.fixture
def client(make_client: Any) -> Client:
    return make_client(max_file_bytes=20_000)


# -- uploads ------------------------------------------------------------------------------------------------------------


def test_a_file_is_kept_and_answered_in_openai_s_form(client: Client) -> None:
    made = upload(client, b"hello")

    assert made["id"].startswith("file-")
    assert len(made["id"]) == len("file-") + 24
    assert made["created"] == made["created_at"] > 1_700_000_000
    assert {name: made[name] for name in ("object", "bytes", "filename", "purpose", "status")} == {
        "object": "file",
        "bytes": 5,
        "filename": "a.txt",
        "purpose": "assistants",
        "status": "processed",
    }
    assert client.simulate_get(f"/v1/files/{made['id']}/").json == made


@pytest.mark.parametrize(
    ("filename", "sent", "kept"),
    [
        ("a.txt", "application/json", "text/plain"),
        ("page.html", "text/plain", "text/html"),
        ("a.parquet-or-so", "application/X-Thing; a=b", "application/x-thing"),
        ("a.tar.gz", "application/gzip", "application/gzip"),
        ("nameless", "no type at all", "application/octet-stream"),
    ],
)
def test_a_file_has_the_type_of_its_name_or_what_its_sender_says_and_is_served_as_bytes(
    client: Client, filename: str, sent: str, kept: str
) -> None:
    part = field("file", b"x", filename=filename).replace(b"text/plain", sent.encode())

    made = send(client, form(part)).json

    assert made["content_type"] == kept
    assert client.simulate_get(f"/v1/files/{made['id']}/content").headers["content-type"] == "application/octet-stream"


def test_fields_come_in_any_order_and_others_are_ignored(client: Client) -> None:
    file, purpose = field("file", b"\r\n--a-boundar\r\n", filename="a.txt"), field("purpose", "batch")
    others = (field("expires_after[seconds]", "3600"), field("other", b"x" * 9000, filename="o.bin"))

    for fields in ((file, purpose), (purpose, file), (others[0], file, others[1], purpose), (purpose, *others, file)):
        made = send(client, form(*fields))
        assert (made.status_code, made.json["purpose"], made.json["bytes"]) == (200, "batch", 15), made.text
        content = client.simulate_get(f"/v1/files/{made.json['id']}/content").content
        assert content == b"\r\n--a-boundar\r\n"


def test_a_file_without_a_purpose_is_for_assistants(client: Client) -> None:
    assert send(client, form(field("file", "x", filename="a"))).json["purpose"] == "assistants"
    assert send(client, form(field("file", "x", filename="a"), field("purpose", " "))).json["purpose"] == "assistants"


def test_cortex_s_query_is_accepted(client: Client) -> None:
    body = form(field("file", "x", filename="a"))

    assert send(client, body, path="/v1/files?thread=thread_1&purpose=x").status_code == 200
    assert len(client.simulate_get("/v1/files?thread=thread_1").json["data"]) == 1


@pytest.mark.parametrize(
    "kind", [f'multipart/form-data; charset=utf-8; boundary="{EDGE}"', f"Multipart/Form-Data; boundary={EDGE}"]
)
def test_the_form_s_type_is_read_as_the_grammar_has_it(client: Client, kind: str) -> None:
    assert send(client, form(field("file", "x", filename="a")), kind).status_code == 200


@pytest.mark.parametrize("size", [0, 1, 19_999, 20_000])
def test_a_file_up_to_the_limit_is_taken(client: Client, size: int) -> None:
    made = upload(client, b"x" * size)

    assert made["bytes"] == size
    assert client.simulate_get(f"/v1/files/{made['id']}/content").content == b"x" * size


def test_a_file_over_the_limit_is_413_and_nothing_of_it_stays(client: Client, settings: Settings) -> None:
    kept = upload(client, b"x")

    for size in (20_001, 20_000 + FORM_BYTES + 1):
        answer = send(client, form(field("file", b"y" * size, filename="a")))
        assert (answer.status_code, answer.json["error"]["code"]) == (413, "request_too_large")
        assert "max_file_bytes" in answer.json["error"]["message"]

    assert [file["id"] for file in client.simulate_get("/v1/files").json["data"]] == [kept["id"]]
    blobs = [path for path in (settings.home / "files").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in blobs] == [b"x"]


def test_a_large_file_waits_on_the_disk_and_comes_back_whole(make_client: Any) -> None:
    client = make_client(max_file_bytes=4 * 2**20)
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(2**16))

    made = upload(client, data)

    assert made["bytes"] == len(data) == 2 * 2**20
    assert client.simulate_get(f"/v1/files/{made['id']}/content").content == data


def test_equal_files_are_two_and_one_may_go(client: Client) -> None:
    first, second = upload(client, b"same"), upload(client, b"same", "b.txt")
    assert first["id"] != second["id"]

    client.simulate_delete(f"/v1/files/{first['id']}")

    assert client.simulate_get(f"/v1/files/{second['id']}/content").content == b"same"


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"", 400, "missing_required_parameter", "file"),
        (form(), 400, "missing_required_parameter", "file"),
        (form(field("purpose", "assistants")), 400, "missing_required_parameter", "file"),
        (form(field("File", "x", filename="a")), 400, "missing_required_parameter", "file"),
        (form(field("file", "/etc/passwd")), 400, "invalid_value", "file"),
        (form(field("file", "x", filename="a"), field("file", "y", filename="b")), 400, "invalid_value", "file"),
        (form(field("file", "x", filename="a"), field("purpose", "two words")), 400, "invalid_value", "purpose"),
        (form(field("file", "x", filename="a"), field("purpose", "x" * 65)), 400, "invalid_value", "purpose"),
        (form(field("file", "x", filename="a"), field("purpose", b"\xff")), 400, "invalid_value", None),
        (form(field("file", "x", filename="a"), field("purpose", b"x" * 300_000)), 413, "request_too_large", None),
        (form(field("file", "x", filename=b"\xff\xfe")), 400, "invalid_value", None),
        (form(field("file", "x", filename="a", more=b"\r\nContent-Transfer-Encoding: base64")), 400, "invalid_value", None),
        (form(field("file", "x", filename="a" * 9000)), 400, "invalid_value", None),
        (form(*[field("x", "y")] * 40), 400, "invalid_value", None),
        (field("file", "x", filename="a"), 400, "invalid_value", None),
        (form(field("file", "x", filename="a"))[:-7], 400, "invalid_value", None),
        (b"--" + EDGE.encode(), 400, "invalid_value", None),
        (b"--" + EDGE.encode() + b"\r\n", 400, "invalid_value", None),
        (b"no form at all", 400, "invalid_value", None),
        (b"\x00" * 5000, 400, "invalid_value", None),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_form_that_is_none_is_refused_and_nothing_is_kept(
    client: Client, body: bytes, status: int, code: str, param: str | None
) -> None:
    check_refusal(send(client, body), status, code, param)

    assert client.simulate_get("/v1/files").json["data"] == []


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/mixed; boundary=" + EDGE,
        "text/plain",
        "\u00e9",
    ],
)
def test_another_content_type_is_refused_and_the_way_is_shown(client: Client, kind: str) -> None:
    answer = send(client, form(field("file", "x", filename="a")), kind)

    check_refusal(answer, 400, "invalid_value", None)


def test_a_json_body_is_answered_with_the_curl_that_works(client: Client) -> None:
    answer = client.simulate_post("/v1/files", json={"file": "x", "purpose": "assistants"})

    assert "curl -F purpose=assistants -F file=@PATH" in check_refusal(answer, 400, "invalid_value", None)


# -- bytes --------------------------------------------------------------------------------------------------------------


def test_bytes_come_back_as_they_were_and_only_to_be_saved(client: Client) -> None:
    made = upload(client, EVERY_BYTE, "evil.html")

    answer = client.simulate_get(f"/v1/files/{made['id']}/content")

    assert answer.content == EVERY_BYTE
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(EVERY_BYTE))
    assert answer.headers["content-disposition"] == 'attachment; filename="evil.html"'
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_head_tells_the_length_and_sends_nothing(client: Client) -> None:
    made = upload(client, EVERY_BYTE)

    answer = client.simulate_head(f"/v1/files/{made['id']}/content", headers={"Range": "bytes=0-1"})

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(EVERY_BYTE))


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=10-", 10, 10239),
        ("bytes=-5", 10235, 10239),
        ("bytes=-99999", 0, 10239),
        ("bytes=10239-99999", 10239, 10239),
        ("bytes= 1-2", 1, 2),
    ],
)
def test_a_range_is_answered_with_those_bytes(client: Client, wanted: str, first: int, last: int) -> None:
    made = upload(client, EVERY_BYTE)

    answer = client.simulate_get(f"/v1/files/{made['id']}/content", headers={"Range": wanted})

    assert answer.status_code == 206
    assert answer.content == EVERY_BYTE[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/10240"
    assert answer.headers["content-length"] == str(last - first + 1)
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("wanted", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_behind_the_end_is_416_and_tells_the_length(client: Client, wanted: str) -> None:
    made = upload(client, EVERY_BYTE)

    answer = client.simulate_get(f"/v1/files/{made['id']}/content", headers={"Range": wanted})

    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */10240"
    assert answer.json["error"]["code"] == "invalid_value"
    assert "content-disposition" not in answer.headers


@pytest.mark.parametrize(
    "wanted", ["bytes=", "bytes=-", "bytes=5-1", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "bytes=" + "9" * 50 + "-"]
)
def test_what_is_no_single_range_gives_the_whole_file(client: Client, wanted: str) -> None:
    made = upload(client, EVERY_BYTE)

    answer = client.simulate_get(f"/v1/files/{made['id']}/content", headers={"Range": wanted})

    assert (answer.status_code, answer.content) == (200, EVERY_BYTE)


def test_every_range_of_an_empty_file_is_416(client: Client) -> None:
    made = upload(client, b"")

    for wanted in ("bytes=0-", "bytes=-1", "bytes=0-0"):
        assert client.simulate_get(f"/v1/files/{made['id']}/content", headers={"Range": wanted}).status_code == 416


def test_bytes_that_somebody_took_away_are_503_and_not_an_empty_answer(client: Client, settings: Settings) -> None:
    made = upload(client, b"hello")
    (blob,) = (path for path in (settings.home / "files").rglob("*") if path.is_file())
    blob.unlink()

    answer = client.simulate_get(f"/v1/files/{made['id']}/content")

    assert (answer.status_code, answer.json["error"]["code"]) == (503, "storage_unavailable")
    assert made["id"] in answer.json["error"]["message"]


# -- lists and deletions ------------------------------------------------------------------------------------------------


def test_files_are_listed_the_newest_first_and_by_purpose(client: Client) -> None:
    ids = [upload(client, b"%d" % n, purpose="batch" if n % 2 else "assistants")["id"] for n in range(4)]

    everything = client.simulate_get("/v1/files").json
    batch = client.simulate_get("/v1/files", params={"purpose": "batch", "limit": 1}).json
    rest = client.simulate_get("/v1/files", params={"purpose": "batch", "after": batch["last_id"]}).json

    assert [file["id"] for file in everything["data"]] == ids[::-1]
    assert everything["object"] == "list"
    assert [file["id"] for file in batch["data"] + rest["data"]] == [ids[3], ids[1]]
    assert (batch["has_more"], rest["has_more"]) == (True, False)


def test_a_deleted_file_is_gone_and_messages_go_on_naming_it(client: Client) -> None:
    made = upload(client, b"hello")
    message = {"role": "user", "content": "x", "file_ids": [made["id"]]}
    thread = client.simulate_post("/v1/threads", json={"messages": [message]}).json

    answer = client.simulate_delete(f"/v1/files/{made['id']}")

    assert answer.json == {"id": made["id"], "object": "file", "deleted": True}
    for method, tail in (("GET", ""), ("GET", "/content"), ("HEAD", "/content"), ("DELETE", "")):
        assert client.simulate_request(method, f"/v1/files/{made['id']}{tail}").status_code == 404
    path = f"/v1/threads/{thread['id']}/messages/{thread['messages'][0]}/files/{made['id']}"
    assert client.simulate_get(path).json["id"] == made["id"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
def test_an_unknown_file_is_404(client: Client, method: str, path: str) -> None:
    for id in ("file-nope", "%00", "..%2F..%2Fhostler.db"):
        answer = client.simulate_request(method, f"/v1/files/{id}{path}")
        assert (answer.status_code, answer.json["error"]["code"]) in {(404, "file_not_found"), (404, "route_not_found")}


# -- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\notes.txt", "notes.txt"),
        ("/", "file"),
        ("..", "file"),
        (" . ", "file"),
        ("", "file"),
        ("a\x00b\r\nSet-Cookie: x.txt", "abSet-Cookie: x.txt"),
        ("gpj.\u202eexe", "gpj.exe"),
        ("\u00fcber\U0001f600.md", "\u00fcber\U0001f600.md"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
        ("x" * 300, "x" * 255),
        (".hidden", ".hidden"),
    ],
)
def test_a_name_is_reduced_to_a_name(sent: str, kept: str) -> None:
    assert clean_filename(sent) == kept


@given(st.text())
@example("\ud800")
def test_no_name_keeps_what_no_name_should_hold(sent: str) -> None:
    kept = clean_filename(sent)

    assert 1 <= len(kept) <= MAX_NAME_LENGTH
    assert not set(kept) & {"/", "\\", "\0", "\r", "\n", "\u202e", "\ud800"}
    assert kept not in {".", ".."}
    assert clean_filename(kept) == kept


@given(st.text())
def test_a_header_gives_the_name_and_nothing_else(sent: str) -> None:
    name = clean_filename(sent)

    header = attachment(name)

    assert header.isascii()
    assert header.isprintable()
    start = 'attachment; filename="'
    assert header.startswith(start)
    fallback, _, rest = header[len(start) :].partition('"')
    assert "\\" not in fallback
    if rest:
        assert unquote(rest.removeprefix("; filename*=UTF-8''")) == name
    else:
        assert fallback == name


def test_a_name_beyond_ascii_goes_in_and_out_whole(client: Client) -> None:
    made = upload(client, b"x", "\u00fcber \u6587.txt")

    answer = client.simulate_get(f"/v1/files/{made['id']}/content")

    assert made["filename"] == "\u00fcber \u6587.txt"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"_ber _.txt\"; filename*=UTF-8''%C3%BCber%20%E6%96%87.txt"
    )
