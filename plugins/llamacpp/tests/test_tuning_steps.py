"""The steps that measure and quantize, on tiny models; each in this process but for one."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import pytest

from hostler import read_gguf_header, read_gguf_tensors
from hostler_llamacpp.tuning import texts
from hostler_llamacpp.tuning.child import StepFailed, run_step
from hostler_llamacpp.tuning.splice import NotAlike, splice
from hostler_llamacpp.tuning.steps import importance, loss, quantize, sensitivity, speed
from hostler_llamacpp.tuning.steps.opened import NotMeasurable, Opened

from . import tiny_models

TEXT = texts.evaluation()[:1500]
RUNNING = {"n_threads": 1, "flash_attn": True, "cache_type": "f16", "repack": True, "n_tokens": 0, "text": TEXT}


def show(text: str, fraction: float | None = None) -> None:
    del text
    assert fraction is None or 0 <= fraction <= 1


def quantized(source: Path, out: Path, kind: str, importance: str = "") -> Path:
    arguments = {
        "source": str(source), "out": str(out), "type": kind, "is_pure": True, "overrides": [], "output_type": kind,
        "embedding_type": kind, "importance": importance, "n_threads": 1,
    }  # fmt: skip
    assert quantize.run(arguments, show)["size_bytes"] == out.stat().st_size
    return out


@pytest.fixture(scope="module")
def files(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny llama in several types, and what its inputs' importance is."""
    folder = tmp_path_factory.mktemp("quantized")
    source, out = models / "llama.gguf", folder / "importance.npz"
    importance.run({"path": str(source), "text": TEXT, "n_threads": 1, "repack": True, "out": str(out)}, show)
    return {
        "source": source,
        "importance": out,
        "Q8_0": quantized(source, folder / "q8.gguf", "Q8_0"),
        "Q4_0": quantized(source, folder / "q4.gguf", "Q4_0", str(out)),
    }


@pytest.fixture(scope="module")
def reference(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "source.logp"
    loss.run({**RUNNING, "path": str(files["source"]), "reference": str(path), "is_reference": True}, show)
    return path


def lost(path: Path, reference: Path) -> dict[str, Any]:
    return loss.run({**RUNNING, "path": str(path), "reference": str(reference), "is_reference": False}, show)


# -- loss -------------------------------------------------------------------------------------------------------------


def test_file_loses_nothing_against_itself(files: dict[str, Path], reference: Path) -> None:
    found = lost(files["source"], reference)

    assert found["nll_change"] == 0.0
    assert found["kl"] < 1e-6
    assert found["same_top"] == 1.0


def test_loss_is_the_same_each_time(files: dict[str, Path], reference: Path) -> None:
    assert lost(files["Q4_0"], reference) == lost(files["Q4_0"], reference)


def test_coarser_file_loses_more(files: dict[str, Path], reference: Path) -> None:
    fine, coarse = lost(files["Q8_0"], reference), lost(files["Q4_0"], reference)

    assert 0 < fine["kl"] < coarse["kl"]
    assert fine["same_top"] > coarse["same_top"]


def test_perplexity_is_that_of_the_logits(files: dict[str, Path], reference: Path) -> None:
    found = lost(files["source"], reference)
    nll = []
    with Opened(str(files["source"]), n_ctx=loss.CHUNK, n_threads=1) as opened:
        for chunk in opened.chunks(TEXT, loss.CHUNK, 0):
            rows = np.concatenate([part.copy() for _, part in opened.chunk_logits(chunk)]).astype(np.float64)
            logp = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
            nll += [-logp[place, token] for place, token in enumerate(chunk[1:])]

    assert found["n_scored"] == len(nll)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)


