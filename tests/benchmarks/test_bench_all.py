"""The runner of the whole table, with scripted pieces: what is measured, kept, written, and said."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import bench_all
import pytest
from bars import Bar
from bench_serving import parse_server
from lineup import Lineup, Setup
from pieces import PIECES, Piece
from servers import ServerFailed

README = (Path(bench_all.__file__).parent / "README.md").read_text(encoding="utf-8")


def scripted(name: str, ours: float, asked: list[str], fails: bool = False) -> Piece:
    """A piece that gives the same figures in each round, and notes what it was asked."""

    def give(subject: str, rate: float) -> Callable[..., dict[str, float]]:
        def measure(_lineup: object, round_name: str, _seed: int) -> dict[str, float]:
            asked.append(f"{name} {subject} {round_name}")
            if fails and subject == "llama-server":
                raise ServerFailed("it would not start")
            return {"rate": rate}

        return measure

    subjects = {"hostler": give("hostler", ours), "llama-server": give("llama-server", 100.0)}
    bars = (Bar("rate", True, 1.0, "llama-server"), Bar("rate", True, 50.0))
    return Piece(name, "scripted", 4, 512, subjects, {"rate": "tok/s"}, bars, n_rounds=2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    pieces = [scripted("good", 120.0, asked), scripted("slow", 80.0, asked)]
    monkeypatch.setattr(bench_all, "PIECES", {piece.name: piece for piece in pieces})
    return asked


def run(tmp_path: Path, *more: str, peer: bool = True) -> int:
    """Call the runner in a folder of its own."""
    words = ["--model-path", "M.gguf", "--state", str(tmp_path / "state"), "--results", str(tmp_path / "results"), *more]
    return bench_all.main([*words, "--peer", str(tmp_path)] if peer else words)


def verdicts(tmp_path: Path) -> dict[tuple[str, str], str]:
    """What the summary says of each bar."""
    with (tmp_path / "results" / "summary.csv").open(newline="") as source:
        return {(row["workload"], row["bar"]): row["verdict"] for row in csv.DictReader(source)}


def test_every_piece_is_measured_in_turns_and_a_missed_bar_is_an_exit_code(tmp_path: Path, asked: list[str]) -> None:
    code = run(tmp_path)

    order = ["hostler 0", "llama-server 0", "llama-server 1", "hostler 1"]
    assert asked == [f"{piece} {turn}" for piece in ("good", "slow") for turn in order]
    assert code == 1
    assert verdicts(tmp_path) == {
        ("good", "≥ 1 × llama-server"): "kept", ("good", "≥ 50"): "kept",
        ("slow", "≥ 1 × llama-server"): "missed", ("slow", "≥ 50"): "kept",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "results").iterdir()} >= {"good.csv", "slow.csv", "summary.md"}


def test_what_is_kept_is_not_measured_again_unless_a_fresh_run_is_wanted(tmp_path: Path, asked: list[str]) -> None:
    run(tmp_path, "--piece", "good")
    n_asked = len(asked)

    run(tmp_path, "--piece", "good")
    again = len(asked)
    run(tmp_path, "--piece", "good", "--fresh")

    assert (n_asked, again, len(asked)) == (4, 4, 8)


def test_a_row_that_needs_a_peer_is_named_as_not_run_without_one(
    tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(tmp_path, peer=False)

    assert {turn.split()[1] for turn in asked} == {"hostler"}
    assert code == 0
    assert verdicts(tmp_path)["good", "≥ 1 × llama-server"] == "not run"
    assert verdicts(tmp_path)["good", "≥ 50"] == "kept"
    assert "needs llama-server" in (tmp_path / "results" / "summary.md").read_text(encoding="utf-8")
    assert "not run" in capsys.readouterr().out


def test_a_server_that_fails_costs_its_own_piece_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    pieces = [scripted("bad", 120.0, asked, fails=True), scripted("good", 120.0, asked)]
    monkeypatch.setattr(bench_all, "PIECES", {piece.name: piece for piece in pieces})

    code = run(tmp_path)

    assert code == 1
    assert verdicts(tmp_path)["good", "≥ 1 × llama-server"] == "kept"
    assert "it would not start" in (tmp_path / "results" / "summary.md").read_text(encoding="utf-8")


def test_a_run_out_of_time_begins_nothing_more_and_a_later_one_goes_on(tmp_path: Path, asked: list[str]) -> None:
    first = run(tmp_path, "--limit-s", "-1")
    assert asked == []

    second = run(tmp_path)

    assert (first, second) == (0, 1)
    assert len(asked) == 8


def test_settings_of_an_experiment_are_read_as_json_would_have_them() -> None:
    assert [bench_all.parse_value(text) for text in ("true", "false", "12", "f16")] == [True, False, 12, "f16"]
    assert bench_all.parse_value('{"repack": false}') == {"repack": False}


# -- the real table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", PIECES.values(), ids=list(PIECES))
def test_every_bar_is_on_a_metric_with_a_unit_and_a_subject_that_is_measured(piece: Piece) -> None:
    for bar in piece.bars:
        assert bar.metric in piece.units
        assert bar.subject in piece.subjects
        assert not bar.baseline or bar.baseline in piece.subjects
    assert set(piece.peers) <= {*piece.subjects, "llama-server"}
    assert "hostler" in piece.subjects
    assert piece.n_rounds >= 3 or piece.name == "soak"


@pytest.mark.parametrize("piece", PIECES.values(), ids=list(PIECES))
def test_the_readme_has_each_piece_and_each_of_its_metrics(piece: Piece) -> None:
    assert f"`{piece.name}`" in README or piece.name.startswith("slots")
    for metric in piece.units:
        assert f"`{metric}`" in README


# -- lineup ------------------------------------------------------------------------------------------------------------


def test_a_running_server_takes_the_place_of_one_that_would_be_started(tmp_path: Path) -> None:
    running = parse_server("llama-server=http://127.0.0.1:9/v1,other", "")
    setup = Setup(Path("M.gguf"), None, 2, tmp_path, running={"llama-server": running})
    warmed: list[str] = []

    with Lineup(setup, setup.settings(4, 512), warm_up=lambda server: warmed.append(server.model)) as lineup:
        assert lineup.server("llama-server") is running
        assert lineup.server("llama-server") is running

    assert warmed == ["other"]
    with pytest.raises(ServerFailed, match="was not started here"):
        running.restart()


def test_a_program_that_the_peers_folder_lacks_is_named(tmp_path: Path) -> None:
    setup = Setup(Path("M.gguf"), tmp_path, 2, tmp_path)

    with Lineup(setup, setup.settings(4, 512)) as lineup, pytest.raises(ServerFailed, match="there is no llama-server in"):
        lineup.server("llama-server")
