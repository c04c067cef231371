"""The document at /openapi.json: OpenAPI 3.1, made from the route table, so that it cannot say what is not so.

Floor 5; pure, run once, on the first request that asks for it. Paths, operationIds and tags are the seed's (spec/API.md
section 14): its base is `/v1`, and what lies outside of that names its own server.
"""

from __future__ import annotations

import http
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from hostler import __version__
from hostler.api.components import Components
from hostler.api.errors import REASONS, TABLE
from hostler.api.operation import Operation, Query
from hostler.api.schema.server_answers import ErrorResponse
from hostler.api.schema.tables import Schema
from hostler.api.tags import ASSISTANTS, MESSAGES, MODELS, TAG_GROUPS, THREADS
from hostler.events import ModelObject
from hostler.records.objects import Assistant, Message, Thread

if TYPE_CHECKING:
    from hostler.api.routes import Route

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
BASE = "/v1"
SERVERS = [
    {"url": BASE, "description": "This server"},
    {"url": f"http://localhost:1337{BASE}", "description": "Where hostler listens unless told otherwise"},
]
ALWAYS = (400, 401, 403, 413, 500)
"""Statuses that every operation may have: broken HTTP, a key, an origin, a body too large, a bug."""
RETRY_AFTER = frozenset({429, 503})
DESCRIPTION = (
    "Language models on this machine: Jan's API and OpenAI's on one port. Numbers and booleans in a body may be sent as text, "
    "null means absent, fields that are not listed are ignored."
)
LATER = "Documented upstream, not in this release: answers 501."
HEADERS: dict[str, Schema] = {
    "RequestId": {"description": "Names the request in the server's log.", "schema": {"type": "string"}},
    "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "ShouldRetry": {
        "description": "false: the same request would fail again. OpenAI's clients obey it.",
        "schema": {"enum": ["false"]},
    },
}
SECURITY: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
}
MODEL_ID = "Any name of a model: its id, an alias, its URL. Slashes may be sent raw or as %2F."
_PARAMETER = re.compile(r"\{(\w+)\}")


class Webhook(NamedTuple):
    """One thing that hostler sends to subscribers."""

    id: str
    """Its key in the document."""
    operation_id: str
    tag: str
    summary: str
    body: Any
    """The struct of the request's JSON."""


WEBHOOKS = (
    Webhook("ModelObject", "ModelObject", MODELS, "Something happened to a model", ModelObject),
    Webhook("AssistantObject", "AssistantObjects", ASSISTANTS, "Something happened to an assistant", Assistant),
    Webhook("MessageObject", "MessageObject", MESSAGES, "Something happened to a message", Message),
    Webhook("ThreadObject", "ThreadObject", THREADS, "Something happened to a thread", Thread),
)


def make_document(routes: Iterable[Route], *, needs_key: bool = False) -> dict[str, Any]:
    """The whole document.

    Args:
        routes: The table; rows without an operation are left out.
        needs_key: Whether the server has keys; without, none need be sent.
    """
    rows = [row for route in routes if route.operation is not None for row in _rows(route, route.operation)]
    answers = Components(_answer_types(rows), is_body=False)
    bodies = Components(_body_types(rows), is_body=True, taken=answers.schemas)
    for _, operation in rows:
        if operation.fields and operation.body is not None:
            bodies.add_fields(operation.body, operation.fields)
    writer = _Writer(rows, answers, bodies)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "hostler",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": SERVERS,
        "tags": [{"name": name, "description": text} for tags in TAG_GROUPS.values() for name, text in tags.items()],
        "x-tagGroups": [{"name": group, "tags": list(tags)} for group, tags in TAG_GROUPS.items()],
        "security": [{}] * (not needs_key) + [{name: []} for name in SECURITY],
        "paths": writer.paths(),
        "webhooks": {hook.id: {"post": writer.webhook(hook)} for hook in WEBHOOKS},
        "components": {
            "headers": HEADERS,
            "responses": {f"Error{status}": _error_response(status) for status in writer.statuses()},
            "securitySchemes": SECURITY,
        },
    }
    document["components"]["schemas"] = _used({**answers.schemas, **bodies.schemas}, document)
    return document


