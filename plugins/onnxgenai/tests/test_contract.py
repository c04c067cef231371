"""hostler's own checks of an engine: on a tiny model always, on the real one with -m weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler import EngineSettings, ModelFiles
from hostler.testing import EngineContract, contract_checks
from hostler_onnxgenai.engine import OnnxGenaiEngine
from hostler_onnxgenai.sample import NEAR_TIE

from .conftest import BACKENDS


@pytest.fixture(scope="module", params=BACKENDS)
def tiny_contract(tiny: Path, request: pytest.FixtureRequest) -> Iterator[EngineContract]:
    settings = EngineSettings(ctx_len=512, n_parallel=4, n_batch=64, cpu_threads=1, extra={"backend": request.param})
    with EngineContract(OnnxGenaiEngine, ModelFiles(str(tiny), "onnxgenai"), settings) as contract:
        yield contract


@pytest.fixture(scope="module", params=BACKENDS)
def contract(smollm2_onnx_path: Path, request: pytest.FixtureRequest) -> Iterator[EngineContract]:
    settings = EngineSettings(ctx_len=512, n_parallel=4, n_batch=64, extra={"backend": request.param})
    files = ModelFiles(str(smollm2_onnx_path), "onnxgenai")
    with EngineContract(OnnxGenaiEngine, files, settings, allow_near_tie=NEAR_TIE) as contract:
        yield contract


@pytest.mark.parametrize("name", contract_checks())
def test_engine_keeps_the_contract_on_a_tiny_model(tiny_contract: EngineContract, name: str) -> None:
    tiny_contract.check(name)


@pytest.mark.weights
@pytest.mark.parametrize("name", contract_checks())
def test_engine_keeps_the_contract(contract: EngineContract, name: str) -> None:
    contract.check(name)
