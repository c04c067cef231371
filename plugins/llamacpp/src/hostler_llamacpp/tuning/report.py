"""The figures as people read them: the table, the recommendation in words, a plot of characters.

Process of the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hostler import print_table, show_bytes
from hostler_llamacpp.tuning.bench import Running
from hostler_llamacpp.tuning.choice import LEAST_SPEED, NEW_TOKENS, ORIGINAL, PROMPT_TOKENS, WIDE_LOSS, Measured, Spread
from hostler_llamacpp.tuning.job import Tuned

HEADINGS = ("VARIANT", "WEIGHTS", "SIZE", "PREFILL", "DECODE", "REQUEST", "PERPLEXITY", "KL", "SAME TOP", "")
WIDTH, HEIGHT = 60, 14


def print_report(tuned: Tuned) -> None:
    """All of it, on stdout."""
    original = tuned.variants[0]
    print_table(HEADINGS, [_row(one, original, tuned) for one in tuned.variants])
    print_lines(explain(tuned))


def print_lines(lines: Sequence[str]) -> None:
    """Plain text."""
    import click

    for line in lines:
        click.echo(line)


def _row(one: Measured, original: Measured, tuned: Tuned) -> list[str]:
    marks = []
    if one.name == tuned.recommended:
        marks.append("recommended")
    if one.name == tuned.wide and tuned.wide != tuned.recommended:
        marks.append(f"within {WIDE_LOSS:.0%}")
    if one.name in tuned.front:
        marks.append("front")
    change = "" if one.name == ORIGINAL else f" ({one.loss.change:+.1%} ± {one.loss.change_se:.1%})"
    return [
        one.name,
        one.types,
        show_bytes(one.size_bytes),
        _speed(one.prefill, original.prefill),
        _speed(one.decode, original.decode),
        f"{one.request_s:.2f} s",
        f"{one.loss.perplexity:.2f}{change}",
        f"{one.loss.kl:.4f}",
        f"{one.loss.same_top:.1%}",
        ", ".join(marks),
    ]


def _speed(one: Spread, original: Spread) -> str:
    return f"{one.median:.0f} ({one.min:.0f}-{one.max:.0f}) {one.median / original.median:.2f}x"


def explain(tuned: Tuned) -> list[str]:
    """What is recommended, and why; what settings are better."""
    original, best = tuned.variants[0], tuned.variant(tuned.recommended)
    assert best is not None
    lines = [
        "",
        f"REQUEST is the time of {PROMPT_TOKENS} prompt tokens and {NEW_TOKENS} new ones. Recommended is the fastest by it "
        f"whose perplexity is at most {tuned.max_loss:.1%} above the original's and whose prefill and decode are at least "
        f"{LEAST_SPEED} of its; the front has what nothing else beats in time and KL divergence at once.",
    ]
    if best.name == ORIGINAL:
        lines.append("Recommended: the original; nothing measured is surely faster within that loss.")
    else:
        lines.append(f"Recommended: {best.name}: {_gains(best, original)}.")
    wide = tuned.variant(tuned.wide)
    if wide is not None and wide.name != best.name:
        lines.append(f"Within {WIDE_LOSS:.0%}: {wide.name}: {_gains(wide, original)}.")
    tried = [one for one in tuned.settings if one.gain or one.is_taken]
    if tried:
        lines.append(f"Settings, tried on {tuned.settings_of}:")
        lines += [
            f"  {one.name:<20}{one.value:<12}{one.speeds.prefill.median:7.0f} {one.speeds.decode.median:7.1f} tok/s"
            f"{-one.gain:+8.1%} of the request's time{'  best' if one.is_taken else ''}"
            for one in tuned.settings
        ]
    return lines


def _gains(one: Measured, original: Measured) -> str:
    prefill, decode = one.prefill.median / original.prefill.median, one.decode.median / original.decode.median
    return (
        f"prefill {prefill:.2f}x, decode {decode:.2f}x, "
        f"perplexity {one.loss.change:+.2%} (± {one.loss.change_se:.2%}), KL {one.loss.kl:.4f}, {show_bytes(one.size_bytes)} "
        f"(the original: {show_bytes(original.size_bytes)})"
    )


def settings_to_apply(tuned: Tuned, now: dict[str, Any]) -> dict[str, Any]:
    """The settings of the best run that differ from those that a model has; None takes one back to its default.

    Args:
        now: The model's settings, complete.
    """
    best: Running = tuned.best_settings
    extra = dict(now.get("extra") or {})
    changed: dict[str, Any] = {}
    for name in ("n_batch", "flash_attn", "cache_type", "use_mmap"):
        if getattr(best, name) != now.get(name):
            changed[name] = getattr(best, name)
    taken = {one.name for one in tuned.settings if one.is_taken and one.gain > 0}
    if "threads" in taken:
        changed["cpu_threads"] = best.cpu_threads
    more: dict[str, Any] = {}
    if best.n_ubatch != (extra.get("n_ubatch") or min(best.n_batch, 512)):
        more["n_ubatch"] = best.n_ubatch
    if "huge pages" in taken:
        more["huge_pages"] = best.huge_pages
    if more:
        changed["extra"] = {**extra, **more}
    return changed


def as_json(tuned: Tuned) -> dict[str, Any]:
    """For programs: the figures, and ratios against the original."""
    original = tuned.variants[0]
    found: dict[str, Any] = msgspec.to_builtins(tuned)
    for entry, one in zip(found["variants"], tuned.variants, strict=True):
        entry["request_s"] = round(one.request_s, 4)
        entry["prefill_ratio"] = round(one.prefill.median / original.prefill.median, 3)
        entry["decode_ratio"] = round(one.decode.median / original.decode.median, 3)
    return found


def plot_of_characters(tuned: Tuned) -> list[str]:
    """Time of the request against KL divergence, for terminals: letters, and what they stand for."""
    points = [(one.request_s, one.loss.kl) for one in tuned.variants]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    high_y = max(y for _, y in points) or 1.0
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    legend = []
    for number, (one, (x, y)) in enumerate(zip(tuned.variants, points, strict=True)):
        letter = chr(ord("a") + number % 26)
        column = round((x - low_x) / ((high_x - low_x) or 1.0) * (WIDTH - 1))
        row = HEIGHT - 1 - round(y / high_y * (HEIGHT - 1))
        grid[row][column] = letter
        legend.append(f"{letter} {one.name}")
    lines = ["", f"KL {high_y:.3f}"]
    lines += [f"  |{''.join(row)}" for row in grid]
    lines.append(f"  +{'-' * WIDTH}")
    lines.append(f"   {low_x:.2f} s{'request':^{WIDTH - 16}}{high_x:.2f} s")
    lines += ["   " + ", ".join(legend[start : start + 6]) for start in range(0, len(legend), 6)]
    return lines
