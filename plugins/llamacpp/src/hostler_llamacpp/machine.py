"""What this machine and this build of llama.cpp offer: devices, memory.

Worker and probe processes. It knows ggml's device list, nothing of models.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp as llama
import msgspec

from hostler import ModelLoadFailed

_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator", 4: "meta"}
"""enum ggml_backend_dev_type."""
_BUILD_FLAGS = {
    "cuda": "-DGGML_CUDA=on",
    "vulkan": "-DGGML_VULKAN=on",
    "rocm": "-DGGML_HIP=on",
    "hip": "-DGGML_HIP=on",
    "metal": "-DGGML_METAL=on",
    "sycl": "-DGGML_SYCL=on",
}


class Device(msgspec.Struct, frozen=True):
    """One device of ggml's."""

    name: str
    """ggml's: `CPU`, `CUDA0`, `Vulkan1`."""
    description: str
    kind: str
    free_bytes: int
    total_bytes: int
    handle: int

    @property
    def family(self) -> str:
        """What users call it: `cuda`, `vulkan`, `metal`, `cpu`."""
        family = self.name.rstrip("0123456789").lower()
        return "metal" if family == "mtl" else family


def devices() -> list[Device]:
    """All devices this build can use, in ggml's order."""
    registry, base = library("ggml"), library("ggml-base")
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for name, result in (("name", ctypes.c_char_p), ("description", ctypes.c_char_p), ("type", ctypes.c_int)):
        function = getattr(base, f"ggml_backend_dev_{name}")
        function.restype, function.argtypes = result, [ctypes.c_void_p]
    base.ggml_backend_dev_memory.restype = None
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    found = []
    for index in range(registry.ggml_backend_dev_count()):
        handle = registry.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        base.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                name=base.ggml_backend_dev_name(handle).decode(),
                description=base.ggml_backend_dev_description(handle).decode("utf-8", "replace"),
                kind=_KINDS.get(base.ggml_backend_dev_type(handle), "gpu"),
                free_bytes=free.value,
                total_bytes=total.value,
                handle=handle,
            )
        )
    return found


def library(name: str) -> ctypes.CDLL:
    """One of ggml's libraries that were installed with llama_cpp: `ggml`, `ggml-base`.

    Raises:
        OSError: It is not there.
    """
    folder = Path(llama.llama_cpp._lib._name).parent
    names = {"win32": (f"{name}.dll", f"lib{name}.dll"), "darwin": (f"lib{name}.dylib", f"lib{name}.so")}
    for candidate in names.get(sys.platform, (f"lib{name}.so",)):
        if (folder / candidate).exists():
            return ctypes.CDLL(str(folder / candidate))
    raise OSError(f"there is no {name} library in {folder}; reinstall llama-cpp-python")


def gpus(wanted: str) -> list[Device]:
    """The GPUs that a `device` setting means; none: run on the CPU.

    Raises:
        ModelLoadFailed: A device is demanded that this build or this machine does not have.
    """
    if wanted == "cpu":
        return []
    found = [device for device in devices() if device.kind in ("gpu", "igpu")]
    if wanted == "auto":
        return found
    matching = [device for device in found if wanted.lower() in (device.family, device.name.lower(), device.kind)]
    if matching:
        return matching
    present = ", ".join(sorted({device.family for device in found})) or "the CPU only"
    flag = _BUILD_FLAGS.get(wanted.lower().rstrip("0123456789"))
    if flag is not None and not any(device.family == wanted.lower() for device in found):
        advice = (
            f'rebuild with CMAKE_ARGS="{flag}" pip install --force-reinstall --no-binary llama-cpp-python '
            "llama-cpp-python, and check that the driver is installed"
        )
    else:
        advice = "choose one of those, or auto"
    raise ModelLoadFailed(
        f"device is set to {wanted!r}, but this build of llama-cpp-python finds {present} on this machine; {advice}. "
        "Nothing falls back to the CPU in silence: set device to cpu or auto if that is wanted"
    )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Main memory that could be had now, by the machine's or the control group's account; None: the system does not say."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    group = root / "sys/fs/cgroup"
    for limit, usage in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            available = min(available, int((group / limit).read_text()) - int((group / usage).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, available)
