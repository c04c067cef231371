"""Plugins that come, go and change under a runtime whose models run on."""

from __future__ import annotations

import os
import shutil
import site
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hostler.trial
from hostler.config import load_settings
from hostler.domain import GenerateRequest, Lifecycle, Message, SamplingParams, TextEvent
from hostler.errors import InvalidModelFile, ModelLoadFailed
from hostler.installed import write_disabled
from hostler.plugins import get_plugins
from hostler.runtime import Runtime
from hostler.trial import try_plugins
from support.madeup import write_plugin

ENGINE = """
from hostler import EngineSpec, hookimpl

HOSTLER_API = 1

@hookimpl
def register_engines():
    engine, probe = "hostler_echo.engine:EchoEngine", "hostler_echo.engine:probe"
    return [EngineSpec("NAME", ("NAME",), engine, probe, version="1")]
"""
"""Echo under another name."""

Import = Callable[[str], str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where made-up plugins are installed, for this process and those it starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("made_up_")]:
        del sys.modules[name]


@pytest.fixture
def runtime(tmp_path: Path, folder: Path) -> Iterator[Runtime]:
    home = tmp_path / "home"
    made = Runtime(load_settings(home, environ={}).replace(stop_timeout_s=2), get_plugins(home))
    made.reloading.start()
    yield made
    made.close(0)


@pytest.fixture
def add_model(runtime: Runtime, tmp_path: Path) -> Import:
    """Registers a model of a format and gives its id."""

    def add(model_format: str) -> str:
        path = tmp_path / f"of-{model_format}.{model_format}"
        path.write_text("{}")
        return runtime.import_model(str(path)).manifest.id

    return add


def uninstall(folder: Path, name: str) -> None:
    shutil.rmtree(folder / f"made_up_{name}-1.2.3.dist-info")
    (folder / f"made_up_{name}.py").unlink()


def say(runtime: Runtime, model: str, text: str) -> str:
    request = GenerateRequest("r", model, SamplingParams(temperature=0.0), (Message("user", text),))
    with runtime.generate(request) as generation:
        return "".join(event.text for event in generation.events(0.05) if isinstance(event, TextEvent))


def test_a_new_engine_is_usable_and_models_of_others_run_on(runtime: Runtime, folder: Path, add_model: Import) -> None:
    model = add_model("echo")
    runtime.start_model(model)
    pid = runtime.model(model).pid
    with pytest.raises(InvalidModelFile):
        add_model("red")

    write_plugin(folder, "red", ENGINE)
    changes = runtime.reload_plugins()

    assert (changes.added, changes.removed, changes.changed) == (["red"], [], [])
    assert (changes.stopped, changes.outdated) == ([], [])
    assert say(runtime, add_model("red"), "hello") == "hello"
    assert runtime.model(model).pid == pid


def test_an_engine_that_is_gone_stops_its_models_and_only_these_and_is_refused_by_name(
    runtime: Runtime, folder: Path, add_model: Import
) -> None:
    write_plugin(folder, "red", ENGINE)
    runtime.reload_plugins()
    red, echo = add_model("red"), add_model("echo")
    runtime.start_model(red)
    runtime.start_model(echo)
    pid = runtime.model(echo).pid

    uninstall(folder, "red")
    changes = runtime.reload_plugins()

    assert (changes.removed, changes.stopped, changes.outdated) == (["red"], [red], [])
    assert runtime.model(red).lifecycle is Lifecycle.STOPPED
    with pytest.raises(ModelLoadFailed) as caught:
        runtime.start_model(red)
    assert str(caught.value) == (
        "No installed engine runs of-red, whose format is 'red': the engine red is gone with its package made-up-red; "
        "install it again, then `hostler plugins reload`"
    )
    assert (runtime.model(echo).pid, say(runtime, echo, "still here")) == (pid, "still here")


def test_an_engine_that_comes_back_runs_its_models_again(runtime: Runtime, folder: Path, add_model: Import) -> None:
    write_plugin(folder, "red", ENGINE)
    runtime.reload_plugins()
    red = add_model("red")
    uninstall(folder, "red")
    runtime.reload_plugins()

    write_plugin(folder, "red", ENGINE)
    changes = runtime.reload_plugins()

    assert changes.added == ["red"]
    assert say(runtime, red, "again") == "again"


def test_a_plugin_that_was_edited_is_loaded_anew_and_its_running_models_are_told_of(
    runtime: Runtime, folder: Path, add_model: Import
) -> None:
    module = write_plugin(folder, "red", ENGINE)
    runtime.reload_plugins()
    red = add_model("red")
    runtime.start_model(red)
    pid = runtime.model(red).pid

    source = (folder / f"{module}.py").read_text()
    (folder / f"{module}.py").write_text(source.replace('version="1"', 'version="22"'))
    changes = runtime.reload_plugins()

    assert (changes.changed, changes.outdated, changes.stopped) == (["red"], [red], [])
    assert runtime.plugins.engines["red"].version == "22"
    assert runtime.model(red).pid == pid
    assert runtime.reload_plugins().changed == [], "nothing has changed since"


