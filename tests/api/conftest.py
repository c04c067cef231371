"""The app over a scripted runtime: called directly (`client`), and behind a real waitress (`serve`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from api.scripted_runtime import ScriptedRuntime, view
from hostler.api.app import create_app
from hostler.config import Settings, load_settings
from hostler.domain import Lifecycle
from hostler.events import EventBus
from hostler.records.store import Records
from hostler.server import HttpServer, open_sockets, url_of
from hostler.webhooks import Webhooks


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(tmp_path / "home", environ={}).replace(max_requests=4, max_body_bytes=4096, default_model="zephyr-7b")


@pytest.fixture
def records(settings: Settings) -> Iterator[Records]:
    """Real ones, in a database of their own that is opened when a test asks for it."""
    made = Records(settings.home, default_model=settings.default_model)
    yield made
    made.close()


@pytest.fixture
def runtime(records: Records, settings: Settings) -> Iterator[ScriptedRuntime]:
    made = ScriptedRuntime(
        view(),
        view("phi", Lifecycle.RUNNING, pid=4711, memory_bytes=123, manifest={"aliases": ("phi-alias",)}),
        view("catalogue-only", Lifecycle.NOT_DOWNLOADED, resting=Lifecycle.NOT_DOWNLOADED, is_catalogue=True),
        view("org/name:Q4@main", Lifecycle.STOPPED, resting=Lifecycle.STOPPED),
    )
    made.records, made.settings = records, settings
    made.events, made.webhooks = EventBus(records), Webhooks(records, settings.webhooks)
    records.on_open.append(made.webhooks.opened)
    records.on_event += [made.events.grew, made.webhooks.grew]
    made.webhooks.start()
    yield made
    made.runs.close()
    made.events.close()
    made.webhooks.close()


class Client(falcon.testing.TestClient):
    """Calls the app as a client on this machine would."""

    def simulate_request(self, *args: Any, **kwargs: Any) -> Any:
        headers = kwargs.get("headers") or {}
        if not any(name.lower() == "host" for name in headers):
            kwargs.setdefault("host", "localhost")
        return super().simulate_request(*args, **kwargs)

    def chat(self, **fields: Any) -> Any:
        body = {"model": "phi", "messages": [{"role": "user", "content": "Hello!"}], **fields}
        return self.simulate_post("/v1/chat/completions", json=body)

    def complete(self, **fields: Any) -> Any:
        return self.simulate_post("/v1/completions", json={"model": "phi", "prompt": "Once", **fields})

    def embed(self, **fields: Any) -> Any:
        return self.simulate_post("/v1/embeddings", json={"model": "phi", "input": "Once", **fields})


@pytest.fixture
def make_client(runtime: ScriptedRuntime, settings: Settings) -> Callable[..., Client]:
    def make(*, cli_token: str | None = None, **values: Any) -> Client:
        return Client(create_app(runtime, settings.replace(**values), cli_token=cli_token))  # type: ignore[arg-type]

    return make


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


@pytest.fixture
def serve(runtime: ScriptedRuntime, settings: Settings) -> Iterator[Callable[..., str]]:
    """Starts a real server over the scripted runtime and gives its URL."""
    with contextlib.ExitStack() as stack:

        def start(*, keep_alive_s: float = 15.0, **values: Any) -> str:
            chosen = settings.replace(**values)
            sockets = open_sockets("127.0.0.1", 0)
            for listener in sockets:
                stack.callback(listener.close)
            app = create_app(runtime, chosen, keep_alive_s=keep_alive_s)  # type: ignore[arg-type]
            server = HttpServer(app, sockets, chosen)
            server.start()
            stack.callback(server.close)
            return url_of(sockets)

        yield start
