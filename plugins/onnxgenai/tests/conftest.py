"""Fixtures of the plugin's tests: tiny models with random weights, and the real one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from hostler import EngineSettings, ModelFiles
from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.engine import OnnxGenaiEngine

from .running import Loaded

BACKENDS = ("session", "generators")
TEST_SETTINGS = {"ctx_len": 512, "n_parallel": 3, "n_batch": 64, "cpu_threads": 1}
"""One thread: models this small only wait for each other's threads."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama, float32; not to be changed."""
    return tinymodel.write_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The same to be spoilt."""
    return tinymodel.write_llama(tmp_path / "model")


@pytest.fixture(scope="module")
def load(tiny: Path) -> Iterator[Callable[..., Loaded]]:
    """Loads engines and closes them after the module."""
    loaded: list[Loaded] = []

    def load(path: Path = tiny, *, backend: str = "session", **settings: object) -> Loaded:
        engine = OnnxGenaiEngine()
        wanted = EngineSettings(**{**TEST_SETTINGS, "extra": {"backend": backend}, **settings})
        info = engine.load(ModelFiles(str(path), "onnxgenai"), wanted, lambda _: True)
        loaded.append(Loaded(engine, info))
        return loaded[-1]

    yield load
    for one in loaded:
        one.engine.close()


@pytest.fixture(scope="module", params=BACKENDS)
def llama(load: Callable[..., Loaded], request: pytest.FixtureRequest) -> Loaded:
    """A tiny llama in three slots of 512 tokens, on each backend."""
    return load(backend=request.param)
