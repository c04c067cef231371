"""Reading ONNX files without an ONNX library, and the one change that is made to them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from hostler import InvalidModelFile
from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.onnxfile import FLOAT, INT64, Port, read_onnx, with_last_logits_only
from hostler_onnxgenai.wire import tagged


def test_graph_tells_inputs_outputs_operators_and_data(tiny: Path) -> None:
    graph = read_onnx(tiny / "model.onnx")

    assert graph.input("input_ids") == Port("input_ids", INT64, ("b", "s"))
    assert graph.input("past_key_values.2.value") == Port("past_key_values.2.value", FLOAT, ("b", 2, "p", 16))
    assert graph.output("logits") == Port("logits", FLOAT, ("b", "s", tinymodel.N_VOCAB))
    assert graph.output("present.3.key") is None
    assert {"GroupQueryAttention", "MatMul", "Gather"} <= graph.operators
    assert graph.opset == 21
    assert graph.external == {"model.onnx.data": (tiny / "model.onnx.data").stat().st_size}


def test_weights_in_the_graph_itself_name_no_data(tmp_path: Path) -> None:
    folder = tinymodel.write_llama(tmp_path / "m", is_external=False)

    assert read_onnx(folder / "model.onnx").external == {}


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x00" * 64, b"\xff" * 64, b"GGUF" * 100])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(InvalidModelFile, match=r"model\.onnx"):
        read_onnx(path)


def test_a_cut_file_is_refused_wherever_it_was_cut(tiny: Path, tmp_path: Path) -> None:
    data = (tiny / "model.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    for end in range(1, len(data), 97):
        path.write_bytes(data[:end])
        with pytest.raises(InvalidModelFile, match=r"cut off|holds no graph|no outputs"):
            read_onnx(path)


def test_changed_bytes_never_raise_anything_else(tiny: Path, tmp_path: Path) -> None:
    data = (tiny / "model.onnx").read_bytes()
    drawn = random.Random(5)
    path = tmp_path / "model.onnx"
    for _ in range(200):
        spoilt = bytearray(data)
        for _ in range(4):
            spoilt[drawn.randrange(len(spoilt))] = drawn.randrange(256)
        path.write_bytes(bytes(spoilt))
        try:
            read_onnx(path)
        except InvalidModelFile:
            pass
        with_last_logits_only(bytes(spoilt), "logits")


def test_changed_graph_gives_the_last_positions_logits_only(tmp_path: Path) -> None:
    folder = tinymodel.write_llama(tmp_path / "m", is_external=False)
    data = (folder / "model.onnx").read_bytes()
    changed = with_last_logits_only(data, "logits")
    assert changed is not None

    whole, last = (_logits(model) for model in (data, changed))

    assert whole.shape[1] == 9
    assert last.shape[1] == 1
    np.testing.assert_array_equal(whole[:, -1:], last)


def test_a_graph_that_ends_in_an_unknown_way_is_left_alone(tiny: Path) -> None:
    data = (tiny / "model.onnx").read_bytes()

    assert with_last_logits_only(data, "no such output") is None
    assert with_last_logits_only(data.replace(b"MatMul", b"MatMol"), "logits") is None
    assert with_last_logits_only(tagged(3, b"no graph"), "logits") is None


def _logits(model: bytes) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = {
        port.name: np.zeros((1, tinymodel.N_HEADS_KV, 0, tinymodel.HEAD), np.float32)
        for port in session.get_inputs()
        if port.name.startswith("past")
    }
    inputs |= {"input_ids": np.arange(9)[None], "attention_mask": np.ones((1, 9), np.int64)}
    [logits] = session.run(["logits"], inputs)
    return logits
