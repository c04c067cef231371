"""What the installed onnxruntime packages find on this machine; run by hostler in a process of its own.

A device is available when a session could be opened on it: the library's own `is_cuda_available` only tells what was built in.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from hostler import DeviceProbe, EngineProbe, usable_cores
from hostler_onnxgenai.onnxfile import FLOAT
from hostler_onnxgenai.versions import PACKAGES, installed, version
from hostler_onnxgenai.wire import VARINT, key, tagged, varint

PROVIDERS = {"cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider"}
EXTRAS = {"cpu": "cpu", "cuda": "cuda", "dml": "directml"}


def probe() -> EngineProbe:
    """The devices that the installed packages can use, and why there are no others."""
    found = installed()
    if len(found) > 1:
        listed = ", ".join(PACKAGES[device] for device in found)
        clash = f"{listed} are installed together and overwrite each other's files; keep one of them: pip uninstall the others"
        return EngineProbe(
            version(), tuple(DeviceProbe(name, is_available=False, reason=clash) for name in ("cpu", *PROVIDERS))
        )
    return EngineProbe(version(), (_probe_cpu(), *(_probe_gpu(name, found) for name in PROVIDERS)))


def _probe_cpu() -> DeviceProbe:
    try:
        import onnxruntime
    except Exception as error:  # noqa: BLE001 - whatever a broken package raises is the reason
        return DeviceProbe("cpu", is_available=False, reason=f"onnxruntime cannot be imported: {error}; {_install('cpu')}")
    return DeviceProbe("cpu", is_available=True, reason=f"onnxruntime {onnxruntime.__version__}, {usable_cores()} threads")


def _probe_gpu(name: str, found: dict[str, str]) -> DeviceProbe:
    if name == "dml" and sys.platform != "win32":
        return DeviceProbe(name, is_available=False, reason="DirectML is a part of Windows; on this system there is none")
    if name not in found:
        return DeviceProbe(name, is_available=False, reason=f"{PACKAGES[name]} is not installed; {_install(name)}")
    try:
        import onnxruntime

        # A session falls back to the CPU without a word, so what it got is asked for.
        session = onnxruntime.InferenceSession(smallest_model(), providers=[PROVIDERS[name]])
        got = session.get_providers()
    except Exception as error:  # noqa: BLE001 - as above
        return DeviceProbe(name, is_available=False, reason=f"{PACKAGES[name]} is installed, but a session fails: {error}")
    if PROVIDERS[name] not in got:
        reason = (
            f"{PACKAGES[name]} is installed, but onnxruntime gives {', '.join(got)}: a driver or a library of the device is "
            "missing"
        )
        return DeviceProbe(name, is_available=False, reason=reason)
    return DeviceProbe(name, is_available=True, reason=f"{PACKAGES[name]} {found[name]}")


def _install(device: str) -> str:
    return f'pip install "hostler-onnxgenai[{EXTRAS[device]}]" into an environment without its other extras'


def smallest_model() -> bytes:
    """An ONNX file whose one node gives its input back: what is needed to see a session open."""

    def port(name: str) -> bytes:
        shape = tagged(2, tagged(1, key(1, VARINT) + varint(1)))
        return tagged(1, name.encode()) + tagged(2, tagged(1, key(1, VARINT) + varint(FLOAT) + shape))

    node = tagged(1, b"x") + tagged(2, b"y") + tagged(3, b"n") + tagged(4, b"Identity")
    graph = tagged(1, node) + tagged(2, b"g") + tagged(11, port("x")) + tagged(12, port("y"))
    return key(1, VARINT) + varint(8) + tagged(7, graph) + tagged(8, tagged(1, b"") + key(2, VARINT) + varint(17))
