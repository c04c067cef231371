"""`hostler plugins check`: what keeps the contract, and what each way of breaking it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hostler.cli import cli
from hostler.testing import contract_checks
from support.madeup import GOOD, write_plugin
from support.server import add_echo

KEPT = ("load_gives_sane_info", "cancel_of_an_unknown_id_is_ignored", "greedy_answers_repeat", "memory_is_accounted")
"""The checks that clumsy engines below are put to."""

PLUGIN = """
from hostler import EngineSpec, hookimpl

@hookimpl
def register_engines():
    where = "made_up_NAME_engine"
    return [EngineSpec("NAME", ("echo",), where + ":Clumsy", where + ":probe", sample=where + ":sample")]
"""
ENGINE = f"""
import os, threading
from hostler.testing import contract_checks
from hostler_echo.engine import EchoEngine, probe
from hostler_echo import sample as echo
import msgspec

def sample(folder):
    without = tuple(name for name in contract_checks() if name not in {KEPT!r})
    return msgspec.structs.replace(echo.sample(folder), without=without)

class Clumsy(EchoEngine):
"""

Check = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in [name for name in sys.modules if name.startswith("made_up_")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.fixture
def clumsy(site: Path, tmp_path: Path) -> Check:
    """Checks an engine that is echo's but for the methods that are given."""

    def check(methods: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        write_plugin(site, "clumsy", PLUGIN)
        (site / "made_up_clumsy_engine.py").write_text(ENGINE + methods)
        command = ["plugins", "check", "clumsy", "--json", "--home", str(tmp_path / "home"), *arguments]
        done = CliRunner().invoke(cli, command)
        return done.exit_code, json.loads(done.stdout)

    return check


def failed(results: list[dict[str, Any]]) -> dict[str, str]:
    return {result["subject"]: result["detail"] for result in results if result["state"] == "failed"}


def test_an_engine_that_keeps_the_contract_passes_every_check(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["plugins", "check", "echo", "--home", str(tmp_path)])

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok        plugin: hostler_echo, imported in ")
    assert lines[1] == "ok        engine echo: echo 0.1.0: cpu (plain Python, no weights)"
    assert lines[2].startswith("ok        engine echo: checked with ")
    assert [line.split()[1] for line in lines[3:-1]] == list(contract_checks())
    assert lines[-1] == f"{len(lines) - 1} ok"


def test_a_model_may_be_named_by_its_id_or_its_path(tmp_path: Path) -> None:
    home = tmp_path / "home"
    add_echo(home, "parrot", bytes_per_token=2)
    path = tmp_path / "home.models" / "parrot.echo"
    without = [word for name in contract_checks()[1:] for word in ("--without", name)]

    for model in ("parrot", str(path)):
        done = CliRunner().invoke(cli, ["plugins", "check", "echo", "--home", str(home), "--model", model, *without])

        assert done.exit_code == 0, done.output
        assert f"ok        engine echo: checked with {path}\n" in done.stdout
        assert done.stdout.splitlines()[-1] == f"4 ok, {len(contract_checks()) - 1} left out"


def test_a_check_that_fails_says_what_was_expected_and_the_others_go_on(clumsy: Check) -> None:
    code, results = clumsy("    def memory(self):\n        return None\n")

    assert code == 1
    assert list(failed(results)) == ["memory_is_accounted"]
    assert failed(results)["memory_is_accounted"] == "memory() gave None"
    assert [result["subject"] for result in results if result["state"] == "ok"][3:] == list(KEPT[:3])


def test_an_engine_that_dies_costs_the_check_it_dies_in(clumsy: Check) -> None:
    code, results = clumsy(
        "    ids = set()\n"
        "    def add(self, sequence):\n        self.ids.add(sequence.id)\n        super().add(sequence)\n"
        "    def cancel(self, sequence_id):\n"
        "        if sequence_id not in self.ids:\n            os.write(2, b'so long\\n')\n            os.abort()\n"
        "        super().cancel(sequence_id)\n"
    )

    assert code == 1
    assert failed(results) == {"cancel_of_an_unknown_id_is_ignored": "its process ended with signal 6: so long"}
    assert [result["subject"] for result in results if result["state"] == "ok"][-2:] == list(KEPT[2:])
    assert len([result for result in results if result["subject"] == "engine clumsy"]) == 2


def test_an_engine_that_hangs_costs_the_check_it_hangs_in(clumsy: Check) -> None:
    code, results = clumsy("    def memory(self):\n        threading.Event().wait()\n", "--timeout-s", "4")

    assert code == 1
    assert failed(results) == {"memory_is_accounted": "it did not end within 4 s"}


def test_an_engine_that_prints_disturbs_nobody(clumsy: Check) -> None:
    code, results = clumsy("    def add(self, sequence):\n        os.write(1, b'noise\\n'); super().add(sequence)\n")

    assert code == 0
    assert failed(results) == {}


def test_an_engine_that_cannot_be_imported_fails_with_the_reason(clumsy: Check) -> None:
    code, results = clumsy("    pass\nraise ImportError('libmissing.so.1')\n")

    assert code == 1
    assert all("libmissing.so.1" in detail for detail in failed(results).values())
    assert set(failed(results)) == {"engine clumsy"}


def test_a_plugin_without_a_model_of_its_own_wants_one(site: Path, tmp_path: Path) -> None:
    write_plugin(site, "bare", PLUGIN.replace(', sample=where + ":sample"', ""))
    (site / "made_up_bare_engine.py").write_text(ENGINE + "    pass\n")

    done = CliRunner().invoke(cli, ["plugins", "check", "bare", "--home", str(tmp_path)])

    assert done.exit_code == 1
    assert "failed    engine bare: the plugin brings no model to check it with; name one with --model" in done.stdout


def test_a_model_of_another_format_is_refused(tmp_path: Path) -> None:
    import struct

    path = tmp_path / "m.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))

    done = CliRunner().invoke(cli, ["plugins", "check", "echo", "--home", str(tmp_path), "--model", str(path)])

    assert done.exit_code == 1
    assert "gguf" in done.stderr.lower()


def test_a_plugin_that_brings_no_engine_is_checked_for_its_hooks(tmp_path: Path, site: Path) -> None:
    write_plugin(site, "quiet", "from hostler import hookimpl\n@hookimpl\ndef register_sources(): return ()\n")

    done = CliRunner().invoke(cli, ["plugins", "check", "quiet", "--home", str(tmp_path)])

    assert (done.exit_code, done.stdout.count("\n")) == (0, 2)
    assert "brings no engine" in done.stdout


def test_what_is_wrong_with_its_hooks_is_a_failure(tmp_path: Path, site: Path) -> None:
    write_plugin(site, "future", GOOD.replace("HOSTLER_API = 1", "HOSTLER_API = 2"))

    done = CliRunner().invoke(cli, ["plugins", "check", "future", "--home", str(tmp_path)])

    assert done.exit_code == 1
    assert done.stdout.startswith("failed    plugin: plugin 'future' was built for version 2")


def test_what_is_not_there_or_disabled_cannot_be_checked(tmp_path: Path) -> None:
    lost = CliRunner().invoke(cli, ["plugins", "check", "lost", "--home", str(tmp_path)])
    CliRunner().invoke(cli, ["plugins", "disable", "echo", "--home", str(tmp_path)])
    disabled = CliRunner().invoke(cli, ["plugins", "check", "echo", "--home", str(tmp_path)])

    assert (lost.exit_code, disabled.exit_code) == (1, 1)
    assert "Error: no plugin is named lost; there are: pypi," in lost.stderr
    assert "`hostler plugins enable echo`" in disabled.stderr
