"""`hostler doctor`: is this installation well, and if not, what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from hostler.cli.options import chosen_home, home_option, json_option, print_json, print_table, show_bytes
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.engine import EngineSpec
    from hostler.plugins import Plugins

PROBE_TIMEOUT_S = 60.0
"""Importing an engine's library from a cold disk takes seconds; a hung driver takes for ever."""

SLOW_LISTENER_S = 10.0
"""At one event."""

SLOW_IMPORT_S = 0.3
"""An import of a plugin that is worth a word: some thirty times what one should take, so that a cold disk is no reason."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    subject: str
    state: str
    """`ok`; `warning`: hostler works, something does not; `failed`: it will not work."""
    detail: str


@click.command()
@json_option("Print the findings as JSON.")
@home_option
def doctor(is_json: bool) -> None:
    """Check versions, plugins, engines, the home folder, memory and the server; exits 1 if something is broken."""
    findings = []
    for finding in examine():
        findings.append(finding)
        if not is_json and sys.stderr.isatty():
            click.echo(f"{finding.subject}: {finding.state}", err=True)
    if is_json:
        print_json(findings)
    else:
        print_table(["SUBJECT", "STATE", "DETAIL"], [[item.subject, item.state, item.detail] for item in findings])
    if any(finding.state == "failed" for finding in findings):
        click.get_current_context().exit(1)


def examine() -> Iterator[Finding]:
    """Look at everything, the cheap things first."""
    import platform

    from hostler import __version__
    from hostler.config import default_home
    from hostler.plugins import get_plugins

    home = chosen_home() or default_home()
    yield Finding("hostler", "ok", f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}")
    yield check_native()
    yield check_home(home)
    yield check_settings(home)
    yield check_memory()
    yield from check_cache(home)
    yield check_server(home)
    plugins = get_plugins(home)
    engines = list(plugins.engines.values())
    yield from check_library(home, plugins)
    yield from check_plugins(plugins)
    yield from check_plugins_of_server(home, plugins)
    for engine in engines:
        yield probe_engine(engine, home=home)


def check_native() -> Finding:
    """Whether the C++ core is there and loads."""
    try:
        import hostler._native
    except ImportError as error:
        return Finding("native core", "failed", f"{error}; install hostler anew, from a clone with: make install")
    return Finding("native core", "ok", str(getattr(hostler._native, "__file__", "built in")))


def check_home(home: Path) -> Finding:
    """Whether the data folder can be written, and how much room its disk has."""
    import shutil
    import tempfile

    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
        free = shutil.disk_usage(home).free
    except OSError as error:
        return Finding("home", "failed", f"{home} cannot be written: {error.strerror}; choose another with --home")
    return Finding("home", "ok", f"{home}, {show_bytes(free)} free")


def check_settings(home: Path) -> Finding:
    """Whether config.toml and the environment can be read."""
    from hostler.config import load_settings
    from hostler.errors import HostlerError

    try:
        settings = load_settings(home)
    except HostlerError as error:
        return Finding("settings", "failed", str(error))
    changed = sorted(name for name, origin in settings.origins.items() if origin != "default")
    return Finding("settings", "ok", f"set: {', '.join(changed)}" if changed else "all at their defaults")


def check_memory() -> Finding:
    """How much memory there is."""
    import psutil

    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    return Finding(
        "machine", "ok", f"{cores} cores, {show_bytes(memory.available)} of {show_bytes(memory.total)} memory available"
    )


def check_cache(home: Path) -> Iterator[Finding]:
    """What is kept of prompts on disk, and whether it could be."""
    from hostler.config import load_settings
    from hostler.errors import HostlerError
    from hostler.keptprefixes import kept_prefixes

    try:
        settings = load_settings(home)
    except HostlerError:
        return  # said already
    kept = kept_prefixes(settings)
    taken = f"{show_bytes(sum(model.n_bytes for model in kept.models()))} of {show_bytes(settings.cache_disk_bytes)}"
    if kept.folder.exists() and not (kept.folder.is_dir() and os.access(kept.folder, os.W_OK)):
        text = f"{kept.folder} is no folder that this user may write: no prompt is kept over a restart; see cache_folder"
        yield Finding("prefix cache", "warning", text)
    else:
        yield Finding("prefix cache", "ok", f"{taken} in {kept.folder}")


def check_server(home: Path) -> Finding:
    """Whether the home's server answers, if one runs."""
    from hostler.cli.client import connect_to
    from hostler.home import find_server

    address = find_server(home)
    if address is None:
        return Finding("server", "ok", "none runs for this home")
    try:
        with connect_to(address) as client:
            response = client.http.get("/readyz", timeout=10.0)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the finding
        return Finding("server", "failed", f"{address.url} (pid {address.pid}) does not answer: {error}")
    if response.status_code != 200:
        return Finding(
            "server", "warning", f"{address.url} (pid {address.pid}) is starting or draining ({response.status_code})"
        )
    return Finding("server", "ok", f"{address.url}, pid {address.pid}, version {address.version}")


