"""model.json: ours, Jan's, and broken ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.errors import InvalidRequest
from hostler.library.manifest import (
    BrokenManifest,
    Manifest,
    ModelFile,
    ModelSource,
    check_member_path,
    read_manifest,
    write_manifest,
)

JAN = {
    "sources": [{"filename": "trinity-v1.2.Q4_K_M.gguf", "url": "https://huggingface.co/janhq/t/resolve/main/t.gguf"}],
    "id": "trinity-v1.2-7b",
    "object": "model",
    "name": "Trinity-v1.2 7B Q4",
    "version": 1.0,
    "description": "A merge.",
    "format": "gguf",
    "settings": {"ctx_len": "4096", "prompt_template": "{prompt}", "llama_model_path": "trinity-v1.2.Q4_K_M.gguf"},
    "parameters": {"temperature": 0.7, "stream": True, "max_tokens": 4096, "stop": ["<|im_end|>"], "top_p": "0.95"},
    "metadata": {"author": "Jan", "tags": ["7B", "Merged"], "size": 4370000000},
    "engine": "nitro",
    "created": 1700560000123,
}


def write(folder, document):
    (folder / "model.json").write_text(document if isinstance(document, str) else json.dumps(document))


def test_a_manifest_reads_back_as_it_was_written(tmp_path):
    manifest = Manifest(
        id="org/a",
        name="A",
        created=1700000000,
        source_url="https://host/a.gguf",
        sources=(ModelSource("a.gguf", "https://host/a.gguf"),),
        files=(ModelFile("a.gguf", 5, "0" * 64), ModelFile("/elsewhere/b.gguf", 6, is_link=True)),
        settings={"ctx_len": 2048, "extra": {"rope": [1]}},
        parameters={"temperature": 0.5, "stop": ["x"]},
        metadata={"size": "7B", "size_bytes": 11, "tags": ["chat"]},
        aliases=("a",),
        references=("hf:org/a",),
        is_complete=True,
    )

    write_manifest(tmp_path, manifest)

    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_a_manifest_of_jan_becomes_ours(tmp_path):
    write(tmp_path, JAN)
    (tmp_path / "trinity-v1.2.Q4_K_M.gguf").write_bytes(b"weights")

    manifest = read_manifest(tmp_path)

    assert manifest.version == "1"
    assert manifest.created == 1700560000
    assert manifest.source_url == JAN["sources"][0]["url"]
    assert manifest.settings["ctx_len"] == 4096
    assert manifest.parameters == {
        "temperature": 0.7,
        "token_limit": 4096,
        "top_p": 0.95,
        "stream": True,
        "stop": ["<|im_end|>"],
    }
    assert manifest.metadata["size_bytes"] == 4370000000
    assert "size" not in manifest.metadata
    assert manifest.engine == ""
    assert manifest.owned_by == "Jan"
    assert manifest.files == (ModelFile("trinity-v1.2.Q4_K_M.gguf", 7),)
    assert manifest.is_complete


def test_a_manifest_of_jan_without_its_file_is_not_complete(tmp_path):
    write(tmp_path, JAN)

    manifest = read_manifest(tmp_path)

    assert manifest.files == ()
    assert not manifest.is_complete


def test_a_manifest_that_names_only_an_id_gets_defaults(tmp_path):
    write(tmp_path, {"id": "a", "version": None, "created": "soon", "settings": {"ctx_len": 3, "ngl": 5}, "metadata": 7})

    manifest = read_manifest(tmp_path)

    assert (manifest.name, manifest.version, manifest.settings, manifest.metadata) == ("a", "1", {"ngl": 5}, {})
    assert manifest.created > 1_600_000_000


def test_a_manifest_without_an_id_has_its_folders(tmp_path):
    write(tmp_path / "", {"name": "x"})

    assert read_manifest(tmp_path).id == tmp_path.name


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100000, "JSON|deeply"),
        ({"id": "../x"}, "segment"),
        ({"id": "x/start"}, "action"),
        ({"id": "a", "files": [{"path": "../../etc/passwd", "size_bytes": 1}]}, "no file name"),
        ({"id": "a", "files": [{"path": "/etc/passwd", "size_bytes": 1}]}, "no file name"),
        ({"id": "a", "files": [{"path": "x.gguf", "size_bytes": 1, "is_link": True}]}, "absolute"),
        ({"id": "a", "files": "x.gguf"}, "list of files"),
        ({"id": "a", "files": [{"path": "x.gguf"}]}, "list of files"),
    ],
)
def test_a_broken_or_hostile_manifest_is_refused_with_the_reason(tmp_path, document, reason):
    write(tmp_path, document)

    with pytest.raises(BrokenManifest, match=reason):
        read_manifest(tmp_path)


def test_a_huge_manifest_is_refused_unread(tmp_path):
    write(tmp_path, '{"id": "a", "x": "' + "y" * (4 * 1024 * 1024) + '"}')

    with pytest.raises(BrokenManifest, match="larger"):
        read_manifest(tmp_path)


def test_a_failed_write_leaves_the_old_manifest(tmp_path, monkeypatch):
    write_manifest(tmp_path, Manifest("a", "old", 1))

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hostler.library.disk.os.fsync", no_room)
    with pytest.raises(OSError, match="No space"):
        write_manifest(tmp_path, Manifest("a", "new", 1))

    assert read_manifest(tmp_path).name == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.parametrize("path", ["", "..", "a/../b", "/x", "C:\\x", "..\\x", "a\0b", ".", "a\nb"])
def test_check_member_path_refuses_what_leaves_the_folder(path):
    with pytest.raises(InvalidRequest):
        check_member_path(path)


def test_check_member_path_allows_names_and_subfolders():
    assert check_member_path("part/x-00001-of-00002.gguf") == "part/x-00001-of-00002.gguf"


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
FIELDS = ["version", "name", "created", "settings", "parameters", "metadata", "sources", "aliases", "engine", "files"]


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES | st.lists(VALUES) | st.dictionaries(st.text(), VALUES)))
def test_any_json_object_is_read_or_refused_never_a_crash(tmp_path_factory, document):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    write(folder, {"id": "a", **document})

    try:
        manifest = read_manifest(folder)
    except BrokenManifest:
        return
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
