"""An asyncio event loop in a thread of its own, for the engine thread to hand work to.

Made by the engine thread, which also closes it; everything given to it runs on its own thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
CLOSE_S = 5.0
"""For what runs to be cancelled; connections are closed by the system when the process ends."""


class LoopThread:
    """See the module."""

    def __init__(self, name: str) -> None:
        """Start it."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function there soon; any thread."""
        self.loop.call_soon_threadsafe(function, *arguments)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there; any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what runs, say farewell, end the thread; waits no longer than CLOSE_S."""
        end = self.start(self._end(farewell))
        try:
            end.result(CLOSE_S)
        except Exception:  # noqa: BLE001 - it ends either way
            pass
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_S)

    async def _end(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await farewell()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()
