"""`hostler plugins new`: the files of a new engine plugin, made from the templates beside this module.

Floor 6. A template is a file whose name ends in `.txt`; `$name` and the like in it are replaced (string.Template). The
tutorial, docs/writing-an-engine.md, explains what they make for the name `bigram`, and tests compare the two.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any

import click

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
MAX_NAME = 30
PREFIX = "hostler-"


def check_name(name: str, taken: set[str]) -> str:
    """A plugin's name as it was meant: without the package's prefix.

    Raises:
        click.ClickException: It cannot be the name of a plugin, or is that of another.
    """
    short = name.removeprefix(PREFIX)
    if not NAME.fullmatch(short) or len(short) > MAX_NAME:
        raise click.ClickException(
            f"{name!r} cannot be a plugin's name: at most {MAX_NAME} small letters, digits, and - or _ between them, a letter "
            f"first"
        )
    if short in taken:
        raise click.ClickException(f"{short} is the name of something that hostler has already; choose another")
    return short


def render(name: str) -> dict[PurePosixPath, str]:
    """Every file of the package: its path inside the package's folder, and its content."""
    from hostler import __version__
    from hostler.engine import API_VERSION

    words = re.split("[-_]", name)
    values: dict[str, Any] = {
        "name": name,
        "module": f"hostler_{name.replace('-', '_')}",
        "engine": "".join(word.capitalize() for word in words) + "Engine",
        "api": API_VERSION,
        "hostler": ".".join(__version__.split(".")[:2]),
    }
    found: dict[PurePosixPath, str] = {}
    for path, template in sorted(_templates(resources.files("hostler.cli") / "template", PurePosixPath())):
        folders = {"module": values["module"], "suite": "tests"}  # hostler's own build leaves out what is called tests
        target = PurePosixPath(*(folders.get(part, part) for part in path.parts)).with_suffix("")
        if not target.suffix:
            target = target.with_name(f"{target.name}.{name}")  # the model, whose suffix is its format
        found[target] = Template(template.read_text(encoding="utf-8")).substitute(values)
    return found


def _templates(folder: Traversable, path: PurePosixPath) -> list[tuple[PurePosixPath, Traversable]]:
    found: list[tuple[PurePosixPath, Traversable]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _templates(entry, path / entry.name)
        elif entry.name.endswith(".txt"):
            found.append((path / entry.name, entry))
    return found


def write(files: dict[PurePosixPath, str], folder: Path) -> None:
    """Write the files below a folder, all of them or none.

    Raises:
        click.ClickException: One of them is there already, or cannot be written.
    """
    for path in files:
        if (folder / path).exists():
            raise click.ClickException(f"{folder / path} exists already; choose another folder with --dir")
    written: list[Path] = []
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8", newline="\n") as stream:
                written.append(target)
                stream.write(text)
    except OSError as error:
        for target in written:
            target.unlink(missing_ok=True)
        raise click.ClickException(f"{error.filename or folder} cannot be written: {error.strerror}") from error