def test_what_has_not_changed_is_not_imported_again(runtime: Runtime, folder: Path) -> None:
    module = write_plugin(folder, "red", ENGINE + "\nloaded = object()\n")
    runtime.reload_plugins()
    loaded = sys.modules[module].__dict__["loaded"]

    write_plugin(folder, "blue", ENGINE)
    changes = runtime.reload_plugins()

    assert (changes.added, changes.changed) == (["blue"], [])
    assert sys.modules[module].__dict__["loaded"] is loaded


def test_an_installed_release_takes_the_place_of_another(runtime: Runtime, folder: Path) -> None:
    write_plugin(folder, "red", ENGINE)
    runtime.reload_plugins()
    uninstall(folder, "red")
    write_plugin(folder, "red", ENGINE, version="2.0")

    changes = runtime.reload_plugins()

    assert changes.changed == ["red"]
    assert next(info.version for info in runtime.plugins.infos if info.name == "red") == "2.0"


def test_a_plugin_is_disabled_and_enabled_without_a_new_start(
    runtime: Runtime, folder: Path, add_model: Import, tmp_path: Path
) -> None:
    write_plugin(folder, "red", ENGINE)
    runtime.reload_plugins()
    red = add_model("red")

    write_disabled(tmp_path / "home", ["red"])
    assert runtime.reload_plugins().removed == ["red"]
    with pytest.raises(ModelLoadFailed, match="the engine red is disabled; `hostler plugins enable red` takes it in again"):
        runtime.start_model(red)

    write_disabled(tmp_path / "home", [])
    assert runtime.reload_plugins().added == ["red"]
    assert say(runtime, red, "back") == "back"


def test_a_host_that_never_had_the_engine_names_the_disabled_plugins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(folder, "red", ENGINE)
    home = tmp_path / "other"
    write_disabled(home, ["red"])
    runtime = Runtime(load_settings(home, environ={}), get_plugins(home))

    assert runtime.reloading.explain("red") == "disabled plugins: red"
    runtime.close(0)


def test_a_plugin_that_breaks_is_told_of_and_its_engine_refused_with_the_reason(
    runtime: Runtime, folder: Path, add_model: Import
) -> None:
    module = write_plugin(folder, "red", ENGINE)
    runtime.reload_plugins()
    red = add_model("red")

    (folder / f"{module}.py").write_text("import a_library_that_is_lost\n")
    changes = runtime.reload_plugins()

    assert changes.removed == ["red"]
    assert "ModuleNotFoundError: No module named 'a_library_that_is_lost'" in "".join(changes.problems)
    with pytest.raises(ModelLoadFailed, match="the engine red cannot be used any more: plugin 'red' cannot be imported"):
        runtime.start_model(red)


@pytest.mark.parametrize("where", ["on import", "in a hook"])
def test_a_plugin_that_kills_the_process_that_loads_it_does_not_get_into_the_server(
    runtime: Runtime, folder: Path, where: str
) -> None:
    deadly = "import os; os.abort()"
    in_a_hook = ENGINE.replace("    engine, probe", f"    {deadly}\n    engine, probe")
    write_plugin(folder, "deadly", deadly if where == "on import" else in_a_hook)
    write_plugin(folder, "red", ENGINE)

    changes = runtime.reload_plugins()

    assert changes.added == ["red"]
    assert [problem for problem in changes.problems if "'deadly'" in problem] == [
        "plugin 'deadly' is skipped: on trial its process ended with signal 6; `hostler plugins disable deadly` leaves it out"
    ]


def test_a_plugin_that_hangs_costs_the_server_no_thread(
    runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sitecustomize.py").write_text(
        "import hostler.plugins, hostler.patience, functools\n"
        "hostler.plugins.call_each = functools.partial(hostler.patience.call_each, deadline_s=2.0)\n"
    )
    write_plugin(folder, "asleep", "import threading\nthreading.Event().wait()\n")
    threads = threading.active_count()

    changes = runtime.reload_plugins()

    (problem,) = [problem for problem in changes.problems if "'asleep'" in problem]
    assert problem.startswith("plugin 'asleep' is skipped: its import did not return within 2 s; it stands at ")
    assert threading.active_count() == threads


def test_a_trial_that_does_not_end_is_given_up_with_the_culprits_name(folder: Path, tmp_path: Path) -> None:
    write_plugin(folder, "holder", "import ctypes\nctypes.PyDLL(None).sleep(3600)\n")
    write_plugin(folder, "red", ENGINE)

    refused = try_plugins(tmp_path / "home", timeout_s=8.0)

    assert refused == {
        "holder": "is skipped: on trial its process did not end within 8 s; `hostler plugins disable holder` leaves it out"
    }


def test_without_anything_new_there_is_no_trial(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostler.trial, "_try_once", lambda *arguments: pytest.fail("tried"))

    assert runtime.reload_plugins().added == []


def test_an_editable_install_of_a_running_server_is_found_by_its_path_file(
    runtime: Runtime, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python reads such files at its start; `pip install -e` beside a server that runs leaves one."""
    source = tmp_path / "clone" / "src"
    source.mkdir(parents=True)
    module = write_plugin(folder, "edited", ENGINE)
    os.replace(folder / f"{module}.py", source / f"{module}.py")
    (folder / "edited.pth").write_text(f"{source}\n")
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(source)]))  # what the file does for new processes

    changes = runtime.reload_plugins()

    assert changes.added == ["edited"], changes.problems
