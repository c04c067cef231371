"""hostler-remote: any OpenAI-compatible server as an engine of hostler. Hook implementations only: this module is imported by
every `hostler` command; `engine.py` is imported by a worker, `commands.py` by the command line, `probe.py` by the doctor."""

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


def _estimate(path: Path, settings: EngineSettings) -> MemoryEstimate:  # noqa: ARG001 - the contract's signature
    """The memory is the upstream's."""
    return MemoryEstimate(0, 0, 0)


@hookimpl
def register_engines() -> Iterable[EngineSpec]:
    """The one engine this plugin brings."""
    return [
        EngineSpec(
            name="remote",
            formats=("remote",),
            engine="hostler_remote.engine:RemoteEngine",
            probe="hostler_remote.probe:probe",
            estimate=_estimate,
            takes_messages=True,
            # How the upstream computes is the upstream's.
            ignores=(
                "ngl", "cpu_threads", "n_batch", "max_itl_ratio", "cache_type", "caching_enabled", "flash_attn", "use_mmap",
                "mlock", "n_draft_max",
            ),
            sample="hostler_remote.sample:sample",
            version=__version__,
        )
    ]


@hookimpl
def register_commands(cli: click.Group) -> None:
    """`hostler remote`."""
    from hostler_remote.commands import remote

    cli.add_command(remote)
