"""The model manifest, `model.json`: what a model is, as it stands on disk. Jan's fields, native types.

Floor 1; pure values plus reading and writing one file. Who writes: the library's store, one writer at a time per id.
"""

from __future__ import annotations

from typing import Any

import msgspec


class ModelSource(msgspec.Struct, frozen=True):
    """Where one file came from."""

    filename: str
    url: str


class ModelFile(msgspec.Struct, frozen=True):
    """One file of the model."""

    path: str
    """Relative to the model's folder, or absolute when `is_link`."""
    size_bytes: int
    sha256: str | None = None
    is_link: bool = False
    """The file lies where the user keeps it: never copied, never deleted."""


class Manifest(msgspec.Struct, frozen=True):
    """One model. `settings` and `parameters` hold only what was set; defaults are applied when they are read."""

    id: str
    name: str
    created: int
    """Unix seconds."""
    object: str = "model"
    version: str = "1"
    description: str = ""
    format: str = "gguf"
    engine: str = ""
    """Engine name the user asked for; empty: whichever takes the format."""
    owned_by: str = "_"
    source_url: str = ""
    """Canonical reference; a local import has a file: URL."""
    sources: tuple[ModelSource, ...] = ()
    files: tuple[ModelFile, ...] = ()
    """The primary file first. Empty while nothing is downloaded."""
    settings: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    """engine, quantization, size ("135M") as strings, size_bytes as an integer, author, tags, ..."""
    aliases: tuple[str, ...] = ()
    is_complete: bool = False
    """Every file is here and verified."""
