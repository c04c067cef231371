"""Model folders: what they say, and what is refused before any library sees it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hostler import InvalidModelFile, ModelLoadFailed
from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.folder import chat_template, read_folder, token_text, tokenizer_config
from hostler_onnxgenai.onnxfile import read_onnx

from .spoiling import change_config


def test_folder_tells_what_a_run_needs(tiny: Path) -> None:
    folder = read_folder(tiny)

    assert (folder.n_layers, folder.n_heads_kv, folder.n_head, folder.hidden_size) == (3, 2, 16, 64)
    assert (folder.n_vocab, folder.context_length) == (tinymodel.N_VOCAB, tinymodel.N_CTX)
    assert folder.kv_token_bytes == 3 * 2 * 2 * 16 * 4
    assert folder.weights_bytes == sum((tiny / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert (folder.end_tokens, folder.bos_token) == ((tinymodel.END,), tinymodel.TURN)
    assert (folder.provider, folder.position_ids, folder.objection) == ("cpu", None, "")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("genai_config.json", r"genai_config\.json is missing"),
        ("model.onnx", r"names 'model\.onnx', and .* is missing"),
        ("model.onnx.data", r"model\.onnx\.data.* is missing"),
        ("tokenizer.json", r"tokenizer\.json is missing"),
    ],
)
def test_a_missing_file_is_named(own: Path, name: str, match: str) -> None:
    (own / name).unlink()

    with pytest.raises(InvalidModelFile, match=match):
        read_folder(own)


def test_a_folder_without_one_is_told_so(own: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="is no folder"):
        read_folder(own / "model.onnx")


def test_truncated_external_data_is_refused_with_both_sizes(own: Path) -> None:
    data = own / "model.onnx.data"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[: size // 2])

    with pytest.raises(InvalidModelFile, match=rf"model\.onnx\.data has {size // 2} bytes .* refers to {size}"):
        read_folder(own)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model": 3}', "{}", "\udcff{}", "[" * 100_000])
def test_a_config_that_is_no_config_is_refused(own: Path, content: str) -> None:
    (own / "genai_config.json").write_text(content, errors="surrogateescape")

    with pytest.raises(InvalidModelFile, match=r"genai_config\.json"):
        read_folder(own)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("model.context_length", 0, "context_length is 0"),
        ("model.context_length", "long", r"\$\.model\.context_length"),
        ("model.vocab_size", 99_999, "says vocab_size 99999, and model.onnx computes 338"),
        ("model.vocab_size", 100, "says vocab_size 100, and model.onnx computes 338"),
        ("model.vocab_size", 0, "says vocab_size 0"),
        ("model.context_length", 2049, r"says context_length 2049, and model\.onnx has rotary embeddings for 2048 positions"),
        ("model.decoder.num_attention_heads", 8, r"says 8 heads, and model\.onnx has 4"),
        ("model.eos_token_id", 338, r"says eos_token_id \[338\], and the vocabulary has 338 tokens"),
        ("model.decoder.num_hidden_layers", 2, r"says 2 layers, and model\.onnx has more: past_key_values\.2\.key"),
        ("model.decoder.num_hidden_layers", 4, r"says 4 layers, and model\.onnx has KV caches for 3"),
        ("model.decoder.num_key_value_heads", 3, r"says 3 KV heads, and model\.onnx has 2 in layer 0"),
        ("model.decoder.head_size", 32, r"says 32 as head size, and model\.onnx has 16"),
        ("model.decoder.outputs.logits", "scores", "no output named 'scores'"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(own: Path, path: str, value: object, match: str) -> None:
    change_config(own, path, value)

    with pytest.raises(InvalidModelFile, match=match):
        read_folder(own)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "C:\\model.onnx", "a/../../model.onnx", "", "\0"])
def test_a_path_out_of_the_folder_is_refused(own: Path, name: str) -> None:
    change_config(own, "model.decoder.filename", name)

    with pytest.raises(InvalidModelFile, match="no file inside the model's folder"):
        read_folder(own)


def test_external_data_out_of_the_folder_is_refused(own: Path) -> None:
    path = own / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"model.onnx.data", b"../../../shadow"))

    with pytest.raises(InvalidModelFile, match=r"names '\.\./\.\./\.\./shadow'"):
        read_folder(own)


@pytest.mark.parametrize("path", ["model.decoder.session_options", "model.encoder.session_options", "search"])
def test_custom_operators_are_refused_wherever_they_stand(own: Path, path: str) -> None:
    change_config(own, f"{path}.custom_ops_library", "evil.so")

    with pytest.raises(InvalidModelFile, match=r"custom_ops_library 'evil\.so'.*no code out of model folders"):
        read_folder(own)


@pytest.mark.parametrize("option", ["optimized_model_filepath", "session.optimized_model_filepath", "enable_profiling"])
def test_session_options_that_could_write_are_refused(own: Path, option: str) -> None:
    change_config(own, "model.decoder.session_options", {option: "/tmp/x"})

    with pytest.raises(InvalidModelFile, match=f"session option '{option}'"):
        read_folder(own)


@pytest.mark.parametrize("device", ["cuda", "dml", "cpu"])
def test_an_unknown_provider_option_is_refused_by_name(own: Path, device: str) -> None:
    change_config(own, "model.decoder.session_options", {"provider_options": [{device: {"backend_path": "x.so"}}]})

    with pytest.raises(InvalidModelFile, match=f"option 'backend_path' of {device}"):
        read_folder(own)


@pytest.mark.parametrize(
    ("options", "provider"),
    [([], "cpu"), ([{"cuda": {"enable_cuda_graph": "0"}}], "cuda"), ([{"dml": {}}], "dml"), ([{"cpu": {}}], "cpu")],
)
def test_folder_tells_what_it_was_exported_for(own: Path, options: list[object], provider: str) -> None:
    change_config(own, "model.decoder.session_options", {"log_id": "x", "provider_options": options})

    folder = read_folder(own)

    assert folder.provider == provider
    assert folder.provider_options == ({"enable_cuda_graph": "0"} if provider == "cuda" else {})


def test_an_export_for_a_foreign_device_is_refused(own: Path) -> None:
    change_config(own, "model.decoder.session_options", {"provider_options": [{"qnn": {"backend_path": "QnnHtp.dll"}}]})

    with pytest.raises(ModelLoadFailed, match=r"exported for 'qnn'.*take another variant"):
        read_folder(own)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("model.vision", "images"),
        ("model.speech", "speech"),
        ("model.encoder", "an encoder"),
        ("model.decoder.pipeline", "several graphs"),
    ],
)
def test_models_of_other_kinds_are_refused(own: Path, path: str, match: str) -> None:
    change_config(own, path, {"filename": "x.onnx"})

    with pytest.raises(ModelLoadFailed, match=match):
        read_folder(own)


@pytest.mark.parametrize(
    ("path", "value", "objection"),
    [
        ("model.decoder.sliding_window", {"window_size": 64}, "slides"),
        ("search.past_present_share_buffer", False, "new one in every step"),
        ("model.decoder.inputs.attention_mask", "mask", "inputs that are no KV cache"),
    ],
)
def test_what_a_plain_session_cannot_run_is_noted_and_not_refused(own: Path, path: str, value: object, objection: str) -> None:
    change_config(own, path, value)

    assert objection in read_folder(own).objection


def test_a_graph_that_branches_by_length_is_noted(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi's long rotary embeddings: rows of different lengths in one run would share one branch."""
    graph = read_onnx(own / "model.onnx")
    branching = msgspec.structs.replace(graph, operators=graph.operators | {"If"})
    monkeypatch.setattr("hostler_onnxgenai.folder.read_onnx", lambda _: branching)

    assert "above some length" in read_folder(own).objection


