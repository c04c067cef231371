"""The model file of a remote model: what it says, and what must not stand in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hostler import InvalidModelFile
from hostler_remote.description import MAX_BYTES, Description, description_of, parse_description, read_description, with_tuning

GOOD = {"url": "https://api.example/v1", "model": "big"}


def test_json_and_toml_say_the_same() -> None:
    toml = b'url = "https://api.example/v1/"\nmodel = "big"\nkey_env = "BIG_KEY"\n[headers]\nx-team = "blue"\n'
    fields = {**GOOD, "key_env": "BIG_KEY", "headers": {"x-team": "blue"}}

    assert parse_description(toml) == parse_description(json.dumps(fields).encode()) == description_of(fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "https://api.example/v1"}, "missing required field `model`"),
        ({**GOOD, "model": ""}, "model is empty"),
        ({**GOOD, "url": "api.example/v1"}, "it must look like https://HOST/v1"),
        ({**GOOD, "url": "ftp://api.example"}, "it must look like https://HOST/v1"),
        ({**GOOD, "url": "https://api.example/v1?key=1"}, "no query"),
        ({**GOOD, "url": "https://api.example/v 1"}, "no blanks"),
        ({**GOOD, "url": "https://api.example:port/v1"}, "url is no URL"),
        ({**GOOD, "kind": "vlm"}, "Invalid enum value 'vlm'"),
        ({**GOOD, "colour": 1}, "unknown field `colour`"),
        ({**GOOD, "retries": 99}, "`$.retries`"),
        ({**GOOD, "idle_timeout_s": 0}, "`$.idle_timeout_s`"),
        ({**GOOD, "chat": False}, "nothing to ask of it"),
        ({**GOOD, "key_env": "A", "key_keyring": "b"}, "both name a key"),
        ({**GOOD, "proxy": "socks"}, "proxy is 'socks'"),
        ({**GOOD, "ca_file": "ca.pem"}, "give the whole path"),
        ({**GOOD, "headers": {"host": "x"}}, "which hostler sets itself"),
        ({**GOOD, "headers": {"x-a": "1\r\nx-b: 2"}}, "HTTP does not allow"),
        ({**GOOD, "headers": {"x a": "1"}}, "HTTP does not allow"),
        ({**GOOD, "key_header": "host"}, "cannot carry a key"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"(?s).*") as caught:
        description_of(fields)

    assert words in str(caught.value)


SECRET = "sk-proj-abcdef0123456789"


@pytest.mark.parametrize(
    "fields",
    [
        {**GOOD, "api_key": SECRET},
        {**GOOD, "key": SECRET},
        {**GOOD, "key_env": SECRET},
        {**GOOD, "url": f"https://user:{SECRET}@api.example/v1"},
        {**GOOD, "proxy": f"http://user:{SECRET}@proxy.example"},
        {**GOOD, "headers": {"Authorization": f"Bearer {SECRET}"}},
        {**GOOD, "headers": {"X-Api-Key": SECRET}},
        {**GOOD, "key_header": "x-secret", "headers": {"X-Secret": SECRET}},
    ],
)
def test_a_key_in_the_file_is_refused_and_not_shown(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not belong") as caught:
        description_of(fields)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"{", b"[1]", b"\xff\xfe", b"{" * 100_000, b"x" * (MAX_BYTES + 1)])
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "far.remote"
    path.write_bytes(content)

    with pytest.raises(InvalidModelFile, match=r"far\.remote"):
        read_description(path)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFile, match=r"far\.remote cannot be read: No such file"):
        read_description(tmp_path / "far.remote")


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000/v1", True),
        ("http://gpu.localhost/v1", True),
        ("http://10.0.0.7:8000/v1", False),
        ("https://localhost.example/v1", False),
    ],
)
def test_this_machine_is_known_by_its_addresses(url: str, is_local: bool) -> None:
    assert description_of({**GOOD, "url": url}).is_local is is_local


def test_extra_tunes_a_run_and_cannot_send_it_elsewhere() -> None:
    description, warnings = with_tuning(description_of(GOOD), {"strict": True, "retries": 5, "url": "https://evil.example"})

    assert (description.strict, description.retries, description.url) == (True, 5, GOOD["url"])
    assert warnings == ("the setting 'url' means nothing to remote",)


def test_an_upstream_is_named_without_its_path_and_a_key_by_its_place() -> None:
    description = Description(url="https://api.example:8443/v1", model="m", key_keyring="svc", key_user="me")

    assert description.place == "https://api.example:8443"
    assert description.key_source == "the keyring's entry svc (user me)"
