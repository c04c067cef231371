"""hostler-echo: an engine without weights. It says what you said, and misbehaves on request.

This module is imported in the host and in the CLI and holds the hook alone; the engine (engine.py) is imported by a worker.
"""

from __future__ import annotations

from hostler import EngineSpec, hookimpl
from hostler_echo.model import context_length, estimate

__version__ = "0.1.0"
HOSTLER_API = 1
"""The version of hostler's plugin API that this was written for."""


@hookimpl
def register_engines() -> list[EngineSpec]:
    """The engine `echo` for models of format `echo`."""
    return [
        EngineSpec(
            name="echo",
            formats=("echo",),
            engine="hostler_echo.engine:EchoEngine",
            probe="hostler_echo.engine:probe",
            estimate=estimate,
            context_length=context_length,
            # It computes nothing, so nothing makes it faster or smaller.
            ignores=("ngl", "cpu_threads", "max_itl_ratio", "cache_type", "flash_attn", "use_mmap", "mlock", "n_draft_max"),
            sample="hostler_echo.sample:sample",
            version=__version__,
        )
    ]
