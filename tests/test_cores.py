"""How many cores a process can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler import cores


@pytest.mark.parametrize(
    ("text", "limit"), [("max 100000", None), ("150000 100000", 1.5), ("400000 100000", 4.0), ("nonsense", None)]
)
def test_cpu_quota_is_read_from_the_control_group(tmp_path: Path, text: str, limit: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")

    assert cores._cpu_quota(tmp_path) == limit


def test_cpu_quota_of_the_older_control_groups_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores._cpu_quota(tmp_path) is None

    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    assert cores._cpu_quota(tmp_path) == 2.5


def test_usable_cores_are_bounded_by_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores, "_cpu_quota", lambda: None)
    monkeypatch.setattr(cores, "_siblings", lambda cpu: f"{cpu % 2},{cpu % 2 + 2}")
    assert cores.usable_cores() == 2, "hyper-threads of one core count once"

    monkeypatch.setattr(cores, "_siblings", str)
    assert cores.usable_cores() == 4

    monkeypatch.setattr(cores, "_cpu_quota", lambda: 0.5)
    assert cores.usable_cores() == 1
