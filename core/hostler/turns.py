"""Line: who goes next where requests of three priorities wait for a place. Pure values.

Floor 2; used by the host's admission queue and by the worker's loop, each under its own rules for threads. It must not know
what is waited for.

The rule: the higher priority goes first, and of equals the one that came earlier. Waiting raises: for each
OVERTAKEN_A_RANK times that one which came later is taken before it, a waiter counts as one priority higher. At the highest
nobody who comes later goes before it any more. So the bound: a request of normal priority is overtaken at most
OVERTAKEN_A_RANK times, one of priority batch at most twice as often, whatever comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

OVERTAKEN_A_RANK = 16
"""So under a flood of interactive requests a normal one gets every 17th place at least, and a batch every 33rd."""

T = TypeVar("T")


class _Waiter(Generic[T]):
    """One in the line."""

    __slots__ = ("item", "n_overtaken", "number", "rank")

    def __init__(self, item: T, rank: int, number: int) -> None:
        self.item = item
        self.rank = rank
        self.number = number
        self.n_overtaken = 0

    def turn(self) -> tuple[int, int]:
        """The smallest goes next."""
        return max(0, self.rank - self.n_overtaken // OVERTAKEN_A_RANK), self.number


class Line(Generic[T]):
    """Those who wait. Not safe from several threads. PERF: each call takes time by its length, which is a queue's."""

    def __init__(self) -> None:
        self._waiters: list[_Waiter[T]] = []

    def put(self, item: T, rank: int, number: int) -> None:
        """Stand in line.

        Args:
            rank: Its priority's.
            number: When it came; no two have the same.
        """
        self._waiters.append(_Waiter(item, rank, number))

    def first(self) -> tuple[T, int]:
        """Who goes next, and its rank after what waiting has raised: 0 is the highest. Not of an empty line."""
        first = min(self._waiters, key=_Waiter.turn)
        return first.item, first.turn()[0]

    def take(self) -> T:
        """Let the next one go. Not of an empty line."""
        first = min(self._waiters, key=_Waiter.turn)
        self._waiters.remove(first)
        for waiter in self._waiters:
            if waiter.number < first.number:
                waiter.n_overtaken += 1
        return first.item

    def remove(self, item: T) -> bool:
        """Leave the line, as nobody's turn; False: it does not stand in it."""
        for index, waiter in enumerate(self._waiters):
            if waiter.item == item:
                del self._waiters[index]
                return True
        return False

    def clear(self) -> list[T]:
        """Send all away; they come back in the order in which they came."""
        waiters, self._waiters = sorted(self._waiters, key=lambda waiter: waiter.number), []
        return [waiter.item for waiter in waiters]

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[T]:
        return (waiter.item for waiter in self._waiters)
