"""Step: what the interpreter has. Imports none of it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Look for packages.

    Args:
        arguments: `packages`: names of distributions.
        show: Not used.

    Returns:
        `python`, `packages` (name -> version, those that are here), `builder` (its file, or an empty text), `architectures`
        that it builds, `options`: its names of options that have had several.
    """
    del show
    builder = _builder()
    source = builder.read_text(encoding="utf-8", errors="replace") if builder is not None else ""
    return {
        "python": sys.version.split()[0],
        "packages": {name: found for name in arguments["packages"] if (found := _version(name))},
        "builder": str(builder or ""),
        # The builder chooses by a long row of comparisons; it has no list.
        "architectures": sorted(set(re.findall(r"architectures\[0\] == \"(\w+)\"", source))),
        "options": [
            name for name in ("algo_config", "int4_algo_config") if re.search(rf"^\s+{name} = ", source, re.MULTILINE)
        ],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _builder() -> Path | None:
    spec = importlib.util.find_spec("onnxruntime_genai")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / "builder.py"
    return path if path.is_file() else None
