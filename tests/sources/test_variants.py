"""Model folders by device in one repository: which one is taken, and what is said of it."""

from __future__ import annotations

import pytest

from hostler.errors import DownloadFailed
from hostler.sources.variants import Variant, choose_variant, variants_in

PHI = [
    "README.md", "LICENSE", ".gitattributes",
    *(
        f"{folder}/{name}"
        for folder in (
            "cpu_and_mobile/cpu-int4-rtn-block-32", "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4",
            "cuda/cuda-fp16", "cuda/cuda-int4-rtn-block-32", "directml/directml-int4-awq-block-128",
        )
        for name in ("model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "configuration.py", "notes.md")
    ),
]  # fmt: skip
"""The layout of a well-known repository."""


def chosen(filenames, wanted=None, devices=("cpu",)):
    choice = choose_variant(variants_in(filenames), wanted, devices, "o/r on the hub")
    return None if choice is None else (choice.variant.folder, choice.reason)


def folder(*parts):
    return [f"{part}/{name}" for part in parts for name in ("genai_config.json", "model.onnx")]


def test_folders_with_a_configuration_and_a_graph_are_variants():
    assert [variant.folder for variant in variants_in(PHI)] == [
        "cpu_and_mobile/cpu-int4-rtn-block-32",
        "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4",
        "cuda/cuda-fp16",
        "cuda/cuda-int4-rtn-block-32",
        "directml/directml-int4-awq-block-128",
    ]
    assert variants_in(["genai_config.json", "model.gguf"]) == []


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("cpu",), "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"),
        (("cuda", "cpu"), "cuda/cuda-int4-rtn-block-32"),
        (("dml", "cpu"), "directml/directml-int4-awq-block-128"),
    ],
)
def test_the_variant_is_that_of_the_installed_engines_device(devices, expected):
    path, reason = chosen(PHI, devices=devices)

    assert path == expected
    assert f"made for {devices[0]}" in reason


def test_the_next_device_is_taken_when_there_is_no_variant_for_the_best():
    assert chosen(folder("cpu/cpu-int4", "npu/qnn-int4"), devices=("dml", "cpu"))[0] == "cpu/cpu-int4"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("cuda/cuda-fp16", "cuda/cuda-fp16"),
        ("cuda-fp16", "cuda/cuda-fp16"),
        ("CUDA-FP16", "cuda/cuda-fp16"),
        ("fp16", "cuda/cuda-fp16"),
        ("cuda/cuda-fp16/genai_config.json", "cuda/cuda-fp16"),
        ("directml", "directml/directml-int4-awq-block-128"),
        ("dml", "directml/directml-int4-awq-block-128"),
        ("int4", "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"),
        ("cpu-int4-rtn-block-32", "cpu_and_mobile/cpu-int4-rtn-block-32"),
    ],
)
def test_a_variant_can_be_asked_for_by_name(wanted, expected):
    assert chosen(PHI, wanted)[0] == expected


def test_a_name_that_no_variant_has_is_no_choice():
    assert chosen(PHI, "Q4_K_M") is None


def test_what_was_asked_for_is_not_what_this_machine_runs_on():
    with pytest.raises(DownloadFailed, match=r"no variant 'cuda' for cpu.*cuda/cuda-fp16, cuda/cuda-int4"):
        chosen(PHI, "cuda")
    with pytest.raises(DownloadFailed, match=r"no variant for cpu.*npu/qnn-int4, webgpu/webgpu-int4.*with :FOLDER"):
        chosen(folder("npu/qnn-int4", "webgpu/webgpu-int4"))


def test_the_only_variant_is_taken_whatever_it_is_called():
    assert chosen(folder("gpu/gpu-int4")) == ("gpu/gpu-int4", "it is the only one there")
    assert chosen(["genai_config.json", "model.onnx"])[0] == ""


def test_variants_without_a_device_in_their_name_are_better_than_none():
    assert chosen(folder("cuda/cuda-fp16", "onnx/int4", "onnx/fp32")) == (
        "onnx/int4",
        "its name says no device, the best of 2 by size and speed",
    )


def test_several_models_in_one_repository_must_be_narrowed():
    two = folder("qwen-1.5B/cpu-int4", "qwen-1.5B/gpu-int4", "qwen-7B/cpu-int4")

    with pytest.raises(DownloadFailed, match=r"several models.*qwen-1\.5B/cpu-int4, qwen-1\.5B/gpu-int4, qwen-7B/cpu-int4"):
        chosen(two)
    assert chosen(two, "qwen-1.5B")[0] == "qwen-1.5B/cpu-int4"


def test_files_are_those_of_the_folder_that_an_engine_opens():
    assert Variant("cuda/cuda-fp16").files(PHI) == (
        "cuda/cuda-fp16/genai_config.json",
        "cuda/cuda-fp16/model.onnx",
        "cuda/cuda-fp16/model.onnx.data",
        "cuda/cuda-fp16/tokenizer.json",
    )
    assert Variant("").files(
        ["model.onnx", "genai_config.json", "README.md", "x/model.onnx", "LICENSE.txt", ".gitattributes"]
    ) == (
        "genai_config.json",
        "model.onnx",
    )
