"""KV rows in a plain session: rows of different lengths in one run, holes, swaps, copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hostler import EngineFailed, InvalidModelFile, ModelLoadFailed
from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.folder import read_folder
from hostler_onnxgenai.session import SessionBackend

from .running import prompt

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
"""float32, summed in another order."""


@pytest.fixture
def backend(tiny: Path) -> SessionBackend:
    return SessionBackend(read_folder(tiny), 5, 128, n_threads=1)


def tokens(n: int, seed: int) -> np.ndarray:
    return np.array(prompt(n, seed), np.int32)


def whole(backend: SessionBackend, text: np.ndarray) -> np.ndarray:
    """The logits behind a text, evaluated in one piece in the last row."""
    return backend.prefill(4, 0, text).copy()


def test_rows_of_different_lengths_go_on_in_one_run(backend: SessionBackend) -> None:
    texts = [tokens(n, n) for n in (3, 60, 17)]
    for row, text in enumerate(texts):
        backend.prefill(row, 0, text[:-1])

    stepped = [
        row.copy() for row in backend.decode([0, 1, 2], [len(text) - 1 for text in texts], [int(text[-1]) for text in texts])
    ]

    for text, logits in zip(texts, stepped, strict=True):
        np.testing.assert_allclose(logits, whole(backend, text), **CLOSE)


def test_logits_come_in_the_order_of_the_rows_that_were_asked_for(backend: SessionBackend) -> None:
    texts = {3: tokens(9, 1), 0: tokens(20, 2)}
    for row, text in texts.items():
        backend.prefill(row, 0, text[:-1])

    first, second = (row.copy() for row in backend.decode([3, 0], [8, 19], [int(texts[3][-1]), int(texts[0][-1])]))

    np.testing.assert_allclose(first, whole(backend, texts[3]), **CLOSE)
    np.testing.assert_allclose(second, whole(backend, texts[0]), **CLOSE)


def test_chunks_are_as_good_as_one_piece(backend: SessionBackend) -> None:
    text = tokens(50, 3)
    for start, end in ((0, 20), (20, 21), (21, 49)):
        backend.prefill(0, start, text[start:end])

    np.testing.assert_allclose(backend.prefill(0, 49, text[49:]), whole(backend, text), **CLOSE)


def test_what_lay_behind_the_start_is_forgotten(backend: SessionBackend) -> None:
    text = tokens(30, 4)
    backend.prefill(0, 0, tokens(100, 5))
    backend.prefill(0, 0, text[:10])

    np.testing.assert_allclose(backend.prefill(0, 10, text[10:]), whole(backend, text), **CLOSE)


def test_a_row_that_waits_between_running_ones_loses_nothing(backend: SessionBackend) -> None:
    """It runs along with a token of no meaning, which the next real one overwrites."""
    waiting = tokens(40, 6)
    running = [tokens(60, 7), tokens(60, 8)]
    backend.prefill(1, 0, waiting[:20])
    for row, text in zip((0, 2), running, strict=True):
        backend.prefill(row, 0, text[:50])
    for place in range(50, 59):
        backend.decode([0, 2], [place, place], [int(text[place]) for text in running])

    np.testing.assert_allclose(backend.prefill(1, 20, waiting[20:]), whole(backend, waiting), **CLOSE)
    last = [row.copy() for row in backend.decode([0, 2], [59, 59], [int(text[59]) for text in running])]
    for text, logits in zip(running, last, strict=True):
        np.testing.assert_allclose(logits, whole(backend, text), **CLOSE)


def test_holes_are_closed_by_a_swap_when_they_have_cost_enough(tiny: Path) -> None:
    backend = SessionBackend(read_folder(tiny), 4, 128, n_threads=1)
    texts = {row: tokens(100, 10 + row) for row in range(4)}
    for row, text in texts.items():
        backend.prefill(row, 0, text[:60])
    before = [place.number for place in backend._place_of]

    for place in range(60, 99):
        backend.decode([0, 3], [place, place], [int(texts[row][place]) for row in (0, 3)])

    after = [place.number for place in backend._place_of]
    assert before == [0, 1, 2, 3]
    assert abs(after[0] - after[3]) == 1, "the running rows lie side by side"
    logits = {
        row: one.copy()
        for row, one in zip((0, 3), backend.decode([0, 3], [99, 99], [int(texts[row][99]) for row in (0, 3)]), strict=True)
    }
    for row in (1, 2):
        logits[row] = backend.prefill(row, 60, texts[row][60:]).copy()
    fresh = SessionBackend(read_folder(tiny), 1, 128, n_threads=1)
    for row, text in texts.items():
        np.testing.assert_allclose(logits[row], fresh.prefill(0, 0, text), **CLOSE)


def test_a_copied_beginning_is_as_good_as_an_evaluated_one(backend: SessionBackend) -> None:
    system, one, other = tokens(40, 20), tokens(20, 21), tokens(25, 22)
    backend.prefill(0, 0, np.concatenate([system, one]))

    backend.copy(0, 2, 40)

    both = np.concatenate([system, other])
    np.testing.assert_allclose(backend.prefill(2, 40, other), whole(backend, both), **CLOSE)
    np.testing.assert_allclose(backend.prefill(0, 60, other), whole(backend, np.concatenate([system, one, other])), **CLOSE)


def test_a_full_row_may_stand_between_running_ones(tiny: Path) -> None:
    """A row holds n_ctx - 1 evaluated tokens at most; the token of no meaning must not be written behind its end."""
    backend = SessionBackend(read_folder(tiny), 3, 64, n_threads=1)
    full = tokens(63, 30)
    backend.prefill(1, 0, full)
    text = tokens(10, 31)
    for row in (0, 2):
        backend.prefill(row, 0, text[:9])

    stepped = [row.copy() for row in backend.decode([0, 2], [9, 9], [int(text[9])] * 2)]

    np.testing.assert_allclose(stepped[0], stepped[1], **CLOSE)
    np.testing.assert_allclose(backend.prefill(1, 62, full[62:]), backend.prefill(0, 0, full), **CLOSE)


def test_weights_in_the_graph_or_beside_it_give_the_same(tiny: Path, tmp_path: Path) -> None:
    within = tinymodel.write_llama(tmp_path / "m", is_external=False)
    text = tokens(12, 40)

    logits = [SessionBackend(read_folder(folder), 1, 64, n_threads=1).prefill(0, 0, text) for folder in (tiny, within)]

    np.testing.assert_array_equal(*logits)


def test_an_unchanged_graph_gives_the_same_logits(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tokens(12, 41)
    changed = SessionBackend(read_folder(tiny), 1, 64, n_threads=1)
    monkeypatch.setattr("hostler_onnxgenai.opening.with_last_logits_only", lambda *_: None)
    whole = SessionBackend(read_folder(tiny), 1, 64, n_threads=1)

    assert (changed._gives_last_only, whole._gives_last_only) == (True, False)
    np.testing.assert_allclose(changed.prefill(0, 0, text), whole.prefill(0, 0, text), **CLOSE)


def test_a_changed_graph_that_onnxruntime_refuses_is_loaded_unchanged(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostler_onnxgenai.opening.with_last_logits_only", lambda *_: b"nonsense")

    backend = SessionBackend(read_folder(tiny), 1, 64, n_threads=1)

    assert not backend._gives_last_only
    assert np.isfinite(backend.prefill(0, 0, tokens(5, 1))).all()


def test_int4_weights_are_evaluated(tmp_path: Path) -> None:
    folder = tinymodel.write_llama(tmp_path / "m", bits=4)
    backend = SessionBackend(read_folder(folder), 2, 64, n_threads=1)

    assert np.isfinite(backend.prefill(0, 0, tokens(20, 1))).all()
    assert backend.kv_bytes == 2 * 64 * read_folder(folder).kv_token_bytes


def test_an_opset_too_new_is_refused_with_the_librarys_words(tmp_path: Path) -> None:
    folder = tinymodel.write_llama(tmp_path / "m", opset=99)

    with pytest.raises(ModelLoadFailed, match=r"what onnxruntime .* does not have: .*99.*Update onnxruntime-genai"):
        SessionBackend(read_folder(folder), 1, 64, n_threads=1)


def test_a_broken_graph_is_refused_with_its_file(own: Path) -> None:
    path = own / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"l0.gate", b"l0.gone", 1))

    with pytest.raises((InvalidModelFile, ModelLoadFailed), match=r"model\.onnx cannot be loaded"):
        SessionBackend(read_folder(own), 1, 64, n_threads=1)


def test_what_onnxruntime_cannot_evaluate_is_the_engines_failure(backend: SessionBackend) -> None:
    with pytest.raises(EngineFailed, match="onnxruntime could not evaluate 1 x 1 tokens"):
        backend.prefill(0, 0, np.array([tinymodel.N_VOCAB + 7], np.int32))
