"""ONNX Runtime GenAI as an engine of hostler. Hook implementations only: this module is imported in the host, which never
loads onnxruntime; `engine.py` and `probe.py` are imported in processes of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hostler import EngineSettings, EngineSpec, MemoryEstimate, hookimpl

if TYPE_CHECKING:
    import click

__version__ = "0.1.0"
HOSTLER_API = 1
"""The version of hostler's plugin API that this was written for."""


def _estimate(path: Path, settings: EngineSettings) -> MemoryEstimate:
    from hostler_onnxgenai.estimate import estimate  # late: not every host process asks

    return estimate(path, settings)


def _context_length(path: Path) -> int:
    from hostler_onnxgenai.estimate import context_length

    return context_length(path)


def _devices() -> tuple[str, ...]:
    from hostler_onnxgenai.versions import devices

    return devices()


@hookimpl
def register_engines() -> Iterable[EngineSpec]:
    """The one engine this plugin brings."""
    return [
        EngineSpec(
            name="onnxgenai",
            formats=("onnxgenai",),
            engine="hostler_onnxgenai.engine:OnnxGenaiEngine",
            probe="hostler_onnxgenai.probe:probe",
            estimate=_estimate,
            context_length=_context_length,
            sample="hostler_onnxgenai.sample:sample",
            devices=_devices,
            # The export has decided these; and nothing is guessed.
            ignores=("cache_type", "flash_attn", "use_mmap", "mlock", "ngl", "n_draft_max"),
            environment={
                # Otherwise onnxruntime writes a device id and events into the user's folders, and would send them.
                "ORT_DISABLE_TELEMETRY": "1",
            },
            version=__version__,
        )
    ]


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `convert`."""
    from hostler_onnxgenai.convert import convert  # only the command line asks

    cli.add_command(convert)