def _rows(route: Route, operation: Operation) -> Iterator[tuple[Route, Operation]]:
    """The row, and the other spellings of its path that have an operationId of their own."""
    yield route, operation
    for path, name in operation.spellings:
        yield route._replace(path=path), operation._replace(id=name)


def _answer_types(rows: Iterable[tuple[Route, Operation]]) -> Iterator[Any]:
    yield ErrorResponse
    for _, operation in rows:
        yield from _alternatives(operation.answer)
        yield from _alternatives(operation.event)
    for hook in WEBHOOKS:
        yield hook.body


def _body_types(rows: Iterable[tuple[Route, Operation]]) -> Iterator[Any]:
    for _, operation in rows:
        yield from _alternatives(operation.body)
        for query in operation.query:
            yield query.kind


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """A tuple is one type or another; msgspec has no unions of structs that nothing tells apart."""
    if kind is None:
        return ()
    return kind if isinstance(kind, tuple) else (kind,)


def _used(schemas: dict[str, Schema], document: Any) -> dict[str, Schema]:
    """Those that something leads to."""
    found: dict[str, Schema] = {}
    waiting = [document]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            ref = node.get("$ref")
            if isinstance(ref, str) and ref.startswith("#/components/schemas/"):
                name = ref.rpartition("/")[2]
                if name not in found:
                    found[name] = schemas[name]
                    waiting.append(schemas[name])
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return dict(sorted(found.items()))


def _error_response(status: int) -> Schema:
    codes = sorted({kind.code for kind, row in TABLE.items() if status in (row.status, row.inference_status)})
    phrase = REASONS.get(status) or http.HTTPStatus(status).phrase
    headers = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
    if status in RETRY_AFTER:
        headers["retry-after"] = {"$ref": "#/components/headers/RetryAfter"}
    if any(row.is_final for row in TABLE.values() if row.status == status):
        headers["x-should-retry"] = {"$ref": "#/components/headers/ShouldRetry"}
    return {
        "description": f"{phrase}: {', '.join(codes)}" if codes else phrase,
        "headers": headers,
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
    }


