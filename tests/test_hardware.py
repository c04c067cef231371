"""What is told of this machine, and of others by the output of their tools."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from hostler import hardware
from hostler.hardware import find_gpus, look_at_machine, read_gpus

LINES = """\
0, NVIDIA GeForce RTX 3090, GPU-5206045b, 24576, 23983, 535.183, 8.6
1, NVIDIA A2, GPU-77aa, 15356, [N/A], 535.183, 8.6
"""


def test_this_machine_is_described_in_whole_mib(tmp_path: Path) -> None:
    found = look_at_machine(tmp_path / "not" / "there" / "yet")

    assert found.cpu.cores >= 1
    assert found.cpu.arch
    assert 0 < found.ram.available <= found.ram.total
    assert 0 <= found.storage.available <= found.storage.total
    assert found.os.name
    assert msgspec.to_builtins(found).keys() == {"cpu", "gpus", "os", "power", "ram", "storage"}


def test_gpus_are_read_from_the_tool_s_lines() -> None:
    first, second = read_gpus(LINES, "12.2", None)

    assert (first.id, first.name, first.uuid, first.version) == ("0", "NVIDIA GeForce RTX 3090", "GPU-5206045b", "12.2")
    assert (first.total_vram, first.free_vram, first.activated) == (24576, 23983, True)
    assert (first.additional_information.compute_cap, first.additional_information.driver_version) == ("8.6", "535.183")
    assert second.free_vram == 0


@pytest.mark.parametrize(
    ("visible", "activated"),
    [
        (None, [True, True]),
        ("", [False, False]),
        ("1", [False, True]),
        ("GPU-5206045b", [True, False]),
        ("0, 1", [True, True]),
    ],
)
def test_a_gpu_that_cuda_hides_is_not_activated(visible: str | None, activated: list[bool]) -> None:
    assert [gpu.activated for gpu in read_gpus(LINES, "", visible)] == activated


@pytest.mark.parametrize("lines", ["", "No devices were found\n", "0, half a line\n", "\n\n"])
def test_lines_that_say_nothing_are_no_gpu(lines: str) -> None:
    assert read_gpus(lines, "", None) == []


def tool(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_tool_is_run_and_its_overview_has_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = LINES.splitlines()[0]
    tool(tmp_path, f'if [ $# -gt 0 ]; then echo "{line}"; else echo "| Driver 535.183   CUDA Version: 12.2 |"; fi')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    (gpu,) = find_gpus()

    assert (gpu.version, gpu.total_vram, gpu.activated) == ("12.2", 24576, True)


@pytest.mark.parametrize("script", ["exit 9", "exec sleep 60"])
def test_a_driver_that_fails_or_hangs_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    assert find_gpus(timeout_s=0.2) == []


def test_without_the_tool_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_gpus() == []


def test_the_processor_is_read_as_linux_tells_it(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: A Chip\nflags\t\t: fpu sse avx2 avx512f aes f16c\n\nprocessor\t: 1\nmodel name\t: B\n"
    )

    facts = hardware._cpu_facts(path)

    assert facts["model name"] == "A Chip"
    assert hardware._vector_extensions(facts["flags"]) == ["avx2", "avx512f", "f16c", "sse"]
    assert hardware._cpu_facts(tmp_path / "nothing") == {}
