"""Downloads through the library: jobs, joining, stopping, resuming, refusing."""

from __future__ import annotations

import hashlib
import threading

import pytest

from hostler.domain import Lifecycle
from hostler.errors import (
    DownloadFailed,
    InsufficientStorage,
    InvalidModelFile,
    InvalidRequest,
    MissingParameter,
    ModelExists,
    ModelNotFound,
    RequestCancelled,
)
from hostler.sources.contract import SourceContext
from support.tiny_gguf import tiny_gguf

WAIT_S = 30
DATA = tiny_gguf(padding=300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
HALF = 150_000


@pytest.fixture
def models(tmp_path):
    return tmp_path / "home" / "models"


def pulled(library, reference, **options):
    """Pull and wait; the entry."""
    job = library.pull(reference, **options)
    assert job.wait(WAIT_S)
    job.result()
    return library.find(job.id)


def held(library, served, reference, **options):
    """Start a pull and wait until half of the file has arrived and the server is silent."""
    served.hold_after = HALF
    served.held.clear()
    served.released.clear()
    job = library.pull(reference, **options)
    seen = None
    while (seen := job.wait_change(seen, WAIT_S)).done_bytes < HALF:
        assert not job.is_finished, job.error
    return job


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_url_becomes_a_verified_model(library, server, models):
    server.add("/a.Q4_0.gguf", DATA)

    job = library.pull(f"{server.url}/a.Q4_0.gguf?token=secret", name="A", settings={"ctx_len": "2048"})
    assert job.id == "a.Q4_0"
    assert job.wait(WAIT_S)
    entry = library.find("a.Q4_0")

    assert entry.lifecycle is Lifecycle.DOWNLOADED
    assert entry.manifest.name == "A"
    assert entry.manifest.settings == {"ctx_len": 2048}
    assert entry.manifest.source_url == f"{server.url}/a.Q4_0.gguf"
    assert entry.manifest.metadata["size_bytes"] == len(DATA)
    (file,) = entry.manifest.files
    assert (file.path, file.size_bytes, file.sha256, file.is_link) == ("a.Q4_0.gguf", len(DATA), DIGEST, False)
    assert names_in(models / "a.Q4_0") == ["a.Q4_0.gguf", "model.json"]
    assert (models / "a.Q4_0" / "a.Q4_0.gguf").read_bytes() == DATA
    assert "secret" not in (models / "a.Q4_0" / "model.json").read_text()
    assert library.files("a.Q4_0").primary == str(models / "a.Q4_0" / "a.Q4_0.gguf")
    progress = job.progress()
    assert (progress.phase, progress.done_bytes, progress.total_bytes) == ("done", len(DATA), len(DATA))
    assert progress.lifecycle is Lifecycle.DOWNLOADED


def test_what_is_here_is_not_fetched_again(library, server):
    server.add("/a.gguf", DATA)
    entry = pulled(library, f"{server.url}/a.gguf")
    server.asked.clear()

    for reference in ("a", f"{server.url}/a.gguf", f"{server.url}/a.gguf?again"):
        job = library.pull(reference)
        assert job.is_finished
        assert job.result() == entry.manifest
        assert job.progress().done_bytes == len(DATA)
    assert library.pull(f"{server.url}/a.gguf", id="a").is_finished
    assert server.asked == []


def test_a_catalogue_entry_keeps_its_id_source_and_labels(library, server):
    server.add("/small.Q4_0.gguf", DATA)

    entry = pulled(library, "small")

    assert entry.manifest.id == "small-1m"
    assert entry.is_catalogue
    assert entry.manifest.aliases == ("small",)
    assert entry.manifest.metadata["quantization"] == "Q4_0"
    assert entry.manifest.metadata["size"] == "1M"
    assert entry.manifest.metadata["size_bytes"] == len(DATA)

    library.delete("small")

    assert library.find("small").lifecycle is Lifecycle.NOT_DOWNLOADED


def test_a_second_pull_joins_the_first(library, server):
    served = server.add("/a.gguf", DATA)
    first = held(library, served, f"{server.url}/a.gguf")

    assert library.pull(f"{server.url}/a.gguf") is first
    assert library.pull("a") is first
    assert library.job("a") is first
    assert library.find("a").lifecycle is Lifecycle.DOWNLOADING
    assert [entry.manifest.id for entry in library.entries()] == ["a"]
    progress = first.progress()
    assert (progress.phase, progress.done_bytes, progress.total_bytes) == ("downloading", HALF, len(DATA))
    assert progress.files[0].filename == "a.gguf"

    served.released.set()
    assert first.wait(WAIT_S)
    assert server.ranges("/a.gguf") == [None]


def test_what_is_changed_while_it_downloads_is_kept(library, server):
    served = server.add("/small.Q4_0.gguf", DATA)
    job = held(library, served, "small")

    library.update("small", name="Mine", settings={"ngl": 0})
    served.released.set()
    manifest = job.result()

    assert (manifest.name, manifest.settings, manifest.is_complete) == ("Mine", {"ngl": 0}, True)
    assert library.find("small").manifest == manifest
    assert library.job("small") is job


def test_many_threads_that_want_one_model_share_one_download(library, server):
    served = server.add("/a.gguf", DATA, hold_after=HALF)
    jobs = []
    threads = [threading.Thread(target=lambda: jobs.append(library.pull(f"{server.url}/a.gguf"))) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    served.released.set()

    assert len({id(job) for job in jobs}) == 1
    assert jobs[0].wait(WAIT_S)
    assert len(server.asked) == 1


def test_an_id_that_is_bound_to_another_source_is_refused(library, server):
    server.add("/a.gguf", DATA)
    served = server.add("/b/a.gguf", DATA)
    pulled(library, f"{server.url}/a.gguf")

    with pytest.raises(ModelExists, match="a is taken by a model from http"):
        library.pull(f"{server.url}/b/a.gguf")
    with pytest.raises(ModelExists):
        library.pull(f"{server.url}/b/a.gguf", id="small-1m")
    with pytest.raises(ModelExists):
        library.pull(f"{server.url}/b/a.gguf", id="small")

    job = held(library, served, f"{server.url}/b/a.gguf", id="b")
    with pytest.raises(ModelExists):
        library.pull(f"{server.url}/a.gguf", id="b")
    served.released.set()
    assert job.wait(WAIT_S)


def test_a_model_may_be_pulled_under_a_second_id(library, server):
    server.add("/small.Q4_0.gguf", DATA)

    entry = pulled(library, "small", id="org/mine")

    assert (entry.manifest.id, entry.is_catalogue) == ("org/mine", False)
    assert library.find("small").lifecycle is Lifecycle.NOT_DOWNLOADED


@pytest.mark.parametrize(
    ("reference", "options", "error"),
    [
        ("", {}, MissingParameter),
        ("nope", {}, ModelNotFound),
        ("org/nope", {}, ModelNotFound),
        ("magnet:?xt=x", {}, InvalidRequest),
        ("C:\\models\\x.gguf", {}, ModelNotFound),
        ("small", {"id": "../x"}, InvalidRequest),
        ("small", {"settings": {"ctx_len": 1}}, InvalidRequest),
        ("small", {"parameters": {"temperature": 9}}, InvalidRequest),
        ("file:/etc/passwd", {}, InvalidRequest),
        ("http://host/download/start.gguf", {}, InvalidRequest),
    ],
)
def test_a_bad_request_starts_nothing(library, models, reference, options, error):
    with pytest.raises(error):
        library.pull(reference, **options)

    assert library.jobs() == []
    assert not models.exists()


def test_a_file_source_is_for_the_command_line_only(open_library, gguf):
    path = gguf()
    library = open_library()
    with pytest.raises(InvalidRequest, match="allow_file_sources"):
        library.pull(path.as_uri())

    entry = pulled(library, path.as_uri(), is_from_cli=True)

    assert library.files(entry.manifest.id).primary == str(path)
    assert pulled(open_library(is_file_allowed=True), path.as_uri(), id="again").manifest.files[0].is_link
    library.delete(entry.manifest.id)
    assert path.exists()


# -- stopping and resuming --------------------------------------------------------------------------------------------


def test_an_interrupted_pull_goes_on_where_it_was(open_library, server, models):
    served = server.add("/a.gguf", DATA, etag='"v1"')
    library = open_library()
    job = held(library, served, f"{server.url}/a.gguf", settings={"ngl": 3})
    library.close()
    with pytest.raises(RequestCancelled, match="kept"):
        job.result()
    assert names_in(models / "a") == ["a.gguf.part", "a.gguf.part.log", "model.json"]
    assert library.find("a").lifecycle is Lifecycle.NOT_DOWNLOADED
    assert library.entries() == []
    served.released.set()
    server.asked.clear()

    entry = pulled(open_library(), "a")

    assert server.ranges("/a.gguf") == [f"bytes={HALF}-"]
    assert entry.manifest.settings == {"ngl": 3}
    assert names_in(models / "a") == ["a.gguf", "model.json"]
    assert (models / "a" / "a.gguf").read_bytes() == DATA


def test_a_cancelled_pull_leaves_no_bytes(library, server, models):
    served = server.add("/a.gguf", DATA)
    job = held(library, served, f"{server.url}/a.gguf")

    assert library.cancel_pull("a")

    assert job.is_finished
    assert job.progress().phase == "cancelled"
    with pytest.raises(RequestCancelled, match="removed"):
        job.result()
    assert names_in(models) == []
    assert not library.cancel_pull("a")
    assert not library.cancel_pull("nope")


def test_delete_cancels_a_download_and_removes_its_files(library, server, models):
    served = server.add("/small.Q4_0.gguf", DATA)
    job = held(library, served, "small")

    assert library.delete("small") == "small-1m"

    assert job.is_finished
    assert names_in(models) == []
    assert library.find("small").lifecycle is Lifecycle.NOT_DOWNLOADED
    assert library.job("small-1m") is None


def test_delete_removes_what_a_failed_pull_left(library, server, models):
    served = server.add("/a.gguf", DATA, etag='"v1"', drop_after=HALF, drop_times=1)
    job = library.pull(f"{server.url}/a.gguf")
    served.status, served.status_times = 200, 0
    served.drop_times = 1
    assert job.wait(WAIT_S)
    job.result()

    library.delete("a")

    assert names_in(models) == []


def test_a_pull_that_brought_nothing_leaves_nothing(library, server, models):
    job = library.pull(f"{server.url}/none.gguf")
    assert job.wait(WAIT_S)

    with pytest.raises(DownloadFailed, match="404"):
        job.result()
    assert job.progress().error == job.error.message
    assert names_in(models) == []
    with pytest.raises(ModelNotFound):
        library.find("none")


def test_a_lost_connection_leaves_a_part_that_the_next_pull_resumes(library, server, models):
    served = server.add("/a.gguf", DATA, etag='"v1"', drop_after=HALF, drop_times=1)
    answer = server.answer

    def then_gone(handler):
        if len(server.asked) > 1:
            handler.close_connection = True
        else:
            answer(handler)

    server.answer = then_gone
    job = library.pull(f"{server.url}/a.gguf")
    assert job.wait(WAIT_S)
    with pytest.raises(DownloadFailed, match=f"{HALF} bytes are kept"):
        job.result()
    assert library.find("a").lifecycle is Lifecycle.NOT_DOWNLOADED

    server.answer = answer
    served.drop_times = 0
    server.asked.clear()
    pulled(library, "a")

    assert server.ranges("/a.gguf") == [f"bytes={HALF}-"]
    assert (models / "a" / "a.gguf").read_bytes() == DATA


def test_room_is_checked_before_anything_is_written(open_library, hub, models):
    hub.add_repository("o/r", {"m.gguf": DATA})

    job = open_library(free=1000).pull("hf:o/r")
    assert job.wait(WAIT_S)

    with pytest.raises(InsufficientStorage, match=rf"needs {len(DATA)} bytes more, 1000 are free") as raised:
        job.result()
    assert (raised.value.needed_bytes, raised.value.available_bytes) == (len(DATA), 1000)
    assert names_in(models) == []
    assert hub.cdn.asked == []


@pytest.mark.parametrize("content", [b"<html>please log in</html>", DATA[:-64], b"GGUF" + b"\xff" * 1000])
def test_what_arrives_and_is_no_sound_gguf_is_refused_and_removed(library, server, models, content):
    server.add("/a.gguf", content)

    job = library.pull(f"{server.url}/a.gguf")
    assert job.wait(WAIT_S)

    with pytest.raises(InvalidModelFile, match=r"a\.gguf from http.* is no sound GGUF file and was removed"):
        job.result()
    assert not list(models.glob("*/*.gguf*"))


def test_a_hash_in_the_url_is_verified(library, server):
    server.add("/a.gguf", DATA)

    pulled(library, f"{server.url}/a.gguf#sha256={DIGEST}", id="right")
    job = library.pull(f"{server.url}/a.gguf#sha256={'0' * 64}", id="wrong")
    assert job.wait(WAIT_S)

    with pytest.raises(DownloadFailed, match=f"its SHA-256 is {DIGEST}"):
        job.result()
    with pytest.raises(ModelNotFound):
        library.find("wrong")


def test_a_bug_in_a_source_ends_the_job_with_its_name(open_library, server, caplog):
    library = open_library()
    spec = library._sources["http"]

    def broken(reference, context):
        raise ZeroDivisionError("oops")

    library._sources["http"] = type(spec)("http", broken, "broken")

    job = library.pull(f"{server.url}/a.gguf")
    assert job.wait(WAIT_S)

    assert job.error.code == "internal_error"
    assert "ZeroDivisionError: oops" in job.error.message


# -- the hub ----------------------------------------------------------------------------------------------------------


def test_a_repository_is_pulled_over_the_hubs_redirects(library, hub, models):
    hub.add_repository("org/repo-GGUF", {"m.Q2_K.gguf": tiny_gguf(), "m.Q4_K_M.gguf": DATA}, token="hf_secret")
    with pytest.raises(DownloadFailed, match="huggingface_token"):
        library.pull("hf:org/repo-GGUF")

    library._context = type(library._context)(timeout_s=20, huggingface_token="hf_secret")
    entry = pulled(library, "hf:org/repo-GGUF")

    assert entry.manifest.id == "m.Q4_K_M"
    assert entry.manifest.owned_by == "org"
    assert entry.manifest.source_url == "https://huggingface.co/org/repo-GGUF/resolve/main/m.Q4_K_M.gguf"
    assert "authorization" not in hub.cdn.asked[0].headers
    text = (models / "m.Q4_K_M" / "model.json").read_text()
    assert "hf_secret" not in text
    assert "signature" not in text


def test_every_spelling_of_a_hub_reference_means_the_model_that_is_here(library, hub):
    hub.add_repository("o/r", {"m.Q4_0.gguf": DATA})
    pulled(library, "hf:o/r")
    hub.asked.clear()

    for reference in ("hf:o/r", "hf:o/r:m.Q4_0.gguf", "o:r:m.Q4_0.gguf"):
        assert library.pull(reference).is_finished
    assert library.pull("https://huggingface.co/o/r/blob/main/m.Q4_0.gguf").is_finished
    assert hub.asked == []

    assert library.pull("hf:o/r:Q4_0").is_finished
    assert len(hub.asked) == 1
    assert library.pull("hf:o/r:Q4_0").is_finished
    assert len(hub.asked) == 1


def test_a_split_repository_is_pulled_whole_and_resumes_in_its_second_part(open_library, hub, models):
    parts = [tiny_gguf(padding=200_000, split_no=n, split_count=2) for n in (0, 1)]
    files = {f"Q8_0/big-0000{n + 1}-of-00002.gguf": part for n, part in enumerate(parts)}
    hub.add_repository("o/r", files)
    second = hub.cdn.files["/" + hashlib.sha256(parts[1]).hexdigest()]
    library = open_library()
    second.hold_after = 100_000
    job = library.pull("hf:o/r")
    seen = None
    while (seen := job.wait_change(seen, WAIT_S)).done_bytes < len(parts[0]) + 100_000:
        assert not job.is_finished, job.error
    assert seen.total_bytes == sum(len(part) for part in parts)
    library.close()
    second.released.set()
    hub.cdn.asked.clear()

    entry = pulled(open_library(), "hf:o/r")

    assert entry.manifest.id == "big"
    assert [asked.headers.get("range") for asked in hub.cdn.asked] == ["bytes=100000-"]
    assert [file.path for file in entry.manifest.files] == ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]
    assert [(models / "big" / file.path).read_bytes() for file in entry.manifest.files] == parts


def test_a_file_that_is_not_what_the_hub_says_is_refused(library, hub, models):
    hub.add_repository("o/r", {"m.gguf": DATA}, wrong_sha256={"m.gguf": "a" * 64})

    job = library.pull("hf:o/r")
    assert job.wait(WAIT_S)

    with pytest.raises(DownloadFailed, match="expected " + "a" * 64):
        job.result()
    assert names_in(models) == []


def test_a_gated_repository_says_what_to_do(library, hub):
    hub.add_repository("o/r", {"m.gguf": DATA}, is_gated=True)

    job = library.pull("hf:o/r")
    assert job.wait(WAIT_S)

    with pytest.raises(DownloadFailed, match=r"403.*restricted.*huggingface_token"):
        job.result()


def test_another_quantisation_under_a_taken_id_is_refused(library, hub):
    hub.add_repository("o/r", {"m.Q4_0.gguf": DATA, "m.Q8_0.gguf": tiny_gguf()})
    pulled(library, "hf:o/r:Q4_0", id="m")

    with pytest.raises(ModelExists):
        library.pull("hf:o/r:Q8_0", id="m")


def test_a_model_folder_is_pulled_for_the_installed_device_and_says_why(open_library, hub, models):
    config = b'{"model": {"type": "phi3", "context_length": 4096, "decoder": {}}}'
    hub.add_repository(
        "o/phi-4-onnx",
        {
            f"{folder}/{name}": content
            for folder in ("cpu_and_mobile/cpu-int4", "cuda/cuda-fp16", "directml/directml-int4")
            for name, content in (
                ("genai_config.json", config),
                ("model.onnx", b"graph"),
                ("model.onnx.data", b"w" * 99),
                ("tokenizer.json", b""),
            )
        },
    )  # fmt: skip
    library = open_library(context=SourceContext(timeout_s=20, devices=lambda: ("dml", "cpu")))

    entry = pulled(library, "hf:o/phi-4-onnx")

    assert (entry.manifest.id, entry.manifest.format) == ("phi-4-directml-int4", "onnxgenai")
    assert entry.manifest.metadata["variant"] == "directml/directml-int4"
    assert "made for dml" in entry.manifest.metadata["variant_reason"]
    assert (entry.manifest.metadata["architecture"], entry.manifest.metadata["context_length"]) == ("phi3", 4096)
    assert entry.manifest.metadata["quantization"] == "int4"
    files = library.files("phi-4-directml-int4")
    assert (files.primary, files.format) == (str(models / "phi-4-directml-int4"), "onnxgenai")
    hub.asked.clear()
    assert library.pull("hf:o/phi-4-onnx:directml/directml-int4/genai_config.json").is_finished
    assert library.pull("hf:o/phi-4-onnx").is_finished
    assert hub.asked == [], "what is here is not asked for again"


def test_a_model_folder_without_a_sound_configuration_is_refused(library, hub):
    hub.add_repository("o/r", {"genai_config.json": b"{", "model.onnx": b"graph"})

    job = library.pull("hf:o/r")
    assert job.wait(WAIT_S)

    with pytest.raises(InvalidModelFile, match=r"genai_config\.json is not valid JSON"):
        job.result()


def test_a_file_source_may_name_a_file_of_a_format_that_an_engine_takes(open_library, tmp_path):
    path = tmp_path / "outside" / "proverbs.bigram"
    path.parent.mkdir()
    path.write_text("Birds of a feather")

    entry = pulled(open_library(formats={"bigram"}), path.as_uri(), is_from_cli=True)

    assert (entry.manifest.format, [file.path for file in entry.manifest.files]) == ("bigram", [str(path)])


def test_other_engines_bring_other_formats_and_sources(open_library, tmp_path, sources):
    path = tmp_path / "outside" / "proverbs.bigram"
    path.parent.mkdir()
    path.write_text("Birds of a feather")
    library = open_library()
    with pytest.raises(InvalidModelFile):
        library.import_path(path)

    library.use({}, {"bigram"})

    assert library.import_path(path).manifest.format == "bigram"
    with pytest.raises(InvalidRequest, match="No installed source"):
        library.pull("file:/lost.gguf", is_from_cli=True)
