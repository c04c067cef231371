"""A stranger's plugin from a wheel: built outside the tree, installed beside hostler while a server runs, used, taken away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support.server import Server, add_echo, hostler_environment, is_alive, run_hostler, serving, text_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=hostler_environment()
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def wheel(tmp_path: Path, python: str) -> Path:
    """The tutorial's plugin, as its author would give it away: begun with the hostler that was installed."""
    folder = tmp_path / "work"
    folder.mkdir()
    run(python, "-m", "hostler", "plugins", "new", "bigram", cwd=folder)
    build = [*PIP, "wheel", "--no-build-isolation", "--no-index", "--no-deps", "--wheel-dir", "dist", "."]
    run(*build, cwd=folder / "hostler-bigram")
    (found,) = (folder / "hostler-bigram" / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def wheels_of_hostler(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """hostler itself and echo, built from copies of their sources, as a release would be. Half a minute of C++."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("core", "cpp", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, folder / "hostler" / name)
    copy(ROOT / "plugins" / "echo", folder / "echo")
    build = [*PIP, "wheel", "--no-build-isolation", "--no-index", "--no-deps", "--wheel-dir", str(folder / "dist")]
    run(*build, str(folder / "hostler"), str(folder / "echo"))
    return sorted((folder / "dist").iterdir())


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build"))
    else:
        shutil.copy(source, target)


@pytest.fixture
def python(tmp_path: Path, wheels_of_hostler: list[Path]) -> str:
    """The interpreter of a fresh virtual environment with hostler and echo. What these need is found where these tests have
    it, by links to all that is neither hostler nor one of its plugins."""
    folder, beside = tmp_path / "venv", tmp_path / "beside"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    beside.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "hostler" not in path.name and path.suffix != ".pth":
            (beside / path.name).symlink_to(path)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder), "installed_base": str(folder)})
    Path(paths["purelib"], "beside.pth").write_text(f"{beside}\n")
    python = str(Path(paths["scripts"], "python"))
    run(*PIP, "--python", python, "install", "--no-index", *map(str, wheels_of_hostler))
    assert run(python, "-c", "import hostler; print(hostler.__file__)").startswith(str(folder))
    return python


def plugins_of(python: str, home: Path) -> dict[str, str]:
    done = run_hostler(home, "plugins", "list", "--json", python=python)
    return {row["name"]: row["state"] for row in json.loads(done.stdout)["plugins"]}


def say(server: Server, model: str, text: str) -> str:
    with server.stream(model, text) as stream:
        return "".join(text_of(event) for event in stream)


def test_a_plugin_comes_and_goes_beside_a_server_whose_other_models_run_on(tmp_path: Path, wheel: Path, python: str) -> None:
    home = tmp_path / "home"
    add_echo(home)
    pip = [*PIP, "--python", python]

    with serving(home, python=python) as server:
        assert say(server, "echo", "before") == "before"
        pid = server.worker_pid("echo")
        assert set(plugins_of(python, home).values()) == {"ok"}
        assert "bigram" not in plugins_of(python, home)

        # It comes: installed with its dependency on hostler looked at, seen by the server, checked, pulled, talked to.
        run(*pip, "install", "--no-index", str(wheel))
        assert plugins_of(python, home)["bigram"] == "ok"
        assert "plugins of the server" in run_hostler(home, "doctor", python=python).stdout
        reload = run_hostler(home, "plugins", "reload", python=python)
        assert (reload.returncode, reload.stdout) == (0, "bigram: added\n"), reload.stderr
        check = run_hostler(home, "plugins", "check", "bigram", python=python)
        assert check.returncode == 0, check.stdout
        model = tmp_path / "model" / "proverbs.bigram"
        model.parent.mkdir()
        model.write_text("bigram 1\n" + "abcd\n" * 9)
        pull = run_hostler(home, "pull", model.as_uri(), "--id", "letters", python=python)
        assert pull.returncode == 0, pull.stderr
        assert say(server, "letters", "a") == "abcd"
        letters = server.worker_pid("letters")
        assert server.call("GET", "/v1/engines/bigram").json()["models"] == ["letters"]
        assert server.call("GET", "/v1/plugins").status_code == 200
        assert "model.running letters (event" in server.log

        # It goes: its model is stopped and refused with the reason, the other one never noticed.
        run(*pip, "uninstall", "--yes", "hostler-bigram")
        reload = run_hostler(home, "plugins", "reload", python=python)
        assert reload.stdout.splitlines() == ["bigram: removed", "letters: stopped, because their engine is gone"]
        assert not is_alive(letters)
        refused = server.chat("letters", "a")
        assert refused.status_code == 500
        assert "the engine bigram is gone with its package hostler-bigram; install it again" in refused.json()["message"]
        assert "bigram" not in plugins_of(python, home)
        assert server.worker_pid("echo") == pid
        assert say(server, "echo", "after") == "after"

        # It comes back.
        run(*pip, "install", "--no-index", str(wheel))
        assert run_hostler(home, "plugins", "reload", python=python).stdout == "bigram: added\n"
        assert say(server, "letters", "a") == "abcd"
        assert server.worker_pid("echo") == pid


def test_without_a_server_there_is_nothing_to_reload(tmp_path: Path) -> None:
    done = run_hostler(tmp_path / "home", "plugins", "reload")

    assert done.returncode == 1
    assert "every command looks at plugins anew by itself" in done.stderr


def test_a_plugin_that_hangs_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    from support.madeup import write_plugin

    site = tmp_path / "site"
    site.mkdir()
    write_plugin(site, "asleep", "import threading\nthreading.Event().wait()\n")
    home = tmp_path / "home"
    add_echo(home)
    environment = {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}

    with serving(home, environment=environment) as server:
        assert server.chat("echo", "awake").json()["choices"][0]["message"]["content"] == "awake"
        assert "WARNING hostler.server plugin 'asleep' is skipped: its import did not return within 5 s" in server.log
        rows = {row["name"]: row for row in server.call("GET", "/v1/plugins").json()["data"]}
        assert rows["asleep"]["state"] == "failed"
        assert server.stop() == 0
