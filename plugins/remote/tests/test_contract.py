"""The engine keeps hostler's contract for engines that take messages, with another hostler as its upstream."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from hostler import EngineSettings, ModelFiles
from hostler.testing import EngineContract, contract_checks
from hostler_remote.engine import RemoteEngine
from support.server import Server, add_echo, serving

SETTINGS = EngineSettings(ctx_len=0, n_parallel=3, n_batch=64)


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineContract]:
    folder = tmp_path_factory.mktemp("remote")
    # One token each 3 ms: enough for each to be a chunk of its own, so that there is something to be in the middle of.
    add_echo(folder / "home", manners={"delay_s": 0.003})
    with serving(folder / "home") as server:
        warm_up(server)
        path = folder / "far.remote"
        path.write_text(json.dumps({"url": f"{server.url}/v1", "model": "echo", "kind": "hostler", "embeddings": True}))
        files = ModelFiles(str(path), "remote")
        with EngineContract(RemoteEngine, files, SETTINGS, takes_messages=True) as contract:
            yield contract


def warm_up(server: Server) -> None:
    started = server.call("PUT", "/v1/models/echo/start", {"n_parallel": 8})
    assert started.status_code == 200, started.text


@pytest.mark.parametrize("name", contract_checks(takes_messages=True))
def test_remote_keeps_the_engine_contract(contract: EngineContract, name: str) -> None:
    contract.check(name)