def test_every_second_position_is_compared_where_the_distributions_would_take_too_much(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.logp"
    loss.run({**RUNNING, "path": str(files["source"]), "reference": str(whole), "is_reference": True}, show)
    monkeypatch.setattr(loss, "STORE_BYTES", whole.stat().st_size // 2 + 1000)
    half = tmp_path / "half.logp"
    loss.run({**RUNNING, "path": str(files["source"]), "reference": str(half), "is_reference": True}, show)

    full, some = lost(files["Q4_0"], whole), lost(files["Q4_0"], half)

    assert some["n_compared"] == -(-full["n_compared"] // 2)
    assert some["perplexity"] == full["perplexity"]
    assert lost(files["source"], half)["kl"] < 1e-6, "the positions are the same ones"


def test_16_bits_of_a_distribution_are_enough() -> None:
    logits = np.random.default_rng(2).normal(0, 4, (5, 3000)).astype(np.float32)
    exact = loss.log_softmax(logits)

    found = loss.decode(loss.encode(exact))

    assert np.abs((np.exp(exact) * (exact - found)).sum(axis=1)).max() < 1e-5


# -- importance and quantizing ----------------------------------------------------------------------------------------


def test_importance_is_the_mean_square_of_what_a_weight_was_multiplied_with(files: dict[str, Path]) -> None:
    with np.load(files["importance"]) as found:
        names = set(found.files)
        output = found["output.weight"]
        assert {"blk.0.attn_q.weight", "blk.6.ffn_down.weight", "output.weight"} <= names
        assert found["blk.0.ffn_down.weight"].shape == (tiny_models.INNER,)
        assert all((found[name] >= 0).all() and np.isfinite(found[name]).all() for name in names)
        # The same vector goes into all three.
        np.testing.assert_array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_k.weight"])
    # The last norm's weights are ones, so its outputs have a mean square of one.
    assert output.mean() == pytest.approx(1.0, rel=0.05)


def test_layout_of_a_node_is_what_llama_cpp_was_built_with() -> None:
    base = importance.library("ggml-base")
    base.ggml_tensor_overhead.restype = ctypes.c_size_t
    object_bytes = 32  # struct ggml_object, which the overhead counts, too
    behind_the_name = 16  # extra, padding

    assert ctypes.sizeof(importance.Tensor) + behind_the_name == base.ggml_tensor_overhead() - object_bytes
    assert llama.llama_model_imatrix_data.size.offset == 16


def test_importance_makes_the_coarse_file_another_one(files: dict[str, Path], tmp_path: Path) -> None:
    plain = quantized(files["source"], tmp_path / "plain.gguf", "Q4_0")

    assert plain.read_bytes() != files["Q4_0"].read_bytes()
    assert plain.stat().st_size == pytest.approx(files["Q4_0"].stat().st_size, abs=4096)


def test_quantizing_a_broken_file_is_refused_with_llama_cpps_reason(files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files["source"].read_bytes()[:50_000])

    with pytest.raises(NotMeasurable, match="cannot write it as Q8_0"):
        quantized(broken, tmp_path / "out.gguf", "Q8_0")


# -- splicing ---------------------------------------------------------------------------------------------------------


def test_splice_of_nothing_is_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "same.gguf"
    splice(files["Q8_0"], {}, out)

    assert out.read_bytes() == files["Q8_0"].read_bytes()


def test_splice_of_everything_computes_what_the_other_does(files: dict[str, Path], reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.gguf"
    splice(files["Q8_0"], {tensor.name: files["Q4_0"] for tensor in read_gguf_tensors(files["Q8_0"])}, out)

    assert lost(out, reference) == lost(files["Q4_0"], reference)
    assert read_gguf_header(out).quantization == "Q4_0"


def test_splice_is_what_libllama_writes_for_that_mix(files: dict[str, Path], tmp_path: Path) -> None:
    mixed, whole = tmp_path / "mixed.gguf", tmp_path / "whole.gguf"
    chosen = [tensor.name for tensor in read_gguf_tensors(files["Q8_0"]) if ".ffn_down." in tensor.name]
    splice(files["Q8_0"], dict.fromkeys(chosen, files["Q4_0"]), mixed)
    arguments = {
        "source": str(files["source"]), "out": str(whole), "type": "Q8_0", "is_pure": False,
        "overrides": [["ffn_down", "Q4_0"]], "output_type": "Q8_0", "embedding_type": "Q8_0",
        "importance": str(files["importance"]), "n_threads": 1,
    }  # fmt: skip
    quantize.run(arguments, show)

    one, other = (
        {
            tensor.name: (tensor.type, path.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes])
            for tensor in read_gguf_tensors(path)
        }
        for path in (mixed, whole)
    )
    assert one == other


def test_files_of_two_models_are_not_spliced(files: dict[str, Path], models: Path, tmp_path: Path) -> None:
    with pytest.raises(NotAlike, match="has no weight"):
        splice(files["Q8_0"], {"blk.0.attn_q.weight": models / "mamba.gguf"}, tmp_path / "out.gguf")


def test_group_that_is_coarse_alone_costs_less_than_all(files: dict[str, Path], reference: Path, tmp_path: Path) -> None:
    names = [tensor.name for tensor in read_gguf_tensors(files["Q8_0"]) if tensor.type == "Q8_0"]
    arguments = {
        **RUNNING,
        "original": str(files["source"]),
        "fine": str(files["Q8_0"]),
        "coarse": str(files["Q4_0"]),
        "groups": {"one": ["blk.3.ffn_up.weight"], "all": names},
        "folder": str(tmp_path),
    }
    found = sensitivity.run(arguments, show)

    fine, groups = found["fine"], found["groups"]
    assert abs(groups["one"] - fine) < groups["all"] - fine
    assert found["groups"]["all"] == pytest.approx(lost(files["Q4_0"], reference)["kl"])
    assert list(tmp_path.iterdir()) == []


# -- speed, and what cannot be measured -------------------------------------------------------------------------------


def test_speed_has_a_number_for_each_repeat(files: dict[str, Path]) -> None:
    arguments = {
        "path": str(files["Q4_0"]), "n_threads": 1, "n_batch": 32, "n_ubatch": 16, "flash_attn": True, "cache_type": "q8_0",
        "use_mmap": False, "repack": True, "n_prompt": 64, "n_new": 4, "n_repeats": 3,
    }  # fmt: skip
    found = speed.run(arguments, show)

    assert (len(found["prefill"]), len(found["decode"])) == (3, 3)
    assert min(found["prefill"] + found["decode"]) > 0
    assert found["n_others"] >= 0


@pytest.mark.parametrize(("model", "reason"), [("bert", "only gives embeddings"), ("nothing", "cannot load")])
def test_model_that_writes_no_text_is_refused(models: Path, model: str, reason: str) -> None:
    with pytest.raises(NotMeasurable, match=reason):
        Opened(str(models / f"{model}.gguf"), n_ctx=64, n_threads=1)


def test_step_in_a_child_says_the_same(files: dict[str, Path], reference: Path, tmp_path: Path) -> None:
    shown: list[float | None] = []
    arguments = {**RUNNING, "path": str(files["Q8_0"]), "reference": str(reference), "is_reference": False}

    found = run_step("loss", arguments, log=tmp_path / "log", show=lambda _, fraction: shown.append(fraction))

    assert found == lost(files["Q8_0"], reference)
    assert 1.0 in shown


def test_step_that_fails_says_why_and_where_its_log_is(models: Path, tmp_path: Path) -> None:
    arguments = {**RUNNING, "path": str(models / "nothing.gguf"), "reference": "", "is_reference": False}

    with pytest.raises(StepFailed, match=r"loss failed: llama.cpp cannot load .*nothing.gguf.*its log is"):
        run_step("loss", arguments, log=tmp_path / "log", show=lambda *_: None)
