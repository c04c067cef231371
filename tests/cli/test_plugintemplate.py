"""`hostler plugins new`: what it writes passes its own tests, ruff and mypy, and writes over nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from click.testing import CliRunner

from hostler.cli import cli
from hostler.cli.plugintemplate import render, write
from hostler.engine import API_VERSION

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("bigram", "two-words_3")


def new(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["plugins", "new", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_new_writes_a_package_and_says_what_is_next(tmp_path: Path) -> None:
    folder = tmp_path / "here"

    code, out, _ = new("toy", "--dir", folder)

    assert code == 0
    *files, _, following = out.splitlines()
    assert sorted(files) == sorted(str(path) for path in folder.rglob("*") if path.is_file())
    assert following == f"Next: cd {folder}, then pip install -e '.[test]', then hostler plugins check toy"


def test_the_folder_is_named_like_the_package_if_nobody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert new("hostler-toy")[0] == 0
    assert (tmp_path / "hostler-toy" / "src" / "hostler_toy" / "engine.py").is_file()


def test_the_entry_point_names_the_module_and_the_module_the_api(tmp_path: Path) -> None:
    files = render("two-words")

    project = tomllib.loads(files[PurePosixPath("pyproject.toml")])["project"]
    assert project["name"] == "hostler-two-words"
    assert project["entry-points"]["hostler"] == {"two-words": "hostler_two_words"}
    module = files[PurePosixPath("src/hostler_two_words/__init__.py")]
    assert f"\nHOSTLER_API = {API_VERSION}  #" in module
    assert '"hostler_two_words.engine:TwoWordsEngine"' in module


def test_hostlers_own_build_leaves_no_template_out() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["scikit-build"]
    folder = ROOT / "core" / "hostler" / "cli" / "template"

    left_out = [path for path in folder.rglob("*") if set(path.relative_to(folder).parts) & set(build["sdist"]["exclude"])]

    assert list(folder.rglob("*.txt"))
    assert left_out == []


@pytest.mark.parametrize("name", NAMES)
def test_what_it_writes_passes_its_own_tests(tmp_path: Path, name: str) -> None:
    write(render(name), tmp_path)

    run(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff comes with the extra `lint`")
@pytest.mark.parametrize("name", NAMES)
def test_what_it_writes_passes_ruff_with_our_settings(tmp_path: Path, name: str) -> None:
    write(render(name), tmp_path)
    settings = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), "--config", 'src = ["src", "tests"]']

    run(tmp_path, "ruff", "check", *settings, ".")
    run(tmp_path, "ruff", "format", "--check", *settings, ".")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy comes with the extra `lint`")
def test_what_it_writes_passes_mypy(tmp_path: Path) -> None:
    write(render("bigram"), tmp_path)

    run(tmp_path, "mypy", "--strict", "--cache-dir", str(tmp_path / ".mypy"), "src", "tests")


@pytest.mark.parametrize(
    "name", ["", "Toy", "2toy", "toy!", "toy..", "-toy", "toy-", "toy--boat", "../toy", "tøy", "t" * 31, "hostler-"]
)
def test_a_name_that_cannot_be_a_plugins_is_refused(tmp_path: Path, name: str) -> None:
    code, _, err = new("--dir", tmp_path / "here", "--", name)

    assert code == 1
    assert err.startswith(f"Error: {name!r} cannot be a plugin's name: ")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["echo", "gguf", "huggingface"])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, name: str) -> None:
    code, _, err = new(name, "--dir", tmp_path / "here")

    assert (code, err) == (1, f"Error: {name} is the name of something that hostler has already; choose another\n")


def test_no_file_is_written_over_and_none_is_written_beside_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")

    code, _, err = new("toy", "--dir", tmp_path)

    assert code == 1
    assert err.startswith(f"Error: {tmp_path / 'README.md'} exists already; choose another folder with --dir\n")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_was_written_before_a_failure_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("a file where a folder must be")

    code, _, err = new("toy", "--dir", tmp_path)

    assert code == 1
    assert "cannot be written" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["src"]
