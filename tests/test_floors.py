"""The floors of core/hostler: a module imports its own floor and lower ones, never a higher one, and nobody in a circle.

What may be imported where is a promise to readers (a low module can be read alone) and to users (a worker loads no server).
Read with `ast`, so that imports inside functions and under TYPE_CHECKING count, too.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core" / "hostler"

FLOORS = {
    # 0, ground: standard library and msgspec
    "cores": 0, "errors": 0, "domain": 0, "config": 0, "filelock": 0, "home": 0, "logs": 0, "patience": 0,
    "responseformat": 0, "typeinfo": 0, "subscription": 0,
    # 1, native and storage
    "_native": 1, "hardware": 1, "ring": 1, "modelcache": 1, "installed": 1, "library": 1, "records": 1,
    # 2, plugin contracts, and what is made of them
    "batching": 2, "prefixtree": 2, "turns": 2, "journal": 2, "listening": 2, "mounts": 2, "pluginview": 2, "trial": 2,
    "engine": 2, "guidance": 2, "hookspecs": 2, "keptprefixes": 2, "longwork": 2, "modeldigest": 2,
    "prefixfiles": 2, "prefixfolder": 2, "prefixlayout": 2, "sources": 2, "plugins": 2, "prompt": 2, "testing": 2, "text": 2,
    "library.fetch": 2, "library.origin": 2, "library.pulls": 2, "library.running": 2, "library.store": 2,
    "library.transfer": 2,
    # 3, worker process
    "worker": 3,
    # 4, scheduling
    "runs": 4, "liverun": 4, "runplan": 4, "context": 4,
    "listeners": 4, "reloading": 4,
    "scheduler": 4, "ledger": 4, "events": 4, "runtime": 4, "starts": 4, "placement": 4, "hosted": 4,
    "generation": 4, "views": 4, "snapshots": 4, "weights": 4, "request": 4, "embedding": 4,
    "signedpost": 4, "delivery": 4, "webhooks": 4,
    # 5, API
    "api": 5,
    # 6, top
    "server": 6, "cli": 6, "__main__": 6,
}  # fmt: skip
"""Module or package -> floor; the longest name that fits a module counts."""

LOWEST_FLOOR = {
    "msgspec": 0, "platformdirs": 0,
    "alembic": 1, "certifi": 1, "httpx": 1, "huggingface_hub": 1, "packaging": 1, "psutil": 1, "sqlalchemy": 1,
    "jinja2": 2, "llguidance": 2, "pluggy": 2,
    "prometheus_client": 4, "standardwebhooks": 4,
    "falcon": 5, "swagger_ui": 5, "waitress": 5,
    "click": 6, "rich": 6,
}  # fmt: skip
"""Third-party package -> the lowest floor that may import it. What is not here may be imported nowhere in core: engines and
their libraries least of all. A new dependency gets its line here on purpose."""

OTHER_NAMES = {"swagger_ui": "swagger_ui_py"}
"""Module -> the distribution it comes in, where the names differ."""

USED_WHEN_PRESENT = {"certifi"}
"""Not dependencies: imported where an ImportError is caught."""

TYPES_ONLY = {"click"}
"""May be imported anywhere under TYPE_CHECKING: the hook `register_commands` hands out a click.Group."""


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name."""

    name: str
    line: int
    is_for_types: bool


