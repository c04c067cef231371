"""A home with a model in it, and a tuning whose steps run in this process: llama.cpp's real work, without a child's start."""

from __future__ import annotations

import importlib
from collections.abc import Callable
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
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """As child.run_step, in this process. Others' work counts as none: the machine is never quiet under tests."""
    del log, environment
    module = importlib.import_module(f"hostler_llamacpp.tuning.steps.{step}")
    result: dict[str, Any] = module.run(arguments, show)
    return {**result, "n_others": 0.0} if step == "speed" else result


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
