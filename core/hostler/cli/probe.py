"""`python -m hostler.cli.probe MODULE:FUNCTION` runs one engine's probe and prints what it found as JSON.

A process of its own, because a broken driver may crash or hang it; `hostler doctor` starts it with a deadline.
"""

from __future__ import annotations

import importlib
import os
import sys

import msgspec


def main(target: str) -> None:
    """Run the probe; its answer alone goes to the real stdout, whatever the engine's libraries print."""
    answers = os.dup(1)
    os.dup2(2, 1)
    module, _, function = target.partition(":")
    probe = getattr(importlib.import_module(module), function)()
    with os.fdopen(answers, "wb") as stream:
        stream.write(msgspec.json.encode(probe) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
