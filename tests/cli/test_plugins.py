"""`hostler plugins`: what it shows, and what it leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hostler.cli import CommandGroup, cli
from hostler.home import HomeLock, ServerAddress, write_address
from support.madeup import GOOD, write_plugin

BROKEN = "raise RuntimeError('no coal')"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path for made-up plugins."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.startswith("made_up_")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def hostler(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def states(home: Path) -> dict[str, str]:
    code, out, _ = hostler("plugins", "list", "--json", "--home", home)
    assert code == 0
    return {row["name"]: row["state"] for row in json.loads(out)["plugins"]}


# -- list -------------------------------------------------------------------------------------------------------------


def test_list_shows_what_a_plugin_brings_and_how_each_fares(site: Path, home: Path) -> None:
    write_plugin(site, "red")
    write_plugin(site, "bad", BROKEN)
    write_plugin(site, "odd", "from hostler import hookimpl\n@hookimpl\ndef register_engines(): return 7\n")

    code, out, err = hostler("plugins", "--home", home)

    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert code == 0
    assert rows["red"] == "red 1.2.3 made-up-red ok engine red (red)"
    assert rows["bad"] == "bad 1.2.3 made-up-bad failed -"
    assert rows["odd"] == "odd 1.2.3 made-up-odd problem -"
    assert rows["huggingface"].endswith("hostler ok source hf:")
    assert "problem: plugin 'bad' cannot be imported (made_up_bad, of made-up-bad 1.2.3): RuntimeError: no coal" in err
    assert "problem: plugin 'odd' register_engines gave 7" in err


def test_bare_plugins_and_list_say_the_same(site: Path, home: Path) -> None:
    assert hostler("plugins", "--home", home) == hostler("plugins", "list", "--home", home)
    assert hostler("plugins", "--json", "--home", home) == hostler("plugins", "list", "--json", "--home", home)


# -- disable and enable -----------------------------------------------------------------------------------------------


def test_a_disabled_plugin_stays_out_until_it_is_enabled(site: Path, home: Path) -> None:
    write_plugin(site, "red")
    write_plugin(site, "bad", BROKEN)

    assert hostler("plugins", "disable", "red", "bad", "--home", home) == (0, f"red, bad: disabled in {home}\n", "")
    assert (states(home)["red"], states(home)["bad"]) == ("disabled", "disabled")
    assert "'bad'" not in hostler("plugins", "list", "--home", home)[2], "what is not imported has no problem"

    assert hostler("plugins", "enable", "bad", "--home", home) == (0, f"bad: enabled in {home}\n", "")
    assert (states(home)["red"], states(home)["bad"]) == ("disabled", "failed")


def test_hostlers_own_plugins_can_be_disabled(home: Path) -> None:
    hostler("plugins", "disable", "huggingface", "--home", home)

    code, _, err = hostler("pull", "hf:owner/repo", "--home", home)

    assert code == 1
    assert "hf:" in err


def test_what_is_not_installed_cannot_be_disabled(home: Path) -> None:
    code, _, err = hostler("plugins", "disable", "lost", "--home", home)

    assert code == 1
    assert err.startswith("Error: no plugin is named lost; there are: pypi, huggingface, https, file, ")
    assert not (home / "plugins.json").exists()


def test_a_plugin_that_is_gone_can_be_enabled_so_that_no_name_stays_for_ever(site: Path, home: Path) -> None:
    write_plugin(site, "red")
    hostler("plugins", "disable", "red", "--home", home)
    (site / "made_up_red-1.2.3.dist-info" / "entry_points.txt").unlink()

    assert hostler("plugins", "enable", "red", "--home", home)[0] == 0


def test_what_is_not_disabled_cannot_be_enabled(home: Path) -> None:
    code, _, err = hostler("plugins", "enable", "echo", "--home", home)

    assert (code, err) == (1, f"Error: echo is not disabled in {home}; disabled are: none\n")


def test_disable_and_enable_import_no_plugin(site: Path, home: Path) -> None:
    """They must help against one that hangs."""
    module = write_plugin(site, "bad", BROKEN)

    hostler("plugins", "disable", "bad", "--home", home)
    hostler("plugins", "enable", "bad", "--home", home)

    assert module not in sys.modules


def test_with_a_server_they_say_that_it_goes_on_as_it_was(home: Path) -> None:
    home.mkdir()
    with HomeLock(home, "serve"):
        write_address(home, ServerAddress(os.getpid(), "http://127.0.0.1:9", 9, 0, "token"))

        _, out, _ = hostler("plugins", "disable", "echo", "--home", home)

    assert out.splitlines()[1] == "The server of this home goes on as it was until: hostler plugins reload"


def test_choices_that_cannot_be_read_are_not_written_over(home: Path) -> None:
    home.mkdir()
    (home / "plugins.json").write_text("{disabled: echo}")

    code, _, err = hostler("plugins", "disable", "echo", "--home", home)

    assert code == 1
    assert str(home / "plugins.json") in err
    assert (home / "plugins.json").read_text() == "{disabled: echo}"


# -- the whole command line -------------------------------------------------------------------------------------------


COMMAND = """
import click
from hostler import hookimpl

@hookimpl
def register_commands(cli):
    cli.add_command(click.Command("NAME"))
"""


def commands_of(*arguments: str) -> str:
    group = CommandGroup(name="hostler", params=cli.params, callback=cli.callback)
    return CliRunner().invoke(group, [*arguments, "--help"]).output


def test_help_shows_the_commands_of_installed_plugins_save_those_of_disabled_ones(
    site: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(site, "shunt", COMMAND)
    hostler("plugins", "disable", "shunt", "--home", home)

    assert "\n  shunt" in commands_of()
    assert "\n  shunt" not in commands_of("--home", str(home))
    monkeypatch.setenv("HOSTLER_HOME", str(home))
    assert "\n  shunt" not in commands_of()


def test_help_waits_for_a_plugin_that_hangs_no_longer_than_its_deadline_and_says_so(
    site: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    import hostler.plugins
    from hostler.patience import call_each

    monkeypatch.setattr(hostler.plugins, "call_each", partial(call_each, deadline_s=1.5))
    write_plugin(site, "asleep", "import threading\nthreading.Event().wait()\n")

    output = commands_of("--home", str(home))

    assert output.startswith("Warning: plugin 'asleep' is skipped: its import did not return within 1.5 s; it stands at ")
    assert "`hostler plugins disable asleep` leaves it out" in output
    assert "\n  serve " in output


def test_discovery_imports_the_modules_of_plugins_and_nothing_that_they_only_name(site: Path, home: Path) -> None:
    for index in range(20):
        write_plugin(site, f"p{index}")
    code = (
        "import sys\nfrom hostler.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith('made_up')), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "HOSTLER_HOME": str(home)}

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)

    assert done.stderr.strip() == str(sorted(f"made_up_p{index}" for index in range(20)))
    assert GOOD.count("engine:") == 2, "the plugins name modules that do not even exist"
