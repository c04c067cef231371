"""Plugins that work, and plugins that do not: each is named and skipped, and the host lives."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import msgspec
import pytest

import hostler.plugins
from hostler.engine import API_VERSION, EngineSpec
from hostler.hookspecs import hookimpl
from hostler.installed import write_disabled
from hostler.patience import call_each
from hostler.plugins import PluginInfo, Plugins, get_plugins
from hostler.sources.contract import SourceSpec
from support.madeup import GOOD, write_plugin

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs fake distributions into a folder of their own on sys.path; no other plugin is seen."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setenv("HOSTLER_LOAD_PLUGINS", "")
    wanted: list[str] = []

    def put(name: str, source: str = GOOD, **details: str) -> None:
        module = write_plugin(site, name, source, **details)
        wanted.append(name)
        monkeypatch.setenv("HOSTLER_LOAD_PLUGINS", ",".join(wanted))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return put


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is given up soon."""
    monkeypatch.setattr(hostler.plugins, "call_each", partial(call_each, deadline_s=1.5))


def load() -> Plugins:
    plugins = Plugins()
    plugins.load_installed()
    return plugins


def spec(name: str = "toy", **changes: object) -> EngineSpec:
    return msgspec.structs.replace(EngineSpec(name, (name,), "toy.engine:Engine", "toy.engine:probe"), **changes)


