"""Which weights are read into huge pages: what the system gives, what the user says, how large they are; and that they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostler import EngineSettings
from hostler_llamacpp import ENVIRONMENT, hugepages


@pytest.mark.parametrize(
    ("policy", "environ", "expected"),
    [
        ("always [madvise] never", ENVIRONMENT, True),
        ("always [madvise] never", {}, False),
        ("always [madvise] never", {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, False),
        ("[always] madvise never", {}, True),
        ("always madvise [never]", ENVIRONMENT, False),
        (None, ENVIRONMENT, False),
    ],
)
def test_the_system_and_the_environment_decide_who_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str | None, environ: dict[str, str], *, expected: bool
) -> None:
    file = tmp_path / "enabled"
    if policy is not None:
        file.write_text(policy + "\n")
    monkeypatch.setattr(hugepages, "POLICY", file)

    assert hugepages.are_given(environ) is expected


@pytest.mark.parametrize(
    ("n_bytes", "settings", "expected"),
    [
        (1000, {}, True),
        (1001, {}, False),
        (1001, {"extra": {"huge_pages": True}}, True),
        (1000, {"extra": {"huge_pages": False}}, False),
        (1000, {"use_mmap": False}, False),
    ],
)
def test_size_decides_unless_the_user_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int, settings: dict[str, object], *, expected: bool
) -> None:
    monkeypatch.setattr(hugepages, "MOST_COPIED_BYTES", 1000)
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(n_bytes))

    assert hugepages.are_wanted(path, EngineSettings(ctx_len=512, **settings)) is expected


def test_all_files_of_a_split_model_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "MOST_COPIED_BYTES", 1000)
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(bytes(600))

    assert not hugepages.are_wanted(tmp_path / "m-00001-of-00002.gguf", EngineSettings(ctx_len=512))


LOAD = """
import json, sys
from hostler import EngineSettings, ModelFiles
from hostler_llamacpp.engine import LlamaCppEngine
engine = LlamaCppEngine()
settings = EngineSettings(ctx_len=512, n_parallel=1, cpu_threads=1, extra=json.loads(sys.argv[2]))
info = engine.load(ModelFiles(sys.argv[1], "gguf"), settings, lambda _: True)
assert not info.warnings, info.warnings
with open("/proc/self/smaps") as file:
    print(json.dumps(sys.argv[1] in file.read()))
"""


@pytest.mark.skipif(not hugepages.are_given(ENVIRONMENT), reason="this system gives no huge pages")
@pytest.mark.parametrize(("extra", "is_mapped"), [({}, False), ({"huge_pages": False}, True)])
def test_what_is_read_into_them_is_not_mapped(models: Path, extra: dict[str, bool], *, is_mapped: bool) -> None:
    command = [sys.executable, "-c", LOAD, str(models / "llama.gguf"), json.dumps(extra)]

    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ENVIRONMENT})

    assert json.loads(done.stdout) is is_mapped
