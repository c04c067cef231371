"""Fixtures of the plugin's tests: tiny models with random weights, and the real one. The worker's environment is set
before llama.cpp is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "100")
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from hostler import EngineSettings, ModelFiles
from hostler_llamacpp.engine import LlamaCppEngine

from . import tiny_models
from .running import Loaded

TEST_SETTINGS = {
    "ctx_len": 512, "n_parallel": 3, "n_batch": 64, "cache_type": "f32", "flash_attn": False, "cpu_threads": 1,
    "speculation": "off",
}  # fmt: skip
"""Everything in float32, without flash attention's 16-bit sums: log probabilities of one text then agree to 1e-5 whatever
the batch (with it: 0.01 to 0.1 on random weights), so that tests can be sharp. One thread: models this small only wait for
each other's threads."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny model of each kind: llama.gguf, gemma3.gguf (window 64), mamba.gguf, bert.gguf (mean)."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.write_llama(folder / "llama.gguf")
    tiny_models.write_gemma3(folder / "gemma3.gguf", window=64)
    tiny_models.write_mamba(folder / "mamba.gguf")
    tiny_models.write_bert(folder / "bert.gguf")
    return folder


@pytest.fixture(scope="module")
def load(models: Path) -> Iterator[Callable[..., Loaded]]:
    """Loads engines, by the name of a tiny model or by path, and closes them after the module."""
    loaded: list[Loaded] = []

    def load(model: str | Path = "llama", **settings: object) -> Loaded:
        path = models / f"{model}.gguf" if isinstance(model, str) else model
        engine = LlamaCppEngine()
        wanted = EngineSettings(**{**TEST_SETTINGS, **settings})
        info = engine.load(ModelFiles(str(path), "gguf"), wanted, lambda _: True)
        loaded.append(Loaded(engine, info))
        return loaded[-1]

    yield load
    for one in loaded:
        one.engine.close()


@pytest.fixture(scope="module")
def llama(load: Callable[..., Loaded]) -> Loaded:
    """A tiny llama in three slots of 512 tokens."""
    return load("llama")
