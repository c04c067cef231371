"""What is installed: this plugin, onnxruntime-genai and onnxruntime, by their packages' metadata.

Any process; imports neither library.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from hostler_onnxgenai import __version__

PACKAGES = {"cpu": "onnxruntime-genai", "cuda": "onnxruntime-genai-cuda", "dml": "onnxruntime-genai-directml"}
"""Device -> package that runs models on it (and on the CPU)."""


def installed() -> dict[str, str]:
    """Device -> version, of the packages that are here. More than one of them overwrite each other's files."""
    return {device: version for device, package in PACKAGES.items() if (version := _version(package))}


def version() -> str:
    """For humans and cache keys."""
    parts = [f"hostler-onnxgenai {__version__}"]
    parts += [f"{PACKAGES[device]} {number}" for device, number in installed().items()]
    parts += [
        f"{package} {number}"
        for package in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
        if (number := _version(package))
    ]
    return ", ".join(parts)


def devices() -> tuple[str, ...]:
    """What the installed package is for, best first: a model folder made for the first of them is the right one."""
    found = installed()
    return (*(device for device in ("cuda", "dml") if device in found), "cpu")


def _version(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return ""
