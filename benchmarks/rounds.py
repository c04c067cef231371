"""The rounds of one piece of a long benchmark: which are still to do, and what came out, kept in a file after each.

So a run that was stopped, or told to stop after a while, goes on where it was. What is kept belongs to one commit, one
machine and one choice of settings; another begins anew. One process writes a file.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class OutOfTime(Exception):
    """The run has been told to stop before what comes next could end."""


class Rounds:
    """Results by subject and round."""

    def __init__(
        self, path: Path, subjects: Sequence[str], n_wanted: int, about: dict[str, Any], is_fresh: bool = False
    ) -> None:
        """Read what is there.

        Args:
            about: What must be equal for earlier results to count: commit, settings and the like.
            is_fresh: Begin anew whatever is there.
        """
        self.path = path
        self.subjects = list(subjects)
        self.n_wanted = n_wanted
        self.about = about
        self.seed = random.SystemRandom().randrange(1 << 32)
        """Of the prompts: all subjects get the same ones in a round, however long ago the other had its turn."""
        self.results: dict[str, dict[int, dict[str, float]]] = {}
        self._took_s: dict[str, float] = {}
        if not is_fresh:
            self._read()

    def _read(self) -> None:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if kept["about"] != self.about:
            return
        self.seed, self._took_s = kept["seed"], kept["took_s"]
        self.results = {
            subject: {int(number): _numbers(result) for number, result in rounds.items()}
            for subject, rounds in kept["results"].items()
        }

    def missing(self) -> list[tuple[int, str]]:
        """(round, subject) still to do, round by round; who goes first turns with the round."""
        turns = []
        for number in range(self.n_wanted):
            start = number % len(self.subjects)
            for subject in self.subjects[start:] + self.subjects[:start]:
                if number not in self.results.get(subject, {}):
                    turns.append((number, subject))
        return turns

    def go(self, stop_at: float = math.inf) -> Iterator[tuple[int, str]]:
        """Yield what is to do next; the caller notes each before it asks for the next.

        Args:
            stop_at: On time.monotonic's clock.

        Raises:
            OutOfTime: What comes next took longer the last time than there is left.
        """
        for number, subject in self.missing():
            if time.monotonic() + self._took_s.get(subject, 0.0) > stop_at:
                raise OutOfTime
            began = time.monotonic()
            yield number, subject
            # With the start of a server in it, where there was one: rather too long than too short.
            self._took_s[subject] = max(self._took_s.get(subject, 0.0), time.monotonic() - began)
            self._write()

    def note(self, number: int, subject: str, result: dict[str, float]) -> None:
        """Keep a result."""
        self.results.setdefault(subject, {})[number] = result
        self._write()

    def complete(self) -> dict[str, list[dict[str, float]]]:
        """Subject -> results of the rounds that all subjects have had: only they can be compared."""
        done = [set(self.results.get(subject, {})) for subject in self.subjects]
        numbers = sorted(set.intersection(*done)) if done else []
        return {subject: [self.results[subject][number] for number in numbers] for subject in self.subjects}

    def _write(self) -> None:
        kept = {
            "about": self.about,
            "seed": self.seed,
            "took_s": self._took_s,
            "results": {
                subject: {str(n): {k: None if math.isnan(v) else v for k, v in result.items()} for n, result in rounds.items()}
                for subject, rounds in self.results.items()
            },
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


def _numbers(result: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in result.items()}
