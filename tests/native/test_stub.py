"""The committed stub is what the built module's own generator makes of it, so that mypy checks against the truth."""

from __future__ import annotations

from pathlib import Path

from nanobind.stubgen import StubGen

from hostler import _native

STUB = Path(__file__).resolve().parents[2] / "core" / "hostler" / "_native.pyi"


def test_stub_is_the_one_of_the_built_module() -> None:
    """If this fails: `make install`, then `python -m nanobind.stubgen -m hostler._native -o core/hostler/_native.pyi`."""
    generator = StubGen(_native)
    generator.put(_native)

    assert STUB.read_text(encoding="utf-8") == generator.get()
