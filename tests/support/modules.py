"""Every test finds the plugins' modules that it imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def same_plugin_modules() -> Iterator[None]:
    """Put back what a reload of plugins imports anew: other tests hold on to the modules that were there first."""
    before = {name: module for name, module in sys.modules.items() if name.startswith("hostler_")}
    yield
    sys.modules.update(before)
