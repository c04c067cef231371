"""Which events a real runtime tells of its models, with echo, the engine without weights and with bad manners on request."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler.config import load_settings
from hostler.domain import Lifecycle
from hostler.errors import ModelLoadFailed, StartCancelled
from hostler.plugins import get_plugins
from hostler.runtime import Runtime
from support.server import eventually

Bodies = list[dict[str, Any]]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(load_settings(tmp_path / "home", environ={}).replace(stop_timeout_s=2), get_plugins())
    yield made
    made.close(0)


@pytest.fixture
def add(runtime: Runtime, tmp_path: Path) -> Callable[..., None]:
    def add(name: str, **manners: object) -> None:
        path = tmp_path / f"{name}.echo"
        path.write_text(json.dumps({"manners": manners}))
        runtime.import_model(str(path))

    return add


def told(runtime: Runtime, until: str) -> Bodies:
    """All model events up to the first of this name, without those of the import."""
    follower = runtime.events.follow(0, ("model.*",))
    found: Bodies = []
    try:
        for event in follower.events(0.02):
            if event is not None:
                found.append(json.loads(event.body))
                if event.name == f"model.{until}":
                    break
    finally:
        follower.close()
    assert [body["event"] for body in found[:2]] == ["model.registered", "model.downloaded"]
    return found[2:]


def names(bodies: Bodies) -> list[str]:
    return [body["event"].removeprefix("model.") for body in bodies]


def states(bodies: Bodies) -> list[tuple[str, str, str]]:
    return [(body["previous_lifecycle"], body["lifecycle"], body["state"]) for body in bodies]


def test_a_run_is_told_state_by_state_and_what_changes_nothing_is_not(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot")
    for _ in range(2):
        runtime.start_model("parrot")
    for _ in range(2):
        runtime.stop_model("parrot")
    runtime.delete_model("parrot")

    bodies = told(runtime, "deleted")

    assert names(bodies) == ["starting", "running", "stopping", "stopped", "deleted"]
    assert states(bodies) == [
        ("downloaded", "starting", "downloaded"),
        ("starting", "running", "running"),
        ("running", "stopping", "running"),
        ("stopping", "stopped", "stopped"),
        ("stopped", "not_downloaded", "not_downloaded"),
    ]


def test_other_settings_stop_and_start_the_model(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot")
    runtime.start_model("parrot")
    runtime.start_model("parrot", {"n_parallel": 2})
    runtime.delete_model("parrot")

    bodies = told(runtime, "deleted")

    run = ["starting", "running", "stopping", "stopped"]
    assert names(bodies) == [*run, *run, "deleted"]
    assert states(bodies)[4] == ("stopped", "starting", "stopped")


def test_a_refused_load_is_one_failure_with_its_reason(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot", load_refuse="not today")
    with pytest.raises(ModelLoadFailed):
        runtime.start_model("parrot")

    bodies = told(runtime, "start_failed")

    assert names(bodies) == ["starting", "start_failed"]
    assert states(bodies)[1] == ("starting", "downloaded", "downloaded")
    assert "not today" in bodies[1]["last_error"]


def test_a_crash_is_a_start_again_with_its_reason(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot")
    pid = runtime.start_model("parrot").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: runtime.model("parrot").pid not in {None, pid}, "it is started again")
    eventually(lambda: runtime.model("parrot").lifecycle is Lifecycle.RUNNING, "it runs again")
    runtime.stop_model("parrot")

    bodies = told(runtime, "stopped")

    assert names(bodies) == ["starting", "running", "starting", "running", "stopping", "stopped"]
    assert states(bodies)[2] == ("running", "starting", "stopped")
    assert bodies[2]["last_error"]
    assert "last_error" not in bodies[3]


def test_a_start_that_is_called_off_ends_where_it_was_without_a_failure(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot", load_hang=True)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            runtime.start_model("parrot")
        except StartCancelled as error:
            errors.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    eventually(lambda: runtime.model("parrot").pid, "the worker is there")
    runtime.stop_model("parrot")
    starter.join(30)
    runtime.delete_model("parrot")

    bodies = told(runtime, "deleted")

    assert len(errors) == 1
    assert names(bodies) == ["starting", "stopping", "downloaded", "deleted"]
    assert all("last_error" not in body for body in bodies)


def test_a_start_behind_a_stop_is_told_after_it(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot", close_hang=True)
    runtime.start_model("parrot")
    stopper = threading.Thread(target=runtime.stop_model, args=("parrot",))
    stopper.start()
    eventually(lambda: runtime.model("parrot").lifecycle is Lifecycle.STOPPING, "it is stopping")
    runtime.start_model("parrot")
    stopper.join(30)
    runtime.delete_model("parrot")

    run = ["starting", "running", "stopping", "stopped"]
    assert names(told(runtime, "deleted")) == [*run, *run, "deleted"]


def test_a_change_of_a_running_model_says_that_it_runs(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot")
    runtime.start_model("parrot")

    runtime.library.update("parrot", parameters={"temperature": 0.5})

    bodies = told(runtime, "updated")
    assert states(bodies)[-1] == ("running", "running", "running")


def test_the_end_of_the_host_is_told_of_its_models(runtime: Runtime, add: Callable[..., None]) -> None:
    add("parrot")
    runtime.start_model("parrot")
    follower = runtime.events.follow(0, ("model.*",))
    closer = threading.Thread(target=runtime.close, args=(0,))
    closer.start()

    found = [event.name for event in follower.events(0.02) if event is not None]
    follower.close()
    closer.join(60)

    assert found[-2:] == ["model.stopping", "model.stopped"]
