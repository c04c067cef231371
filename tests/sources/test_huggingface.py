"""The source hf:, against a hub on this machine that speaks the protocol."""

from __future__ import annotations

import hashlib

import pytest

from hostler.errors import DownloadFailed, InvalidRequest
from hostler.sources.contract import SourceContext
from hostler.sources.huggingface import HubReference, choose_files, parse_reference, quantisation_of, resolve
from support.hub import FakeHub, FileServer

CONTEXT = SourceContext(timeout_s=20)
FILES = {"README.md": b"#", "m.Q2_K.gguf": b"2", "m.Q4_K_M.gguf": b"4km", "m.Q4_K_S.gguf": b"4ks", "m.Q8_0.gguf": b"8"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        ("hf:o/r", HubReference("o/r")),
        ("hf:o/r:Q4_K_M", HubReference("o/r", None, "Q4_K_M")),
        ("hf:o/r@v1:dir/x.gguf", HubReference("o/r", "v1", "dir/x.gguf")),
        ("hf:o/r:latest", HubReference("o/r")),
        ("https://huggingface.co/o/r", HubReference("o/r")),
        ("https://huggingface.co/o/r/tree/main", HubReference("o/r")),
        ("https://huggingface.co/o/r/blob/main/d/x.gguf?download=true", HubReference("o/r", None, "d/x.gguf")),
        ("https:/huggingface.co/o/r/resolve/v1/x%20y.gguf", HubReference("o/r", "v1", "x y.gguf")),
    ],
)
def test_both_forms_of_a_reference_are_taken_apart(reference, parsed):
    assert parse_reference(reference) == parsed


@pytest.mark.parametrize(
    "reference",
    [
        "hf:", "hf:o", "hf:o/r/x", "hf:o/r:", "hf:o /r", "https://huggingface.co/o", "https://huggingface.co/datasets/o/r",
        "https://huggingface.co/o/r/blob/main/config.json", "https://huggingface.co/o/r/discussions/1",
    ],
)  # fmt: skip
def test_what_names_no_model_is_refused(reference):
    with pytest.raises(InvalidRequest):
        parse_reference(reference)


