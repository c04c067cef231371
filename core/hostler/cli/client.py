"""The API as the CLI uses it: over HTTP with the server of this home, or, when none runs, the same API in this process.

Floor 6. One code path for both: without a server httpx hands its requests straight to the WSGI app over a runtime of
our own, under the home's lock. So a command does the same and says the same in either case.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from hostler.home import HomeLock, ServerAddress, find_server

if TYPE_CHECKING:
    import httpx

    from hostler.config import Settings

CONNECT_TIMEOUT_S = 5.0
"""To reach the server of this machine. Answers have no limit: a start may take minutes."""


class Refused(click.ClickException):
    """The API said no; the message is the API's own."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message") or f"the server answered {status} without a reason"))
        self.status = status
        self.code = error.get("code")
        self.param = error.get("param")


class Client:
    """Calls to the API; used by one thread."""

    def __init__(self, http: httpx.Client, address: ServerAddress | None) -> None:
        self.http = http
        self.address = address
        """Of the server; None: there is none, the runtime is ours."""

    def get(self, path: str, **query: str) -> Any:
        """GET one JSON answer.

        Raises:
            Refused: With the API's message.
        """
        return self._call("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST JSON, get JSON."""
        return self._call("POST", path, json=body)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """PUT JSON, get JSON."""
        return self._call("PUT", path, json=body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """PATCH with JSON, get JSON."""
        return self._call("PATCH", path, json=body)

    def delete(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """DELETE, get JSON."""
        return self._call("DELETE", path, json=body or {})

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST, and yield the JSON of each server-sent event until `[DONE]`. Closing it hangs up, which cancels.

        Raises:
            Refused: Before the first event by status, later by an event that carries `error`.
        """
        import httpx

        try:
            with self.http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or not data:
                        continue
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if event.get("error"):
                        raise Refused(response.status_code, event["error"])
                    yield event
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        raise click.ClickException("the answer broke off: the server is gone or was stopped")

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        import httpx

        try:
            response = self.http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        if not response.is_success:
            raise _refusal(response)
        return response.json()

    def _lost(self, error: Exception) -> click.ClickException:
        where = self.address.url if self.address else "this process"
        return click.ClickException(f"the hostler server at {where} does not answer: {error or type(error).__name__}")


def model_path(model: str, action: str = "") -> str:
    """The path of a model; its id may hold slashes or be a URL."""
    return f"/v1/models/{quote(model, safe='')}{action}"


@contextmanager
def connect(settings: Settings, purpose: str, *, is_reading: bool = False) -> Iterator[Client]:
    """Talk to this home's server, or work on the home in this process.

    Args:
        settings: Of the chosen home.
        purpose: The command's name, for whoever finds the home in use.
        is_reading: Nothing will be changed, so without a server no lock is needed.

    Raises:
        HomeInUse: No server, and another command works on the home.
    """
    address = find_server(settings.home)
    if address is not None:
        with connect_to(address) as client:
            yield client
        return
    if is_reading:
        with _work_here(settings, is_owner=False) as client:
            yield client
        return
    with HomeLock(settings.home, purpose), _work_here(settings, is_owner=True) as client:
        yield client


@contextmanager
def connect_to_server(settings: Settings, why: str) -> Iterator[Client]:
    """Talk to the server of this home, which must run.

    Raises:
        click.ClickException: There is none; `why` says what it is needed for.
    """
    address = find_server(settings.home)
    if address is None:
        raise click.ClickException(f"no hostler server runs for {settings.home}, and {why}; start one with: hostler serve")
    with connect_to(address) as client:
        yield client


@contextmanager
def connect_to(address: ServerAddress) -> Iterator[Client]:
    """Talk to a server that is known to run."""
    import httpx

    http = httpx.Client(
        base_url=address.url,
        headers={"authorization": f"Bearer {address.token}"},
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        trust_env=False,  # a proxy of the environment must not see what stays on this machine
    )
    with http:
        yield Client(http, address)


@contextmanager
def _work_here(settings: Settings, *, is_owner: bool) -> Iterator[Client]:
    import httpx

    from hostler.api.app import create_app
    from hostler.plugins import get_plugins
    from hostler.runtime import Runtime

    token = secrets.token_urlsafe(24)
    runtime = Runtime(settings, get_plugins(settings.home))
    runtime.records.is_owner = is_owner
    try:
        transport = httpx.WSGITransport(_with_wsgi_path(create_app(runtime, settings, cli_token=token)))
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(transport=transport, base_url="http://localhost", headers=headers, timeout=None) as http:
            yield Client(http, None)
    finally:
        runtime.close(0.0)


def _with_wsgi_path(app: Callable[..., Any]) -> Callable[..., Any]:
    """httpx gives the path as text; WSGI wants its UTF-8 bytes as latin-1 (PEP 3333), or an id with an umlaut is not found."""

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ["PATH_INFO"] = environ["PATH_INFO"].encode(errors="surrogateescape").decode("latin-1")
        return app(environ, start_response)

    return call


def _refusal(response: httpx.Response) -> Refused:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {}
    return Refused(response.status_code, error if isinstance(error, dict) else {})