class EnginePlugin:
    """A plugin object that gives what it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    @hookimpl
    def register_engines(self) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def plugins_with(*answers: object) -> Plugins:
    plugins = Plugins()
    for index, answer in enumerate(answers):
        plugins.register(EnginePlugin(answer), f"p{index}")
    return plugins


def messages(plugins: Plugins) -> list[str]:
    _ = plugins.engines, plugins.sources
    return [problem.message for problem in plugins.problems]


# -- finding ----------------------------------------------------------------------------------------------------------


def test_an_installed_plugin_is_found_by_its_entry_point(install: Install) -> None:
    install("red", GOOD.replace('("NAME",)', '("redfile",)'))

    plugins = load()

    assert plugins.infos == [PluginInfo("red", "made_up_red")]
    assert (plugins.infos[0].version, plugins.infos[0].distribution) == ("1.2.3", "made-up-red")
    assert plugins.engines["red"].formats == ("redfile",)
    assert plugins.engines_of("red") == [plugins.engines["red"]]
    assert messages(plugins) == []


def test_a_plugin_whose_import_raises_is_named_with_its_package_and_skipped(install: Install) -> None:
    install("bad", "import there_is_no_such_module")
    install("good", GOOD)

    plugins = load()

    assert list(plugins.engines) == ["good"]
    assert messages(plugins) == [
        "plugin 'bad' cannot be imported (made_up_bad, of made-up-bad 1.2.3): "
        "ModuleNotFoundError: No module named 'there_is_no_such_module'"
    ]


def test_a_plugin_that_exits_while_it_is_imported_does_not_end_the_host(install: Install) -> None:
    install("leaver", "import sys; sys.exit('goodbye')")

    plugins = load()

    assert plugins.problems[0].plugin == "leaver"
    assert "SystemExit: goodbye" in plugins.problems[0].message


def test_a_plugin_whose_source_is_no_python_is_named_and_skipped(install: Install) -> None:
    install("garbage", "def register_engines(:\n")

    assert "plugin 'garbage' cannot be imported" in messages(load())[0]


@pytest.mark.parametrize(
    ("entry_point", "reason"),
    [
        ("made_up_nowhere_at_all", "ModuleNotFoundError"),
        ("made_up_pointer:missing_name", "AttributeError"),
        ("not an import path!", "'NoneType'|Invalid object reference"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_named_and_skipped(install: Install, entry_point: str, reason: str) -> None:
    install("pointer", GOOD, entry_point=entry_point)

    (message,) = messages(load())

    assert message.startswith("plugin 'pointer' cannot be imported")
    assert re.search(reason, message)  # Python's own reader of entry points has other words than the package's


def test_of_two_plugins_of_one_name_the_second_is_reported(install: Install) -> None:
    install("twin", GOOD)
    plugins = load()

    plugins.register(EnginePlugin([spec()]), "twin")

    assert list(plugins.engines) == ["twin"]
    assert messages(plugins) == [
        "plugin 'twin' cannot be registered: another plugin of that name came first; uninstall one of them"
    ]


def test_a_plugin_whose_import_hangs_is_named_with_the_place_and_skipped(install: Install, impatient: None) -> None:
    install("dozing", "import threading\nthreading.Event().wait()\n")
    install("good", GOOD)

    plugins = load()

    assert list(plugins.engines) == ["good"]
    (message,) = messages(plugins)
    assert message.startswith("plugin 'dozing' is skipped: its import did not return within 1.5 s; it stands at ")
    assert "made_up_dozing.py:2, in <module>" in message
    assert message.endswith("`hostler plugins disable dozing` leaves it out")
    assert plugins.left_out == [PluginInfo("dozing", "made_up_dozing", state="failed")]


def test_a_plugin_tells_what_its_import_loaded_beside_itself(install: Install, tmp_path: Path) -> None:
    (tmp_path / "site" / "made_up_library.py").write_text("import wave\n")
    install("greedy", "import made_up_library\n" + GOOD)

    (info,) = load().infos

    assert info.brought == ("made_up_library",)
    assert info.import_s > 0


# -- the version of the plugin API ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [GOOD, GOOD.replace("HOSTLER_API = 1\n", "")])
def test_a_plugin_that_was_built_for_this_api_is_loaded_and_one_that_says_nothing_counts_as_the_first(
    install: Install, source: str
) -> None:
    install("fits", source)

    assert list(load().engines) == ["fits"]


def test_a_plugin_that_was_built_for_another_api_is_refused_by_name_and_the_others_live(install: Install) -> None:
    install("future", GOOD.replace("HOSTLER_API = 1", "HOSTLER_API = 2"))
    install("good", GOOD)

    plugins = load()

    assert list(plugins.engines) == ["good"]
    assert messages(plugins) == [
        "plugin 'future' was built for version 2 of hostler's plugin API, and this hostler has version 1; install a release "
        "of made-up-future that fits, or the hostler that it was built for"
    ]
    assert plugins.left_out == [PluginInfo("future", "made_up_future", state="failed")]


def test_a_plugin_of_another_api_that_misses_names_is_refused_for_its_api(install: Install) -> None:
    """Its import fails because it was built for something else: that is the reason to tell, not the missing name."""
    install("future", '"""A plugin."""\n\nfrom hostler import hookimpl, ThingOfVersion2\n\nHOSTLER_API = 2  # ours\n')

    (message,) = messages(load())

    assert message.startswith("plugin 'future' was built for version 2 of hostler's plugin API")


def test_a_plugin_object_speaks_the_api_of_its_module(install: Install) -> None:
    source = "from hostler import hookimpl\nHOSTLER_API = 2\nclass Plugin:\n    pass\nplugin = Plugin()\n"
    install("future", source, entry_point="made_up_future:plugin")

    assert "was built for version 2" in messages(load())[0]


def test_a_plugin_whose_api_is_no_number_is_refused(install: Install) -> None:
    install("odd", GOOD.replace("HOSTLER_API = 1", "HOSTLER_API = '1'"))

    assert messages(load()) == ["plugin 'odd' says HOSTLER_API = '1'; it must be a whole number, such as 1"]


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_a_disabled_plugin_is_not_imported(install: Install, tmp_path: Path) -> None:
    install("off", "raise RuntimeError('imported')")
    write_disabled(tmp_path / "home", ["off", "pypi"])

    plugins = get_plugins(tmp_path / "home")

    assert plugins.problems == []
    assert "pypi" not in plugins.sources
    assert plugins.left_out == [
        PluginInfo("pypi", "hostler.sources.pypi", is_builtin=True, state="disabled"),
        PluginInfo("off", "made_up_off", state="disabled"),
    ]


def test_choices_that_cannot_be_read_are_a_problem_and_leave_nothing_out(install: Install, tmp_path: Path) -> None:
    install("on", GOOD)
    (tmp_path / "plugins.json").write_text('{"disabled": "on"}')

    plugins = get_plugins(tmp_path)

    assert "on" in plugins.engines
    (problem,) = plugins.problems
    assert str(tmp_path / "plugins.json") in problem.message
    assert "Expected `array`, got `str`" in problem.message


def test_an_installed_plugin_that_cannot_be_registered_is_left_out(install: Install) -> None:
    install("wrong", "from hostler import hookimpl\n@hookimpl\ndef register_engines(colour): return []\n")

    plugins = load()

    assert plugins.infos == []
    assert plugins.left_out == [PluginInfo("wrong", "made_up_wrong", state="failed")]
    assert plugins.loaded == {}


def test_load_plugins_names_the_only_ones_to_load(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one", GOOD)
    install("two", GOOD)

    monkeypatch.setenv("HOSTLER_LOAD_PLUGINS", " two ,")

    assert [info.name for info in load().infos] == ["two"]


def test_load_plugins_that_names_a_missing_one_is_reported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_LOAD_PLUGINS", "lost")

    assert messages(load()) == ["plugin 'lost' is named in HOSTLER_LOAD_PLUGINS, but no installed package brings it"]


def test_get_plugins_brings_the_builtin_sources_and_complete_problems(install: Install) -> None:
    install("broken", "from hostler import hookimpl\n@hookimpl\ndef register_engines():\n    raise ValueError('no')\n")

    plugins = get_plugins()

    assert {"pypi", "hf", "https", "file"} <= set(plugins.sources)
    assert [problem.message for problem in plugins.problems] == ["plugin 'broken' register_engines raised ValueError: no"]


# -- hooks ------------------------------------------------------------------------------------------------------------


def test_a_hook_that_raises_costs_only_its_own_answer() -> None:
    plugins = plugins_with(RuntimeError("out of order"), [spec()])

    assert list(plugins.engines) == ["toy"]
    assert messages(plugins) == ["plugin 'p0' register_engines raised RuntimeError: out of order"]


def test_a_hook_that_exits_does_not_end_the_host() -> None:
    class Leaver:
        @hookimpl
        def register_engines(self) -> object:
            sys.exit("enough")

    plugins = Plugins()
    plugins.register(Leaver(), "leaver")

    assert messages(plugins) == ["plugin 'leaver' register_engines raised SystemExit: enough"]


def test_a_hook_that_hangs_is_named_and_no_other_hook_of_its_plugin_is_called(impatient: None) -> None:
    asked: list[str] = []

    class Asleep:
        @hookimpl
        def register_engines(self) -> object:
            threading.Event().wait()

        @hookimpl
        def register_sources(self) -> object:
            asked.append("sources")

    plugins = Plugins()
    plugins.register(Asleep(), "asleep")
    plugins.register(EnginePlugin([spec()]), "awake")

    assert list(plugins.engines) == ["toy"]
    (message,) = messages(plugins)
    assert message.startswith("plugin 'asleep' is skipped: register_engines did not return within 1.5 s; it stands at ")
    assert asked == []


def test_a_hook_that_raises_while_it_yields_gives_nothing() -> None:
    def engines() -> object:
        yield spec("first")
        raise OSError("half way")

    plugins = plugins_with(engines())

    assert plugins.engines == {}
    assert messages(plugins) == ["plugin 'p0' register_engines raised OSError: half way"]


@pytest.mark.parametrize("answer", [42, "toy", [{"name": "toy"}], [None]])
def test_a_wrong_answer_is_reported_and_skipped(answer: object) -> None:
    plugins = plugins_with(answer, [spec()])

    assert list(plugins.engines) == ["toy"]
    (message,) = messages(plugins)
    assert message.startswith("plugin 'p0' register_engines gave ")
    assert message.endswith("which is no EngineSpec")


@pytest.mark.parametrize("answer", [None, (), []])
def test_a_plugin_may_bring_no_engine(answer: object) -> None:
    plugins = plugins_with(answer)

    assert plugins.engines == {}
    assert messages(plugins) == []


def test_one_engine_needs_no_list() -> None:
    assert list(plugins_with(spec()).engines) == ["toy"]


def test_of_two_engines_of_one_name_the_first_registered_wins() -> None:
    first, second = spec(version="1"), spec(version="2")
    plugins = plugins_with([first], [second])

    assert plugins.engines == {"toy": first}
    assert plugins.engines_of("p1") == []
    assert messages(plugins) == [
        "plugin 'p1' brings the engine 'toy', which plugin 'p0' has brought already; this one is skipped"
    ]


def test_an_engine_for_another_api_is_refused_with_both_versions() -> None:
    plugins = plugins_with([spec(api_version=API_VERSION + 1), spec("other")])

    assert list(plugins.engines) == ["other"]
    assert messages(plugins) == [
        f"plugin 'p0' brings the engine 'toy' built for engine API {API_VERSION + 1}; this hostler has {API_VERSION}: "
        f"install a matching version of the plugin"
    ]


@pytest.mark.parametrize("path", ["toy.engine", "toy.engine:", ":Engine", "toy engine:Engine", "toy/engine:Engine"])
def test_an_engine_whose_path_names_no_object_is_refused(path: str) -> None:
    plugins = plugins_with([spec(engine=path)])

    assert plugins.engines == {}
    assert "must look like 'package.module:name'" in messages(plugins)[0]


def test_a_hook_that_hostler_does_not_have_is_reported() -> None:
    class Misspelt:
        @hookimpl
        def register_engins(self) -> object:
            return [spec()]

    plugins = Plugins()
    plugins.register(Misspelt(), "misspelt")

    assert messages(plugins) == [
        "plugin 'misspelt' implements register_engins, a hook that this hostler does not have; it is never called"
    ]


def test_a_hook_with_arguments_of_its_own_is_reported_and_the_plugin_skipped() -> None:
    class Wrong:
        @hookimpl
        def register_engines(self, colour: str) -> object:
            return [spec(colour)]

    plugins = Plugins()
    plugins.register(Wrong(), "wrong")
    plugins.register(EnginePlugin([spec()]), "right")

    assert list(plugins.engines) == ["toy"]
    assert [info.name for info in plugins.infos] == ["right"]
    assert "plugin 'wrong' cannot be registered" in messages(plugins)[0]
    assert "colour" in messages(plugins)[0]


# -- sources ----------------------------------------------------------------------------------------------------------


class SourcePlugin:
    def __init__(self, *schemes: str) -> None:
        self.schemes = schemes

    @hookimpl
    def register_sources(self) -> list[SourceSpec]:
        return [SourceSpec(scheme, lambda reference, context: pytest.fail("not asked"), "") for scheme in self.schemes]


def test_devices_of_all_engines_come_best_first_and_the_cpu_last() -> None:
    plugins = plugins_with(
        [spec("one", devices=lambda: ("cuda", "cpu")), spec("two")], spec("three", devices=lambda: ("dml", "cuda", "cpu"))
    )

    assert plugins.devices() == ("cuda", "dml", "cpu")


def test_an_engine_whose_devices_raise_is_named_and_the_cpu_is_left() -> None:
    def devices() -> tuple[str, ...]:
        raise OSError("no metadata")

    plugins = plugins_with(spec(devices=devices))

    assert plugins.devices() == ("cpu",)
    assert messages(plugins) == ["plugin 'p0' devices of the engine 'toy' raised OSError: no metadata"]


def test_sources_of_all_plugins_are_found_by_scheme_and_the_first_wins() -> None:
    plugins = Plugins()
    plugins.register(SourcePlugin("ftp", "gopher"), "old")
    plugins.register(SourcePlugin("gopher", "gemini"), "new")

    assert list(plugins.sources) == ["ftp", "gopher", "gemini"]
    assert [source.scheme for source in plugins.sources_of("old")] == ["ftp", "gopher"]
    assert [source.scheme for source in plugins.sources_of("new")] == ["gemini"]
    assert "plugin 'new' brings the source 'gopher', which plugin 'old' has brought already" in messages(plugins)[0]


# -- engines by format ------------------------------------------------------------------------------------------------


def test_engine_for_prefers_the_wanted_one_that_takes_the_format() -> None:
    plugins = plugins_with([spec("a", formats=("gguf",)), spec("b", formats=("gguf", "onnx"))])

    assert plugins.engine_for("gguf") == plugins.engines["a"]
    assert plugins.engine_for("gguf", "b") == plugins.engines["b"]
    assert plugins.engine_for("onnx", "a") == plugins.engines["b"]
    assert plugins.engine_for("wav") is None


# -- commands ---------------------------------------------------------------------------------------------------------


class CommandPlugin:
    def __init__(self, *names: str, error: Exception | None = None) -> None:
        self.names = names
        self.error = error

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        for name in self.names:
            cli.add_command(click.Command(name))
        if self.error is not None:
            raise self.error


def cli_with(**of_plugins: object) -> tuple[click.Group, Plugins]:
    cli = click.Group("hostler")
    cli.add_command(click.Command("serve"))
    plugins = Plugins()
    for name, plugin in of_plugins.items():
        plugins.register(plugin, name)
    plugins.add_commands(cli)
    return cli, plugins


def test_every_plugin_may_add_commands() -> None:
    cli, plugins = cli_with(one=CommandPlugin("shunt"), two=CommandPlugin("coal", "water"))

    assert sorted(cli.commands) == ["coal", "serve", "shunt", "water"]
    assert messages(plugins) == []


def test_a_plugin_that_raises_while_it_adds_commands_adds_none() -> None:
    cli, plugins = cli_with(bad=CommandPlugin("shunt", error=KeyError("x")), good=CommandPlugin("coal"))

    assert sorted(cli.commands) == ["coal", "serve"]
    assert messages(plugins) == ["plugin 'bad' register_commands raised KeyError: 'x'"]


def test_a_plugin_cannot_replace_a_command() -> None:
    cli, plugins = cli_with(bad=CommandPlugin("coal", "serve"))

    assert sorted(cli.commands) == ["serve"]
    assert messages(plugins) == ["plugin 'bad' register_commands replaced 'serve'; its commands are skipped"]


def test_of_two_plugins_that_add_one_command_the_first_has_it() -> None:
    cli, plugins = cli_with(first=CommandPlugin("coal"), second=CommandPlugin("shunt", "coal"))

    assert sorted(cli.commands) == ["coal", "serve"]
    assert messages(plugins) == ["plugin 'second' register_commands replaced 'coal'; its commands are skipped"]


def test_a_plugin_that_hangs_while_it_adds_commands_adds_none_even_later(impatient: None) -> None:
    release = threading.Event()

    class Late:
        @hookimpl
        def register_commands(self, cli: click.Group) -> None:
            release.wait()
            cli.add_command(click.Command("late"))

    others = threading.enumerate()
    cli, plugins = cli_with(late=Late(), good=CommandPlugin("coal"))
    late = [thread for thread in threading.enumerate() if thread.name == "plugins" and thread not in others]
    release.set()
    for thread in late:
        thread.join(10)

    assert late
    assert sorted(cli.commands) == ["coal", "serve"]
    assert "plugin 'late' is skipped: register_commands did not return" in messages(plugins)[0]


def test_a_broken_plugin_leaves_the_command_line_working(install: Install, tmp_path: Path) -> None:
    """The whole way, in a process of its own: `hostler plugins` names the culprit and exits 0."""
    install("broken", "raise RuntimeError('no coal')")

    command = "import sys; sys.path.insert(0, sys.argv.pop(1)); from hostler.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path / "site"), "plugins", "--home", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "plugin 'broken' cannot be imported" in done.stderr
    assert "RuntimeError: no coal" in done.stderr
