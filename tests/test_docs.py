"""The pages are true: their links lead somewhere, and the tutorial's engine is built, installed, tested and talked to.

Nothing here needs a network. Hooks are checked in test_hookspecs.py, settings in test_config.py.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hostler.cli.plugintemplate import render, write
from hostler.engine import MessageEngine, SequenceSink
from hostler.testing import contract_checks
from hostler.testing.rules import CHECKS, MESSAGE_CHECKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/*.md"), *ROOT.glob("benchmarks/*.md")])
TUTORIAL = (ROOT / "docs" / "writing-an-engine.md").read_text(encoding="utf-8")
ENGINES = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")


def files_of(page: str) -> dict[str, str]:
    """The files a page spells out: a line with the path, then the content."""
    return dict(re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def commands_of(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page's console blocks, each with the lines it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


# -- links ------------------------------------------------------------------------------------------------------------


def anchors_of(path: Path) -> set[str]:
    """The places of a page that a link can lead to, as GitHub names them."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a name="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_tree_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.relative_to(ROOT)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors_of(path), f"{page.relative_to(ROOT)} links to {target}: no such heading"


# -- engines ----------------------------------------------------------------------------------------------------------


def test_the_page_of_engines_has_each_engine_in_this_tree() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \|", ENGINES, re.MULTILINE)

    found = set()
    for pyproject in ROOT.glob("plugins/*/pyproject.toml"):
        for module in pyproject.parent.glob("src/*/__init__.py"):
            tree = ast.parse(module.read_text(encoding="utf-8"))
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            for call in (call for call in calls if ast.unparse(call.func) == "EngineSpec"):
                name = next(keyword.value for keyword in call.keywords if keyword.arg == "name")
                found.add((ast.literal_eval(name), f"hostler-{pyproject.parent.name}"))

    assert found
    assert set(rows) == found


# -- the tutorial -----------------------------------------------------------------------------------------------------


def test_the_tutorial_lists_every_check_with_its_rule() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TUTORIAL.partition("## The checks")[2], re.MULTILINE))

    rules = {name: " ".join((inspect.getdoc(check) or "").split("\n\n")[0].split()) for name, check in CHECKS.items()}

    assert rows == rules
    assert list(rows) == list(contract_checks())


def test_the_tutorial_lists_every_check_of_engines_that_take_messages_with_its_rule() -> None:
    section = TUTORIAL.partition("## An engine that takes messages")[2].partition("## The checks")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))

    own = {name: check for name, check in MESSAGE_CHECKS.items() if name not in CHECKS}
    rules = {name: " ".join((inspect.getdoc(check) or "").split("\n\n")[0].split()) for name, check in own.items()}

    assert rows == rules
    assert f"({len(MESSAGE_CHECKS) - len(own)} of them)" in section


def test_the_tutorial_names_only_what_the_contract_has() -> None:
    prose = re.sub(r"^```.*?^```$", "", TUTORIAL, flags=re.MULTILINE | re.DOTALL).partition("## The checks")[0]
    methods = {name for protocol in (MessageEngine, SequenceSink) for name in dir(protocol) if not name.startswith("_")}
    methods.add("params")  # an attribute, which a protocol has no value for

    called = set(re.findall(r"^- `(\w+)`", prose, re.MULTILINE)) | set(re.findall(r"`(begin|prefilled|push|end)\(", prose))

    assert called <= methods
    assert {"load", "add", "step", "cancel", "tokenize", "begin", "prefilled", "end"} <= called


def test_the_tutorial_shows_what_hostler_plugins_new_writes() -> None:
    written = {str(path): text for path, text in render("bigram").items()}

    shown = files_of(TUTORIAL)

    assert shown == {name: written[name] for name in shown}
    assert set(written) - set(shown) == {"README.md", "tests/test_engine.py"}


@pytest.mark.slow
def test_the_tutorial_from_an_empty_folder_to_a_chat(tmp_path: Path) -> None:
    """Runs each command of the page, from `hostler plugins new` on; every line that the page shows must come."""
    folder, site, home = tmp_path / "work", tmp_path / "site", tmp_path / "home"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
    environment |= {"PYTHONPATH": str(site), "HOSTLER_HOME": str(home), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    programs = {
        # Into a folder of its own instead of the tests' environment, and with the build backend that is here.
        "pip install -e '.[test]'": [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
            *("--no-deps", "--no-build-isolation", "--target", str(site), "."),
        ],
        "pip": [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"],
        "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        "hostler": [sys.executable, "-m", "hostler"],
    }
    commands = commands_of(TUTORIAL)

    for command, expected in commands:
        words = shlex.split(command)
        if words[0] == "cd":
            folder /= words[1]
            continue
        real = programs.get(command) or [*programs[words[0]], *words[1:]]
        if words[:2] == ["pip", "wheel"]:
            real += ["--no-build-isolation", "--no-index"]
        done = subprocess.run(real, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        for line in expected:
            squeezed = [" ".join(printed.split()) for printed in done.stdout.splitlines()]
            wanted = " ".join(line.split())
            assert any(printed.startswith(wanted) or wanted in printed for printed in squeezed), (
                f"{command} did not print {line!r}:\n{done.stdout}\n{done.stderr}"
            )

    assert commands[0][0] == "hostler plugins new bigram"
    assert [command.partition(" ")[0] for command, _ in commands].count("hostler") == 5
    assert [path.name for path in folder.glob("dist/*")] == ["hostler_bigram-0.1.0-py3-none-any.whl"]


def test_the_tutorials_engine_keeps_the_contract(tmp_path: Path) -> None:
    """The quick half of the above, so that a bare `pytest` notices a page that has gone stale."""
    write(render("bigram"), tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "37 passed" in done.stdout
