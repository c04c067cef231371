"""The hooks: each is documented with its exact signature, its example runs, its users use it, and each has a test here."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from hostler import hookspecs
from hostler.domain import MemoryEstimate
from hostler.engine import EngineSettings, EngineSpec
from hostler.listening import ListenerSpec
from hostler.mounts import RoutesContext, RoutesSpec
from hostler.plugins import Plugins
from hostler.sources.contract import ResolvedSource, SourceContext, SourceSpec

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "plugin-hooks.md").read_text(encoding="utf-8")
TREE = ast.parse(inspect.getsource(hookspecs))
HOOKS = [node for node in TREE.body if isinstance(node, ast.FunctionDef)]
HOOK_NAMES = [hook.name for hook in HOOKS]


def signature_of(hook: ast.FunctionDef) -> str:
    return f"{hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns) if hook.returns else 'None'}"


def section_of(hook: str) -> str:
    match = re.search(rf"^## `{hook}\(.*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/plugin-hooks.md has no section for {hook}"
    return match.group(0)


def example_of(hook: str) -> types.ModuleType:
    """The section's example as a module."""
    blocks = re.findall(r"```python\n(.*?)```", section_of(hook), re.DOTALL)
    assert len(blocks) == 1, f"the section of {hook} has {len(blocks)} Python examples; one is expected"
    module = types.ModuleType("example")
    exec(compile(blocks[0], f"docs/plugin-hooks.md, {hook}", "exec"), module.__dict__)
    return module


def users_of(hook: str) -> Iterator[str]:
    match = re.search(r"^Used by: (.*?)\.$", section_of(hook), re.MULTILINE | re.DOTALL)
    assert match, f"the section of {hook} names nobody who uses it"
    yield from re.findall(r"`([\w.]+)`", match.group(1))


def plugins_with(module: object) -> Plugins:
    plugins = Plugins()
    plugins.register(module, "example")
    _ = plugins.engines, plugins.sources, plugins.routes, plugins.listeners
    assert plugins.problems == []
    return plugins


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS, ids=HOOK_NAMES)
def test_the_page_heads_each_hook_with_its_exact_signature(hook: ast.FunctionDef) -> None:
    assert f"\n## `{signature_of(hook)}`\n" in PAGE


def test_the_page_has_no_hook_that_is_gone() -> None:
    assert re.findall(r"^## `(\w+)\(", PAGE, re.MULTILINE) == HOOK_NAMES


@pytest.mark.parametrize("hook", HOOKS, ids=HOOK_NAMES)
def test_each_section_says_what_a_plugin_author_asks(hook: ast.FunctionDef) -> None:
    section = section_of(hook.name)

    for words in ("**Called**", "**Not called**", "**When it raises**", "The smallest example:", "Used by:"):
        assert words in section, f"the section of {hook.name} lacks {words!r}"
    for argument in hook.args.args:
        assert argument.annotation is not None
        assert f"- `{argument.arg}`, `{ast.unparse(argument.annotation)}`:" in section
    assert hook.args.args or "It has no parameters." in section


@pytest.mark.parametrize(
    ("hook", "spec"),
    [
        ("register_engines", EngineSpec),
        ("register_sources", SourceSpec),
        ("register_routes", RoutesSpec),
        ("register_events", ListenerSpec),
    ],
)
def test_each_field_of_an_answer_is_documented(hook: str, spec: type[msgspec.Struct]) -> None:
    assert re.findall(r"^\| `(\w+)` \|", section_of(hook), re.MULTILINE) == list(spec.__struct_fields__)


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_each_user_that_the_page_names_uses_the_hook(hook: str) -> None:
    for name in users_of(hook):
        plugins = Plugins()

        plugins.register(importlib.import_module(name), name)

        callers = plugins.manager.get_hookcallers(plugins.manager.get_plugin(name)) or []
        assert hook in [caller.name for caller in callers], f"{name} does not implement {hook}"


def test_each_hook_has_a_test() -> None:
    """Of its own, below, by its name."""
    for hook in HOOK_NAMES:
        assert [name for name in globals() if name.startswith(f"test_{hook}_")], f"no test is named test_{hook}_..."


