"""What the host sees of the plugin."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import hostler_llamacpp
from hostler import EngineSettings


def test_plugin_registers_one_engine_for_gguf_files() -> None:
    [spec] = hostler_llamacpp.register_engines()

    assert (spec.name, spec.formats) == ("llamacpp", ("gguf",))
    assert spec.environment["GOMP_SPINCOUNT"] == "30000"
    assert spec.environment["MALLOC_MMAP_THRESHOLD_"] == "8388608"


def test_plugin_is_found_by_its_entry_point() -> None:
    [entry] = [entry for entry in importlib.metadata.entry_points(group="hostler") if entry.name == "llamacpp"]

    assert entry.load() is hostler_llamacpp


def test_host_side_of_the_plugin_imports_nothing_heavy(models: Path) -> None:
    code = (
        "import sys, pathlib, hostler_llamacpp, hostler\n"
        "[spec] = hostler_llamacpp.register_engines()\n"
        f"spec.estimate(pathlib.Path({str(models / 'llama.gguf')!r}), hostler.EngineSettings(ctx_len=512))\n"
        f"spec.context_length(pathlib.Path({str(models / 'llama.gguf')!r}))\n"
        "print(sorted({'llama_cpp', 'numpy', 'jinja2'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_spec_gives_the_context_the_model_was_trained_for(models: Path) -> None:
    [spec] = hostler_llamacpp.register_engines()

    assert spec.context_length is not None
    assert spec.context_length(models / "llama.gguf") == 2048


def test_spec_estimates_a_run(models: Path) -> None:
    [spec] = hostler_llamacpp.register_engines()

    assert spec.estimate is not None
    estimate = spec.estimate(models / "llama.gguf", EngineSettings(ctx_len=512, n_parallel=2))
    assert min(estimate.weights_bytes, estimate.kv_bytes, estimate.compute_bytes) > 0
