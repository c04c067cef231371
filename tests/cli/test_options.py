"""Numbers, tables and JSON as commands show them."""

from __future__ import annotations

import json

import pytest

from hostler.cli.options import harmless, print_json, print_table, show_bytes, show_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (97_300_000, "97.3 MB"), (4.3e9, "4.3 GB"),
     (2e15, "2000.0 TB")],
)  # fmt: skip
def test_sizes_are_decimal(count, text):
    assert show_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m")])
def test_durations_carry_over(seconds, text):
    assert show_seconds(seconds) == text


def test_table_in_a_pipe_is_one_line_a_row_however_long(capsys):
    print_table(["ID", "SOURCE"], [["a", "x" * 300], ["long-id", "[bold]y"]])

    assert capsys.readouterr().out.splitlines() == ["ID       SOURCE", "a        " + "x" * 300, "long-id  [bold]y"]


def test_json_in_a_pipe_is_one_line(capsys):
    print_json([{"id": "ü", "n": None}])

    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == [{"id": "ü", "n": None}]


def test_a_stranger_s_text_cannot_command_the_terminal_and_goes_into_a_pipe_as_it_is(monkeypatch):
    text = "a\x1b[2Jb\x07\x9bc\td\ne"
    assert harmless(text) == text

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    assert harmless(text) == "a\ufffd[2Jb\ufffd\ufffdc\td\ne"