def test_an_export_with_paged_attention_is_refused_and_says_what_to_take(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read_onnx(own / "model.onnx")
    paged = msgspec.structs.replace(graph, operators=frozenset({"PagedAttention"}))
    monkeypatch.setattr("hostler_onnxgenai.folder.read_onnx", lambda _: paged)

    with pytest.raises(ModelLoadFailed, match="export without use_paged_attention"):
        read_folder(own)


def test_other_attention_is_noted(own: Path) -> None:
    path = own / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"GroupQueryAttention", b"MultiHeadAttentions"))

    assert "cannot write into a KV cache in place" in read_folder(own).objection


def test_a_tokenizer_of_another_format_says_how_to_convert_it(own: Path) -> None:
    (own / "tokenizer.json").rename(own / "tokenizer.model")

    with pytest.raises(InvalidModelFile, match="save_pretrained"):
        read_folder(own)


def test_chat_template_comes_from_its_own_file_first(own: Path) -> None:
    assert chat_template(own) == tinymodel.TEMPLATE

    (own / "chat_template.jinja").unlink()
    assert chat_template(own) is None

    (own / "tokenizer_config.json").write_text('{"chat_template": "{{ 1 }}"}')
    assert chat_template(own) == "{{ 1 }}"

    templates = '[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]'
    (own / "tokenizer_config.json").write_text(f'{{"chat_template": {templates}}}')
    assert chat_template(own) == "d"


def test_special_texts_are_strings_or_objects(own: Path) -> None:
    config = tokenizer_config(own)

    assert (token_text(config, "eos_token"), token_text(config, "bos_token"), token_text(config, "x")) == (
        "<|end|>",
        "<|turn|>",
        "",
    )
