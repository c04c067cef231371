"""A runtime with real workers, real records and the echo model `parrot`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.config import load_settings
from hostler.plugins import get_plugins
from hostler.runtime import Runtime
from support.runs import MakeRuntime


@pytest.fixture
def make_runtime(tmp_path: Path) -> Iterator[MakeRuntime]:
    """Makes runtimes on one home, one after the other, with the echo model `parrot`."""
    made: list[Runtime] = []

    def make(model: str = "{}", **settings: object) -> Runtime:
        for before in made:
            before.close(0)
        base = load_settings(tmp_path / "home", environ={})
        runtime = Runtime(base.replace(stop_timeout_s=2, default_model="parrot", **settings), get_plugins())
        made.append(runtime)
        path = tmp_path / "parrot.echo"
        path.write_text(model)
        runtime.import_model(str(path))
        return runtime

    yield make
    for runtime in made:
        runtime.close(0)


@pytest.fixture
def runtime(make_runtime: MakeRuntime) -> Runtime:
    return make_runtime()
