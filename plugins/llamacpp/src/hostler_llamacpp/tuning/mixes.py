"""Which weights stay fine and which become coarse. Pure logic.

Each group of weights (one kind in a few neighbouring layers) may be written in one of several coarse types; each saves time
and costs some KL divergence, measured one group at a time. Costs of several groups add up nearly enough (measured: 0.0334
predicted, 0.0296 found), so mixes are made greedily: from all fine, step by step, whatever costs least for each second saved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

N_BANDS = 6
"""Layers are taken together in so many bands."""
_LAYER = re.compile(r"^(?:.*\.)?blk\.(?P<layer>\d+)\.(?P<kind>.+)\.weight$")


class Group(msgspec.Struct, frozen=True):
    """Weights that are written in one type."""

    name: str
    """`ffn_down 10-14`, or a weight's own name."""
    weights: tuple[str, ...]
    n_elements: int


class Option(msgspec.Struct, frozen=True):
    """One group in one coarse type."""

    group: str
    type: str
    kl: float
    """KL divergence that it adds."""
    saved_s: float
    """Of the time that the request takes by which speeds are weighed."""


class Mix(msgspec.Struct, frozen=True):
    """Which groups are coarse, and in what; all others are fine."""

    name: str
    types: dict[str, str]
    """Group -> type."""
    kl: float
    """Predicted, above the fine file's."""
    saved_s: float


def groups_of(sizes: Mapping[str, int], n_bands: int = N_BANDS) -> list[Group]:
    """Sort weights into groups.

    Args:
        sizes: Name of each weight that may be written in several types -> its elements.
    """
    layers = [int(match["layer"]) for name in sizes if (match := _LAYER.match(name))]
    n_layers = max(layers, default=0) + 1
    width = -(-n_layers // n_bands)
    found: dict[str, list[str]] = {}
    for name in sizes:
        match = _LAYER.match(name)
        if match is None:
            label = name
        else:
            first = int(match["layer"]) // width * width
            last = min(first + width, n_layers) - 1
            label = f"{match['kind']} {first}-{last}" if last > first else f"{match['kind']} {first}"
        found.setdefault(label, []).append(name)
    return [Group(label, tuple(names), sum(sizes[name] for name in names)) for label, names in found.items()]


def plan(options: Sequence[Option], shares: Sequence[float]) -> list[Mix]:
    """Mixes that save these shares of what could be saved at most.

    Returns:
        One a share, the least saving first; none twice.
    """
    steps = sorted(
        (step for group in dict.fromkeys(option.group for option in options) for step in _steps(group, options)),
        key=lambda step: (step[0], step[1].group),
    )
    total = sum(step[1].saved_s - step[2].saved_s for step in steps)
    mixes: list[Mix] = []
    types: dict[str, str] = {}
    kl = saved = 0.0
    wanted = sorted(shares)
    for _, option, before in steps:
        types[option.group] = option.type
        kl += option.kl - before.kl
        saved += option.saved_s - before.saved_s
        while wanted and saved >= wanted[0] * total * (1 - 1e-9):
            share = wanted.pop(0)
            if not mixes or mixes[-1].types != types:
                mixes.append(Mix(f"mix-{round(100 * share)}", dict(types), kl, saved))
    return mixes


def _steps(group: str, options: Sequence[Option]) -> list[tuple[float, Option, Option]]:
    """A group's way from fine to its fastest type, each step dearer than the one before: (cost for a second, to, from)."""
    ways = sorted((one for one in options if one.group == group and one.saved_s > 0), key=lambda one: one.saved_s)
    here, steps = Option(group, "", 0.0, 0.0), []
    while ways:
        rates = [(max(0.0, one.kl - here.kl) / (one.saved_s - here.saved_s), -one.saved_s, one) for one in ways]
        rate, _, following = min(rates, key=lambda entry: entry[:2])
        steps.append((rate, following, here))
        here, ways = following, [one for one in ways if one.saved_s > following.saved_s]
    return steps
