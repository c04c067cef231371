"""A worker's last words and its log."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.worker.output import N_OLD_LOGS, TAIL_BYTES, TAIL_LINES, OutputLog, OutputTail


@settings(deadline=None)
@given(st.lists(st.binary(max_size=4000), max_size=12))
def test_the_tail_is_the_end_of_what_came_within_its_limits(chunks: list[bytes]) -> None:
    tail = OutputTail()
    for chunk in chunks:
        tail.add(chunk)

    text = tail.text()
    assert len(text.splitlines()) <= TAIL_LINES
    assert len(text) <= TAIL_BYTES
    whole = b"".join(chunks)
    if len(whole) < TAIL_BYTES and len(whole.decode("utf-8", "replace").splitlines()) <= TAIL_LINES:
        assert text == "\n".join(whole.decode("utf-8", "replace").splitlines()).strip()


def test_the_tail_keeps_the_last_lines_and_drops_a_cut_one() -> None:
    tail = OutputTail()
    for number in range(100):
        tail.add(f"line {number}\n".encode())
    assert tail.text().splitlines() == [f"line {number}" for number in range(60, 100)]

    tail.add(b"x" * 5000 + b"\n" + b"y" * 5000 + b"\n")
    assert tail.text() == "y" * 5000


def test_a_log_that_has_grown_is_moved_and_the_oldest_dropped(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "tiny.log"
    log = OutputLog(path, max_bytes=10)
    for text in (b"one......", b"two......", b"three....", b"four....."):
        log.write(text)

    assert path.read_bytes() == b"four....."
    assert path.with_name("tiny.log.1").read_bytes() == b"three...."
    assert path.with_name("tiny.log.2").read_bytes() == b"two......"
    assert len(list(path.parent.iterdir())) == 1 + N_OLD_LOGS


def test_a_log_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")

    OutputLog(tmp_path / "logs" / "tiny.log").write(b"x")

    assert (tmp_path / "logs").read_text() == "a file where the folder should be"
