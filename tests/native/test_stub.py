"""The committed stubs say what the built modules are, so that mypy checks against the truth."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = {
    "hostler._native": "core/hostler/_native.pyi",
    "hostler_llamacpp._kernels": "plugins/llamacpp/src/hostler_llamacpp/_kernels.pyi",
}


def meaning(source: str) -> str:
    """The stub without its layout, which differs between nanobind's versions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = inspect.cleandoc(node.value)
    return ast.unparse(tree)


@pytest.mark.parametrize("name", STUBS)
def test_stub_is_the_one_of_the_built_module(name: str) -> None:
    """If this fails: `make install`, then `python -m nanobind.stubgen -m NAME -o STUB`."""
    module = importlib.import_module(name)
    generator = pytest.importorskip("nanobind.stubgen").StubGen(module)
    generator.put(module)

    assert meaning((ROOT / STUBS[name]).read_text(encoding="utf-8")) == meaning(generator.get())
