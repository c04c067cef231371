from __future__ import annotations

import os
from pathlib import Path

from hostler.domain import ModelFiles
from hostler.library.manifest import Manifest, ModelFile
from hostler.modeldigest import SAMPLE_BYTES, digest_of, known_digest

SIZE = 64 * SAMPLE_BYTES


def model(tmp_path: Path, data: bytes = b"\0" * SIZE) -> ModelFiles:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return ModelFiles(str(path), "gguf")


def test_the_same_files_have_the_same_digest(tmp_path: Path) -> None:
    files = model(tmp_path)

    assert digest_of(files, "known") == digest_of(files, "known")
    assert digest_of(files, "known") != digest_of(files, "other")


def test_a_file_replaced_under_its_name_is_another_even_with_its_size_and_time(tmp_path: Path) -> None:
    files = model(tmp_path)
    before = digest_of(files)
    status = os.stat(files.primary)
    for place in (0, SIZE // 2 + 5, SIZE - 1):  # the middle is in no sample: the time of the change tells
        data = bytearray(SIZE)
        data[place] = 1
        Path(files.primary).write_bytes(data)
        os.utime(files.primary, ns=(status.st_atime_ns, status.st_mtime_ns))

        assert digest_of(files) != before


def test_a_longer_file_and_a_further_one_count(tmp_path: Path) -> None:
    files = model(tmp_path, b"")
    (tmp_path / "second").write_bytes(b"x")
    digests = {
        digest_of(files),
        digest_of(ModelFiles(files.primary, "gguf", (str(tmp_path / "second"),))),
        digest_of(model(tmp_path, b"y")),
    }

    assert len(digests) == 3


def test_a_model_that_is_a_folder_is_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    (folder / "inner").mkdir(parents=True)
    (folder / "genai_config.json").write_text("{}")
    files = ModelFiles(str(folder), "onnxgenai")
    before = digest_of(files)

    (folder / "inner" / "more").write_bytes(b"x")

    assert digest_of(files) != before


def test_other_sums_in_the_manifest_are_another_model() -> None:
    def manifest(sha256: str | None) -> Manifest:
        return Manifest("m", "m", 0, files=(ModelFile("m.gguf", 10, sha256),))

    assert known_digest(manifest("a")) == known_digest(manifest("a"))
    assert len({known_digest(manifest("a")), known_digest(manifest("b")), known_digest(manifest(None))}) == 3
