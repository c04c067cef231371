"""Servers that tests share, and the real model."""

from __future__ import annotations

import pytest

from support.server import Server, add_echo, run_hostler, serving


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory) -> Server:
    """A server with the model `echo`; for tests that leave it as they found it."""
    home = tmp_path_factory.mktemp("echo") / "home"
    add_echo(home)
    with serving(home) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2_home(tmp_path_factory, smollm2_path):
    """A home that knows the real model as `smol`."""
    home = tmp_path_factory.mktemp("smollm2") / "home"
    done = run_hostler(home, "import", str(smollm2_path), "--id", "smol")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="session")
def smollm2_server(smollm2_home) -> Server:
    """A server with the real model."""
    with serving(smollm2_home, "--model", "smol") as server:
        yield server