def check_library(home: Path, plugins: Plugins) -> Iterator[Finding]:
    """How many models there are, and folders that are none."""
    from hostler.library.store import Library

    library = Library(home, plugins.sources)
    try:
        n_models = sum(entry.is_downloaded for entry in library.entries())
        problems = library.problems()
    finally:
        library.close()
    yield Finding("library", "ok", f"{n_models} {'model' if n_models == 1 else 'models'} here")
    for problem in problems:
        yield Finding(f"model folder {Path(problem.path).name}", "warning", problem.message)


def check_plugins(plugins: Plugins) -> Iterator[Finding]:
    """What is wrong with plugins, which are left out, and whether there is any engine at all."""
    for problem in plugins.problems:
        yield Finding(f"plugin {problem.plugin}", "warning", problem.message)
    for info in plugins.left_out:
        if info.state == "disabled":
            yield Finding(f"plugin {info.name}", "ok", f"disabled; `hostler plugins enable {info.name}` takes it in again")
    for info in plugins.infos:
        if info.import_s > SLOW_IMPORT_S:
            with_what = f" with {', '.join(info.brought[:8])}" if info.brought else ""
            yield Finding(
                f"plugin {info.name}",
                "warning",
                f"its import takes {info.import_s:.1f} s{with_what}, and every command waits for it; {info.module} should "
                f"import what it needs when it needs it",
            )
    if plugins.engines:
        yield Finding("plugins", "ok", ", ".join(info.name for info in plugins.infos))
    else:
        yield Finding("plugins", "failed", "no engine is installed, so no model can run; try: pip install hostler-llamacpp")


def check_plugins_of_server(home: Path, plugins: Plugins) -> Iterator[Finding]:
    """What a server that runs has of plugins that this process has not, and how its listeners fare."""
    from hostler.cli.client import connect_to
    from hostler.home import find_server
    from hostler.pluginview import describe

    address = find_server(home)
    if address is None:
        return
    try:
        with connect_to(address) as client:
            rows = client.http.get("/v1/plugins", timeout=10.0).json()["data"]
    except Exception:  # noqa: BLE001 - check_server has said what is wrong
        return
    theirs = {row["name"]: (row["version"], row["state"] == "disabled") for row in rows}
    ours = {view.name: (view.version, view.state == "disabled") for view in describe(plugins)}
    others = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if others:
        text = f"{', '.join(others)} changed since it was started; try: hostler plugins reload"
        yield Finding("plugins of the server", "warning", text)
    for row in rows:
        for listener in row["listeners"]:
            if listener["last_error"]:
                text = f"{listener['listener']} failed {listener['n_failed']} times: {listener['last_error']}"
                yield Finding(f"plugin {row['name']}", "warning", text)
            if (listener["busy_s"] or 0) > SLOW_LISTENER_S:
                text = f"{listener['listener']} has been at one event for {listener['busy_s']:.0f} s"
                yield Finding(f"plugin {row['name']}", "warning", text)


def probe_engine(engine: EngineSpec, timeout_s: float = PROBE_TIMEOUT_S, *, home: Path | None = None) -> Finding:
    """Ask an engine, in a process of its own, which devices it can use.

    Args:
        home: HOSTLER_HOME of that process, for an engine that looks at its models.
    """
    import subprocess

    from hostler.engine import EngineProbe

    subject = f"engine {engine.name}"
    command = [sys.executable, "-m", "hostler.cli.probe", engine.probe]
    environment = {**engine.environment, **os.environ}
    if home is not None:
        environment["HOSTLER_HOME"] = str(home)
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return Finding(subject, "failed", f"its probe did not end within {timeout_s:g} s; a driver may hang")
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return Finding(subject, "failed", f"its probe ended with {how}: {lines[-1]}")
    try:
        probe = msgspec.json.decode(done.stdout, type=EngineProbe)
    except msgspec.DecodeError as error:
        return Finding(subject, "failed", f"its probe gave no EngineProbe: {error}")
    devices = [
        f"{device.name} {'' if device.is_available else 'not available'} ({device.reason})".replace("  ", " ")
        if device.reason
        else f"{device.name}{'' if device.is_available else ' not available'}"
        for device in probe.devices
    ]
    can_run = any(device.is_available for device in probe.devices)
    return Finding(subject, "ok" if can_run else "failed", f"{probe.version}: {'; '.join(devices) or 'no device'}")


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `doctor`."""
    cli.add_command(doctor)
