"""What loads, what is refused, and what the user is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hostler import EngineSettings, HostlerError, InvalidModelFile, ModelFiles, ModelLoadFailed
from hostler_llamacpp.engine import LlamaCppEngine

from . import tiny_models
from .running import Loaded, prompt


def refusal(path: Path, **settings: object) -> HostlerError:
    wanted = EngineSettings(**{"ctx_len": 512, "n_parallel": 1, **settings})
    with pytest.raises(HostlerError) as caught:
        LlamaCppEngine().load(ModelFiles(str(path), "gguf"), wanted, lambda _: True)
    return caught.value


def test_info_says_what_was_loaded(load: Callable[..., Loaded]) -> None:
    info = load("llama", ctx_len=300, n_parallel=2).info

    assert (info.n_ctx, info.n_slots, info.n_ctx_train, info.n_vocab) == (300, 2, 2048, len(tiny_models.TOKENS))
    assert (info.device, info.can_embed, info.n_embd) == ("cpu", True, tiny_models.WIDTH)
    assert info.can_generate
    assert info.warnings == ()
    assert "llama.cpp" in info.version


def test_memory_counts_weights_and_cache(load: Callable[..., Loaded], models: Path) -> None:
    use = load("llama", ctx_len=512, n_parallel=2).engine.memory()

    assert use.weights_bytes == pytest.approx((models / "llama.gguf").stat().st_size, rel=0.05)
    per_token = tiny_models.N_LAYERS * tiny_models.N_HEADS_KV * tiny_models.HEAD * 2 * 4
    assert use.kv_bytes == pytest.approx(2 * 512 * per_token, rel=0.01)
    assert use.compute_bytes > 0


def test_context_over_the_trained_one_is_cut_with_a_warning(load: Callable[..., Loaded]) -> None:
    info = load("llama", ctx_len=5000, n_parallel=1).info

    assert info.n_ctx == 2048
    assert re.search(r"5000.*2048", info.warnings[0])


def test_unknown_extra_settings_are_warned_of(load: Callable[..., Loaded]) -> None:
    assert "turbo" in load("llama", extra={"turbo": 1}).info.warnings[0]


def test_layers_for_a_gpu_that_is_not_there_are_warned_of_when_asked_for(load: Callable[..., Loaded]) -> None:
    assert "ngl is 12" in load("llama", ngl=12).info.warnings[0]
    assert load("llama", ngl=0).info.warnings == ()


@pytest.mark.parametrize("cache_type", ["f32", "bf16", "q8_0", "q4_0"])
def test_other_cache_types_work(load: Callable[..., Loaded], cache_type: str) -> None:
    loaded = load("llama", cache_type=cache_type, flash_attn=True)

    assert len(loaded.answer(prompt(20, 1)).token_ids) == 16


@pytest.mark.parametrize(
    "settings", [{"flash_attn": True}, {"use_mmap": False}, {"n_batch": 1}, {"n_batch": 2048}, {"cpu_threads": 1}]
)
def test_settings_do_not_change_the_answer(load: Callable[..., Loaded], settings: dict[str, object]) -> None:
    reference = load("llama").answer(prompt(70, 2))

    assert load("llama", **settings).answer(prompt(70, 2)).token_ids == reference.token_ids


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cache_type": "q3"}, "cache_type is 'q3'"),
        ({"cache_type": "q8_0", "flash_attn": False}, "flash attention"),
        ({"ctx_len": 1}, "ctx_len is 1"),
        ({"n_parallel": 0}, "n_parallel is 0"),
        ({"n_parallel": 10_000}, "n_parallel is 10000"),
        ({"n_batch": 0}, "n_batch is 0"),
        ({"extra": {"rope_freq_base": "big"}}, "rope_freq_base is 'big'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(models: Path, settings: dict[str, object], text: str) -> None:
    error = refusal(models / "llama.gguf", **settings)

    assert isinstance(error, ModelLoadFailed)
    assert text in str(error)


def test_demanded_gpu_that_this_build_lacks_is_refused(models: Path) -> None:
    error = refusal(models / "llama.gguf", device="sycl")

    assert isinstance(error, ModelLoadFailed)
    assert "-DGGML_SYCL=on" in str(error)


# -- bad files ------------------------------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.gguf") in str(refusal(tmp_path / "none.gguf"))


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>sorry</html>" * 100, b"GGUF" + b"\xff" * 200])
def test_file_that_is_no_model_is_refused_as_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)

    error = refusal(path)

    assert isinstance(error, InvalidModelFile)
    assert "model.gguf" in str(error)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_model_is_refused_as_damaged(models: Path, tmp_path: Path, share: float) -> None:
    whole = (models / "llama.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])

    assert isinstance(refusal(path), InvalidModelFile)


@pytest.mark.parametrize("check_tensors", [True, False])
def test_weights_that_are_not_numbers_are_refused_as_damaged(models: Path, tmp_path: Path, *, check_tensors: bool) -> None:
    """Either by llama.cpp's check of the tensors, or because the first evaluation gives no probabilities."""
    data = bytearray((models / "llama.gguf").read_bytes())
    data[-4096:] = b"\xff" * 4096
    path = tmp_path / "nan.gguf"
    path.write_bytes(data)

    assert isinstance(refusal(path, extra={"check_tensors": check_tensors}), InvalidModelFile)


def test_unknown_architecture_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model.gguf", **{"general.architecture": (8, "warpdrive")})

    error = refusal(path)

    assert isinstance(error, ModelLoadFailed)
    assert "warpdrive" in str(error)


def test_later_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    split = {"split.no": (2, 1), "split.count": (2, 2), "split.tensors.count": (5, 4)}
    path = tiny_models.write_llama(tmp_path / "model-00002-of-00002.gguf", **split)

    assert isinstance(refusal(path), HostlerError)


# -- progress -------------------------------------------------------------------------------------------------------------


def test_progress_rises_to_one(models: Path) -> None:
    seen: list[float] = []

    def note(fraction: float) -> bool:
        seen.append(fraction)
        return True

    engine = LlamaCppEngine()
    engine.load(ModelFiles(str(models / "llama.gguf"), "gguf"), EngineSettings(ctx_len=512), note)
    engine.close()

    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    assert len(seen) > 5


@pytest.mark.parametrize("stop_at", [0.0, 0.5, 0.95, 1.0])
def test_load_stops_when_told(models: Path, stop_at: float) -> None:
    engine = LlamaCppEngine()

    with pytest.raises(ModelLoadFailed, match="stopped"):
        engine.load(ModelFiles(str(models / "llama.gguf"), "gguf"), EngineSettings(ctx_len=512), lambda f: f < stop_at)
    engine.close()


def test_exception_in_progress_reaches_the_caller(models: Path) -> None:
    def fail(fraction: float) -> bool:
        if fraction > 0.3:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        LlamaCppEngine().load(ModelFiles(str(models / "llama.gguf"), "gguf"), EngineSettings(ctx_len=512), fail)


def test_close_may_be_called_without_a_load() -> None:
    LlamaCppEngine().close()
