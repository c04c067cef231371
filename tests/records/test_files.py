"""Uploaded files: their bytes, once; their rows; and no rubbish."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading

import pytest

from hostler.errors import InvalidRequest, RequestTooLarge, StorageUnavailable, UploadNotFound
from hostler.records.objects import PageRequest
from hostler.records.store import Records
from support.records import says

LIMIT = 1_000_000
DEADLINE_S = 30
DATA = bytes(range(256)) * 3000


def upload(records, data=DATA, filename="a.txt", purpose="assistants", max_bytes=LIMIT):
    return records.files.create(io.BytesIO(data), filename=filename, purpose=purpose, max_bytes=max_bytes)


def left_in(home):
    """Everything below HOME/files, by name."""
    return sorted(str(path.relative_to(home / "files")) for path in (home / "files").rglob("*") if path.is_file())


def test_a_file_comes_back_byte_for_byte(records, home):
    made = upload(records, filename="../../a\0b/ü.txt", purpose="\0")

    assert records.files.get(made.id) == made
    assert (made.bytes, made.filename, made.purpose) == (len(DATA), "../../a\0b/ü.txt", "\0")
    assert made.id.startswith("file-")
    path = records.files.path(made.id)
    assert path.read_bytes() == DATA
    digest = hashlib.sha256(DATA).hexdigest()
    assert path == home / "files" / digest[:2] / digest[2:]
    assert left_in(home) == [f"{digest[:2]}/{digest[2:]}"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_this_user_may_read_what_is_kept(sqlite_records, home):
    path = sqlite_records.files.path(upload(sqlite_records).id)

    for kept in (path, home / "hostler.db"):
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600, kept


def test_an_empty_file_is_a_file(records):
    assert records.files.path(upload(records, b"").id).read_bytes() == b""


def test_equal_bytes_lie_once_and_go_with_their_last_file(records, home):
    one, two, other = upload(records), upload(records, filename="b.txt"), upload(records, b"other")
    assert len(left_in(home)) == 2

    deleted = records.files.delete(one.id)

    assert (deleted.id, deleted.object) == (one.id, "file")
    assert records.files.path(two.id).read_bytes() == DATA
    with pytest.raises(UploadNotFound, match=f"The file {one.id} does not exist"):
        records.files.path(one.id)
    records.files.delete(two.id)
    assert len(left_in(home)) == 1
    assert records.files.path(other.id).read_bytes() == b"other"


def test_a_file_over_the_limit_is_refused_and_nothing_of_it_stays(records, home):
    assert upload(records, b"x" * 100, max_bytes=100).bytes == 100

    with pytest.raises(RequestTooLarge, match="larger than 100 bytes") as caught:
        upload(records, b"y" * 101, max_bytes=100)

    assert caught.value.param == "file"
    assert len(left_in(home)) == 1
    assert len(records.files.list(PageRequest()).data) == 1


def test_a_stream_that_breaks_leaves_nothing(records, home):
    class Broken(io.RawIOBase):
        def __init__(self):
            self.n_blocks = 0

        def read(self, size=-1):
            self.n_blocks += 1
            if self.n_blocks > 2:
                raise ConnectionResetError("the client left")
            return b"x" * 1000

    with pytest.raises(InvalidRequest, match="could not be read to its end: the client left"):
        records.files.create(Broken(), filename="a", purpose="assistants", max_bytes=LIMIT)

    assert left_in(home) == []


def test_deleting_a_file_leaves_the_messages_that_name_it(records):
    file = upload(records)
    thread = records.threads.create(messages=[says("x", file_ids=[file.id])])

    records.files.delete(file.id)

    assert records.messages.get(thread.id, thread.messages[0]).file_ids == [file.id]


def test_a_deletion_waits_for_an_upload_of_the_same_bytes_that_is_between_its_two_steps(records, monkeypatch):
    old = upload(records)
    deletion = threading.Thread(target=records.files.delete, args=(old.id,))
    keep = records.files._keep

    def keep_and_let_delete(part, sha256):
        keep(part, sha256)
        deletion.start()
        deletion.join(0.1)
        assert deletion.is_alive()

    monkeypatch.setattr(records.files, "_keep", keep_and_let_delete)
    new = upload(records)
    deletion.join(DEADLINE_S)

    assert records.files.path(new.id).read_bytes() == DATA


def test_a_list_can_be_limited_to_a_purpose(records):
    one, two = upload(records, purpose="assistants"), upload(records, purpose="batch")

    assert [file.id for file in records.files.list(PageRequest(order="asc")).data] == [one.id, two.id]
    assert [file.id for file in records.files.list(PageRequest(), purpose="batch").data] == [two.id]
    assert records.files.list(PageRequest(), purpose="nope").data == []


def test_bytes_that_have_vanished_are_an_error_that_says_where_they_were(records):
    made = upload(records)
    path = records.files.path(made.id)
    path.unlink()

    with pytest.raises(StorageUnavailable, match="put the folder back as it was, or delete the file") as caught:
        records.files.path(made.id)

    assert str(path) in caught.value.message
    records.files.delete(made.id)


def test_an_unknown_file_is_not_found(records):
    for ask in (records.files.get, records.files.delete, records.files.path):
        with pytest.raises(UploadNotFound, match="The file nope does not exist"):
            ask("nope")


# -- what a crash leaves ------------------------------------------------------------------------------------------------


def opened_again(records, home, url):
    records.close()
    again = Records(home, url)
    again.open()
    again.close()


def test_a_file_half_received_is_gone_after_the_next_start(records, home, url):
    upload(records)
    (home / "files" / "incoming" / "0123.part").write_bytes(b"half")

    opened_again(records, home, url)

    assert len(left_in(home)) == 1


@pytest.mark.parametrize("method", ["create", "delete"])
def test_bytes_that_got_or_kept_no_row_are_gone_after_the_next_start(records, home, url, method, monkeypatch):
    """A crash between the blob and the row, or between the row and the blob: what is done last is not done."""
    kept, made = upload(records, b"kept"), upload(records)
    monkeypatch.setattr(records.files, "_settle", lambda sha256: None)
    monkeypatch.setattr(records.files, "_unmark", lambda sha256: None)
    if method == "delete":
        records.files.delete(made.id)
    else:
        records.files.delete(made.id)
        monkeypatch.setattr("hostler.records.files.insert", lambda table: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upload(records)
        monkeypatch.undo()
    assert len(left_in(home)) == 3  # two blobs and a mark

    opened_again(records, home, url)

    digest = hashlib.sha256(b"kept").hexdigest()
    assert left_in(home) == [f"{digest[:2]}/{digest[2:]}"], kept


def test_bytes_of_a_committed_row_stay_though_their_mark_does_too(records, home, url, monkeypatch):
    monkeypatch.setattr(records.files, "_unmark", lambda sha256: None)
    made = upload(records)
    assert len(left_in(home)) == 2

    records.close()
    again = Records(home, url)
    try:
        assert again.files.path(made.id).read_bytes() == DATA
        assert len(left_in(home)) == 1
    finally:
        again.close()


def test_another_database_of_the_home_does_not_take_marked_bytes_for_rubbish(sqlite_records, home, monkeypatch):
    monkeypatch.setattr(sqlite_records.files, "_unmark", lambda sha256: None)
    made = upload(sqlite_records)
    sqlite_records.close()

    other = Records(home, "sqlite:///other.db")
    other.open()
    other.close()
    again = Records(home)
    try:
        assert again.files.path(made.id).read_bytes() == DATA
    finally:
        again.close()


def test_a_full_disk_is_503_and_leaves_nothing(sqlite_records, home, monkeypatch):
    """/dev/full refuses every write as a full disk does; the part is a link to it."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    real_open = os.open

    def open_full(path, flags, mode=0o777, **others):
        if str(path).endswith(".part"):
            return real_open("/dev/full", os.O_WRONLY)
        return real_open(path, flags, mode, **others)

    sqlite_records.open()
    monkeypatch.setattr("hostler.records.files.os.open", open_full)
    with pytest.raises(StorageUnavailable, match="cannot take this file: No space left"):
        upload(sqlite_records)
    monkeypatch.undo()

    assert left_in(home) == []
    assert sqlite_records.files.list(PageRequest()).data == []
