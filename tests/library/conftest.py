"""A home with a small catalogue and the real sources, for tests of the library."""

from __future__ import annotations

import pytest

from hostler.library.catalogue import Catalogue, CatalogueEntry
from hostler.library.fetch import RetryPolicy
from hostler.library.store import Library
from hostler.library.transfer import TransferLimits
from hostler.plugins import Plugins
from hostler.sources.contract import SourceContext
from support.hub import FakeHub, FileServer
from support.tiny_gguf import tiny_gguf

WAIT_S = 30


@pytest.fixture
def server():
    with FileServer() as server:
        yield server


@pytest.fixture
def hub(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture(scope="session")
def sources():
    plugins = Plugins()
    plugins.load_builtin()
    return plugins.sources


@pytest.fixture
def catalogue(server):
    entry = CatalogueEntry(
        id="small-1m",
        aliases=("small",),
        name="Small 1M",
        source=f"{server.url}/small.Q4_0.gguf",
        filename="small.Q4_0.gguf",
        description="For tests.",
        owned_by="tests",
        quantization="Q4_0",
        size="1M",
        size_bytes=1000,
        context_length=2048,
        license="Apache-2.0",
    )
    return Catalogue([entry])


@pytest.fixture
def open_library(tmp_path, sources, catalogue):
    """Open this test's home; every library is closed at the end."""
    opened = []

    def open_it(free=10**12, **options):
        limits = TransferLimits(
            policy=RetryPolicy(attempts=3, first_wait_s=0.0, longest_wait_s=0.0),
            free_bytes=lambda folder: free,
            chunk_bytes=128 * 1024,
        )
        context = SourceContext(timeout_s=20)
        options = {"context": context, "catalogue": catalogue, "limits": limits, **options}
        library = Library(tmp_path / "home", sources, **options)
        opened.append(library)
        return library

    yield open_it
    for library in opened:
        library.close()


@pytest.fixture
def library(open_library):
    return open_library()


@pytest.fixture
def gguf(tmp_path):
    """Write a tiny GGUF file outside the home."""

    def write(name="mine.Q4_0.gguf", folder="outside", **content):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_gguf(**content))
        return path

    return write
