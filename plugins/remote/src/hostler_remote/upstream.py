"""The way to one upstream: connections, retries, the circuit breaker, and what it says of its models.

On the event loop's thread, save `Upstream()` itself. Nothing here knows sequences or engines. A request is tried again only
before the first byte of its answer, and only where the upstream was not reached or asked for it (429, 502, 503, 504).
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from hostler import EngineFailed, EngineUnavailable, HostlerError, ModelLoadFailed
from hostler_remote import __version__
from hostler_remote.breaker import Breaker
from hostler_remote.description import NO_PROXY, Description
from hostler_remote.keys import Key
from hostler_remote.refusals import FAILURES, RETRIED, Said, refusal, retry_after_of, said_in

log = logging.getLogger("hostler.remote")

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
MAX_RETRY_AFTER_S = 20.0
"""An upstream that asks for a longer pause is obeyed by its client, who is told, not by keeping it waiting here."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Of an answer that is no stream: embeddings, lists of models."""
MAX_REFUSAL_BYTES = 64 * 1024
LISTED = 6
"""Names in an error."""
CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length", "n_ctx")
"""Where servers say how long a model's context is: vLLM and SGLang, then others."""


class Upstream:
    """One upstream, with its key."""

    def __init__(
        self,
        description: Description,
        key: Key,
        n_connections: int,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet.

        Args:
            n_connections: At most so many at once.
            transport, clock: Replaced in tests.

        Raises:
            ModelLoadFailed: `ca_file` cannot be read.
        """
        self.description = description
        self.key = key
        self.breaker = Breaker(description.breaker_failures, description.breaker_pause_s, clock)
        is_direct = description.proxy == NO_PROXY or (description.is_local and not description.proxy)
        self._client = httpx.AsyncClient(
            headers={
                "user-agent": f"hostler-remote/{__version__}",
                "accept-encoding": "identity",  # a stream that is packed waits for its packer
                **description.headers,
                **key.header(description.key_header),
            },
            verify=_trust(description),
            proxy=None if is_direct or not description.proxy else description.proxy,
            trust_env=not is_direct and not description.proxy,
            # Time limits are `deadline`'s, save that for a connection, which is another's fault than a slow answer.
            timeout=httpx.Timeout(None, connect=description.connect_timeout_s),
            limits=httpx.Limits(max_connections=n_connections, max_keepalive_connections=n_connections),
            transport=transport,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    # -- requests ---------------------------------------------------------------------------------------------------

    async def open(self, path: str, body: bytes, deadline: asyncio.Timeout) -> httpx.Response:
        """Send a request and give its response, whose body is to be read and closed by the caller.

        The breaker knows what this raises. What becomes of the body is the caller's to tell it, and so are a TimeoutError and
        a cancellation of the whole.

        Args:
            deadline: Set anew for each attempt; expires as the caller's TimeoutError.

        Raises:
            HostlerError: It was refused, or could not be sent after all attempts.
        """
        attempt = 0
        while True:
            pause_s = self.breaker.admit()
            if pause_s is not None:
                raise EngineUnavailable(
                    f"The upstream of this model, {self.description.place}, failed several times in a row and is left alone "
                    f"for {pause_s:.0f} s",
                    retry_after_s=pause_s,
                )
            got = await self._attempt(path, body, deadline)
            if isinstance(got, httpx.Response):
                return got
            attempt += 1
            if got.pause_s is None or attempt > self.description.retries or self.breaker.is_open:
                raise got.error
            backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            wait_s = max(got.pause_s, backoff_s)
            log.warning("%s; trying again in %.2f s (%d of %d)", got.error, wait_s, attempt, self.description.retries)
            deadline.reschedule(None)
            await asyncio.sleep(wait_s)

    async def _attempt(self, path: str, body: bytes, deadline: asyncio.Timeout) -> httpx.Response | _Setback:
        """One attempt: a response with an answer, or what went wrong."""
        description = self.description
        limit_s = description.connect_timeout_s + description.first_byte_timeout_s
        deadline.reschedule(asyncio.get_running_loop().time() + limit_s)
        request = self._client.build_request(
            "POST", description.url + path, content=body, headers={"content-type": "application/json"}
        )
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.TransportError, httpx.InvalidURL, OSError) as error:
            self.breaker.failed()
            return _Setback(self.unreachable(error), 0.0)
        status = response.status_code
        if status == 200:
            return response
        try:
            said = said_in(await _read(response, MAX_REFUSAL_BYTES), self.key)
        except httpx.TransportError:
            said = Said()
        finally:
            await response.aclose()
        retry_after_s = retry_after_of(response.headers)
        if status in FAILURES:
            self.breaker.failed()
        else:
            self.breaker.answered()
        refused = refusal(
            status,
            said,
            description,
            retry_after_s=retry_after_s,
            location=_shown_location(response.headers.get("location", "")),
        )
        is_patient = status in RETRIED and (retry_after_s or 0.0) <= MAX_RETRY_AFTER_S
        return _Setback(refused, (retry_after_s or 0.0) if is_patient else None)

    def unreachable(self, error: Exception) -> EngineUnavailable:
        """The error of an upstream that there is no talking to."""
        reason = self.key.hide(str(error)) or type(error).__name__
        return EngineUnavailable(
            f"The upstream of this model, {self.description.place}, cannot be reached: {reason}", retry_after_s=1.0
        )

    def too_slow(self, what: str, limit_s: float) -> EngineUnavailable:
        """The error of one that does not answer in time."""
        return EngineUnavailable(
            f"The upstream of this model, {self.description.place}, sent {what} for {limit_s:g} s", retry_after_s=1.0
        )

    # -- whole answers ----------------------------------------------------------------------------------------------

    async def embed(self, inputs: list[Any]) -> tuple[list[list[float]], int]:
        """Vectors of some inputs, in their order, and their tokens, 0 where they are not told.

        Raises:
            HostlerError
        """
        body = msgspec.json.encode({"model": self.description.model, "input": inputs, "encoding_format": "float"})
        limit_s = self.description.first_byte_timeout_s
        try:
            async with asyncio.timeout(None) as deadline:
                response = await self.open("/embeddings", body, deadline)
                data = await self._whole(response)
        except TimeoutError as error:
            self.breaker.failed()
            raise self.too_slow("no vectors", limit_s) from error
        except asyncio.CancelledError:
            self.breaker.given_up()
            raise
        try:
            answer = msgspec.json.decode(data, type=_Embeddings)
        except msgspec.DecodeError as error:
            raise EngineFailed(f"The upstream's vectors cannot be read: {error}") from error
        found = sorted(answer.data, key=lambda one: one.index)
        if [one.index for one in found] != list(range(len(inputs))):
            raise EngineFailed(f"The upstream gave {len(found)} vectors for {len(inputs)} inputs")
        n_tokens = 0 if answer.usage is None else answer.usage.prompt_tokens or answer.usage.total_tokens
        return [one.embedding for one in found], max(0, n_tokens)

    async def _whole(self, response: httpx.Response) -> bytes:
        try:
            data = await _read(response, MAX_BODY_BYTES)
        except httpx.TransportError as error:
            self.breaker.failed()
            raise self.unreachable(error) from error
        finally:
            await response.aclose()
        self.breaker.succeeded()
        return data

    # -- models -----------------------------------------------------------------------------------------------------

    async def look(self) -> Found:
        """Ask for the model.

        Raises:
            ModelLoadFailed: There is no upstream, it does not let us in, or it does not have the model.
        """
        description = self.description
        status, body, location = await self._get("/models")
        if status in (404, 405, 501):
            hint = f"; should its url be {description.url}/v1?" if await self._is_below() else ""
            if hint:
                raise ModelLoadFailed(f"There is no list of models at {description.url}/models{hint}")
            return Found(None, f"{description.place} lists no models, so whether it has {description.model} is not known yet")
        if status != 200:
            raise ModelLoadFailed(str(refusal(status, said_in(body, self.key), description, location=location)))
        try:
            listed = msgspec.json.decode(body, type=_Models).entries
        except msgspec.DecodeError as error:
            raise ModelLoadFailed(
                f"{description.url}/models gives no list of models, so it is not OpenAI-compatible: {error}"
            ) from error
        for entry in listed:
            if description.model in (entry.get("id"), entry.get("name"), entry.get("root")):
                return Found(entry)
        # Some answer to more names than they list: aliases, catalogues.
        status, body, _ = await self._get(f"/models/{quote(description.model, safe='')}")
        if status == 200:
            try:
                return Found(msgspec.json.decode(body, type=dict[str, Any]))
            except msgspec.DecodeError:
                return Found({})
        names = [str(entry.get("id")) for entry in listed]
        shown = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} others" if len(names) > LISTED else "")
        raise ModelLoadFailed(f"{description.place} does not have {description.model}; it has {shown or 'no models'}")

    async def _is_below(self) -> bool:
        """Whether the list of models is one folder deeper."""
        try:
            status, body, _ = await self._get("/v1/models")
            return status == 200 and bool(msgspec.json.decode(body, type=_Models))
        except (ModelLoadFailed, msgspec.DecodeError):
            return False

    async def _get(self, path: str) -> tuple[int, bytes, str]:
        """Status, body, and where a redirect leads."""
        description = self.description
        try:
            async with asyncio.timeout(description.connect_timeout_s + min(description.first_byte_timeout_s, 30.0)):
                async with self._client.stream("GET", description.url + path) as response:
                    location = _shown_location(response.headers.get("location", ""))
                    return response.status_code, await _read(response, MAX_BODY_BYTES), location
        except (httpx.TransportError, httpx.InvalidURL, OSError, TimeoutError) as error:
            raise ModelLoadFailed(str(self.unreachable(error))) from error


class _Setback(msgspec.Struct, frozen=True):
    """An attempt that brought no answer."""

    error: HostlerError
    pause_s: float | None
    """Before it may be tried again, at least; None: it may not."""


class Found(msgspec.Struct, frozen=True):
    """What `look` found."""

    entry: dict[str, Any] | None
    """As the upstream lists it; None: it has no list."""
    warning: str = ""

    @property
    def n_ctx(self) -> int:
        """The context as the upstream tells it; 0: it does not."""
        entry = self.entry or {}
        for name in CONTEXT_FIELDS:
            if (count := _count(entry.get(name))) > 0:
                return count
        if "lifecycle" in entry:  # a hostler's
            for group in ("settings", "parameters"):
                if (count := _count((entry.get(group) or {}).get("ctx_len"))) > 0:
                    return count
        return 0


class _Models(msgspec.Struct):
    data: list[dict[str, Any]] | None = None
    models: list[dict[str, Any]] | None = None

    @property
    def entries(self) -> list[dict[str, Any]]:
        return self.data or self.models or []


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _EmbedUsage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Vector]
    usage: _EmbedUsage | None = None


def _count(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """A body, or its beginning."""
    parts, n_bytes = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        n_bytes += len(part)
        if n_bytes >= max_bytes:
            break
    return b"".join(parts)[:max_bytes]


def _trust(description: Description) -> ssl.SSLContext:
    """Whom to believe: the system's authorities, certifi's and `ca_file`'s; nobody where nothing is encrypted."""
    if description.url.startswith("http:") and not description.proxy.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if description.ca_file:
        try:
            context.load_verify_locations(description.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ModelLoadFailed(f"{description.ca_file} (ca_file) cannot be used as certificates: {error}") from error
    return context


def _shown_location(location: str) -> str:
    """Without its query, which may hold a secret."""
    return location.partition("?")[0].partition("#")[0][:200]
