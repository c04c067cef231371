"""What llama.cpp finds on this machine; run by hostler in a process of its own."""

from __future__ import annotations

import llama_cpp as llama

from hostler import DeviceProbe, EngineProbe, usable_cores
from hostler_llamacpp import __version__
from hostler_llamacpp.binding import log  # noqa: F401 - installs the log before any device is asked
from hostler_llamacpp.machine import devices


def version() -> str:
    """This plugin, the binding and llama.cpp, for humans and cache keys."""
    return f"hostler-llamacpp {__version__}, llama-cpp-python {llama.__version__}, llama.cpp {_library_version()}"


def _library_version() -> str:
    text: bytes | None = llama.llama_version()
    return text.decode() if text else "unknown"


def probe() -> EngineProbe:
    """The devices this build of llama.cpp can use, and why there are no others."""
    found = devices()
    information = llama.llama_print_system_info().decode()
    flags = [part.split("=")[0].strip().rpartition(" ")[2] for part in information.split("|") if part.strip().endswith("= 1")]
    probes = [DeviceProbe("cpu", is_available=True, reason=f"{usable_cores()} threads; {' '.join(flags)}")]
    families: dict[str, str] = {}
    for device in found:
        if device.kind in ("gpu", "igpu"):
            gib = device.total_bytes / 2**30
            families.setdefault(device.family, f"{device.description}, {gib:.1f} GiB")
    probes += [DeviceProbe(name, is_available=True, reason=reason) for name, reason in families.items()]
    if "cuda" not in families:
        can_offload = llama.llama_supports_gpu_offload()
        reason = (
            "no NVIDIA GPU was found"
            if can_offload
            else 'llama-cpp-python was built for the CPU only; reinstall it with CMAKE_ARGS="-DGGML_CUDA=on"'
        )
        probes.append(DeviceProbe("cuda", is_available=False, reason=reason))
    return EngineProbe(version=version(), devices=tuple(probes))
