"""Paths as clients and proxies mangle them."""

from __future__ import annotations

import pytest

from hostler.api.paths import normalised_path, split_action


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/models/", "/v1/models"),
        ("/v1//models", "/v1/models"),
        ("//v1///chat//completions//", "/v1/chat/completions"),
        ("/v1//models//zephyr-7b", "/v1/models/zephyr-7b"),
        ("/v1/models/zephyr-7b/start/", "/v1/models/zephyr-7b/start"),
        ("/v1//models/download///zephyr-7b/", "/v1/models/download/zephyr-7b"),
        ("//download//getDownloadProgress//org/x", "/download/getDownloadProgress/org/x"),
        ("/v1/threads//t1//messages/", "/v1/threads/t1/messages"),
    ],
)
def test_slashes_outside_a_model_id_are_made_single(path: str, expected: str) -> None:
    assert normalised_path(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/models/org//name", "/v1/models/org//name"),
        ("/v1/models/https://huggingface.com/a/b.gguf", "/v1/models/https://huggingface.com/a/b.gguf"),
        ("/v1/models/https:/huggingface.com/a/b.gguf", "/v1/models/https://huggingface.com/a/b.gguf"),
        ("/v1//models/https:/host/a//b/start", "/v1/models/https://host/a//b/start"),
        ("/v1/models/download/http:/host/x", "/v1/models/download/http://host/x"),
        ("/v1/models/org/%2Fname", "/v1/models/org/%2Fname"),
        ("/v1/models/downloaded", "/v1/models/downloaded"),
    ],
)
def test_a_model_id_keeps_its_slashes_and_a_url_gets_back_the_one_it_lost(path: str, expected: str) -> None:
    assert normalised_path(path) == expected


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("zephyr", ("zephyr", "")),
        ("zephyr/start", ("zephyr", "start")),
        ("org/name/stop", ("org/name", "stop")),
        ("https://host/start/x", ("https://host/start/x", "")),
        ("zephyr//start", ("zephyr", "start")),
        ("start", ("start", "")),
        ("zephyr/Start", ("zephyr/Start", "")),
    ],
)
def test_the_action_is_the_last_segment_and_only_that(rest: str, expected: tuple[str, str]) -> None:
    assert split_action(rest) == expected
