"""Our products of quantized matrices: right to the last digits for every type and instruction set, and used by llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hostler_llamacpp import _kernels, kernels
from hostler_llamacpp.tuning.steps import quantize

from .running import GREEDY, Loaded, prompt
from .tiny_models import requantized

pytestmark = pytest.mark.skipif(not _kernels.kernels(), reason="there are no kernels for this processor")

BLOCKS = {
    "q4_1": np.dtype([("d", np.float16), ("m", np.float16), ("q", np.uint8, 16)]),
    "q8_0": np.dtype([("d", np.float16), ("q", np.int8, 32)]),
}
SHAPES = [(16, 32), (48, 64), (80, 576), (16, 1536)]
"""Rows and columns."""


def drawn_matrix(kind: str, n_rows: int, n_columns: int) -> np.ndarray:
    """Blocks (n_rows, n_blocks) with every value that a block can hold."""
    random = np.random.default_rng(n_rows + n_columns)
    blocks = np.frombuffer(random.bytes(n_rows * n_columns // 32 * BLOCKS[kind].itemsize), BLOCKS[kind]).copy()
    blocks["d"] = random.normal(0, 0.01, len(blocks))
    if "m" in BLOCKS[kind].fields:
        blocks["m"] = random.normal(0, 0.1, len(blocks))
    return blocks.reshape(n_rows, -1)


def weights_of(kind: str, blocks: np.ndarray) -> np.ndarray:
    """What the blocks stand for, float64 (n_rows, n_columns)."""
    step = blocks["d"].astype(np.float64)[..., None]
    if kind == "q8_0":
        values = step * blocks["q"]
    else:
        halves = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=-1)
        values = step * halves + blocks["m"].astype(np.float64)[..., None]
    return values.reshape(len(blocks), -1)


def rounded(vectors: np.ndarray) -> np.ndarray:
    """Vectors as llama.cpp rounds them: 8 bits a value, one scale for 32."""
    blocks = vectors.astype(np.float64).reshape(len(vectors), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    steps = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)
    return (np.rint(steps) * scale).reshape(vectors.shape)


def multiply(kind: str, instruction_set: str, blocks: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Products (n_vectors, n_rows)."""
    found = _kernels.multiply(kind, instruction_set, blocks.tobytes(), vectors.astype(np.float32).tobytes(), len(blocks))
    return np.frombuffer(found, np.float32).reshape(len(vectors), len(blocks))


@pytest.mark.parametrize(("kind", "instruction_set"), _kernels.kernels())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_values(kind: str, instruction_set: str, shape: tuple[int, int]) -> None:
    blocks = drawn_matrix(kind, *shape)
    random = np.random.default_rng(1)
    for n_vectors in range(1, 20):
        # Powers of two as largest values: the scales are then exact, and no value lies between two steps by rounding alone.
        vectors = random.integers(-127, 128, (n_vectors, shape[1])).astype(np.float32) / 64
        vectors[:, ::32] = 127 / 64

        found = multiply(kind, instruction_set, blocks, vectors)

        expected = rounded(vectors) @ weights_of(kind, blocks).T
        scale = np.abs(rounded(vectors)) @ np.abs(weights_of(kind, blocks)).T
        assert (np.abs(found - expected) <= 2e-6 * scale).all(), n_vectors


@pytest.mark.parametrize(("kind", "instruction_set"), _kernels.kernels())
def test_values_are_rounded_to_the_nearest_step(kind: str, instruction_set: str) -> None:
    blocks = drawn_matrix(kind, 32, 256)
    vectors = np.random.default_rng(2).standard_cauchy((9, 256)).astype(np.float32)

    found = multiply(kind, instruction_set, blocks, vectors)

    exact = vectors.astype(np.float64) @ weights_of(kind, blocks).T
    step = np.abs(vectors.reshape(9, -1, 32)).max(axis=-1) / 127
    most = (step / 2) @ np.abs(weights_of(kind, blocks)).reshape(32, -1, 32).sum(axis=-1).T
    assert (np.abs(found - exact) <= 1.001 * most + 1e-5 * np.abs(exact)).all()


@pytest.mark.parametrize(("kind", "instruction_set"), _kernels.kernels())
def test_a_vector_has_the_same_products_whatever_stands_beside_it(kind: str, instruction_set: str) -> None:
    blocks = drawn_matrix(kind, 64, 576)
    vectors = np.random.default_rng(3).normal(size=(19, 576)).astype(np.float32)

    together = multiply(kind, instruction_set, blocks, vectors)

    alone = np.concatenate([multiply(kind, instruction_set, blocks, vector[None]) for vector in vectors])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize(("kind", "instruction_set"), _kernels.kernels())
