"""Fixtures of the plugin's tests. The model is loaded once a module; the worker's environment is set before llama.cpp is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "100")
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from hostler import EngineSettings, ModelFiles

if TYPE_CHECKING:
    from hostler_llamacpp.engine import LlamaCppEngine

NEAR_TIE = 0.25
"""Log probabilities closer than this may swap places between batch shapes: kernels for one row and for many round
differently (measured: up to 0.03 nats of divergence, logits up to 0.7 apart for unlikely tokens)."""


@pytest.fixture(scope="session")
def files(smollm2_path: Path) -> ModelFiles:
    """The real model."""
    return ModelFiles(str(smollm2_path), "gguf")


@pytest.fixture
def load(files: ModelFiles) -> Iterator[Callable[..., LlamaCppEngine]]:
    """Loads engines with given settings and closes them at the end."""
    from hostler_llamacpp.engine import LlamaCppEngine

    engines: list[LlamaCppEngine] = []

    def load(**settings: object) -> LlamaCppEngine:
        engine = LlamaCppEngine()
        engine.load(files, EngineSettings(**{"ctx_len": 512, "n_parallel": 2, **settings}), lambda _: True)
        engines.append(engine)
        return engine

    yield load
    for engine in engines:
        engine.close()
