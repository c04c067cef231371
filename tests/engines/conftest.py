"""One server with a small model of each engine in this tree, made by its plugin's own samples and tests."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from hostler.api.app import create_app
from hostler.config import load_settings
from hostler.plugins import get_plugins
from hostler.runtime import Runtime
from hostler.server import HttpServer, open_sockets, url_of
from hostler_onnxgenai import tinymodel

ENGINES = ("echo", "llamacpp", "onnxgenai")
N_CTX = 16384
"""What the models' files allow: room for a prompt or an answer that takes seconds, so that it can be ended amid it."""
SETTINGS = {"ctx_len": 512, "n_parallel": 4, "n_batch": 64}
DEADLINE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


def make_model(engine: str, folder: Path) -> str:
    """A small model of an engine; its path."""
    folder.mkdir()
    if engine == "llamacpp":  # its sample has none, a sound one is large; its own tests write a tiny one
        path = ROOT / "plugins" / "llamacpp" / "tests" / "tiny_models.py"
        spec = importlib.util.spec_from_file_location("llamacpp_tiny_models", path)
        assert spec is not None
        assert spec.loader is not None
        tiny_models = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tiny_models)
        tiny_models.N_CTX = N_CTX
        return str(tiny_models.write_llama(folder / "tiny.gguf"))
    if engine == "echo":  # as slow as one that computes, or nothing could be cancelled in time
        path = folder / "slow.echo"
        path.write_text('{"manners": {"delay_s": 0.002}}')
        return str(path)
    return str(tinymodel.write_llama(folder / "tiny", n_ctx=N_CTX))


@contextlib.contextmanager
def served(folder: Path, echoes: dict[str, dict[str, Any]], **changes: Any) -> Iterator[str]:
    """A server's address; it has a model of each engine, with the engine's name as its id, and more of echo.

    `far`, the model of remote, is this server's own echo, asked as another server's: no id may be `remote`.

    Args:
        folder: For its home and the models.
        echoes: Their ids and what stands in their files.
        changes: Of the server's settings.
    """
    settings = load_settings(folder / "home", environ={}).replace(stop_timeout_s=5, **changes)
    runtime = Runtime(settings, get_plugins())
    for engine in ENGINES:
        runtime.import_model(make_model(engine, folder / engine), engine)
    for name, content in echoes.items():
        path = folder / f"{name}.echo"
        path.write_text(json.dumps(content))
        runtime.import_model(str(path), name)
    sockets = open_sockets("127.0.0.1", 0)
    far = folder / "far.remote"
    far.write_text(json.dumps({"url": f"{url_of(sockets)}/v1", "model": "echo", "kind": "hostler", "embeddings": True}))
    runtime.import_model(str(far), "far")
    server = HttpServer(create_app(runtime, settings), sockets, settings)
    server.start()
    yield url_of(sockets)
    runtime.close(0)
    server.close()
    for listener in sockets:
        listener.close()


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address; beside the engines' models there is `wide`, which cannot be guided."""
    with served(tmp_path_factory.mktemp("engines"), {"wide": {"bytes_per_token": 3}}) as url:
        yield url


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with 64 MiB for all models; `neighbour` takes 60 of them."""
    neighbour = {"neighbour": {"weights_bytes": 60 << 20}}
    with (
        served(tmp_path_factory.mktemp("tight"), neighbour, memory_budget_bytes=64 << 20) as url,
        httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client,
    ):
        yield client


@pytest.fixture(scope="package")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
        yield client


@pytest.fixture(scope="package")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", timeout=DEADLINE_S, max_retries=0) as client:
        yield client


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine's name, which is its model's id."""
    return str(request.param)


@pytest.fixture
def model(engine: str, http: httpx.Client) -> str:
    """A model that runs, once for each engine."""
    answer = http.put(f"/v1/models/{engine}/start", json=SETTINGS)
    assert answer.json()["state"] == "running", answer.text
    return engine