def test_zeros_give_zeros(kind: str, instruction_set: str) -> None:
    found = multiply(kind, instruction_set, drawn_matrix(kind, 16, 64), np.zeros((3, 64)))

    assert (found == 0).all()


@pytest.mark.parametrize("n_rows", [-16, 0, 15, 24, 2**62])
def test_shapes_that_cannot_be_packed_are_refused(n_rows: int) -> None:
    kind, instruction_set = _kernels.kernels()[0]
    blocks = drawn_matrix(kind, 48, 64)

    with pytest.raises(ValueError, match="do not go together"):
        _kernels.multiply(kind, instruction_set, blocks.tobytes(), bytes(256), n_rows)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="no such kernels"):
        _kernels.multiply("q9_9", "avx2", b"", b"", 16)


def test_llama_cpp_is_the_one_whose_layouts_are_known() -> None:
    assert kernels.attach() == []
    assert kernels.attach() == []


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_a_loaded_model_is_multiplied_by_them_as_well_as_by_llama_cpp(
    kind: str, models: Path, tmp_path: Path, load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both round activations to 8 bits, so both are compared with a model of the same weights in float32."""
    monkeypatch.setitem(quantize.FILE_TYPES, "F32", 0)
    path = requantized(models / "llama.gguf", tmp_path / "quantized.gguf", kind)
    exact = load(requantized(path, tmp_path / "float32.gguf", "F32"))
    ours, theirs = load(path), load(path, extra={"repack": False})
    params = msgspec.structs.replace(GREEDY, max_tokens=1, logprobs=20)

    def best(loaded: Loaded, seed: int) -> dict[int, float]:
        (first,) = loaded.answer(prompt(40, seed), params).logprobs
        assert first is not None
        return {top.token_id: top.logprob for top in first.top}

    errors: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(40):
        expected = best(exact, seed)
        for name, loaded in (("ours", ours), ("theirs", theirs)):
            found = best(loaded, seed)
            errors[name].append(float(np.mean([abs(found[one] - expected[one]) for one in found.keys() & expected.keys()])))
    assert errors["ours"] != errors["theirs"]  # else llama.cpp has multiplied both
    assert np.mean(errors["ours"]) < 1.25 * np.mean(errors["theirs"])


ATTACH = """
import ctypes, sys
from hostler_llamacpp import _kernels
if sys.argv[2:]:
    ctypes.CDLL(sys.argv[1])
try:
    _kernels.attach(sys.argv[1])
except _kernels.NotAttached as error:
    print(error)
"""
OTHER_GGML = """
static int registry[8] = {%(api)s};
void* ggml_backend_cpu_reg(void) { return registry; }
const char* ggml_version(void) { return "%(version)s"; }
const char* ggml_type_name(int type) { return type == 3 ? "q4_1" : type == 8 ? "q8_0" : "f32"; }
const char* ggml_op_name(int op) { return op == 29 ? "%(op)s" : op == 74 ? "FLASH_ATTN_EXT" : "NONE"; }
"""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "0.26.0"}, "ggml is 0.26.0, and the layouts of 0.25.3 are known"),
        ({"api": "3"}, "ggml says that it is 0.25.3, but its layouts are others"),
        ({"op": "MUL"}, "ggml says that it is 0.25.3, but its layouts are others"),
        ({}, "has no _Z39ggml_backend_cpu_get_extra_buffer_typesv"),
    ],
)
def test_another_ggml_is_left_alone(changes: dict[str, str], reason: str, tmp_path: Path) -> None:
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text(OTHER_GGML % {"version": "0.25.3", "api": "2", "op": "MUL_MAT", **changes})
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)

    done = subprocess.run([sys.executable, "-c", ATTACH, str(library), "load"], capture_output=True, text=True, check=True)

    assert reason in done.stdout


def test_a_library_that_is_not_loaded_is_not_loaded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTACH, str(tmp_path / "libllama.so")], capture_output=True, text=True, check=True
    )

    assert "libllama.so is not loaded" in done.stdout


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_a_prompt_gives_the_same_answer_to_the_last_bit_however_it_is_cut(
    models: Path, tmp_path: Path, load: Callable[..., Loaded], cache_type: str
) -> None:
    """Products and attention are the same for one row and for many, so guesses and chunks change nothing."""
    path = requantized(models / "llama.gguf", tmp_path / "quantized.gguf", "Q8_0")
    settings = {"flash_attn": True, "cache_type": cache_type}
    tokens = prompt(150, 3)
    params = msgspec.structs.replace(GREEDY, max_tokens=20, logprobs=5)

    loaded = [load(path, **settings, n_batch=n, cpu_threads=n_threads) for n, n_threads in ((256, 1), (8, 1), (37, 2))]
    answers = [one.answer(tokens, params) for one in loaded]

    assert answers[0].logprobs == answers[1].logprobs == answers[2].logprobs
