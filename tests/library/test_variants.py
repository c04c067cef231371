"""Variants: a file made of a model's own, which runs in its place until it is taken back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hostler.errors import InvalidModelFile, InvalidRequest, ModelNotDownloaded
from hostler.library import variants
from hostler.library.manifest import BrokenManifest, read_manifest
from hostler.library.store import Library
from support.tiny_gguf import tiny_gguf


@pytest.fixture
def library(open_library, tmp_path):
    """A library with an imported model, `mine`."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(tiny_gguf())
    library = open_library()
    library.import_path(path, id="mine")
    return library


@pytest.fixture
def made(tmp_path):
    """A file as a tuning makes it."""
    path = tmp_path / "made.gguf"
    path.write_bytes(tiny_gguf() + b"\0" * 64)
    return path


def folder_of(tmp_path):
    return tmp_path / "home" / "models" / "mine"


def test_variant_runs_in_place_of_the_models_own_file(library: Library, made: Path, tmp_path: Path) -> None:
    own, content = library.files("mine").primary, made.read_bytes()

    entry = library.take_variant("mine", made, settings={"n_batch": 256}, metadata={"by": "me"})

    running = Path(library.files("mine").primary)
    assert running.parent == folder_of(tmp_path)
    assert running.read_bytes() == content
    assert not made.exists()
    assert library.files("mine").others == ()
    assert library.replaced("mine") == Path(own)
    assert entry.manifest.settings == {"n_batch": 256}
    assert (entry.manifest.metadata["by"], entry.manifest.metadata["size_bytes"]) == ("me", len(content))


def test_dropping_it_brings_back_file_settings_and_metadata(library: Library, made: Path, tmp_path: Path) -> None:
    library.update("mine", settings={"n_batch": 128})
    before = library.find("mine").manifest

    library.take_variant("mine", made, settings={"n_batch": 256, "flash_attn": False}, metadata={"by": "me"})
    library.drop_variant("mine")

    assert library.find("mine").manifest == before
    assert library.replaced("mine") is None
    assert [path.name for path in folder_of(tmp_path).iterdir()] == ["model.json"]


def test_what_the_user_changed_meanwhile_stays(library: Library, made: Path) -> None:
    library.take_variant("mine", made, settings={"n_batch": 256, "flash_attn": False})
    library.update("mine", settings={"n_batch": 64, "ctx_len": 1024})

    library.drop_variant("mine")

    assert library.find("mine").manifest.settings == {"n_batch": 64, "ctx_len": 1024}


def test_setting_that_the_variant_unset_comes_back(library: Library, made: Path) -> None:
    library.update("mine", settings={"cpu_threads": 7})

    library.take_variant("mine", made, settings={"cpu_threads": None})
    assert library.find("mine").manifest.settings == {}
    library.drop_variant("mine")

    assert library.find("mine").manifest.settings == {"cpu_threads": 7}


def test_second_variant_replaces_the_first(library: Library, made: Path, tmp_path: Path) -> None:
    before = library.find("mine").manifest
    library.take_variant("mine", made, settings={"n_batch": 256})
    made.write_bytes(tiny_gguf() + b"\0" * 128)

    library.take_variant("mine", made, settings={"flash_attn": False})

    assert library.find("mine").manifest.settings == {"flash_attn": False}
    assert len(list(folder_of(tmp_path).glob("variant-*"))) == 1
    library.drop_variant("mine")
    assert library.find("mine").manifest == before


def test_settings_can_change_without_a_file(library: Library) -> None:
    own = library.files("mine").primary

    library.take_variant("mine", None, settings={"n_batch": 256})

    assert library.files("mine").primary == own
    assert library.replaced("mine") is None
    assert "variant" not in str(library.files("mine"))
    library.drop_variant("mine")
    assert library.find("mine").manifest.settings == {}


def test_variant_outlives_the_process(library: Library, made: Path, open_library) -> None:
    library.take_variant("mine", made)
    running = library.files("mine").primary

    again = open_library()

    assert again.files("mine").primary == running
    again.drop_variant("mine")
    assert again.replaced("mine") is None


def test_variant_runs_while_the_own_file_is_away_and_the_reason_is_told_when_it_is_wanted(
    library: Library, made: Path, tmp_path: Path
) -> None:
    library.take_variant("mine", made)
    (tmp_path / "mine.gguf").unlink()

    assert Path(library.files("mine").primary).exists()
    with pytest.raises(InvalidModelFile, match=r"mine\.gguf.*is gone"):
        library.replaced("mine")


def test_file_of_a_crash_is_swept_away_and_the_variants_own_is_not(library: Library, made: Path, tmp_path: Path) -> None:
    (folder_of(tmp_path) / "variant-0123.gguf").write_bytes(b"left")
    (folder_of(tmp_path) / "variant-4567.gguf.part").write_bytes(b"half")

    library.take_variant("mine", made)

    assert [path.name for path in folder_of(tmp_path).glob("variant-*")] == [Path(library.files("mine").primary).name]


def test_file_from_another_disk_is_copied_whole(library: Library, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, real = made.read_bytes(), os.replace

    def other_disk(source, target):
        if Path(source) == made:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(variants.os, "replace", other_disk)

    library.take_variant("mine", made)

    assert Path(library.files("mine").primary).read_bytes() == content
    assert not made.exists()


def test_broken_file_is_refused_and_changes_nothing(library: Library, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nothing")
    before = library.find("mine").manifest

    with pytest.raises(InvalidModelFile):
        library.take_variant("mine", broken, settings={"n_batch": 256})

    assert library.find("mine").manifest == before
    assert broken.exists()


def test_setting_that_cannot_be_meant_is_refused(library: Library, made: Path) -> None:
    with pytest.raises(InvalidRequest, match="n_batch"):
        library.take_variant("mine", made, settings={"n_batch": 0})

    assert made.exists()


def test_model_that_is_not_here_has_no_variant(library: Library, made: Path) -> None:
    with pytest.raises(ModelNotDownloaded):
        library.take_variant("small-1m", made)


def test_variant_that_leads_out_of_the_folder_makes_a_broken_manifest(library: Library, made: Path, tmp_path: Path) -> None:
    library.take_variant("mine", made)
    path = folder_of(tmp_path) / "model.json"
    name = Path(library.files("mine").primary).name
    path.write_text(path.read_text().replace(name, "../../../etc/passwd"))

    with pytest.raises(BrokenManifest, match="no file name inside"):
        read_manifest(folder_of(tmp_path))


def test_deleted_model_takes_its_variant_along_and_leaves_the_linked_file(
    library: Library, made: Path, tmp_path: Path
) -> None:
    library.take_variant("mine", made)

    library.delete("mine")

    assert not folder_of(tmp_path).exists()
    assert (tmp_path / "mine.gguf").exists()
