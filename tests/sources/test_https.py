"""The sources https: and http:."""

from __future__ import annotations

import base64

import pytest

from hostler.errors import InvalidRequest
from hostler.sources.contract import SourceContext
from hostler.sources.https import resolve

CONTEXT = SourceContext()


def test_a_url_is_one_file_named_by_its_last_segment():
    resolved = resolve("https://host/models/a%20b.Q4_0.gguf?token=t", CONTEXT)

    (file,) = resolved.files
    assert file.filename == "a b.Q4_0.gguf"
    assert file.url == "https://host/models/a%20b.Q4_0.gguf?token=t"
    assert resolved.suggested_id == "a b.Q4_0"
    assert resolved.source_url == "https://host/models/a%20b.Q4_0.gguf"


def test_a_hash_in_the_fragment_is_what_the_file_must_be():
    resolved = resolve("https://host/a.gguf#sha256=" + "AB" * 32, CONTEXT)

    assert resolved.files[0].sha256 == "ab" * 32
    assert "#" not in resolved.files[0].url


@pytest.mark.parametrize("fragment", ["sha256=abc", "sha256=" + "g" * 64, "sha256"])
def test_a_hash_that_is_none_is_refused(fragment):
    with pytest.raises(InvalidRequest, match="64 hexadecimal"):
        resolve(f"https://host/a.gguf#{fragment}", CONTEXT)


def test_credentials_become_a_header_and_are_not_kept():
    resolved = resolve("https://me:p%40ss@host:8443/a.gguf", CONTEXT)

    (file,) = resolved.files
    assert file.url == "https://host:8443/a.gguf"
    assert file.headers["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert "me" not in resolved.source_url


@pytest.mark.parametrize("reference", ["https://", "http://host:port/x.gguf", "https://[::1/x.gguf"])
def test_what_is_no_url_is_refused(reference):
    with pytest.raises(InvalidRequest):
        resolve(reference, CONTEXT)


@pytest.mark.parametrize(
    ("path", "filename"),
    [("/..%2F..%2Fetc%2Fx.gguf", "x.gguf"), ("/", "model.gguf"), ("/download", "download.gguf"), ("/.gguf", "model.gguf")],
)
def test_the_file_name_is_always_a_plain_one(path, filename):
    assert resolve(f"https://host{path}", CONTEXT).files[0].filename == filename


@pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "model.onnx.data"])
def test_one_file_of_a_model_folder_is_refused_with_the_way_to_the_folder(name):
    with pytest.raises(InvalidRequest, match="hf:OWNER/REPO:FOLDER"):
        resolve(f"https://host/phi/cpu-int4/{name}", CONTEXT)
