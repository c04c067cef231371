"""Folders that become the library's own: moved in as one step, with what their model.json says, and refused where that
would take something from somebody."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest

from hostler.errors import InvalidRequest, ModelExists
from hostler.library import disk

CONFIG = {"model": {"type": "llama", "context_length": 512}}


@pytest.fixture
def made(tmp_path):
    """A folder with a model that somebody made."""

    def make(at="work/onnx", **manifest):
        folder = tmp_path / at
        folder.mkdir(parents=True)
        (folder / "genai_config.json").write_text(json.dumps(CONFIG))
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "model.onnx.data").write_bytes(b"weights")
        if manifest:
            (folder / "model.json").write_text(json.dumps(manifest))
        return folder

    return make


def test_take_moves_the_folder_and_keeps_what_its_manifest_says(library, made):
    folder = made(
        id="ignored", name="Made", source_url="convert:small", parameters={"temperature": 0.3},
        metadata={"quantization": "int4", "base_model": "small"},
    )  # fmt: skip

    entry = library.take_folder(folder, id="small-onnx")

    manifest = entry.manifest
    assert (manifest.id, manifest.name, manifest.format, manifest.is_complete) == ("small-onnx", "Made", "onnxgenai", True)
    assert manifest.source_url == "convert:small"
    assert manifest.parameters == {"temperature": 0.3}
    assert manifest.metadata["quantization"] == "int4"
    assert manifest.metadata["context_length"] == 512
    assert not folder.exists()
    by_name = {file.path: file for file in manifest.files}
    assert set(by_name) == {"genai_config.json", "model.onnx", "model.onnx.data"}
    assert by_name["model.onnx"].sha256 == hashlib.sha256(b"graph").hexdigest()
    assert not any(file.is_link for file in manifest.files)
    assert library.files("small-onnx").primary.endswith("small-onnx")


def test_what_was_taken_is_deleted_with_its_model(library, made):
    library.take_folder(made(), id="taken")
    place = library.files("taken").primary

    library.delete("taken")

    assert not os.path.exists(place)


def test_take_tells_of_a_model_that_is_here(open_library, made):
    told = []
    library = open_library(tell=told.append)

    library.take_folder(made(), id="taken")

    assert [(change.kind, change.manifest.id) for change in told] == [("registered", "taken"), ("downloaded", "taken")]


def test_take_copies_from_another_disk(library, made, monkeypatch):
    """`os.replace` cannot; the folder appears whole all the same."""
    folder, replace = made(), os.replace

    def refuse(source, target):
        if str(source) == str(folder):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", refuse)

    entry = library.take_folder(folder, id="taken")

    assert entry.is_downloaded
    assert library.files("taken")
    assert not folder.exists()


def test_a_disk_that_fills_up_while_it_is_copied_leaves_the_folder_where_it_was(library, made, monkeypatch, tmp_path):
    folder = made()

    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def fill(source, target):
        os.mkdir(target)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "replace", refuse)
        patched.setattr(disk.shutil, "copytree", fill)
        # The manifest is written by a rename, too; that one may go through.
        patched.setattr("hostler.library.shelf.write_manifest", lambda folder, manifest: None)
        with pytest.raises(Exception, match="No room left") as caught:
            library.take_folder(folder, id="taken")

    assert caught.value.code == "insufficient_storage"
    assert sorted(path.name for path in folder.iterdir()) == ["genai_config.json", "model.onnx", "model.onnx.data"]
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_an_id_that_is_taken_is_refused_and_the_folder_stays(library, made):
    library.take_folder(made(), id="taken")
    second = made("work/second")

    with pytest.raises(ModelExists, match="taken"):
        library.take_folder(second, id="taken")

    assert second.exists()


def test_a_folder_without_a_manifest_in_the_way_is_named(library, made, tmp_path):
    (tmp_path / "home" / "models" / "taken").mkdir(parents=True)

    with pytest.raises(ModelExists, match="is in the way of the model taken"):
        library.take_folder(made(), id="taken")


def test_a_folder_that_a_model_is_linked_to_is_not_taken_from_it(library, made):
    folder = made()
    library.import_path(folder, id="linked")

    with pytest.raises(ModelExists, match="the model linked lies in"):
        library.take_folder(folder, id="taken")


def test_a_model_s_own_folder_is_not_taken(library, made):
    library.take_folder(made(), id="taken")

    with pytest.raises(ModelExists, match="lie in one another"):
        library.take_folder(library.files("taken").primary, id="again")


def test_a_file_is_not_taken(library, gguf):
    with pytest.raises(InvalidRequest, match="only a model's whole folder"):
        library.take_folder(gguf(), id="taken")


def test_links_are_not_taken(library, made, tmp_path):
    folder = made()
    (tmp_path / "elsewhere").write_bytes(b"weights")
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(InvalidRequest, match="is a link"):
        library.take_folder(folder, id="taken")
