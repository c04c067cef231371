"""GGUF headers as the library sees them. Each way of being malformed is tested in cpp/tests/test_gguf_header.cpp."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler import _native
from hostler.errors import InvalidModelFile
from hostler.library import gguf
from hostler.library.gguf import GgufArray, GgufHeader, read_gguf_array, read_gguf_header, read_gguf_tensors
from library.gguf_files import (
    F64,
    I8,
    I16,
    LLAMA_TENSORS,
    Q4_1,
    U8,
    U16,
    U64,
    Tensor,
    Typed,
    gguf_bytes,
    llama_metadata,
    write_gguf,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def header_of(path: Path, **changes: Any) -> GgufHeader:
    return read_gguf_header(write_gguf(path, llama_metadata(**changes), LLAMA_TENSORS))


def test_header_tells_what_a_llama_is(path: Path) -> None:
    header = header_of(path)

    assert header.architecture == "llama"
    assert header.name == "Tiny"
    assert header.quantization == "Q4_1"
    assert (header.context_length, header.n_layers, header.n_embd) == (512, 2, 64)
    assert (header.n_head, header.n_head_kv, header.n_head_kv_per_layer) == (4, 2, (2, 2))
    assert (header.key_length, header.value_length) == (16, 16)
    assert (header.n_vocab, header.bos_token_id, header.eos_token_id) == (4, 0, 1)
    assert header.chat_template == "{{ messages }}"
    assert header.sliding_window is None
    assert header.n_experts is None
    assert not header.is_split
    assert header.is_first_part


def test_header_adds_up_the_tensors(path: Path) -> None:
    header = header_of(path)

    assert (header.n_tensors, header.n_params, header.tensor_bytes) == (2, 320, 160 + 256)
    assert [(use.type, use.n_tensors, use.n_bytes) for use in header.tensor_types] == [("F32", 1, 256), ("Q4_1", 1, 160)]
    assert header.file_bytes == path.stat().st_size
    assert header.data_offset % header.alignment == 0


@pytest.mark.weights
def test_header_of_the_real_model_is_what_its_card_says(smollm2_path: Path) -> None:
    header = read_gguf_header(smollm2_path)

    assert (header.architecture, header.quantization, header.size_label) == ("llama", "Q4_1", "135M")
    assert (header.context_length, header.n_layers, header.n_embd, header.n_vocab) == (8192, 30, 576, 49152)
    assert (header.n_head, header.n_head_kv, header.key_length) == (9, 3, 64)
    assert (header.bos_token_id, header.eos_token_id) == (1, 2)
    assert header.n_params == 134_515_008
    assert header.data_offset + header.tensor_bytes <= header.file_bytes
    assert "<|im_start|>" in (header.chat_template or "")
    assert header.metadata["tokenizer.ggml.merges"] == GgufArray("string", 48_900)
    tokens = read_gguf_array(smollm2_path, "tokenizer.ggml.tokens")
    assert tokens is not None
    assert tokens[1:3] == ("<|im_start|>", "<|im_end|>")


def test_values_that_differ_by_layer_are_kept_by_layer(path: Path) -> None:
    header = header_of(
        path,
        **{"llama.attention.head_count": [4, 8], "llama.attention.head_count_kv": [0, 2], "llama.attention.key_length": 24},
    )

    assert (header.n_head, header.n_head_per_layer) == (8, (4, 8))
    assert (header.n_head_kv, header.n_head_kv_per_layer) == (2, (0, 2))
    assert (header.key_length, header.value_length) == (24, 8)


def test_key_and_value_heads_default_to_the_attention_heads(path: Path) -> None:
    header = header_of(path, **{"llama.attention.head_count_kv": None})

    assert header.n_head_kv == 4


@pytest.mark.parametrize(
    ("file_type", "label"), [(15, "Q4_K_M"), (0, "F32"), (38, "MXFP4_MOE"), (999, "F32"), (None, "F32"), ("3", "F32")]
)
def test_quantization_is_the_file_type_else_the_type_of_most_bytes(path: Path, file_type: object, label: str) -> None:
    header = header_of(path, **{"general.file_type": file_type})

    assert header.quantization == label


@pytest.mark.parametrize(
    ("dims", "label"),
    [((999,), "999"), ((1000,), "1.0K"), ((1000, 135), "135K"), ((1000, 1000, 7), "7.0M")],
)
def test_size_label_is_counted_where_the_file_has_none(path: Path, dims: tuple[int, ...], label: str) -> None:
    header = read_gguf_header(write_gguf(path, {"general.architecture": "llama"}, [Tensor("a", dims, 99)]))

    assert header.size_label == label


def test_split_files_say_which_part_they_are(path: Path) -> None:
    second = {"split.count": U16(3), "split.no": U16(1), "split.tensors.count": 9}

    header = read_gguf_header(write_gguf(path, second, LLAMA_TENSORS))

    assert (header.is_split, header.split_count, header.split_index) == (True, 3, 1)
    assert not header.is_first_part
    assert header.architecture == ""
    assert header.size_label is None


def test_values_of_a_wrong_type_are_as_if_they_were_not_there(path: Path) -> None:
    header = header_of(
        path,
        **{
            "general.architecture": "llama",
            "general.name": 5,
            "llama.context_length": "many",
            "llama.block_count": True,
            "llama.embedding_length": 0.5,
            "llama.attention.head_count": ["four"],
            "llama.attention.head_count_kv": [True, False],
            "tokenizer.chat_template": ["a", "b"],
        },
    )

    assert header.name is None
    assert header.context_length is None
    assert header.n_layers is None
    assert header.n_embd is None
    assert header.n_head is None
    assert header.n_head_kv is None
    assert header.key_length is None
    assert header.chat_template is None


def test_long_arrays_are_summarised_and_read_whole_on_request(path: Path) -> None:
    tokens = [f"token {n}" for n in range(3000)]
    write_gguf(path, {"tokenizer.ggml.tokens": tokens, "numbers": [I16(-1), I16(5)], "text": "x"})

    header = read_gguf_header(path)

    assert header.metadata["tokenizer.ggml.tokens"] == GgufArray("string", 3000)
    assert header.metadata["numbers"] == (-1, 5)
    assert header.n_vocab == 3000
    assert read_gguf_array(path, "tokenizer.ggml.tokens") == tuple(tokens)
    assert read_gguf_array(path, "numbers") == (-1, 5)
    assert read_gguf_array(path, "missing") is None
    assert read_gguf_array(path, "text") is None


def test_tensors_are_listed_with_their_places(path: Path) -> None:
    header = header_of(path)

    first, second = read_gguf_tensors(path)

    assert (first.name, first.type, first.dims, first.n_bytes) == ("token_embd.weight", "Q4_1", (64, 4), 160)
    assert first.offset == header.data_offset
    assert second.offset == header.data_offset + 160


def test_text_that_is_no_utf8_is_shown_with_replacements(path: Path) -> None:
    write_gguf(path, {"general.name": b"caf\xe9"})

    assert read_gguf_header(path).name == "caf�"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no GGUF"),
        (b"<!DOCTYPE html><html>not found</html>", "does not begin with"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (gguf_bytes(llama_metadata(), LLAMA_TENSORS)[:100], "download it again"),
        (gguf_bytes(llama_metadata(), LLAMA_TENSORS)[:-300], "it is truncated, download it again"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors; 65536 are allowed"),
    ],
)
def test_malformed_files_are_refused_with_path_reason_and_place(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)

    with pytest.raises(InvalidModelFile, match=reason) as caught:
        read_gguf_header(path)

    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert "at byte " in str(caught.value)


def test_a_folder_is_refused_and_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFile, match="no regular file"):
        read_gguf_header(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_gguf_header(tmp_path / "missing.gguf")
    with pytest.raises(FileNotFoundError):
        read_gguf_tensors(tmp_path / "missing.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")

    with pytest.raises(InvalidModelFile, match="no regular file"):
        read_gguf_header(tmp_path / "model.gguf")


def test_unchanged_file_is_not_read_again_and_a_changed_one_is(path: Path) -> None:
    first = header_of(path)

    assert read_gguf_header(path) is first
    write_gguf(path, llama_metadata(**{"general.name": "Another name"}), LLAMA_TENSORS)
    assert read_gguf_header(path).name == "Another name"


def test_remembered_headers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_REMEMBERED", 3)
    paths = [write_gguf(tmp_path / f"{n}.gguf", llama_metadata()) for n in range(5)]

    first = read_gguf_header(paths[0])
    for other in paths[1:]:
        read_gguf_header(other)

    assert len(gguf._remembered) == 3
    assert read_gguf_header(paths[0]) is not first


# -- fuzzing ----------------------------------------------------------------------------------------------------------

names = st.text(st.characters(min_codepoint=0x20, exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda name: name != "general.alignment"
)
scalars = st.one_of(
    st.booleans(),
    st.text(max_size=20),
    st.integers(min_value=-(2**63), max_value=2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.builds(F64, st.floats(allow_nan=False)),
    st.builds(U8, st.integers(0, 255)),
    st.builds(I8, st.integers(-128, 127)),
    st.builds(U64, st.integers(0, 2**64 - 1)),
)
arrays = st.one_of(
    st.lists(st.text(max_size=8), max_size=6),
    st.lists(st.booleans(), max_size=6),
    st.lists(st.builds(F64, st.floats(allow_nan=False)), max_size=6),
    st.lists(st.builds(U16, st.integers(0, 65535)), min_size=1, max_size=6),
)
metadatas = st.dictionaries(names, st.one_of(scalars, arrays), max_size=8)
tensor_lists = st.lists(
    st.builds(Tensor, names, st.lists(st.integers(0, 4).map(lambda n: n * 32), max_size=3), st.sampled_from([0, 1, 3, 8])),
    max_size=4,
    unique_by=lambda tensor: tensor.name,
)


def plain(value: Any) -> Any:
    if isinstance(value, Typed):
        return value.value
    return tuple(plain(item) for item in value) if isinstance(value, list) else value


@given(metadatas, tensor_lists)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_sound_file_is_read_as_it_was_written(path: Path, metadata: dict[str, Any], tensors: list[Tensor]) -> None:
    tensors = [tensor for tensor in tensors if tensor.dims or tensor.type not in (3, 8)]  # a block needs its values
    write_gguf(path, metadata, tensors)

    header = read_gguf_header(path)
    listed = read_gguf_tensors(path)

    assert dict(header.metadata) == {key: plain(value) for key, value in metadata.items()}
    assert [(tensor.name, tensor.dims, tensor.n_bytes) for tensor in listed] == [
        (tensor.name, tuple(tensor.dims), tensor.n_bytes) for tensor in tensors
    ]


@given(st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_damaged_file_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    """Through Python's conversions, too; the native reader's own fuzzing runs under sanitizers."""
    content = bytearray(gguf_bytes(llama_metadata(), [*LLAMA_TENSORS, Tensor("x", (32, 2), Q4_1)]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        damage = data.draw(st.sampled_from([b"\xff", b"\x00", bytes(8), b"\xff" * 8, struct.pack("<Q", 2**31)]))
        content[at : at + len(damage)] = damage
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])

    try:
        header = read_gguf_header(path)
    except InvalidModelFile:
        return

    assert header.data_offset + header.tensor_bytes <= header.file_bytes or header.n_tensors == 0
    for name in ("quantization", "size_label", "n_head_kv_per_layer", "key_length", "n_vocab", "chat_template"):
        getattr(header, name)


def test_limits_are_those_of_the_native_reader(path: Path) -> None:
    header_of(path)
    limits = _native.GgufLimits()
    limits.max_metadata = 3

    with pytest.raises(_native.GgufError, match="12 metadata pairs; 3 are allowed"):
        _native.read_gguf_header(path, limits=limits)