def modules() -> list[Path]:
    return sorted(path for path in CORE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name inside the package; the root package is the empty string."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((FLOORS[name] for name in names if name in FLOORS), None)


def is_module(name: str) -> bool:
    """Whether a dotted name inside the package is a module of it."""
    path = CORE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or path.with_suffix(".pyi").exists()


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    return tuple(find_imports(path))


def find_imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write the whole name of what is imported"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = full.removeprefix("hostler.")
                names.append(full if full.startswith("hostler.") and is_module(inside) else str(node.module))
                if node.module == "hostler" and not is_module(inside):
                    names[-1] = f"hostler:{alias.name}"
        for name in names:
            yield Import(name, node.lineno, id(node) in for_types)


MODULES = modules()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_no_higher_floor_and_not_the_package_root(path: Path) -> None:
    own = floor_of(name_of(path))
    if not name_of(path):
        return  # the package root shows what lies below; it loads it late
    assert own is not None, f"{path}: give it a floor in this file"
    for imported in imports_of(path):
        place = f"{path.relative_to(ROOT)}:{imported.line}"
        if imported.name.startswith("hostler:"):
            # __version__ is at home there; everything else has a module of its own.
            assert imported.name == "hostler:__version__", f"{place} imports {imported.name} from the package root"
        elif imported.name.split(".")[0] == "hostler":
            floor = floor_of(imported.name.removeprefix("hostler."))
            assert floor is not None, f"{place}: {imported.name} has no floor"
            assert floor <= own, f"{place}: floor {own} imports {imported.name} of floor {floor}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_the_packages_of_its_floor(path: Path) -> None:
    own = floor_of(name_of(path)) or 0
    for imported in imports_of(path):
        package = imported.name.split(".")[0].split(":")[0]
        if package == "hostler" or package in sys.stdlib_module_names:
            continue
        place = f"{path.relative_to(ROOT)}:{imported.line}"
        assert package in LOWEST_FLOOR, f"{place} imports {package}, which has no place in core"
        if not (imported.is_for_types and package in TYPES_ONLY):
            assert LOWEST_FLOOR[package] <= own, f"{place}: {package} belongs to floor {LOWEST_FLOOR[package]} and up"


def test_every_package_that_core_imports_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=!~\[ ]", line)[0].replace("-", "_") for line in project["dependencies"]}
    declared |= {module for module, distribution in OTHER_NAMES.items() if distribution in declared}

    assert set(LOWEST_FLOOR) - USED_WHEN_PRESENT <= declared


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_that_states_its_floor_states_the_right_one(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for stated in re.findall(r"\b[Ff]loor (\d)", text):
        assert int(stated) == floor_of(name_of(path))


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name_of(path): {
            imported.name.removeprefix("hostler.")
            for imported in imports_of(path)
            if imported.name.startswith("hostler.") and not imported.is_for_types
        }
        for path in MODULES
        if name_of(path)
    }

    def circle_from(start: str) -> list[str] | None:
        pending, seen = [[start]], set()
        while pending:
            way = pending.pop()
            for target in graph.get(way[-1], ()):
                if target == start:
                    return [*way, target]
                if target not in seen:
                    seen.add(target)
                    pending.append([*way, target])
        return None

    circles = [" -> ".join(circle) for name in graph if (circle := circle_from(name))]
    assert not circles, circles[0]


PLUGIN_MODULES = sorted(ROOT.glob("plugins/*/src/**/*.py"))


@pytest.mark.parametrize("path", PLUGIN_MODULES, ids=lambda path: path.parent.name + "." + path.stem)
def test_a_plugin_imports_hostler_and_its_testing_and_nothing_deeper(path: Path) -> None:
    for imported in imports_of(path):
        package, _, inside = imported.name.partition(".")
        if package == "hostler":
            assert inside.split(".")[0] == "testing", f"{path}:{imported.line} imports {imported.name}; use `hostler`"


def test_there_are_modules_and_plugins_to_look_at() -> None:
    """A path that moved would leave the tests above with nothing to find."""
    assert {"errors", "runtime", "worker.wire", "api.errors"} <= {name_of(path) for path in MODULES}
    assert {path.parent.name for path in PLUGIN_MODULES} >= {"hostler_echo"}


def test_the_reader_of_imports_sees_late_and_typed_ones(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import falcon\nif TYPE_CHECKING:\n    from click import Group\n"
        "def f():\n    from hostler import errors, hookimpl\n    from hostler.engine import Engine\n"
    )

    found = {(imported.name, imported.is_for_types) for imported in imports_of(path)}

    assert found == {
        ("falcon", False),
        ("click", True),
        ("hostler.errors", False),
        ("hostler:hookimpl", False),
        ("hostler.engine", False),
    }
