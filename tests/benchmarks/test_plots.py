"""Pictures are written, the same ones for the same numbers, and none where there is nothing to show."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed; make bench installs it")

import plots
from bars import Bar, judge

ROUNDS = {"hostler": [{"rate": 90.0}, {"rate": 99.0}], "llama-server": [{"rate": 100.0}, {"rate": 90.0}]}
BARS = [Bar("rate", True, 1.0, "llama-server"), Bar("rate", True, 200.0), Bar("itl", False, 4.0)]


def test_a_workload_gets_a_png_and_an_svg_that_name_its_bars(tmp_path: Path) -> None:
    pairs = [(bar, judge("single", bar, ROUNDS, "abc1234")) for bar in BARS]

    png, svg = plots.draw(tmp_path / "results", "single", "one client", pairs)

    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text(encoding="utf-8")
    assert "single: one client" in text
    assert "≥ 1 × llama-server" in text
    assert "≥ 200" in text
    assert "≤ 4" not in text
    assert {png.name, svg.name} == {"single.png", "single.svg"}


def test_the_same_figures_give_the_same_files(tmp_path: Path) -> None:
    pairs = [(bar, judge("single", bar, ROUNDS, "abc1234")) for bar in BARS]

    first = [path.read_bytes() for path in plots.draw(tmp_path / "a", "single", "one client", pairs)]
    second = [path.read_bytes() for path in plots.draw(tmp_path / "b", "single", "one client", pairs)]

    assert first == second


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    one = judge("single", BARS[2], ROUNDS, "abc1234")

    assert math.isnan(one.reached)
    assert plots.draw(tmp_path, "single", "one client", [(BARS[2], one)]) == []
    assert list(tmp_path.iterdir()) == []
