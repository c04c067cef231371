"""The benchmark of the ONNX engine runs to its end, on a tiny model whose numbers mean nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("hostler_onnxgenai", reason="the plugin hostler-onnxgenai is not installed")

import bench_onnxgenai

from hostler_onnxgenai.tinymodel import write_llama


def test_every_workload_gives_rows_for_each_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_llama(tmp_path / "tiny")
    results = tmp_path / "results.csv"
    command = ["--model-path", str(folder), "--rounds", "1", "--streams", "2", "8", "--new", "6", "--prompt", "12"]

    code = bench_onnxgenai.main([*command, "--ctx", "128", "--threads", "1", "--csv", str(results)])

    with results.open() as stream:
        rows = list(csv.DictReader(stream))
    assert code == 0
    assert {(row["workload"], row["subject"]) for row in rows} == {
        ("single", "hostler"), ("single", "loop"), ("streams2", "hostler"), ("streams2", "static"), ("streams8", "hostler"),
        ("streams8", "static"), ("late2", "hostler"), ("late2", "alone"), ("late8", "hostler"), ("late8", "alone"),
    }  # fmt: skip
    said = capsys.readouterr().out
    assert [said.count(f"{name} ") > 0 for name in ("single decode_tok_s", "streams8 new_tok_s", "late8 ttft")] == [True] * 3
