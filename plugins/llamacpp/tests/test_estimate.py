"""Estimates against what llama.cpp itself allocates."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hostler import EngineSettings, InvalidModelFile, read_gguf_header, read_gguf_tensors
from hostler_llamacpp import ENVIRONMENT, kernels
from hostler_llamacpp.estimate import (
    PARTIAL_BYTES,
    PROCESS_BYTES,
    context_length,
    embedding_bytes,
    estimate,
    is_mostly_packed,
    n_layers,
    only_embeds,
    other_parts,
)

from .running import Loaded
from .tiny_models import requantized, write_llama


@pytest.mark.parametrize("model", ["llama", "gemma3"])
@pytest.mark.parametrize("settings", [{"ctx_len": 300}, {"ctx_len": 1024, "n_batch": 512}, {"cache_type": "q8_0"}])
def test_kv_estimate_is_what_llamacpp_allocates(
    load: Callable[..., Loaded], models: Path, model: str, settings: dict[str, object]
) -> None:
    wanted = {"ctx_len": 512, "n_parallel": 2, "n_batch": 64, "cache_type": "f16", "flash_attn": True, **settings}
    loaded = load(model, **wanted)

    guess = estimate(models / f"{model}.gguf", EngineSettings(**wanted))

    # llama.cpp's log rounds each buffer to 0.01 MiB.
    assert guess.kv_bytes == pytest.approx(loaded.engine.memory().kv_bytes, abs=0.05 * 2**20)


def test_recurrent_state_is_never_underestimated(load: Callable[..., Loaded], models: Path) -> None:
    loaded = load("mamba", n_parallel=8)

    guess = estimate(models / "mamba.gguf", EngineSettings(ctx_len=512, n_parallel=8))

    assert guess.kv_bytes >= loaded.engine.memory().kv_bytes - 0.05 * 2**20


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("ctx_len", [512, 2048])
def test_compute_estimate_covers_what_llamacpp_allocates(
    load: Callable[..., Loaded], models: Path, ctx_len: int, *, flash_attn: bool
) -> None:
    wanted = {"ctx_len": ctx_len, "n_batch": 512, "flash_attn": flash_attn, "cache_type": "f16"}
    loaded = load("llama", **wanted)

    guess = estimate(models / "llama.gguf", EngineSettings(**{"n_parallel": 3, **wanted}))

    assert loaded.engine.memory().compute_bytes <= guess.compute_bytes - PROCESS_BYTES


def test_estimate_grows_with_slots_and_stops_at_the_trained_context(models: Path) -> None:
    def kv_bytes(**settings: int) -> int:
        return estimate(models / "llama.gguf", EngineSettings(**settings)).kv_bytes

    assert kv_bytes(ctx_len=512, n_parallel=4) == 2 * kv_bytes(ctx_len=512, n_parallel=2)
    assert kv_bytes(ctx_len=100_000, n_parallel=1) == kv_bytes(ctx_len=2048, n_parallel=1)


def test_estimate_counts_all_parts_of_a_split_model(models: Path, tmp_path: Path) -> None:
    first = tmp_path / "model-00001-of-00002.gguf"
    second = tmp_path / "model-00002-of-00002.gguf"
    for path in (first, second):
        path.write_bytes((models / "llama.gguf").read_bytes())

    assert other_parts(first) == [second]
    whole = estimate(first, EngineSettings(ctx_len=512)).weights_bytes
    assert whole == first.stat().st_size + second.stat().st_size


@pytest.mark.skipif("Q8_0" not in kernels.packed_types(), reason="this processor packs no Q8_0")
@pytest.mark.parametrize("has_output", [True, False])
def test_weights_that_are_packed_are_there_once_but_for_an_embedding_that_is_the_output_too(
    load: Callable[..., Loaded], tmp_path: Path, *, has_output: bool
) -> None:
    plain = write_llama(tmp_path / "plain.gguf", has_output=has_output)
    path = requantized(plain, tmp_path / "packed.gguf", "Q8_0")
    file_bytes, settings = path.stat().st_size, EngineSettings(ctx_len=512)
    (embedding,) = [tensor for tensor in read_gguf_tensors(path) if tensor.name == "token_embd.weight"]

    guess = estimate(path, settings).weights_bytes

    assert is_mostly_packed(path, settings)
    assert guess == file_bytes + (0 if has_output else embedding.n_bytes)
    assert load(path).engine.memory().weights_bytes <= guess
    off = EngineSettings(ctx_len=512, extra={"repack": False})
    assert not is_mostly_packed(path, off)
    assert estimate(path, off).weights_bytes == file_bytes


def test_attention_leaves_no_more_to_be_merged_than_is_counted() -> None:
    source = (Path(__file__).parents[1] / "cpp" / "attention.cpp").read_text(encoding="utf-8")
    (shift,) = re.findall(r"kMostPartialBytes = std::size_t\{16\} << (\d+);", source)

    assert 16 << int(shift) == PARTIAL_BYTES


def test_estimate_refuses_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<html>not found</html>" * 10)

    with pytest.raises(InvalidModelFile, match=r"page\.gguf"):
        estimate(path, EngineSettings(ctx_len=512))


def test_header_facts_are_read_without_llamacpp(models: Path) -> None:
    assert context_length(models / "gemma3.gguf") == 2048
    assert n_layers(models / "gemma3.gguf") == 7


def test_estimate_of_embeddings_covers_what_llamacpp_allocates(load: Callable[..., Loaded], models: Path) -> None:
    for model in ("llama", "gemma3", "mamba", "bert"):
        loaded = load(model, ctx_len=512, n_parallel=2, n_batch=64, cache_type="f16")
        header = read_gguf_header(models / f"{model}.gguf")
        settings = EngineSettings(ctx_len=512, n_parallel=2, n_batch=64, cache_type="f16")
        before = loaded.engine.memory()
        pieces = loaded.engine.embed([[5] * loaded.info.n_ctx])
        next(pieces)

        during = loaded.engine.memory()
        pieces.close()

        taken = during.kv_bytes - before.kv_bytes + during.compute_bytes - before.compute_bytes
        assert 0 < taken <= embedding_bytes(header, settings), model
        assert loaded.engine.memory() == before


def test_estimate_leaves_embeddings_out_where_they_are_switched_off(models: Path) -> None:
    def compute_bytes(**settings: bool) -> int:
        return estimate(models / "llama.gguf", EngineSettings(ctx_len=512, **settings)).compute_bytes

    header = read_gguf_header(models / "llama.gguf")
    assert compute_bytes() - compute_bytes(embedding=False) == embedding_bytes(header, EngineSettings(ctx_len=512))


def test_estimate_of_a_model_that_only_embeds_has_no_cache(models: Path) -> None:
    guess = estimate(models / "bert.gguf", EngineSettings(ctx_len=512))

    assert guess.kv_bytes == 0
    assert only_embeds(read_gguf_header(models / "bert.gguf"))
    assert not only_embeds(read_gguf_header(models / "llama.gguf"))


@pytest.mark.weights
def test_estimate_is_within_15_percent_of_a_real_workers_memory(smollm2_path: Path) -> None:
    """And not below it, embeddings included: the ledger grants what it says. A process of its own, as a worker is."""
    settings = {"ctx_len": 4096, "n_parallel": 4}
    code = f"""
