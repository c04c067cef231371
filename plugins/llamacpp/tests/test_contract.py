"""hostler's own checks of an engine, on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler import EngineSettings, ModelFiles
from hostler.testing import EngineContract, contract_checks
from hostler_llamacpp.engine import LlamaCppEngine

from .conftest import NEAR_TIE

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def contract(smollm2_path: Path) -> Iterator[EngineContract]:
    files = ModelFiles(str(smollm2_path), "gguf")
    settings = EngineSettings(ctx_len=512, n_parallel=4, n_batch=64)
    with EngineContract(LlamaCppEngine, files, settings, allow_near_tie=NEAR_TIE) as contract:
        yield contract


@pytest.mark.parametrize("name", contract_checks())
def test_engine_keeps_the_contract(contract: EngineContract, name: str) -> None:
    contract.check(name)
