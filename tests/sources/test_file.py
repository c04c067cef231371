"""The source file:."""

from __future__ import annotations

import pytest

from hostler.errors import InvalidRequest
from hostler.sources.contract import SourceContext
from hostler.sources.file import register_sources, resolve


@pytest.mark.parametrize("reference", ["file:/m/a b.gguf", "file:///m/a%20b.gguf", "file://localhost/m/a%20b.gguf"])
def test_a_path_is_linked(reference):
    resolved = resolve(reference, SourceContext())

    assert resolved.is_link
    assert resolved.source_url == resolved.files[0].url == "file:///m/a%20b.gguf"
    assert resolved.suggested_id == "a b"


@pytest.mark.parametrize("reference", ["file:x.gguf", "file:", "file://host/x.gguf", "file:/a\0b"])
def test_what_names_no_path_here_is_refused(reference):
    with pytest.raises(InvalidRequest, match="absolute path"):
        resolve(reference, SourceContext())


def test_it_is_not_remote_so_that_http_may_refuse_it():
    assert [spec.is_remote for spec in register_sources()] == [False]
