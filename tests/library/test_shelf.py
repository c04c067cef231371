"""The folders below HOME/models."""

from __future__ import annotations

import json
import os

import pytest

from hostler.errors import StorageUnavailable
from hostler.library import shelf as shelf_module
from hostler.library.manifest import Manifest, ModelFile
from hostler.library.names import folder_name
from hostler.library.shelf import Shelf


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "models")


def ids(shelf):
    return [manifest.id for manifest in shelf.contents().manifests]


def test_an_absent_home_holds_nothing(shelf):
    assert ids(shelf) == []
    assert not shelf.models.exists()


def test_saved_models_are_listed_by_id_in_folders_of_their_own(shelf):
    for model_id in ("org/b", "a", "https://host/x"):
        shelf.save(Manifest(model_id, model_id, 1))

    assert ids(shelf) == ["a", "https://host/x", "org/b"]
    assert sorted(path.name for path in shelf.models.iterdir()) == ["a", "https%3A%2F%2Fhost%2Fx", "org%2Fb"]


def test_unchanged_manifests_are_not_read_again(shelf, monkeypatch):
    reads = []
    original = shelf_module.read_manifest
    monkeypatch.setattr(shelf_module, "read_manifest", lambda folder: reads.append(folder.name) or original(folder))
    for number in range(20):
        shelf.save(Manifest(f"m{number}", "x", 1))
    first = shelf.contents()
    reads.clear()

    assert shelf.contents() is first
    assert reads == []

    shelf.save(Manifest("m3", "changed", 1))
    reads.clear()
    assert shelf.get("m3").name == "changed"
    assert set(reads) == {"m3"}


def test_what_another_process_writes_is_seen(shelf):
    other = Shelf(shelf.models)
    shelf.save(Manifest("a", "x", 1))
    assert ids(other) == ["a"]

    shelf.save(Manifest("b", "x", 1))
    shelf.remove("a")

    assert ids(other) == ["b"]


def test_a_broken_manifest_is_reported_and_hides_no_other(shelf):
    shelf.save(Manifest("a", "x", 1))
    (shelf.models / "broken").mkdir()
    (shelf.models / "broken" / "model.json").write_text("{")
    (shelf.models / "empty").mkdir()

    contents = shelf.contents()

    assert ids(shelf) == ["a"]
    assert [problem.path for problem in contents.problems] == [str(shelf.models / "broken"), str(shelf.models / "empty")]
    assert "not valid JSON" in contents.problems[0].message
    assert "no model.json" in contents.problems[1].message


def test_a_copy_of_a_folder_cannot_take_a_models_place(shelf):
    shelf.save(Manifest("m", "right", 1))
    (shelf.models / "a-copy").mkdir()
    (shelf.models / "a-copy" / "model.json").write_text(json.dumps({"id": "m", "name": "wrong"}))

    assert [manifest.name for manifest in shelf.contents().manifests] == ["right"]
    assert "second model" in shelf.contents().problems[0].message
    assert shelf.folder("m").name == "m"


def test_two_ids_that_want_one_folder_get_two(shelf):
    # As on a file system that does not tell A from a.
    folder = shelf.models / folder_name("A")
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"id": "a"}))

    shelf.save(Manifest("A", "x", 1))

    assert ids(shelf) == ["A", "a"]


def test_remove_takes_the_folder_and_leaves_links_targets(shelf, tmp_path):
    outside = tmp_path / "mine.gguf"
    outside.write_bytes(b"mine")
    folder = shelf.save(Manifest("a", "x", 1, files=(ModelFile(str(outside), 4, is_link=True),)))
    (folder / "weights.gguf").write_bytes(b"x")
    os.symlink(tmp_path, folder / "link")

    shelf.remove("a")
    shelf.remove("a")

    assert list(shelf.models.iterdir()) == []
    assert outside.read_bytes() == b"mine"


def test_a_removal_that_a_crash_cut_short_is_finished_later(shelf):
    doomed = shelf.models / ".deleted-abc"
    doomed.mkdir(parents=True)
    (doomed / "weights.gguf").write_bytes(b"x")

    assert ids(shelf) == []
    shelf.save(Manifest("a", "x", 1))

    assert not doomed.exists()


def test_a_home_that_is_no_folder_is_a_clear_error(tmp_path):
    (tmp_path / "models").write_text("")

    with pytest.raises(StorageUnavailable, match="cannot be read"):
        Shelf(tmp_path / "models").contents()


def test_a_file_put_beside_a_manifest_of_jan_completes_it(shelf):
    folder = shelf.models / "jan"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"id": "jan", "sources": [{"filename": "x.gguf", "url": "https://h/x"}]}))
    assert not shelf.get("jan").is_complete

    (folder / "x.gguf").write_bytes(b"weights")

    assert shelf.get("jan").is_complete
