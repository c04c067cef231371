"""Estimates against what workers take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hostler import EngineSettings, InvalidModelFile
from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.estimate import context_length, estimate

from .spoiling import change_config

CODE = """
import json, psutil
import hostler.worker.wire, hostler.prompt
from hostler import EngineSettings, ModelFiles, SamplingParams
from hostler.testing import Driver, RecordingSequence
from hostler_onnxgenai.engine import OnnxGenaiEngine
engine = OnnxGenaiEngine()
info = engine.load(ModelFiles(PATH, "onnxgenai"), EngineSettings(**SETTINGS), lambda _: True)
for length in (info.n_ctx // 2, info.n_ctx - 9):
    sequences = [
        RecordingSequence(
            [(k + 9 * row) % info.n_vocab for k in range(length)], SamplingParams(seed=1, max_tokens=8), n_ctx=info.n_ctx
        )
        for row in range(info.n_slots)
    ]
    Driver(engine, n_slots=info.n_slots).run(sequences)
print(json.dumps(psutil.Process().memory_info().rss))
"""
"""A process of its own, as a worker is, after all its rows were full."""


def resident_bytes(path: Path, settings: dict[str, object]) -> int:
    code = CODE.replace("PATH", repr(str(path))).replace("SETTINGS", repr(settings))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


@pytest.mark.parametrize("backend", ["session", "generators"])
@pytest.mark.parametrize("kind", [{"bits": 32}, {"bits": 4}, {"bits": 32, "is_external": False}])
@pytest.mark.slow
def test_a_worker_takes_no_more_than_estimated(tmp_path: Path, kind: dict[str, int], backend: str) -> None:
    folder = tinymodel.write_llama(tmp_path / "m", n_layers=4, width=512, inner=1536, n_vocab=16_000, **kind)
    settings = {"ctx_len": 1024, "n_parallel": 3, "extra": {"backend": backend}}

    resident = resident_bytes(folder, settings)

    assert resident <= estimate(folder, EngineSettings(**settings)).total_bytes <= 1.7 * resident


@pytest.mark.weights
def test_estimate_is_within_15_percent_of_a_real_workers_memory(smollm2_onnx_path: Path) -> None:
    """And not below it: the ledger grants what it says."""
    settings: dict[str, object] = {"ctx_len": 2048, "n_parallel": 4}

    resident = resident_bytes(smollm2_onnx_path, settings)

    assert resident <= estimate(smollm2_onnx_path, EngineSettings(**settings)).total_bytes <= 1.15 * resident


def test_weights_are_counted_as_the_copy_they_are(tiny: Path) -> None:
    """What the system shows as taken, the ledger must not subtract a second time."""
    assert not estimate(tiny, EngineSettings(ctx_len=512)).is_mapped


def test_estimate_refuses_what_is_no_model(own: Path) -> None:
    (own / "model.onnx").write_text("<html>not found</html>" * 10)

    with pytest.raises(InvalidModelFile, match=r"model\.onnx"):
        estimate(own, EngineSettings(ctx_len=512))


def test_context_is_read_from_the_configuration_alone(own: Path) -> None:
    (own / "model.onnx").unlink()
    assert context_length(own) == tinymodel.N_CTX

    change_config(own, "model.context_length", "long")
    assert context_length(own) == 0

    (own / "genai_config.json").unlink()
    with pytest.raises(InvalidModelFile, match=r"genai_config\.json is missing"):
        context_length(own)


def test_estimate_notices_that_a_folder_has_changed(own: Path) -> None:
    before = estimate(own, EngineSettings(ctx_len=100_000))
    change_config(own, "model.context_length", 256)

    assert estimate(own, EngineSettings(ctx_len=100_000)).kv_bytes == before.kv_bytes // 8
