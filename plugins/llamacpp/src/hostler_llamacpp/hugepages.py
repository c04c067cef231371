"""Whether weights are read into huge pages instead of being mapped.

A decode step reads all weights once. In pages of 4 KiB, as files are mapped in, the processor looks up the place of each of
them, in a virtual machine twice: SmolLM2-135M decoded 155 tokens/s mapped and 182 in huge pages (medians of 10 processes
each, AMD EPYC, 2 cores, KVM). What it costs is a copy at each start, and that the system cannot take the pages back.

Worker process and the command `tune`; knows settings, sizes and what the system says, nothing of llama.cpp. glibc asks for
huge pages where GLIBC_TUNABLES tells it to, which the plugin's ENVIRONMENT does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hostler import EngineSettings
from hostler_llamacpp import ENVIRONMENT
from hostler_llamacpp.estimate import other_parts

POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MOST_COPIED_BYTES = 1 << 30
"""Weights beyond are mapped all the same, unless the user wants it otherwise: a start would take more than 2 s longer
(measured: 0.1 to 0.2 s for 100 MB, most of it the system's search for pages)."""


def are_given(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process gets huge pages for what it allocates.

    Args:
        environ: Its environment.
    """
    try:
        policy = POLICY.read_text()
    except OSError:
        return False  # no Linux, or a kernel without them
    is_asked = ENVIRONMENT["GLIBC_TUNABLES"] in environ.get("GLIBC_TUNABLES", "")
    return "[always]" in policy or ("[madvise]" in policy and is_asked)


def are_wanted(path: Path, settings: EngineSettings) -> bool:
    """Whether the weights are to be read into them: by the setting `huge_pages` (in `extra`: true, false, or by size).

    Args:
        path: The model's first file.
    """
    wanted = settings.extra.get("huge_pages")
    if wanted is not None:
        return bool(wanted)
    return settings.use_mmap and sum(part.stat().st_size for part in [path, *other_parts(path)]) <= MOST_COPIED_BYTES
