"""The files that are measured: a model of the catalogue, downloaded, and the same weights in a type with repacked kernels.

As a script it writes such a file, in a process of its own, since a benchmark's should hold no engine:

    python benchmarks/modelfiles.py M.gguf M.Q4_0.gguf Q4_0
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from servers import ServerFailed, hostler_command


def pull(model: str, home: Path) -> Path:
    """Download a model into a home of the benchmarks' own, unless it is there; gives its largest file."""
    command = [*hostler_command(), "pull", model, "--home", str(home)]
    if not (files := _files(home)) and subprocess.run(command).returncode:
        raise ServerFailed(f"{' '.join(command)} failed; name a file with --model-path")
    if not (files := files or _files(home)):
        raise ServerFailed(f"{model} has no GGUF file; name one with --model-path")
    return max(files, key=lambda path: path.stat().st_size)


def _files(home: Path) -> list[Path]:
    return sorted(home.glob("models/**/*.gguf"))


def requantised(source: Path, kind: str, folder: Path) -> Path:
    """The same model with its weights in another type; written once.

    Raises:
        ServerFailed: llama.cpp's library is not here, or refused.
    """
    target = folder / f"{source.stem}.{kind}.gguf"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".new")
        command = [sys.executable, __file__, str(source), str(temporary), kind]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ServerFailed(f"{source.name} cannot be written as {kind}:\n{done.stderr[-1000:]}")
        os.replace(temporary, target)
    return target


def write_requantised(source: str, target: str, kind: str) -> int:
    """What llama-quantize does, by llama.cpp's library; the exit code."""
    import llama_cpp as llama

    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    llama.llama_backend_init()
    return int(llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(write_requantised(*sys.argv[1:4]))
