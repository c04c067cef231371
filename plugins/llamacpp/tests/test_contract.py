"""hostler's own checks of an engine, on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hostler import ModelFiles
from hostler.testing import EngineContract
from hostler_llamacpp.engine import LlamaCppEngine
from hostler_llamacpp.sample import sample

SAMPLE = sample(Path())
pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def contract(smollm2_path: Path) -> Iterator[EngineContract]:
    found = msgspec.structs.replace(SAMPLE, files=ModelFiles(str(smollm2_path), "gguf"))
    with found.contract(LlamaCppEngine) as contract:
        yield contract


@pytest.mark.parametrize("name", SAMPLE.checks())
def test_engine_keeps_the_contract(contract: EngineContract, name: str) -> None:
    contract.check(name)
