"""The table from hostler's errors to HTTP."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler import errors
from hostler.api.errors import TABLE, error_body, error_headers, row_of
from hostler.errors import HostlerError

PAGE = Path(__file__).parents[2] / "docs" / "openai-compat.md"


def subclasses(kind: type[HostlerError]) -> Iterator[type[HostlerError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


IN_ERRORS = [kind for kind in subclasses(HostlerError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", IN_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_row_of_its_own(kind: type[HostlerError]) -> None:
    assert kind in TABLE


DOCUMENTED = {
    (int(status), code)
    for statuses, codes in re.findall(r"^\| ([0-9, ]+) \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for status in statuses.split(",")
    for code in re.findall(r"`([a-z_]+)`", codes)
}
ABSTRACT = {errors.AccessDenied, errors.NotFound, errors.Conflict, HostlerError}
"""Their heirs have codes of their own."""


@pytest.mark.parametrize("kind", [kind for kind in IN_ERRORS if kind not in ABSTRACT], ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_documents_table_with_its_status(kind: type[HostlerError]) -> None:
    row = TABLE[kind]

    for status in {row.status, row.inference_status or row.status}:
        assert (status, kind.code) in DOCUMENTED


def test_an_error_that_is_defined_elsewhere_takes_the_row_of_its_parent() -> None:
    class Strange(errors.NotFound):
        """Of a plugin."""

    assert row_of(Strange("gone")).status == 404


def test_an_error_body_has_all_four_keys_and_repeats_the_message() -> None:
    body = error_body(errors.ModelNotFound("The model nope does not exist"))

    assert msgspec.to_builtins(body) == {
        "error": {
            "message": "The model nope does not exist",
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        },
        "message": "The model nope does not exist",
    }


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "headers"),
    [
        (errors.InvalidRequest("x", param="a.b"), 400, "invalid_request_error", "invalid_value", {}),
        (errors.ContextLengthExceeded("x"), 400, "invalid_request_error", "context_length_exceeded", {}),
        (errors.ModelExists("x"), 409, "invalid_request_error", "model_exists", {"x-should-retry": "false"}),
        (errors.ModelNotDownloaded("x"), 409, "invalid_request_error", "model_not_downloaded", {"x-should-retry": "false"}),
        (errors.QueueFull("x", retry_after_s=2.1), 429, "rate_limit_error", "queue_full", {"retry-after": "3"}),
        (errors.QueueFull("x"), 429, "rate_limit_error", "queue_full", {"retry-after": "1"}),
        (errors.ModelLoadFailed("x"), 500, "server_error", "model_load_failed", {"x-should-retry": "false"}),
        (errors.NotImplementedHere("x"), 501, "server_error", "not_implemented", {"x-should-retry": "false"}),
        (errors.DownloadFailed("x"), 502, "server_error", "download_failed", {}),
        (errors.EngineUnavailable("x", retry_after_s=7.0), 503, "server_error", "engine_unavailable", {"retry-after": "7"}),
        (errors.StorageUnavailable("x"), 503, "server_error", "storage_unavailable", {}),
        (errors.StartTimeout("x"), 504, "server_error", "start_timeout", {}),
        (
            errors.InsufficientMemory("x", needed_bytes=2, available_bytes=1),
            507,
            "server_error",
            "insufficient_memory",
            {"x-should-retry": "false"},
        ),
        (errors.RequestCancelled("x"), 499, "invalid_request_error", "request_cancelled", {"x-should-retry": "false"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HostlerError) else None,
)
def test_errors_reach_the_client_as_the_contract_says(
    client: Any, runtime: Any, error: HostlerError, status: int, kind: str, code: str, headers: dict[str, str]
) -> None:
    runtime.to_raise = error

    answer = client.simulate_get("/v1/models/phi")

    assert answer.status_code == status
    assert answer.json["error"] == {"message": "x", "type": kind, "param": error.param, "code": code}
    sent = {name: answer.headers.get(name) for name in ("x-should-retry", "retry-after") if name in answer.headers}
    assert sent == headers


def test_a_model_that_is_not_downloaded_is_404_for_a_chat_and_409_for_a_start(client: Any) -> None:
    chat = client.chat(model="catalogue-only")
    start = client.simulate_put("/v1/models/catalogue-only/start")

    assert (chat.status_code, chat.json["error"]["code"]) == (404, "model_not_downloaded")
    assert (start.status_code, start.json["error"]["code"]) == (409, "model_not_downloaded")
    assert start.headers["x-should-retry"] == "false"


def test_a_bug_is_a_500_without_its_text_and_the_log_has_the_traceback_under_the_request_id(
    client: Any, runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.to_raise = ZeroDivisionError("secret detail")

    answer = client.simulate_get("/v1/models/phi")

    assert answer.status_code == 500
    assert answer.json["error"]["code"] == "internal_error"
    assert "secret detail" not in answer.text
    assert "Traceback" not in answer.text
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.request_id == answer.headers["x-request-id"]  # type: ignore[attr-defined]
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    assert dict(error_headers(errors.EngineUnavailable("x", retry_after_s=0.01)))["retry-after"] == "1"
