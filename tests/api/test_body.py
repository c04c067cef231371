"""Bodies: JSON under any content type, empty, broken, too large, too deep."""

from __future__ import annotations

from typing import Any

import pytest

CHAT = "/v1/chat/completions"
GOOD = b'{"model": "phi", "messages": [{"role": "user", "content": "hi"}]}'


def post(client: Any, body: bytes, **headers: str) -> Any:
    return client.simulate_post(CHAT, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", "", "nonsense"])
def test_json_is_read_whatever_the_content_type_says(client: Any, kind: str) -> None:
    assert post(client, GOOD, Content_Type=kind).status_code == 200


def test_a_byte_order_mark_and_blanks_around_the_json_do_no_harm(client: Any) -> None:
    assert post(client, b"\xef\xbb\xbf  " + GOOD + b"\r\n").status_code == 200


def test_multipart_where_json_is_wanted_is_400(client: Any) -> None:
    answer = post(client, GOOD, Content_Type="multipart/form-data; boundary=x")

    assert (answer.status_code, answer.json["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{'model': 'phi'}",
        b'{"model": "phi",}',
        b'{"temperature": NaN}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"\xff\xfe{\x00}\x00",
        b'{"model": "phi"} {"model": "phi"}',
        b'{"x": ' + b"[" * 2000,
        b'{"temperature": ' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"messages": ' + b'[{"content":' * 150 + b"1" + b"}]" * 150 + b"}",
        b'{"x": ' + b"[" * 1900 + b"]" * 1900 + b"}",
        b"1" * 4000 + b"e",
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_a_body_that_is_no_json_is_400_and_never_a_500(client: Any, body: bytes) -> None:
    answer = post(client, body)

    assert answer.status_code == 400
    assert answer.json["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"3", b"null", b"true"])
def test_json_that_is_no_object_is_400(client: Any, body: bytes) -> None:
    answer = post(client, body)

    assert answer.status_code == 400
    assert answer.json["error"]["code"] == "invalid_value"
    assert "object" in answer.json["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"  \n"])
def test_an_empty_body_is_an_empty_object(client: Any, body: bytes) -> None:
    answer = post(client, body, Content_Type="application/json")

    assert answer.status_code == 400
    assert answer.json["error"] == {
        "message": "model is missing; name one that GET /v1/models lists",
        "type": "invalid_request_error",
        "param": "model",
        "code": "missing_required_parameter",
    }


def test_many_brackets_side_by_side_are_not_deep(client: Any) -> None:
    messages = b",".join([b'{"role": "user", "content": "hi"}'] * 60)
    body = b'{"model": "phi", "x": [' + b",".join([b"[{}]"] * 90) + b'], "messages": [' + messages + b"]}"

    assert post(client, body).status_code == 200


def test_a_body_on_a_get_is_ignored(client: Any) -> None:
    assert client.simulate_get("/v1/models", body="{", headers={"Content-Type": "application/json"}).status_code == 200


def test_a_body_of_the_limit_passes_and_one_byte_more_is_413(client: Any) -> None:
    padded = GOOD + b" " * (4096 - len(GOOD))

    assert post(client, padded).status_code == 200
    answer = post(client, padded + b" ")

    assert answer.status_code == 413
    assert answer.json["error"]["code"] == "request_too_large"
    assert "4096" in answer.json["error"]["message"]