import json, psutil
import hostler.worker.wire, hostler.prompt
from hostler import EngineSettings, ModelFiles, SamplingParams
from hostler.testing import Driver, RecordingSequence
from hostler_llamacpp.engine import LlamaCppEngine
engine = LlamaCppEngine()
info = engine.load(ModelFiles({str(smollm2_path)!r}, "gguf"), EngineSettings(**{settings!r}), lambda _: True)
sequences = [
    RecordingSequence(range(1000 * i, 1000 * i + 600), SamplingParams(seed=1, max_tokens=8), n_ctx=info.n_ctx)
    for i in range(1, 5)
]
driver = Driver(engine, n_slots=info.n_slots, max_tokens_per_step=64)
driver.run(sequences)
talking = RecordingSequence(range(100, 130), SamplingParams(seed=1, max_tokens=500, ignore_eos=True), n_ctx=info.n_ctx)
driver.add(talking)
driver.step_until(lambda: len(talking.token_ids) > 2)
for run in engine._runs.values():
    run.begun_s -= 60.0  # long ago: a long prompt must not hold it up, so it is evaluated aside
assert not engine._detour.aside.has_room(3899)
engine._detour.aside.wait_for_room()
late = RecordingSequence(range(20000, 23900), SamplingParams(seed=1, max_tokens=2), n_ctx=info.n_ctx)
driver.add(late)
driver.step_until(lambda: late.is_over)
driver.cancel_all()
assert engine._detour.aside.buffer_bytes
resident = [psutil.Process().memory_info().rss]
for _ in engine.embed([range(1000, 1512), *[range(2000, 2030)] * 10]):
    resident.append(psutil.Process().memory_info().rss)
print(json.dumps(max(resident)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**ENVIRONMENT, **os.environ}
    )
    resident = json.loads(done.stdout)

    guess = estimate(smollm2_path, EngineSettings(**settings)).total_bytes

    assert resident <= guess <= 1.15 * resident
