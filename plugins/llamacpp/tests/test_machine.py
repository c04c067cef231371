"""Devices."""

from __future__ import annotations

import pytest

from hostler import ModelLoadFailed
from hostler_llamacpp import machine
from hostler_llamacpp.probe import probe


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