@pytest.mark.parametrize(
    ("filename", "label"),
    [
        ("zephyr-7b-beta.Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen2-0.5B-q4_0.gguf", "Q4_0"),
        ("x-IQ2_XXS.gguf", "IQ2_XXS"),
        ("x.f16.gguf", "F16"),
        ("big-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("model.gguf", None),
        ("Q4_0/model.gguf", None),
    ],
)
def test_the_label_is_read_from_the_file_name(filename, label):
    assert quantisation_of(filename) == label


def chosen(filenames, choice=None):
    return choose_files(filenames, HubReference("o/r", None, choice))


def test_the_usual_label_is_chosen_when_none_was_asked_for():
    assert chosen(list(FILES)) == ("m.Q4_K_M.gguf",)
    assert chosen(["m.Q8_0.gguf", "m.Q4_0.gguf", "m.Q2_K.gguf"]) == ("m.Q4_0.gguf",)
    assert chosen(["m.Q2_K.gguf", "m.Q8_0.gguf"]) == ("m.Q8_0.gguf",)
    assert chosen(["anything.gguf", "x.json"]) == ("anything.gguf",)


def test_a_label_means_exactly_itself():
    assert chosen(list(FILES), "q4_k_s") == ("m.Q4_K_S.gguf",)
    assert chosen(["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], "UD-Q4_K_XL") == ("m-UD-Q4_K_XL.gguf",)
    with pytest.raises(DownloadFailed, match=r"has no Q4_K; it has m\.Q2_K\.gguf"):
        chosen(["m.Q2_K.gguf"], "Q4_K")


def test_a_file_means_itself_with_or_without_its_folder():
    assert chosen(["d/x.gguf", "y.gguf"], "d/x.gguf") == ("d/x.gguf",)
    assert chosen(["d/x.gguf", "y.gguf"], "x.gguf") == ("d/x.gguf",)
    with pytest.raises(DownloadFailed, match=r"no file 'z\.gguf'; it has d/x\.gguf, y\.gguf"):
        chosen(["d/x.gguf", "y.gguf"], "z.gguf")


def test_split_models_are_taken_whole_in_order_and_incomplete_ones_not_at_all():
    parts = [f"Q4_K_M/m-Q4_K_M-0000{n}-of-00003.gguf" for n in (3, 1, 2)]

    assert chosen(parts) == tuple(sorted(parts))
    assert chosen(parts, "m-Q4_K_M-00002-of-00003.gguf") == tuple(sorted(parts))
    with pytest.raises(DownloadFailed, match="no GGUF file"):
        chosen(parts[:2])


def test_projectors_are_no_models():
    assert chosen(["mmproj-m-f16.gguf", "m.Q4_0.gguf"]) == ("m.Q4_0.gguf",)


def test_several_models_without_labels_must_be_named():
    with pytest.raises(DownloadFailed, match=r"several models.*a\.gguf, b\.gguf"):
        chosen(["a.gguf", "b.gguf"])


def test_a_repository_resolves_to_a_pinned_file_with_its_hash(hub):
    repository = hub.add_repository("o/r", FILES)

    resolved = resolve("hf:o/r:Q8_0", CONTEXT)

    (file,) = resolved.files
    assert file.filename == "m.Q8_0.gguf"
    assert file.url == f"{hub.url}/o/r/resolve/{repository.commit}/m.Q8_0.gguf"
    assert (file.size_bytes, file.sha256) == (1, hashlib.sha256(b"8").hexdigest())
    assert resolved.source_url == "https://huggingface.co/o/r/resolve/main/m.Q8_0.gguf"
    assert resolved.suggested_id == "m.Q8_0"
    assert resolved.metadata["quantization"] == "Q8_0"
    assert resolved.owned_by == "o"


def test_a_url_means_the_same_as_the_short_form(hub):
    hub.add_repository("o/r", FILES)

    by_url = resolve("https://huggingface.co/o/r/blob/main/m.Q2_K.gguf", CONTEXT)

    assert by_url == resolve("hf:o/r:m.Q2_K.gguf", CONTEXT)


def test_a_hostile_file_name_becomes_a_plain_one(hub):
    hub.add_repository("o/r", {"../../etc/x.gguf": b"x"})

    assert resolve("hf:o/r", CONTEXT).files[0].filename == "x.gguf"


def test_a_token_opens_a_private_repository_and_goes_with_the_file(hub):
    hub.add_repository("o/r", FILES, token="hf_secret")

    with pytest.raises(DownloadFailed, match=r"private.*huggingface_token") as raised:
        resolve("hf:o/r", CONTEXT)
    assert "hf_secret" not in raised.value.message

    resolved = resolve("hf:o/r", SourceContext(huggingface_token="hf_secret", timeout_s=20))
    assert resolved.files[0].headers == {"Authorization": "Bearer hf_secret"}


def test_an_unknown_repository_or_revision_is_named(hub):
    hub.add_repository("o/r", FILES)

    with pytest.raises(DownloadFailed, match="o/none is not on the hub"):
        resolve("hf:o/none", CONTEXT)
    with pytest.raises(DownloadFailed, match="no revision 'v9'"):
        resolve("hf:o/r@v9", CONTEXT)


def test_a_bad_repository_name_is_refused_before_it_is_asked_for(hub):
    with pytest.raises(InvalidRequest):
        resolve("hf:o/..r..", CONTEXT)
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_an_error_that_names_it(monkeypatch):
    with FileServer() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)

    with pytest.raises(DownloadFailed, match=f"The hub at {gone.url}"):
        resolve("hf:o/r", CONTEXT)


def test_offline_mode_is_honoured(hub, monkeypatch):
    hub.add_repository("o/r", FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    for context in (CONTEXT, SourceContext(timeout_s=20, proxy=hub.url)):
        with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE"):
            resolve("hf:o/r", context)
    assert hub.asked == []


def test_a_proxy_is_used_for_one_pull_only(hub):
    hub.add_repository("o/r", FILES)

    with FileServer() as proxy:
        with pytest.raises(DownloadFailed):
            resolve("hf:o/r", SourceContext(timeout_s=20, proxy=proxy.url))
        assert proxy.asked[0].path.startswith(f"{hub.url}/api/models/o/r")

        assert resolve("hf:o/r", CONTEXT).suggested_id == "m.Q4_K_M"
        assert len(proxy.asked) == 1


# -- model folders ------------------------------------------------------------------------------------------------------

FOLDERS = {
    "README.md": b"#",
    **{
        f"{folder}/{name}": f"{folder} {name}".encode()
        for folder in ("cpu_and_mobile/cpu-int4-acc-level-4", "cuda/cuda-fp16", "directml/directml-int4")
        for name in ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json")
    },
}


def with_devices(*devices):
    return SourceContext(timeout_s=20, devices=lambda: devices)


def test_a_repository_of_model_folders_gives_that_of_the_installed_device(hub):
    repository = hub.add_repository("o/phi-4-onnx", FOLDERS)

    resolved = resolve("hf:o/phi-4-onnx", with_devices("dml", "cpu"))

    assert resolved.format == "onnxgenai"
    assert [file.filename for file in resolved.files] == [
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
    ]
    assert resolved.files[1].url == f"{hub.url}/o/phi-4-onnx/resolve/{repository.commit}/directml/directml-int4/model.onnx"
    assert resolved.files[1].sha256 == hashlib.sha256(b"directml/directml-int4 model.onnx").hexdigest()
    assert resolved.suggested_id == "phi-4-directml-int4"
    assert resolved.metadata["variant"] == "directml/directml-int4"
    assert "made for dml" in resolved.metadata["variant_reason"]


def test_without_a_word_of_devices_the_cpu_is_meant(hub):
    hub.add_repository("o/r", FOLDERS)

    assert resolve("hf:o/r", CONTEXT).metadata["variant"] == "cpu_and_mobile/cpu-int4-acc-level-4"


@pytest.mark.parametrize(
    "reference",
    [
        "hf:o/r:cuda/cuda-fp16", "hf:o/r:cuda-fp16", "https://huggingface.co/o/r/tree/main/cuda/cuda-fp16",
        "https://huggingface.co/o/r/blob/main/cuda/cuda-fp16/genai_config.json",
    ],
)  # fmt: skip
def test_a_folder_can_be_asked_for(hub, reference):
    hub.add_repository("o/r", FOLDERS)

    resolved = resolve(reference, CONTEXT)

    assert resolved.metadata["variant"] == "cuda/cuda-fp16"
    assert resolve(resolved.source_url, CONTEXT) == resolved, "what is kept in the manifest means the same again"


def test_a_folder_in_the_root_is_a_model_whose_address_says_so(hub):
    hub.add_repository(
        "o/Tiny_ONNX", {"genai_config.json": b"{}", "model.onnx": b"m", "README.md": b"#", "config.json": b"{}"}
    )

    resolved = resolve("hf:o/Tiny_ONNX@main", CONTEXT)

    assert resolved.source_url == "hf:o/Tiny_ONNX@main:genai_config.json"
    assert (resolved.suggested_id, resolved.metadata["variant"]) == ("Tiny", "genai_config.json")
    assert [file.filename for file in resolved.files] == ["genai_config.json", "config.json", "model.onnx"]
    assert resolve(resolved.source_url, CONTEXT).files == resolved.files


def test_gguf_is_meant_where_a_repository_has_both_unless_a_folder_is_named(hub):
    hub.add_repository("o/r", {**FOLDERS, **FILES})

    assert resolve("hf:o/r", CONTEXT).format == "gguf"
    assert resolve("hf:o/r:Q8_0", CONTEXT).files[0].filename == "m.Q8_0.gguf"
    assert resolve("hf:o/r:cpu-int4-acc-level-4", CONTEXT).format == "onnxgenai"


def test_a_folder_that_is_not_there_is_an_error_that_lists_what_is(hub):
    hub.add_repository("o/r", FOLDERS)

    with pytest.raises(DownloadFailed, match=r"has no Q4_K_M; it has the model folders cpu_and_mobile/cpu-int4-acc-level-4"):
        resolve("hf:o/r:Q4_K_M", CONTEXT)
    with pytest.raises(DownloadFailed, match="no GGUF file and no folder"):
        resolve("hf:o/empty", CONTEXT) if hub.add_repository("o/empty", {"README.md": b"#"}) else None
