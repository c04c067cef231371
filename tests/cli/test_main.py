"""The group: what it loads, how it fails, and that its pages say what the code says."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from hostler.cli import COMMAND_MODULES, CommandGroup, cli, reference
from hostler.errors import HomeInUse

HEAVY = (
    "rich", "httpx", "httpcore", "falcon", "waitress", "sqlalchemy", "alembic", "huggingface_hub", "jinja2", "psutil",
    "prometheus_client", "llama_cpp", "numpy", "hostler.runtime", "hostler._native", "asyncio",
)  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pull", "--help"], ["serve", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from hostler.cli import cli\n"
        f"cli({arguments!r}, standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"


def test_help_names_every_command_of_the_issue():
    done = CliRunner().invoke(cli, ["--help"])

    assert done.exit_code == 0
    for name in ["serve", "pull", "import", "list", "show", "run", "start", "stop", "ps", "rm", "plugins", "doctor"]:
        assert f"\n  {name} " in done.output


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "hostler", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("hostler 0.")


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["pull"], ["serve", "--port", "many"], ["serve", "--port", "70000"], ["list", "--nope"],
     ["start", "m", "--set", "x"]],
)  # fmt: skip
def test_wrong_command_line_exits_2(arguments, tmp_path):
    done = CliRunner().invoke(cli, ["--home", str(tmp_path), *arguments])

    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_failure_exits_1_with_one_line(tmp_path):
    (tmp_path / "config.toml").write_text("prot = 8080\n")

    done = CliRunner().invoke(cli, ["list", "--home", str(tmp_path)])

    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "'prot'" in line


def test_error_of_hostler_keeps_its_cause():
    group = CommandGroup(name="hostler")

    @click.command()
    def busy():
        raise HomeInUse("somebody is here")

    group.add_command(busy)

    with pytest.raises(click.ClickException, match="somebody is here") as caught:
        group.main(["busy"], standalone_mode=False)

    assert isinstance(caught.value.__cause__, HomeInUse)


def test_plugin_cannot_replace_a_command():
    group = CommandGroup(name="hostler")
    group.add_command(click.Command("pull"))

    with pytest.raises(ValueError, match="already a command named 'pull'"):
        group.add_command(click.Command("pull"))


def test_commands_come_in_by_the_same_hook_a_plugin_uses():
    from hostler.plugins import Plugins

    plugins = Plugins()
    plugins.load_builtin(COMMAND_MODULES)

    assert len(plugins.manager.hook.register_commands.get_hookimpls()) == len(COMMAND_MODULES)
    assert plugins.problems == []


def test_home_is_taken_before_and_after_the_command(tmp_path):
    seen = []
    group = CommandGroup(name="hostler", params=cli.params, callback=cli.callback)

    from hostler.cli.options import chosen_home, home_option

    @click.command()
    @home_option
    def where():
        seen.append(chosen_home())

    group.add_command(where)
    for arguments in (
        ["--home", "/a", "where"],
        ["where", "--home", "/b"],
        ["--home", "/a", "where", "--home", "/b"],
        ["where"],
    ):
        assert CliRunner().invoke(group, arguments).exit_code == 0

    assert [path and path.name for path in seen] == ["a", "b", "b", None]


@pytest.mark.parametrize("page", reference.PAGES)
def test_reference_pages_say_what_the_code_says(page):
    """`make docs` writes them."""
    assert (reference.DOCS / page).read_text(encoding="utf-8") == reference.PAGES[page]()
