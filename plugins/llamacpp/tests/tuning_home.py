"""A home with a model in it, and a tuning whose steps run in this process: llama.cpp's real work, without a child's start."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hostler.config import Settings, load_settings
from hostler.library.store import Library
from hostler_llamacpp.tuning.choice import Loss, Measured, Spread


def home_with(folder: Path, **models: Path) -> Settings:
    """Settings of a home in which files are imported under these ids."""
    settings = load_settings(folder)
    library = Library(settings.home, {})
    for name, path in models.items():
        library.import_path(path, id=name)
    return settings


def run_here(
    step: str,
    arguments: dict[str, Any],
    *,
    log: Path,
    show: Callable[..., None],
) -> dict[str, Any]:
    """As child.run_step, in this process; what was measured is given, so that what is chosen is no matter of luck."""
    return run_with(speeds_by_size)(step, arguments, log=log, show=show)


Figures = Callable[[Mapping[str, Any]], float]
"""Arguments of the step `speed` -> tokens per second."""


def speeds_by_size(arguments: Mapping[str, Any]) -> float:
    """Half the bytes, twice the speed; two threads are better than one, and all other settings are as good as they are."""
    return 1e9 * float(arguments["n_threads"]) / Path(arguments["path"]).stat().st_size


def run_with(figures: Figures) -> Callable[..., dict[str, Any]]:
    """The same, with these speeds in place of measured ones. All other steps are done in earnest."""

    def run(step: str, arguments: dict[str, Any], *, show: Callable[..., None], **_: Any) -> dict[str, Any]:
        if step == "speed":
            speed = figures(arguments)
            return {"prefill": [speed], "decode": [speed / 4], "load_s": 0.1, "memory_bytes": 10**8, "n_others": 0.0}
        module = importlib.import_module(f"hostler_llamacpp.tuning.steps.{step}")
        result: dict[str, Any] = module.run(arguments, show)
        return result

    return run


class Silent:
    """A display that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, text: str, number: int, of: int) -> None:
        assert 1 <= number <= of
        self.steps.append(text)

    def show(self, text: str, fraction: float | None = None) -> None: ...

    def end(self, summary: str) -> None: ...

    def close(self) -> None: ...


def measured(name: str, prefill: float, decode: float, change: float, kl: float) -> Measured:
    """A variant with these figures, measured without any spread."""
    loss = Loss(10 * (1 + change), change, 0.001, kl, 0.9)
    speeds = (Spread(value, value, value) for value in (prefill, decode))
    return Measured(name, "Q8_0", 1000, loss, *speeds)
