"""What this machine has: processor, memory, disk, NVIDIA GPUs. In Cortex's shape; sizes in MiB.

Floor 1; any thread. GPUs are asked for in a process of their own with a time limit: a hung driver must not hang the server.
Everything that cannot be found out is an empty text or 0, never an error.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from msgspec import Struct

MIB = 1024 * 1024
GPU_TIMEOUT_S = 5.0
GPU_FIELDS = ("index", "name", "uuid", "memory.total", "memory.free", "driver_version", "compute_cap")


class Cpu(Struct, frozen=True):
    """The processor."""

    arch: str
    cores: int
    """Physical ones."""
    instructions: list[str]
    """The vector extensions among them."""
    model: str


class GpuDetails(Struct, frozen=True):
    """Of NVIDIA GPUs."""

    compute_cap: str
    driver_version: str


class Gpu(Struct, frozen=True):
    """One GPU."""

    id: str
    name: str
    uuid: str
    version: str
    """The newest CUDA that the driver can run."""
    total_vram: int
    free_vram: int
    activated: bool
    """Engines may use it: CUDA_VISIBLE_DEVICES does not hide it."""
    additional_information: GpuDetails


class OperatingSystem(Struct, frozen=True):
    """What runs below."""

    name: str
    version: str


class Power(Struct, frozen=True):
    """Where the current comes from."""

    battery_life: int
    """Percent; 0 where there is no battery."""
    charging_status: str
    is_power_saving: bool


class Ram(Struct, frozen=True):
    """Memory."""

    total: int
    available: int
    type: str


class Storage(Struct, frozen=True):
    """The disk of the data folder."""

    total: int
    available: int
    type: str


class Hardware(Struct, frozen=True):
    """This machine."""

    cpu: Cpu
    gpus: list[Gpu]
    os: OperatingSystem
    power: Power
    ram: Ram
    storage: Storage


def look_at_machine(home: Path) -> Hardware:
    """Everything, as it is now; takes as long as the GPU's driver does.

    Args:
        home: Data folder, whose disk is meant.
    """
    return Hardware(_cpu(), find_gpus(), _system(), _power(), _ram(), _storage(home))


def _cpu() -> Cpu:
    import psutil

    facts = _cpu_facts()
    return Cpu(
        arch=platform.machine(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 0,
        instructions=_vector_extensions(facts.get("flags") or facts.get("Features") or ""),
        model=facts.get("model name") or platform.processor(),
    )


def _cpu_facts(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor as Linux describes it; nothing elsewhere."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _vector_extensions(flags: str) -> list[str]:
    return sorted({flag for flag in flags.split() if re.match(r"(avx|sse|fma|f16c|amx|asimd|sve|neon|i8mm|bf16)", flag)})


def find_gpus(timeout_s: float = GPU_TIMEOUT_S) -> list[Gpu]:
    """NVIDIA's GPUs, by its own tool; none where the tool is missing, fails or hangs."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    lines = _output([tool, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"], timeout_s)
    if not lines:
        return []
    overview = re.search(r"CUDA Version\s*:\s*([0-9.]+)", _output([tool], timeout_s))
    return read_gpus(lines, overview[1] if overview else "", os.environ.get("CUDA_VISIBLE_DEVICES"))


def _output(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def read_gpus(lines: str, version: str, visible: str | None) -> list[Gpu]:
    """The tool's lines, one a GPU.

    Args:
        version: Of CUDA.
        visible: CUDA_VISIBLE_DEVICES: numbers or UUIDs; None: all.
    """
    chosen = None if visible is None else {word.strip() for word in visible.split(",")}
    found = []
    for row in csv.reader(lines.splitlines(), skipinitialspace=True):
        if len(row) != len(GPU_FIELDS):
            continue
        index, name, uuid, total, free, driver, capability = (cell.strip() for cell in row)
        is_visible = chosen is None or index in chosen or uuid in chosen
        details = GpuDetails(capability, driver)
        found.append(Gpu(index, name, uuid, version, _number(total), _number(free), is_visible, details))
    return found


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0  # "[N/A]" on some


def _system() -> OperatingSystem:
    if platform.system() == "Linux":
        try:
            release = platform.freedesktop_os_release()
            return OperatingSystem(release["PRETTY_NAME"], release.get("VERSION", platform.release()))
        except OSError:
            pass
    return OperatingSystem(platform.system(), platform.release())


def _power() -> Power:
    import psutil

    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError):  # a platform that has no word for it
        battery = None
    if battery is None:
        return Power(0, "", is_power_saving=False)
    return Power(round(battery.percent), "charging" if battery.power_plugged else "discharging", is_power_saving=False)


def _ram() -> Ram:
    import psutil

    memory = psutil.virtual_memory()
    return Ram(memory.total // MIB, memory.available // MIB, "")


def _storage(home: Path) -> Storage:
    while not home.exists() and home != home.parent:
        home = home.parent
    try:
        usage = shutil.disk_usage(home)
    except OSError:
        return Storage(0, 0, "")
    return Storage(usage.total // MIB, usage.free // MIB, "")
