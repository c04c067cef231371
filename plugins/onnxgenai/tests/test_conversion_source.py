"""What can be converted, what its headers say, and what is refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hostler import InvalidModelFile, InvalidRequest, ModelNotDownloaded, ModelNotFound
from hostler.config import load_settings
from hostler.library.store import Library
from hostler_onnxgenai.conversion.source import GGUF, SAFETENSORS, find_source, source_at
from hostler_onnxgenai.conversion.target import QUANTS, default_id, needs_of
from library.gguf_files import LLAMA_TENSORS, Tensor, llama_metadata, write_gguf

from .converting import write_folder, write_safetensors, write_source


@pytest.fixture
def settings(tmp_path: Path):
    return load_settings(tmp_path / "home", {}, {})


def test_a_model_of_this_home_is_found_by_its_name(settings, tmp_path: Path) -> None:
    path = write_source(tmp_path)
    Library(settings.home, {}).import_path(path, id="small", name="Small")
    Library(settings.home, {}).update("small", parameters={"temperature": 0.3}, metadata={"license": "MIT", "note": "mine"})

    source = find_source(settings, "small")

    assert (source.id, source.reference, source.kind, source.path) == ("small", "small", GGUF, path)
    assert (source.name, source.quantization, source.is_tied) == ("Small", "Q4_1", True)
    assert (source.n_params, source.n_vocab, source.n_embedding) == (64 * 4 + 64, 4, 64 * 4)
    assert source.parameters == {"temperature": 0.3}
    assert source.metadata == {"license": "MIT", "size": "320"}


def test_a_path_is_a_source_of_its_own(settings, tmp_path: Path) -> None:
    path = write_source(tmp_path, "Some Model.Q4_1.gguf")

    source = find_source(settings, str(path))

    assert (source.id, source.reference) == ("Some Model.Q4_1", path.as_uri())


def test_a_folder_of_the_current_directory_is_found_after_the_models(settings, tmp_path: Path, monkeypatch) -> None:
    write_folder(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)

    assert find_source(settings, "tiny").kind == SAFETENSORS


def test_what_nobody_knows_and_what_is_not_here_are_told_apart(settings) -> None:
    with pytest.raises(ModelNotFound, match="The model nope does not exist"):
        find_source(settings, "nope")
    with pytest.raises(ModelNotDownloaded, match="hostler pull smollm2-135m-instruct"):
        find_source(settings, "smollm2")
    with pytest.raises(InvalidRequest, match="does not exist"):
        find_source(settings, "./nope.gguf")


def test_a_folder_s_weights_are_counted_from_its_headers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    write_safetensors(folder / "model-2.safetensors", {"lm_head.weight": [100, 8]})

    source = source_at(folder)

    assert (source.kind, source.n_params, source.n_vocab, source.n_embedding) == (SAFETENSORS, 800 + 8 + 800, 100, 800)
    assert (source.is_tied, source.quantization) == (True, "bfloat16")


def test_another_file_is_another_fingerprint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    before = source_at(folder).fingerprint()

    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [101, 8]})

    assert source_at(folder).fingerprint() != before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is no JSON object"),
        (lambda folder: (folder / "config.json").write_text("{" * 10_000), "is no JSON object"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no .safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "is no safetensors file, or it was cut off"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "is no safetensors file, or it was cut off"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"nope"),
            "header that cannot be read",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
            "its header speaks of",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}'),
            "is quantized already",
        ),
        (lambda folder: (folder / "genai_config.json").write_text("{}"), "is in this format already"),
    ],
)
def test_a_folder_that_cannot_be_converted_is_refused_with_the_reason(tmp_path: Path, spoil, message: str) -> None:
    folder = write_folder(tmp_path / "tiny")
    spoil(folder)

    with pytest.raises((InvalidRequest, InvalidModelFile), match=message):
        source_at(folder)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"split.count": 3, "split.no": 0}, LLAMA_TENSORS, "one of 3 parts.*llama-gguf-split --merge"),
        ({}, (Tensor("output_norm.weight", (64,)),), "no token embedding"),
    ],
)
def test_a_gguf_file_that_cannot_be_converted_is_refused(tmp_path: Path, metadata, tensors, message: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", llama_metadata(**metadata), tensors)

    with pytest.raises(InvalidRequest, match=message):
        source_at(path)


def test_a_broken_gguf_file_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    (tmp_path / "x.bin").write_bytes(b"x")

    with pytest.raises(InvalidModelFile, match=r"x\.gguf"):
        source_at(tmp_path / "x.gguf")
    with pytest.raises(InvalidRequest, match="neither a GGUF file nor a folder"):
        source_at(tmp_path / "x.bin")


def test_a_model_of_another_format_is_refused(settings, tiny: Path) -> None:
    Library(settings.home, {}).import_path(tiny, id="made")

    with pytest.raises(InvalidRequest, match="made has the format onnxgenai"):
        find_source(settings, "made")


# -- what it takes ----------------------------------------------------------------------------------------------------


def smollm2(tmp_path: Path, *, is_tied: bool = True):
    from hostler_onnxgenai.conversion.source import Source

    return Source(
        id="smollm2",
        reference="smollm2",
        kind=GGUF,
        path=tmp_path,
        files=(),
        n_params=134_515_008,
        n_vocab=49_152,
        n_embedding=28_311_552,
        rotary_bytes=8192 * 64 * 4,
        is_tied=is_tied,
        quantization="Q4_1",
        name="SmolLM2",
    )


@pytest.mark.parametrize(("quant", "measured"), [("int4", 90), ("int4-mixed", 116), ("int8", 264), ("fp32", 543)])
def test_the_result_s_estimate_is_at_or_above_what_was_measured(tmp_path: Path, quant: str, measured: int) -> None:
    """MB, of SmolLM2-135M by onnxruntime-genai 0.18."""
    needs = needs_of(smollm2(tmp_path), QUANTS[quant], "cpu")

    assert measured * 1e6 <= needs.result_bytes <= 1.4 * measured * 1e6
    assert needs.disk_bytes == needs.result_bytes + needs.export_bytes + needs.reference_bytes
    assert needs.export_bytes >= 541_600_000


@pytest.mark.parametrize(("quant", "measured"), [("fp32", 1_173_054_998), ("int4", 268_400_000), ("int4-mixed", 369_800_000)])
def test_the_estimate_holds_for_a_large_vocabulary_and_a_long_context(tmp_path: Path, quant: str, measured: int) -> None:
    """Gemma 3 270M from Q4_K_M."""
    gemma = msgspec.structs.replace(
        smollm2(tmp_path), n_params=268_098_176, n_vocab=262_144, n_embedding=262_144 * 640, rotary_bytes=2 * 32_768 * 256 * 4
    )

    needs = needs_of(gemma, QUANTS[quant], "cpu")

    assert measured <= needs.result_bytes <= 1.3 * measured
    assert needs.export_bytes >= 1_105_800_000


@pytest.mark.parametrize(("quant", "measured"), [("int4", 1784), ("int4-mixed", 2731), ("int8", 2002), ("fp32", 1170)])
def test_the_estimate_of_memory_is_at_or_above_what_was_measured(tmp_path: Path, quant: str, measured: int) -> None:
    needs = needs_of(smollm2(tmp_path), QUANTS[quant], "cpu")

    assert measured * 1e6 <= needs.memory_bytes <= 1.3 * measured * 1e6


def test_a_folder_needs_no_export(tmp_path: Path) -> None:
    assert needs_of(source_at(write_folder(tmp_path / "tiny")), QUANTS["int4"], "cpu").export_bytes == 0


def test_an_embedding_of_its_own_stays_larger(tmp_path: Path) -> None:
    tied, untied = (needs_of(smollm2(tmp_path, is_tied=is_tied), QUANTS["int4"], "cpu") for is_tied in (True, False))

    assert untied.result_bytes - tied.result_bytes > 3 * 28_311_552


def test_half_precision_is_not_made_for_the_cpu() -> None:
    assert {name for name, quant in QUANTS.items() if "cpu" in quant.devices} == {"int4", "int4-mixed", "int8", "fp32"}
    assert {name for name, quant in QUANTS.items() if "dml" in quant.devices} == {"int4", "fp16"}


def test_the_id_says_the_precision_and_the_device_that_is_not_the_cpu(tmp_path: Path) -> None:
    source = smollm2(tmp_path)

    assert default_id(source, "int4", "cpu") == "smollm2-onnx-int4"
    assert default_id(source, "fp16", "cuda") == "smollm2-onnx-cuda-fp16"
