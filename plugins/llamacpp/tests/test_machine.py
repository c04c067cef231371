"""Cores and devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler import ModelLoadFailed
from hostler_llamacpp import machine
from hostler_llamacpp.probe import probe


@pytest.mark.parametrize(
    ("text", "limit"), [("max 100000", None), ("150000 100000", 1.5), ("400000 100000", 4.0), ("nonsense", None)]
)
def test_cpu_quota_is_read_from_the_control_group(tmp_path: Path, text: str, limit: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")

    assert machine._cpu_quota(tmp_path) == limit


def test_cpu_quota_of_the_older_control_groups_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine._cpu_quota(tmp_path) is None

    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    assert machine._cpu_quota(tmp_path) == 2.5


def test_usable_cores_are_bounded_by_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "_cpu_quota", lambda: None)
    monkeypatch.setattr(machine, "_siblings", lambda cpu: f"{cpu % 2},{cpu % 2 + 2}")
    assert machine.usable_cores() == 2, "hyper-threads of one core count once"

    monkeypatch.setattr(machine, "_siblings", str)
    assert machine.usable_cores() == 4

    monkeypatch.setattr(machine, "_cpu_quota", lambda: 0.5)
    assert machine.usable_cores() == 1


def test_devices_begin_with_what_ggml_finds() -> None:
    assert any(device.kind == "cpu" for device in machine.devices())


def test_cpu_demanded_means_no_gpu() -> None:
    assert machine.gpus("cpu") == []


def test_cuda_that_this_build_lacks_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "devices", list)

    with pytest.raises(ModelLoadFailed, match=r"cuda.*the CPU only.*CMAKE_ARGS=\"-DGGML_CUDA=on\""):
        machine.gpus("cuda")


def test_demanded_device_is_picked_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, vulkan = (machine.Device(name, "a card", "gpu", 1, 1, 7) for name in ("CUDA0", "Vulkan0"))
    monkeypatch.setattr(machine, "devices", lambda: [cuda, vulkan])

    assert machine.gpus("cuda") == [cuda]
    assert machine.gpus("vulkan0") == [vulkan]
    assert machine.gpus("auto") == [cuda, vulkan]
    with pytest.raises(ModelLoadFailed, match="finds cuda, vulkan on this machine"):
        machine.gpus("sycl")


def test_probe_lists_the_cpu_and_says_why_there_is_no_cuda() -> None:
    found = probe()
    by_name = {device.name: device for device in found.devices}

    assert by_name["cpu"].is_available
    assert "threads" in by_name["cpu"].reason
    assert "llama.cpp" in found.version
    assert by_name["cuda"].is_available or by_name["cuda"].reason
