"""Made-up plugins: packages that pip would leave in a folder, written by hand."""

from __future__ import annotations

from pathlib import Path

GOOD = """
from hostler import EngineSpec, hookimpl

HOSTLER_API = 1

@hookimpl
def register_engines():
    return [EngineSpec("NAME", ("NAME",), "made_up_NAME.engine:Engine", "made_up_NAME.engine:probe")]
"""
"""Brings one engine; NAME is replaced by the plugin's name."""


def write_plugin(
    site: Path, name: str, source: str = GOOD, *, module: str = "", entry_point: str = "", version: str = "1.2.3"
) -> str:
    """Write the module `made_up_NAME` and its package `made-up-NAME` into a folder, and give the module's name."""
    module = module or f"made_up_{name}"
    (site / f"{module}.py").write_text(source.replace("NAME", name), encoding="utf-8")
    info = site / f"made_up_{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up-{name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[hostler]\n{name} = {entry_point or module}\n")
    return module
