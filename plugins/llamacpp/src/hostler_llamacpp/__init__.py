"""llama.cpp as an engine of hostler. Hook implementations only: this module is imported in the host, which never loads
llama.cpp; `engine.py` and `probe.py` are imported in processes of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hostler import EngineSettings, EngineSpec, MemoryEstimate, hookimpl

__version__ = "0.1.0"


def _estimate(path: Path, settings: EngineSettings) -> MemoryEstimate:
    from hostler_llamacpp.estimate import estimate  # late: not every host process asks

    return estimate(path, settings)


def _context_length(path: Path) -> int:
    from hostler_llamacpp.estimate import context_length

    return context_length(path)


@hookimpl
def register_engines() -> Iterable[EngineSpec]:
    """The one engine this plugin brings."""
    return [
        EngineSpec(
            name="llamacpp",
            formats=("gguf",),
            engine="hostler_llamacpp.engine:LlamaCppEngine",
            probe="hostler_llamacpp.probe:probe",
            estimate=_estimate,
            context_length=_context_length,
            environment={
                # Beside busy neighbours OpenMP's unlimited spinning made an 18 ms step last up to 3 s; 100 keeps 90 % of
                # the idle machine's speed.
                "GOMP_SPINCOUNT": "100",
                # A fatal error otherwise forks a debugger for a trace before the worker may die.
                "GGML_NO_BACKTRACE": "1",
            },
            version=__version__,
        )
    ]
