"""Import promises: `import hostler` costs next to nothing, the host loads no engine, a worker loads no server.

Each is checked in a process of its own, by what stands in sys.modules afterwards.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "falcon", "waitress", "llama_cpp", "llguidance", "onnxruntime_genai",
    "numpy", "sqlalchemy", "huggingface_hub", "jinja2", "rich",
)  # fmt: skip
ENGINES = ("llama_cpp", "llguidance", "onnxruntime", "onnxruntime_genai", "numpy", "torch")
SERVER = ("falcon", "waitress", "sqlalchemy", "huggingface_hub", "click", "rich")


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    ["hostler", "hostler.engine", "hostler.plugins", "hostler.config", "hostler.errors", "hostler.testing", "hostler.text"],
)
def test_a_ground_module_imports_nothing_heavy(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(HEAVY)


def test_the_bare_package_imports_nothing_but_itself_and_the_standard_library() -> None:
    before = modules_after("")

    assert {name for name in modules_after("import hostler") - before if name.startswith("hostler")} == {"hostler"}


def test_every_public_name_can_be_imported() -> None:
    done = modules_after("import hostler\nfor name in hostler.__all__: assert getattr(hostler, name) is not None, name")

    assert done.isdisjoint(HEAVY)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    import hostler

    with pytest.raises(AttributeError, match="module 'hostler' has no attribute 'Engin'"):
        _ = hostler.Engin


def test_looking_for_plugins_and_engines_imports_no_engine_and_no_server() -> None:
    loaded = modules_after("from hostler.plugins import get_plugins\np = get_plugins()\nassert 'echo' in p.engines")

    assert loaded.isdisjoint((*ENGINES, *SERVER, "jinja2"))
    assert "hostler_echo.engine" not in loaded


def test_the_server_imports_no_engine() -> None:
    loaded = modules_after(
        "import hostler.server, hostler.api.app, hostler.runtime\nfrom hostler.plugins import get_plugins\nget_plugins()"
    )

    assert "falcon" in loaded
    assert loaded.isdisjoint(ENGINES)


def test_a_server_in_which_nothing_happened_yet_imports_no_database_and_nothing_that_delivers(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nimport hostler.server\nfrom hostler.api.app import create_app\n"
        "from hostler.config import load_settings\nfrom hostler.plugins import get_plugins\n"
        "from hostler.runtime import Runtime\n"
        f"settings = load_settings(Path({str(tmp_path)!r}), {{'webhooks': ('http://127.0.0.1:9/',)}}, {{}})\n"
        "runtime = Runtime(settings, get_plugins())\nruntime.webhooks.start()\ncreate_app(runtime, settings)\nruntime.close(0)"
    )
    loaded = modules_after(code)

    assert {"hostler.webhooks", "hostler.api.webhooks"} <= loaded
    assert loaded.isdisjoint(("httpx", "standardwebhooks", "sqlalchemy", "alembic"))


def test_a_worker_imports_no_server() -> None:
    loaded = modules_after("import hostler.worker.child\nimport hostler_echo.engine")

    assert "hostler.worker.wire" in loaded
    assert loaded.isdisjoint(SERVER)
    assert not {name for name in loaded if name.startswith(("hostler.api", "hostler.runtime", "hostler.library.store"))}


def test_the_help_page_imports_neither_server_nor_engine() -> None:
    code = (
        "import sys; from hostler.cli import main\nsys.argv = ['hostler', '--help']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code"
    )
    loaded = modules_after(code)

    assert "click" in loaded
    assert loaded.isdisjoint((*ENGINES, "falcon", "waitress", "sqlalchemy", "huggingface_hub", "jinja2", "httpx"))


def test_the_packages_these_promises_speak_of_are_installed() -> None:
    """What is not there cannot be imported by mistake, and the tests above would say nothing."""
    for name in ("falcon", "waitress", "llama_cpp", "llguidance", "numpy", "sqlalchemy", "huggingface_hub", "jinja2", "rich"):
        assert importlib.util.find_spec(name), name
