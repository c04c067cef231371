"""JSON Lines: what a file of objects may look like, how it is cut into requests, and that a file appears whole."""

from __future__ import annotations

import io
import os

import click
import msgspec
import pytest

from hostler.cli import lines
from hostler.cli.lines import Item, batches, read_lines, writing


def read(data):
    problems = []
    found = list(read_lines(io.BytesIO(data), "f.jsonl", lambda place, reason: problems.append((place, reason))))
    return found, problems


def test_lines_know_their_place_and_empty_ones_count():
    found, problems = read(b'\xef\xbb\xbf{"a": 1}\r\n\n  {"b": "\xc3\xbc"}')

    assert [(item.place, item.value) for item in found] == [("f.jsonl:1", {"a": 1}), ("f.jsonl:3", {"b": "ü"})]
    assert problems == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_lines_are_reported_and_the_rest_is_read(line, reason):
    found, problems = read(line + b'\n{"a": 1}\n')

    assert [item.value for item in found] == [{"a": 1}]
    ((place, told),) = problems
    assert place == "f.jsonl:1"
    assert reason in told


def thread(n_messages, n_bytes=10):
    yield Item("", {"object": "thread", "id": "t"}, n_bytes)
    for _ in range(n_messages):
        yield Item("", {"object": "thread.message", "thread_id": "t"}, n_bytes)


def kinds(batch):
    return "".join("T" if item.value["object"] == "thread" else "m" for item in batch)


def test_requests_are_cut_between_threads(monkeypatch):
    monkeypatch.setattr(lines, "BATCH_BYTES", 25)

    found = [kinds(batch) for batch in batches([*thread(0), *thread(3), *thread(0), *thread(0)], part_bytes=1000)]

    assert found == ["TTmmm", "TT"]


def test_a_thread_is_cut_only_when_it_is_longer_than_a_request_may_be(monkeypatch):
    monkeypatch.setattr(lines, "BATCH_BYTES", 25)

    found = [kinds(batch) for batch in batches([*thread(5), *thread(1)], part_bytes=40)]

    assert found == ["Tmmm", "mm", "Tm"]


def test_one_object_longer_than_a_request_goes_alone_and_nothing_gives_no_request():
    assert [len(batch) for batch in batches(thread(1, n_bytes=100), part_bytes=50)] == [1, 1]
    assert list(batches([])) == []


@pytest.mark.parametrize("end", [b"", b"\n", b'\n{"after": 1}'])
def test_a_line_that_is_too_long_is_reported_and_not_kept(monkeypatch, end):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**20)
    at_the_limit = b'{"a": "' + b"x" * (2**20 - 10) + b'"}\n'

    found, problems = read(at_the_limit + b"y" * 5 * 2**20 + end)

    assert [item.place for item in found] == ["f.jsonl:1", "f.jsonl:3"][: 1 + (len(end) > 1)]
    assert problems == [("f.jsonl:2", "this line has more than 1 MB")]


def test_a_file_is_written_whole_with_one_object_a_line(tmp_path):
    target = tmp_path / "out.jsonl"

    with writing(target) as write:
        write({"text": "two\nlines"})
        write({"text": "ü"})
        assert not target.exists()

    assert [msgspec.json.decode(line) for line in target.read_bytes().splitlines()] == [{"text": "two\nlines"}, {"text": "ü"}]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_export_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("old")

    with pytest.raises(ZeroDivisionError), writing(target) as write:  # noqa: PT012 - what is written before counts
        write({"n": 1})
        raise ZeroDivisionError

    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_is_no_file_is_written_into_and_a_link_stays_a_link(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    link.symlink_to(target)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for path in (pipe, link):
            with writing(path) as write:
                write({"n": 1})

        assert os.read(reader, 100) == b'{"n":1}\n'
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.read_bytes() == b'{"n":1}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(click.ClickException, match="cannot be written: No such file"), writing(tmp_path / "no" / "out.jsonl"):
        pass