def test_each_hook_says_in_its_docstring_when_it_is_called() -> None:
    for hook in HOOKS:
        assert re.search(r"\bCalled once\b", ast.get_docstring(hook) or ""), hook.name


# -- the hooks --------------------------------------------------------------------------------------------------------


def test_register_engines_of_the_page_brings_an_engine() -> None:
    plugins = plugins_with(example_of("register_engines"))

    assert plugins.engines["toy"].engine == "hostler_toy.engine:ToyEngine"
    assert plugins.engine_for("toy") == plugins.engines["toy"]


def test_register_engines_may_bring_an_estimate_and_a_context_length(tmp_path: Path) -> None:
    import hostler_echo

    spec = plugins_with(hostler_echo).engines["echo"]
    path = tmp_path / "m.echo"
    path.write_text('{"n_ctx": 1000, "weights_bytes": 7000}')

    assert spec.estimate is not None
    assert spec.context_length is not None
    assert spec.estimate(path, EngineSettings(ctx_len=100, n_parallel=2)) == MemoryEstimate(7000, 1600, 0)
    assert spec.context_length(path) == 1000


def test_register_sources_of_the_page_brings_a_source_that_resolves() -> None:
    plugins = plugins_with(example_of("register_sources"))

    resolved = plugins.sources["example"].resolve("example:tiny", SourceContext())

    assert isinstance(resolved, ResolvedSource)
    assert (resolved.suggested_id, resolved.files[0].filename) == ("tiny", "tiny.gguf")


def test_register_routes_of_the_page_brings_an_application_that_answers(tmp_path: Path) -> None:
    from wsgiref.util import setup_testing_defaults

    module = example_of("register_routes")
    plugins = plugins_with(module)
    answers: list[str] = []
    environ: dict[str, object] = {}
    setup_testing_defaults(environ)

    def refuse(environ: object, start_response: object) -> list[bytes]:
        raise AssertionError("the example does not ask hostler's API")

    app = module.__dict__["make_app"](RoutesContext("/toy", tmp_path, refuse))
    body = b"".join(app(environ, lambda status, headers: answers.append(status)))

    assert plugins.routes == {"/toy": ("example", RoutesSpec("/toy", "hostler_toy:make_app"))}
    assert plugins.routes_of("example") == [RoutesSpec("/toy", "hostler_toy:make_app")]
    assert (answers, body) == (["200 OK"], b"Hoo-hoo!\n")


def test_register_events_of_the_page_brings_a_listener() -> None:
    plugins = plugins_with(example_of("register_events"))

    assert plugins.listeners == [("example", ListenerSpec("hostler_toy.whistle:blow", ("model.running",)))]
    assert plugins.listeners_of("example") == [ListenerSpec("hostler_toy.whistle:blow", ("model.running",))]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ListenerSpec("no path"), "brings the listener 'no path'; it must look like 'package.module:name'"),
        (ListenerSpec("a.b:c", ("modle.*",)), "brings a listener to 'modle.*', and there is no such event; it is skipped"),
        (ListenerSpec("a.b:c", ()), "brings a listener to nothing, and there is no such event; it is skipped"),
    ],
)
def test_register_events_of_what_could_never_be_told_is_reported(spec: ListenerSpec, reason: str) -> None:
    module = types.ModuleType("example")
    module.__dict__["register_events"] = hookspecs.hookimpl(lambda: [spec])
    plugins = Plugins()
    plugins.register(module, "example")

    assert plugins.listeners == []
    assert [problem.message for problem in plugins.problems] == [f"plugin 'example' {reason}"]


def test_register_commands_of_the_page_adds_a_command_that_runs() -> None:
    from click.testing import CliRunner

    cli = click.Group("hostler")
    plugins = plugins_with(example_of("register_commands"))

    plugins.add_commands(cli)
    result = CliRunner().invoke(cli, ["hoot"])

    assert plugins.problems == []
    assert (result.exit_code, result.output) == (0, "Hoo-hoo!\n")
