"""llama.cpp as an engine of hostler. Hook implementations only: this module is imported in the host, which never loads
llama.cpp; `engine.py` and `probe.py` are imported in processes of their own."""

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
    from hostler_llamacpp.estimate import estimate  # late: not every host process asks

    return estimate(path, settings)


def _context_length(path: Path) -> int:
    from hostler_llamacpp.estimate import context_length

    return context_length(path)


ENVIRONMENT = {
    # OpenMP's default, to spin without end, makes a step last up to 160 times as long beside busy neighbours; to sleep at once
    # costs half the speed where a turn of the loop is short (at 100: 0.55 of llama-server, at 3,000: 0.98, at 10,000: 1.00,
    # at 40,000: 1.03; single stream, AMD EPYC). README says more.
    "GOMP_SPINCOUNT": "30000",
    # glibc raises this threshold to the size of the largest block that was freed, up to 32 MiB, and then takes states of
    # that size from its heap, which it never gives back. At 8 MiB and fixed, 2,000 random requests took 442 MB, not 510.
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
    # Weights lie in huge pages where the system gives them to those who ask: decode is up to a sixth faster (hugepages.py).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A fatal error otherwise forks a debugger for a trace before the worker may die.
    "GGML_NO_BACKTRACE": "1",
}
"""Of every process that evaluates."""


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
            sample="hostler_llamacpp.sample:sample",
            keeps_prefixes=True,
            speculates=True,
            environment=ENVIRONMENT,
            version=__version__,
        )
    ]


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `tune`."""
    from hostler_llamacpp.tuning.commands import tune  # only the command line asks

    cli.add_command(tune)
