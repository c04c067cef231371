"""The steps of a conversion run without a network; how steps run and fail is tested in hostler's tests/longwork."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hostler_onnxgenai.conversion.child import StepFailed, run_step


def test_no_network_and_no_telemetry_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "import os\ndef run(arguments, show):\n    return {name: os.environ[name] for name in arguments['names']}"
    )
    names = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "ORT_DISABLE_TELEMETRY"]

    result = run_step(sys.executable, "made", {"names": names}, log=tmp_path / "log", show=lambda *_: None, steps=tmp_path)

    assert set(result.values()) == {"1"}


def test_a_step_that_fails_is_a_failed_conversion(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("def run(arguments, show):\n    raise ValueError('no coal')")

    with pytest.raises(StepFailed, match="made failed: ValueError: no coal") as caught:
        run_step(sys.executable, "made", {}, log=tmp_path / "log", show=lambda *_: None, steps=tmp_path)
    assert caught.value.code == "conversion_failed"
