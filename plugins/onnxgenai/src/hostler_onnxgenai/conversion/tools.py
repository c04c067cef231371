"""Which interpreters do which step, and whether they have what it needs.

Two may take part: hostler's own, and one that was made for converting (`--python`), since torch is large. The steps need no
hostler, so the other one has the libraries alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler import HostlerError
from hostler_onnxgenai.conversion.source import GGUF, Source
from hostler_onnxgenai.versions import PACKAGES as RUNTIMES

NEEDED = ("torch", "transformers", "onnx", "onnx-ir")
NEEDED_FOR_GGUF = (*NEEDED, "accelerate", "gguf")
LLAMA = "llama-cpp-python"
TRANSFORMERS = "transformers"
ASKED = (*NEEDED_FOR_GGUF, LLAMA, "onnxruntime", *RUNTIMES.values())

Ask = Callable[[str], dict[str, Any]]
"""Takes an interpreter, gives what the step `tools` says of it."""


class MissingTools(HostlerError):
    """The interpreter lacks what a conversion needs; the text says how to install it."""

    code = "missing_tools"


class Interpreter(msgspec.Struct, frozen=True):
    """A Python, and what it has."""

    path: str
    python: str
    packages: dict[str, str]
    builder: str
    architectures: list[str]
    options: list[str]

    @property
    def runtime(self) -> str:
        """`onnxruntime-genai 0.18.0`, or whichever of its packages is here; empty: none."""
        return next((f"{name} {self.packages[name]}" for name in RUNTIMES.values() if name in self.packages), "")


class Tools(msgspec.Struct, frozen=True):
    """Who does what."""

    converter: Interpreter
    """Loads and builds."""
    reference: Interpreter
    """Runs the source."""
    reference_runtime: str
    checker: Interpreter
    """Runs the result."""

    def versions(self) -> dict[str, str]:
        """What the result depends on; other versions begin anew."""
        packages = self.converter.packages
        name, _, version = self.converter.runtime.partition(" ")
        return {"torch": packages["torch"], "transformers": packages["transformers"], name: version}


def find_tools(source: Source, python: str | None, ask: Ask) -> Tools:
    """Look at the interpreters.

    Args:
        python: Of `--python`; None: hostler's own does everything.

    Raises:
        MissingTools
        StepFailed: The interpreter cannot be run.
    """
    own = _interpreter(sys.executable, ask)
    converter = own if python is None else _interpreter(python, ask)
    needed: tuple[str, ...] = NEEDED_FOR_GGUF if source.kind == GGUF else NEEDED
    missing = [name for name in needed if name not in converter.packages]
    if not converter.builder:
        missing.append(RUNTIMES["cpu"])
    if missing:
        raise MissingTools(
            f"{converter.path} lacks {', '.join(missing)}, which a conversion needs: install them with "
            f'`{converter.path} -m pip install "hostler-onnxgenai[cpu,convert]"`, or in an environment of their own, whose '
            f"Python is then named with --python (torch is large; it need not have hostler)"
        )
    runtime = TRANSFORMERS
    reference = converter
    if source.kind == GGUF:
        with_llama = next((one for one in (converter, own) if LLAMA in one.packages), None)
        if with_llama is not None:
            reference, runtime = with_llama, LLAMA
    checker = own if own.runtime else converter
    return Tools(converter, reference, runtime, checker)


def builder_options(options: Mapping[str, str], converter: Interpreter) -> dict[str, str]:
    """The options under the names that this version of the builder has: `algo_config` was `int4_algo_config` before."""
    if "algo_config" in converter.options or "int4_algo_config" not in converter.options:
        return dict(options)
    return {f"int4_{name}" if name == "algo_config" else name: value for name, value in options.items()}


def _interpreter(path: str, ask: Ask) -> Interpreter:
    found = Path(path).expanduser()
    # Not resolved: a virtual environment's python is a link, and who follows it leaves the environment.
    absolute = str(found.absolute()) if found.parent != Path() else path
    return Interpreter(path=absolute, **ask(absolute))
