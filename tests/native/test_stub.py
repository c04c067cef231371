"""The committed stub says what the built module is, so that mypy checks against the truth."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from hostler import _native

STUB = Path(__file__).resolve().parents[2] / "core" / "hostler" / "_native.pyi"


def meaning(source: str) -> str:
    """The stub without its layout, which differs between nanobind's versions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = inspect.cleandoc(node.value)
    return ast.unparse(tree)


def test_stub_is_the_one_of_the_built_module() -> None:
    """If this fails: `make install`, then `python -m nanobind.stubgen -m hostler._native -o core/hostler/_native.pyi`."""
    generator = pytest.importorskip("nanobind.stubgen").StubGen(_native)
    generator.put(_native)

    assert meaning(STUB.read_text(encoding="utf-8")) == meaning(generator.get())
