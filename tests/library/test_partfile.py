"""Partial files: what survives, what is dropped, and that only proven bytes count."""

from __future__ import annotations

import hashlib
import os

import pytest

from hostler.library.partfile import Identity, PartFile

DATA = bytes((index * 31 + index // 256) % 256 for index in range(1000))
DIGEST = hashlib.sha256(DATA).hexdigest()
CHUNK = 100


def part_of(tmp_path):
    return PartFile(tmp_path / "x.gguf", chunk_bytes=CHUNK)


def nothing(n_bytes):
    pass


def begin(tmp_path, n_bytes, sha256=None, total=None, etag=None):
    """Write some bytes as a pull that is killed does: without close."""
    part = part_of(tmp_path)
    part.start(Identity(etag=etag, total=total, sha256=sha256))
    part.write(DATA[:n_bytes])
    # As after kill -9: descriptors go, nothing else happens.
    part._data.close()
    part._log.close()
    part._data = part._log = None


def reopened(tmp_path, sha256=None, total=None):
    part = part_of(tmp_path)
    part.open(sha256, total, nothing)
    return part


def test_a_part_goes_on_where_a_killed_pull_stopped_when_the_hash_is_known(tmp_path):
    begin(tmp_path, 555, sha256=DIGEST)

    with reopened(tmp_path, sha256=DIGEST) as part:
        assert part.size == 555
        part.write(DATA[555:])
        assert part.sha256 == DIGEST
        part.finish(tmp_path / "x.gguf")

    assert (tmp_path / "x.gguf").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("n_lines", [2, 4])
def test_a_part_goes_on_where_a_pull_was_killed_before_the_line_of_a_whole_chunk(tmp_path, n_lines):
    begin(tmp_path, 500, sha256=DIGEST)
    log = tmp_path / "x.gguf.part.log"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[: 1 + n_lines]))

    with reopened(tmp_path, sha256=DIGEST) as part:
        assert part.size == 500
        part.write(DATA[500:])
        assert part.sha256 == DIGEST

    with reopened(tmp_path) as part:
        assert part.size == 1000


def test_bytes_behind_the_last_proof_are_dropped_when_nothing_can_verify_them(tmp_path):
    begin(tmp_path, 555)

    with reopened(tmp_path) as part:
        assert part.size == 500
        part.write(DATA[500:])
        assert part.sha256 == DIGEST


def test_an_orderly_end_proves_every_byte(tmp_path):
    with part_of(tmp_path) as part:
        part.open(None, None, nothing)
        part.write(DATA[:555])

    with reopened(tmp_path) as part:
        assert part.size == 555


def test_a_damaged_chunk_costs_it_and_what_follows_only(tmp_path):
    begin(tmp_path, 1000, sha256=DIGEST)
    path = tmp_path / "x.gguf.part"
    damaged = bytearray(path.read_bytes())
    damaged[333] ^= 1
    path.write_bytes(damaged)

    with reopened(tmp_path, sha256=DIGEST) as part:
        assert part.size == 300
        assert path.stat().st_size == 300
        part.write(DATA[300:])
        assert part.sha256 == DIGEST


def test_a_part_shorter_than_its_log_is_cut_to_whole_chunks(tmp_path):
    begin(tmp_path, 1000, sha256=DIGEST)
    os.truncate(tmp_path / "x.gguf.part", 250)

    with reopened(tmp_path, sha256=DIGEST) as part:
        assert part.size == 200


def test_a_torn_last_line_of_the_log_is_ignored(tmp_path):
    begin(tmp_path, 500)
    with (tmp_path / "x.gguf.part.log").open("ab") as log:
        log.write(b'{"end": 600, "bla')

    with reopened(tmp_path) as part:
        assert part.size == 500
        part.write(DATA[500:700])

    with reopened(tmp_path) as part:
        assert part.size == 700


@pytest.mark.parametrize("known", [{"sha256": "f" * 64}, {"total": 999}])
def test_a_part_of_another_file_is_thrown_away(tmp_path, known):
    begin(tmp_path, 500, sha256=DIGEST, total=1000)

    with reopened(tmp_path, **known) as part:
        assert part.size == 0
        assert (tmp_path / "x.gguf.part").stat().st_size == 0


@pytest.mark.parametrize("log", [None, b"", b"no json\n", b'{"version": 2}\n'])
def test_a_part_without_a_readable_log_is_thrown_away(tmp_path, log):
    begin(tmp_path, 500, sha256=DIGEST)
    path = tmp_path / "x.gguf.part.log"
    path.unlink() if log is None else path.write_bytes(log)

    with reopened(tmp_path, sha256=DIGEST) as part:
        assert part.size == 0


def test_identify_keeps_bytes_and_proofs(tmp_path):
    with part_of(tmp_path) as part:
        part.open(None, None, nothing)
        part.write(DATA[:250])
        part.identify(Identity(etag='"a"', total=1000))
        part.write(DATA[250:320])

    with reopened(tmp_path) as part:
        assert part.size == 320
        assert part.identity == Identity(etag='"a"', total=1000)


def test_a_full_disk_keeps_what_was_written(tmp_path):
    part = part_of(tmp_path)
    part.open(DIGEST, None, nothing)
    part.write(DATA[:150])
    part._data = FullAfter(part._data, 60)

    with pytest.raises(OSError, match="No space"):
        part.write(DATA[150:])
    part.close()

    with reopened(tmp_path, sha256=DIGEST) as again:
        assert again.size == 210
        again.write(DATA[210:])
        assert again.sha256 == DIGEST


class FullAfter:
    """A file on a disk that has room for so many bytes more."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        if self._room == 0:
            raise OSError(28, "No space left on device")
        written = self._file.write(data[: self._room])
        self._room -= written
        return written

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize(
    ("etag", "date", "validator"),
    [('"a"', "then", '"a"'), ('W/"a"', "then", "then"), ('W/"a"', None, None), (None, None, None)],
)
def test_only_a_strong_etag_or_a_date_is_a_validator(etag, date, validator):
    assert Identity(etag=etag, last_modified=date).validator == validator


def test_checking_an_old_part_can_be_stopped(tmp_path):
    begin(tmp_path, 1000, sha256=DIGEST)

    class StopNowError(Exception):
        pass

    def stop(n_bytes):
        raise StopNowError

    part = part_of(tmp_path)
    with pytest.raises(StopNowError), part:
        part.open(DIGEST, None, stop)

    with reopened(tmp_path, sha256=DIGEST) as again:
        assert again.size == 1000
