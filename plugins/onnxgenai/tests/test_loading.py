"""From a folder and settings to a model that has computed something sensible."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hostler import EngineFailed, EngineSettings, InvalidModelFile, ModelFiles, ModelLoadFailed
from hostler_onnxgenai import loading, opening, tinymodel
from hostler_onnxgenai.engine import OnnxGenaiEngine
from hostler_onnxgenai.folder import read_folder
from hostler_onnxgenai.session import SessionBackend

from .running import Loaded, prompt
from .spoiling import change_config


def load(path: Path, **settings: object) -> loading.Loaded:
    wanted = EngineSettings(**{"ctx_len": 256, "n_parallel": 2, "cpu_threads": 1, **settings})
    return loading.load(ModelFiles(str(path), "onnxgenai"), wanted, lambda _: True)


def test_a_cpu_export_runs_in_a_plain_session(tiny: Path) -> None:
    loaded = load(tiny)

    assert (type(loaded.backend).__name__, loaded.backend.device) == ("SessionBackend", "cpu")
    assert (loaded.n_ctx, loaded.n_slots, loaded.warnings) == (256, 2, ())


def test_a_model_with_another_cache_runs_in_generators_and_says_so(own: Path) -> None:
    change_config(own, "search.past_present_share_buffer", False)

    loaded = load(own)

    assert type(loaded.backend).__name__ == "GeneratorBackend"
    assert "Generators" in loaded.warnings[0]
    assert "new one in every step" in loaded.warnings[0]


def test_a_session_whose_rows_mix_is_not_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an export does with several rows shows only when it runs."""
    real = SessionBackend.decode

    def mixed(self: SessionBackend, rows: list[int], starts: list[int], tokens: list[int]) -> object:
        return real(self, rows, starts, tokens)[::-1]

    monkeypatch.setattr(SessionBackend, "decode", mixed)

    loaded = load(tiny)

    assert type(loaded.backend).__name__ == "GeneratorBackend"
    assert "computes something else" in loaded.warnings[0]


def test_a_session_that_cannot_run_is_not_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EngineFailed("no kernel")

    monkeypatch.setattr(SessionBackend, "decode", fail)

    assert "cannot evaluate a few tokens: no kernel" in load(tiny).warnings[0]


def test_weights_that_are_no_numbers_are_refused_as_corrupt(own: Path) -> None:
    data = own / "model.onnx.data"
    data.write_bytes(np.full(data.stat().st_size // 4, np.nan, np.float32).tobytes())

    with pytest.raises(InvalidModelFile, match="weights are corrupt"):
        load(own)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"ctx_len": 1}, "ctx_len is 1"),
        ({"n_parallel": 0}, "n_parallel is 0"),
        ({"n_parallel": 999}, "1 to 256 slots"),
        ({"n_batch": 0}, "n_batch is 0"),
        ({"extra": {"spin_us": -1}}, "spin_us is -1"),
        ({"extra": {"spin_us": True}}, "spin_us is True"),
        ({"extra": {"backend": "engine"}}, "backend is 'engine'"),
        ({"device": "tpu"}, "device is 'tpu'; onnxgenai runs on cpu, cuda, dml"),
        ({"device": "cuda", "extra": {"backend": "session"}}, "on cuda models run in Generators"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tiny: Path, settings: dict[str, object], match: str) -> None:
    with pytest.raises(ModelLoadFailed, match=match):
        load(tiny, **settings)


def test_settings_without_effect_are_told(tiny: Path) -> None:
    warnings = load(tiny, ctx_len=10_000, extra={"n_ubatch": 3}).warnings

    text = "\n".join(warnings)
    assert all(name in text for name in ("'n_ubatch'", "ctx_len 10000 is more than the 2048"))
    assert len(warnings) == 2


def test_a_longer_context_than_the_models_is_cut_and_reported(load: Callable[..., Loaded]) -> None:
    loaded = load(ctx_len=10_000, n_parallel=1)

    assert loaded.info.n_ctx == tinymodel.N_CTX
    assert len(loaded.answer(prompt(tinymodel.N_CTX - 3, 1)).token_ids) == 3


@pytest.mark.parametrize("backend", ["session", "generators"])
def test_the_smallest_context_holds_a_token_and_its_answer(load: Callable[..., Loaded], backend: str) -> None:
    loaded = load(ctx_len=2, n_parallel=1, backend=backend)

    assert len(loaded.answer(prompt(1, 1)).token_ids) == 1


@pytest.mark.parametrize("asked", ["auto", "cpu", "directml"])
def test_device_is_the_exports_or_what_is_demanded(own: Path, asked: str) -> None:
    change_config(own, "model.decoder.session_options", {"provider_options": [{"cuda": {}}]})

    assert loading.choose_device(asked, read_folder(own)) == {"auto": "cuda", "cpu": "cpu", "directml": "dml"}[asked]


@pytest.mark.parametrize("backend", ["session", "generators"])
def test_load_stops_when_told_and_reports_progress(tiny: Path, backend: str) -> None:
    seen: list[float] = []
    engine = OnnxGenaiEngine()
    settings = EngineSettings(ctx_len=256, n_parallel=3, extra={"backend": backend})
    engine.load(ModelFiles(str(tiny), "onnxgenai"), settings, lambda fraction: seen.append(fraction) or True)
    engine.close()

    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    for end in (0.0, 0.5, 0.9, 1.0):
        with pytest.raises(ModelLoadFailed, match="stopped on request"):
            OnnxGenaiEngine().load(ModelFiles(str(tiny), "onnxgenai"), settings, lambda share, end=end: share < end)


def test_a_long_load_tells_how_far_it_is_and_one_that_stands_still_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start deadline is renewed by progress, and by nothing else."""
    sizes: list[int] = [0, 0, 40, 40, 40, 100, 900]
    seen: list[float] = []
    is_over = threading.Event()

    def resident_bytes(_: object) -> int:
        if len(sizes) == 1:
            is_over.set()
            return sizes[0]
        return sizes.pop(0)

    monkeypatch.setattr(opening, "LOOK_S", 0.001)
    monkeypatch.setattr(opening._Watch, "_resident_bytes", resident_bytes)

    watch = opening._Watch(100, seen.append)

    assert watch.run(lambda: is_over.wait(30)) is True
    assert seen == [0.2, 0.5, 0.99]


@pytest.mark.parametrize(("module", "backend"), [("onnxruntime_genai", "generators"), ("onnxruntime", "session")])
def test_a_missing_library_is_an_error_that_says_what_to_install(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, module: str, backend: str
) -> None:
    """The plugin without one of its extras."""
    for name in ("session", "opening"):
        monkeypatch.delitem(sys.modules, f"hostler_onnxgenai.{name}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ModelLoadFailed, match=rf'^{module} cannot be imported.*pip install "hostler-onnxgenai\[cpu\]"'):
        load(tiny, extra={"backend": backend})


@pytest.mark.parametrize("backend", ["session", "generators"])
def test_no_telemetry_is_written_or_sent(tiny: Path, tmp_path: Path, backend: str) -> None:
    """onnxruntime's telemetry is on by default: it makes a device id and databases below the user's cache folder."""
    code = f"""
import hostler, pathlib
from hostler_onnxgenai.engine import OnnxGenaiEngine
engine = OnnxGenaiEngine()
settings = hostler.EngineSettings(ctx_len=128, n_parallel=1, extra={{"backend": {backend!r}}})
engine.load(hostler.ModelFiles({str(tiny)!r}, "onnxgenai"), settings, lambda _: True)
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(home / ".cache")}

    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)

    assert list(home.rglob("*")) == []