class _Writer:
    """Turns rows into path items; holds what an operation needs to know of the others."""

    def __init__(self, rows: list[tuple[Route, Operation]], answers: Components, bodies: Components) -> None:
        self._rows = rows
        self._answers = answers
        self._bodies = bodies

    def paths(self) -> dict[str, Any]:
        """All path items, in the order of the table."""
        made: dict[str, dict[str, Any]] = {}
        for route, operation in self._rows:
            base, path = _split_base(route.path)
            item = made.setdefault(path, {})
            method = route.method.lower()
            if method in item:
                # The same at two places: one operation with two servers. What only exists as a 501 has nothing to add.
                if route.responder is not None:
                    item[method]["servers"] = [{"url": BASE}, {"url": base}]
                continue
            item[method] = self.operation(route, operation)
            if base != BASE:
                item[method]["servers"] = [{"url": base}]
        return made

    def operation(self, route: Route, operation: Operation) -> dict[str, Any]:
        """One operation."""
        made: dict[str, Any] = {"operationId": operation.id, "tags": [operation.tag], "summary": operation.summary}
        parameters = [_path_parameter(name) for name in _PARAMETER.findall(route.path)]
        parameters += [self._parameter(query) for query in operation.query]
        if parameters:
            made["parameters"] = parameters
        if route.responder is None:
            made["description"] = LATER
        body = self._one_of(self._bodies, operation.body)
        if body is not None:
            content: dict[str, Any] = {"schema": body}
            if operation.example is not None:
                content["example"] = operation.example
            made["requestBody"] = {"required": self._is_needed(body), "content": {operation.body_media: content}}
        made["responses"] = self._responses(route, operation)
        return made

    def webhook(self, hook: Webhook) -> dict[str, Any]:
        """What hostler sends to a subscriber."""
        return {
            "operationId": hook.operation_id,
            "tags": [hook.tag],
            "summary": hook.summary,
            "requestBody": {"required": True, "content": {JSON: {"schema": self._answers.of(hook.body)}}},
            "responses": {"2XX": {"description": "Delivered; anything else is tried again"}},
            "security": [{}],
        }

    def statuses(self) -> list[int]:
        """Every error status that an operation names."""
        return sorted({status for row in self._rows for status in _statuses(*row)})

    def _responses(self, route: Route, operation: Operation) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if route.responder is not None:
            made[str(operation.success)] = self._success(route, operation)
            for status in operation.further:
                made[str(status)] = self._success(route, operation, status)
        for status in sorted(_statuses(route, operation)):
            made[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
        return made

    def _success(self, route: Route, operation: Operation, status: int | None = None) -> dict[str, Any]:
        made: dict[str, Any] = {"description": http.HTTPStatus(status or operation.success).phrase}
        made["headers"] = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
        made["content"] = {media: self._content(media, operation) for media in operation.media}
        links = self._links(route, operation)
        if links:
            made["links"] = links
        return made

    def _content(self, media: str, operation: Operation) -> dict[str, Any]:
        if media == JSON:
            return {"schema": self._one_of(self._answers, operation.answer) or {"type": "object"}}
        event = self._one_of(self._answers, operation.event) if media == EVENT_STREAM else None
        # What one event's `data` holds. OpenAPI 3.1 has no word for it: its `schema` would be of the whole stream.
        return {} if event is None else {"x-itemSchema": event}

    def _links(self, route: Route, operation: Operation) -> dict[str, Any]:
        """From what was made to what can be done with it: the operations on the same path and an id."""
        if route.method != "POST" or operation.answer is None or "id" not in _field_names(operation.answer):
            return {}
        made = {}
        inherited = {name: f"$request.path.{name}" for name in _PARAMETER.findall(route.path)}
        for other, target in self._rows:
            match = re.fullmatch(re.escape(route.path) + r"/\{(\w+)\}(/\w+)?", other.path)
            if match and other.responder is not None:
                parameters = {**inherited, match[1]: "$response.body#/id"}
                made[target.id] = {"operationId": target.id, "parameters": parameters}
        return made

    def _parameter(self, query: Query) -> dict[str, Any]:
        schema = self._bodies.of(query.kind)
        if query.kind is bool:
            schema = {"anyOf": [{"type": "boolean"}, *_words_of_a_flag()]}
        return {"name": query.name, "in": query.place, "description": query.help, "schema": schema}

    @staticmethod
    def _one_of(components: Components, kind: Any) -> Schema | None:
        options = [components.of(one) for one in _alternatives(kind)]
        if not options:
            return None
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _is_needed(self, body: Schema) -> bool:
        """Whether an empty body, which is `{}`, will not do."""
        schemas = [self._bodies.schemas[one["$ref"].rpartition("/")[2]] for one in body.get("anyOf", [body])]
        rules = [rule["anyOf"] for schema in schemas for rule in schema.get("allOf", ())]
        is_ruled = any(all("required" in one for one in alternatives) for alternatives in rules)
        return is_ruled or all("required" in schema for schema in schemas)


def _statuses(route: Route, operation: Operation) -> set[int]:
    found = {*ALWAYS, *operation.statuses}
    if route.path.startswith(f"{BASE}/"):
        found.add(503)  # the data folder cannot be read or written
    if "{" in route.path:
        found.add(404)
    if route.responder is None:
        found.add(501)
    return found


def _split_base(path: str) -> tuple[str, str]:
    if path.startswith(f"{BASE}/"):
        return BASE, path.removeprefix(BASE)
    return "/", path


def _path_parameter(name: str) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    if name == "model_id":
        made["description"] = MODEL_ID
        made["example"] = "zephyr-7b"
    return made


def _words_of_a_flag() -> list[Schema]:
    """What `query_bool` takes beside true and false; a bare `?name` means true."""
    return [{"enum": ["", "0", "1", "no", "off", "on", "yes"]}]


def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(getattr(_alternatives(kind)[0], "__struct_fields__", ()))
