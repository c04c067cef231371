"""What the host sees of the plugin, and what the probe process does."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import hostler_onnxgenai
from hostler import EngineSettings
from hostler_onnxgenai import probe as probing
from hostler_onnxgenai import tinymodel, versions


def test_plugin_registers_one_engine_for_model_folders() -> None:
    [spec] = hostler_onnxgenai.register_engines()

    assert (spec.name, spec.formats) == ("onnxgenai", ("onnxgenai",))
    assert spec.environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert spec.devices is not None
    assert spec.devices()[-1] == "cpu"


def test_plugin_is_found_by_its_entry_point() -> None:
    [entry] = [entry for entry in importlib.metadata.entry_points(group="hostler") if entry.name == "onnxgenai"]

    assert entry.load() is hostler_onnxgenai


def test_host_side_of_the_plugin_imports_nothing_heavy(tiny: Path) -> None:
    code = (
        "import sys, pathlib, json, hostler_onnxgenai, hostler\n"
        "[spec] = hostler_onnxgenai.register_engines()\n"
        f"path = pathlib.Path({str(tiny)!r})\n"
        "estimate = spec.estimate(path, hostler.EngineSettings(ctx_len=512, n_parallel=2))\n"
        "heavy = sorted({'onnxruntime', 'onnxruntime_genai', 'numpy', 'tokenizers', 'jinja2'} & set(sys.modules))\n"
        "print(json.dumps([heavy, estimate.kv_bytes, spec.context_length(path), list(spec.devices())]))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    heavy, kv_bytes, context_length, _ = json.loads(done.stdout)
    assert heavy == []
    assert (kv_bytes, context_length) == (2 * 512 * 3 * 2 * 2 * 16 * 4, tinymodel.N_CTX)


def with_packages(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    monkeypatch.setattr(versions, "installed", lambda: found)
    monkeypatch.setattr(probing, "installed", lambda: found)


def probed(**_: object) -> dict[str, tuple[bool, str]]:
    return {device.name: (device.is_available, device.reason) for device in probing.probe().devices}


def test_probe_finds_the_cpu_and_says_why_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, cpu="0.18.0")
    monkeypatch.setattr(sys, "platform", "linux")

    found = probed()

    assert found["cpu"][0]
    assert "threads" in found["cpu"][1]
    assert not found["cuda"][0]
    assert found["cuda"][1].startswith('onnxruntime-genai-cuda is not installed; pip install "hostler-onnxgenai[cuda]"')
    assert found["dml"] == (False, "DirectML is a part of Windows; on this system there is none")


def test_probe_trusts_no_package_but_opens_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA package says that CUDA is there on a machine without a GPU."""
    with_packages(monkeypatch, cuda="0.18.0")

    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        is_available, reason = probed()["cuda"]

    assert not is_available
    assert "onnxruntime gives CPUExecutionProvider" in reason


def test_probe_finds_a_device_on_which_a_session_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, model: bytes, *, providers: list[str]) -> None:
            assert model == probing.smallest_model()
            self._providers = [*providers, "CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return self._providers

    with_packages(monkeypatch, dml="0.13.1")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)

    found = probed()

    assert found["dml"] == (True, "onnxruntime-genai-directml 0.13.1")
    assert versions.devices() == ("dml", "cpu")


def test_probe_names_packages_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, cpu="0.18.0", cuda="0.18.0")

    found = probed()

    assert not any(is_available for is_available, _ in found.values())
    assert "onnxruntime-genai, onnxruntime-genai-cuda are installed together" in found["cpu"][1]


def test_smallest_model_opens_a_session() -> None:
    session = onnxruntime.InferenceSession(probing.smallest_model(), providers=["CPUExecutionProvider"])

    assert session.get_providers() == ["CPUExecutionProvider"]


def test_estimate_of_a_run_is_exact_in_its_rows(tiny: Path) -> None:
    [spec] = hostler_onnxgenai.register_engines()
    assert spec.estimate is not None

    def kv_bytes(**settings: object) -> int:
        return spec.estimate(tiny, EngineSettings(**settings)).kv_bytes  # type: ignore[misc]

    token = 3 * 2 * 2 * 16 * 4
    assert kv_bytes(ctx_len=512, n_parallel=4) == 4 * 512 * token
    assert kv_bytes(ctx_len=100_000, n_parallel=1) == tinymodel.N_CTX * token
    assert kv_bytes(ctx_len=512, n_parallel=4, device="cuda") == 0, "a card's memory is not the ledger's"
