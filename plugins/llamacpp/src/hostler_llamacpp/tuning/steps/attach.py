"""Step: whether the plugin's own kernels can be used with this llama-cpp-python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostler_llamacpp import kernels


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Attach them.

    Args:
        arguments: None are needed.
        show: Takes a text and a fraction.

    Returns:
        `warnings`: why they cannot be used; none where they can, or where there are none for this processor.
    """
    del arguments
    show("kernels", None)
    return {"warnings": kernels.attach()}
