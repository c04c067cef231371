"""The servers of one piece: each started when it is first asked for, warmed up, and stopped with all others at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servers import Hostler, LlamaServer, Server, ServerFailed, Settings, start_settings


@dataclass(frozen=True)
class Setup:
    """What the command line chose for all pieces."""

    model_path: Path
    peer: Path | None
    """Folder with llama-server, llama-bench and llama-batched-bench; None: what needs them is not run."""
    n_threads: int
    work: Path
    """Folder for model files that are made here."""
    is_quick: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    """Settings of hostler's start requests, for experiments."""
    running: dict[str, Server] = field(default_factory=dict)
    """By subject: servers that run already and take its place."""

    def settings(self, n_slots: int, ctx_len: int, model_path: Path | None = None) -> Settings:
        """What all servers of a piece get alike."""
        return Settings(model_path or self.model_path, n_slots, ctx_len, self.n_threads)

    def binary(self, name: str) -> Path:
        """One of the peer's programs.

        Raises:
            ServerFailed: It is not there.
        """
        path = self.peer / name if self.peer else None
        if path is None or not path.exists():
            raise ServerFailed(f"there is no {name} in {self.peer or 'the peer folder, which is not given'}")
        return path


class Lineup:
    """A context manager over servers by name."""

    def __init__(
        self,
        setup: Setup,
        settings: Settings,
        more: dict[str, dict[str, Any]] | None = None,
        warm_up: Callable[[Server], object] | None = None,
        home: str = "",
        prepare: Callable[[Hostler], object] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            more: By name: what this one's start request has besides; each is a hostler of its own.
            warm_up: Called with each server after its start; unmeasured.
            home: Where hostler keeps what is to be there the next time, in the setup's folder; empty: a temporary folder.
            prepare: Called with each hostler when the model is registered and not started.
        """
        self.setup = setup
        self.settings = settings
        self._more = more or {}
        self._warm_up = warm_up
        self._home = setup.work.resolve() / home if home else None
        self._prepare = prepare
        self._servers: dict[str, Server] = {}

    def server(self, name: str) -> Server:
        """A running, warm server."""
        if name not in self._servers:
            self._servers[name] = server = self._start(name)
            if self._warm_up is not None:
                self._warm_up(server)
        return self._servers[name]

    @contextmanager
    def alone(self, name: str) -> Iterator[Server]:
        """A server for the length of a block, warm, with none of the others there.

        PERF: two processes of the same program differ by up to 8 % for as long as they live (by where their memory lies).
        Where ratios close to 1 matter, each round has a new one.
        """
        self.close()
        yield self.server(name)
        self.close()

    def _start(self, name: str) -> Server:
        if name in self.setup.running:
            return self.setup.running[name]
        if name == "llama-server":
            return LlamaServer(self.setup.binary(name), self.settings)
        server = Hostler(home=self._home)
        server.name = name
        try:
            if not server.has_model("bench"):
                server.import_model(self.settings.model_path)
            if self._prepare is not None:
                self._prepare(server)
            server.start_model("bench", {**start_settings(self.settings), **self.setup.more, **self._more.get(name, {})})
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> Lineup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all that run."""
        while self._servers:
            self._servers.popitem()[1].close()
