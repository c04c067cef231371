"""Whatever a client sends, the answer is one of the contract's, in the error form, and never a 500."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.conftest import Client
from api.scripted_runtime import ScriptedRuntime, view
from hostler.api.app import create_app
from hostler.api.schema.chat import ChatBody
from hostler.api.schema.completions import CompletionBody
from hostler.api.schema.models import DownloadBody, StartBody
from hostler.config import load_settings
from hostler.domain import Lifecycle
from hostler.library.fields import PARAMETERS, SETTINGS

NAMES = {
    "/v1/chat/completions": [*ChatBody.__struct_fields__, *(field.name for field in PARAMETERS), "max_tokens"],
    "/v1/completions": [*CompletionBody.__struct_fields__, *(field.name for field in PARAMETERS)],
    "/v1/models": list(DownloadBody.__struct_fields__),
    "/v1/models/start": [*StartBody.__struct_fields__, *(field.name for field in SETTINGS)],
}
WORDS = [
    "",
    "phi",
    "user",
    "text",
    "none",
    "auto",
    "true",
    "null",
    "1e999",
    "[[",
    "-1",
    "0.5",
    "9" * 30,
    "\x00",
    "\ud7ff\U0001f600",
]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(WORDS) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "1", "url", "ctx_len"]), inner, max_size=4)
    ),
    max_leaves=10,
)


def make_client() -> Client:
    runtime = ScriptedRuntime(view("phi", Lifecycle.RUNNING), max_requests=100)
    chosen = load_settings(Path("unused"), environ={})
    return Client(create_app(runtime, chosen))  # type: ignore[arg-type]


CLIENT = make_client()


def check(answer: Any, statuses: set[int]) -> None:
    assert answer.status_code in statuses, answer.text
    if answer.status_code != 200:
        assert answer.json["error"].keys() == {"message", "type", "param", "code"}
        assert answer.json["error"]["message"]


@pytest.mark.parametrize("path", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_json_makes_a_500(path: str, data: st.DataObject) -> None:
    body = data.draw(st.dictionaries(st.sampled_from(NAMES[path]), values, max_size=5))
    if data.draw(st.booleans()):
        # Half of the bodies are right but for one field, so that the checks behind the first ones are reached, too.
        body = {"model": "phi", "prompt": "x", "messages": [{"role": "user", "content": "x"}], **body}

    # Scripts give one answer, so n above 1 ends early: that is the script's fault.
    if body.get("n") not in (None, 1, "1"):
        body["n"] = 99

    check(CLIENT.simulate_post(path, json=body), {200, 400, 404, 409})


@settings(max_examples=80, deadline=None)
@given(body=st.binary(max_size=40))
def test_no_bytes_make_a_500(body: bytes) -> None:
    check(CLIENT.simulate_post("/v1/chat/completions", body=body), {400})


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH"]),
    parts=st.lists(
        st.sampled_from(["v1", "models", "start", "stop", "phi", "download", "%2F", "https:", ""]) | st.text(max_size=6)
    ),
)
def test_no_path_makes_a_500(method: str, parts: list[str]) -> None:
    path = "/" + "/".join(part if part == "%2F" else quote(part) for part in parts)

    check(make_client().simulate_request(method, path), {200, 400, 404, 405, 409, 501})
