"""Every route of the API in one table: method, path, what answers it.

Floor 5. `{model_id}` runs to the end of the path, save for an action behind it (`/start`, `/stop`); every other parameter is
one segment. Rows without a responder are documented upstream and come later: they answer 501, in the error form, so that a
client can tell them from a typing error. `docs/openai-compat.md` has a line for each row, and a test that compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from hostler.api.answers import KEEP_ALIVE_S
from hostler.api.chat import Chat
from hostler.api.completions import Completions
from hostler.api.health import Health
from hostler.api.models import Models
from hostler.api.operation import Operation
from hostler.api.requests import Requests
from hostler.config import Settings

if TYPE_CHECKING:
    from hostler.runtime import Runtime

Responder = Callable[..., Any]


class Route(NamedTuple):
    """One row."""

    method: str
    path: str
    responder: Responder | None
    """Called with falcon's request and response, and the path's parameters; None: 501."""
    operation: Operation | None = None
    """What /openapi.json says of it."""


def make_routes(runtime: Runtime, settings: Settings, keep_alive_s: float = KEEP_ALIVE_S) -> tuple[Route, ...]:
    """The table, over one runtime."""
    chat, completions = Chat(runtime, keep_alive_s), Completions(runtime, keep_alive_s)
    health, models, requests = Health(runtime), Models(runtime, settings), Requests(runtime)
    return (
        # -- the server itself
        Route("GET", "/", health.index),
        Route("GET", "/healthz", health.alive),
        Route("GET", "/readyz", health.ready),
        Route("DELETE", "/processManager/destroy", None),
        Route("GET", "/events", None),
        # -- models: the seed
        Route("GET", "/v1/models", models.list_all),
        Route("POST", "/v1/models", models.download),
        Route("GET", "/v1/models/{model_id}", models.get),
        Route("DELETE", "/v1/models/{model_id}", models.delete),
        Route("PUT", "/v1/models/{model_id}/start", models.start),
        Route("PUT", "/v1/models/{model_id}/stop", models.stop),
        # -- models: Jan, before and after the seed
        Route("POST", "/v1/models/{model_id}/start", models.start),
        Route("POST", "/v1/models/{model_id}/stop", models.stop),
        Route("GET", "/v1/models/download/{model_id}", models.download_known),
        Route("GET", "/v1/download/getDownloadProgress/{model_id}", models.progress),
        Route("GET", "/download/getDownloadProgress/{model_id}", models.progress),
        Route("GET", "/v1/models/available", None),
        Route("POST", "/v1/models/load", models.start_named),
        Route("POST", "/v1/models/unload", models.unload_named),
        # -- models: Cortex
        Route("POST", "/v1/models/pull", models.pull),
        Route("DELETE", "/v1/models/pull", models.cancel_pull),
        Route("POST", "/v1/models/pull/info", None),
        Route("POST", "/v1/models/start", models.start_named),
        Route("POST", "/v1/models/stop", models.stop_named),
        Route("GET", "/v1/models/status/{model_id}", models.status),
        Route("PATCH", "/v1/models/{model_id}", None),
        Route("POST", "/v1/models/import", models.import_path),
        Route("POST", "/v1/models/add", None),
        Route("GET", "/v1/models/remote/{engine}", None),
        Route("GET", "/v1/models/sources", None),
        Route("POST", "/v1/models/sources", None),
        Route("DELETE", "/v1/models/sources", None),
        Route("GET", "/v1/models/hub", None),
        # -- inference
        Route("POST", "/v1/chat/completions", chat.create),
        Route("POST", "/v1/completions", completions.create),
        Route("POST", "/v1/embeddings", None),
        Route("POST", "/v1/responses", None),
        Route("GET", "/v1/responses/{response_id}", None),
        Route("DELETE", "/v1/responses/{response_id}", None),
        Route("POST", "/v1/responses/{response_id}/cancel", None),
        Route("GET", "/v1/responses/{response_id}/input_items", None),
        # -- hostler: what runs now
        Route("GET", "/v1/requests", requests.list_all),
        Route("DELETE", "/v1/requests/{request_id}", requests.cancel),
        # -- threads and messages
        Route("POST", "/v1/threads", None),
        Route("GET", "/v1/threads", None),
        Route("GET", "/v1/threads/{thread_id}", None),
        Route("POST", "/v1/threads/{thread_id}", None),
        Route("PATCH", "/v1/threads/{thread_id}", None),
        Route("DELETE", "/v1/threads/{thread_id}", None),
        Route("GET", "/v1/threads/{thread_id}/assistants", None),
        Route("POST", "/v1/threads/{thread_id}/assistants/{assistants_id}", None),
        Route("GET", "/v1/threads/{thread_id}/messages", None),
        Route("POST", "/v1/threads/{thread_id}/messages", None),
        Route("GET", "/v1/threads/{thread_id}/messages/{message_id}", None),
        Route("POST", "/v1/threads/{thread_id}/messages/{message_id}", None),
        Route("PATCH", "/v1/threads/{thread_id}/messages/{message_id}", None),
        Route("DELETE", "/v1/threads/{thread_id}/messages/{message_id}", None),
        Route("GET", "/v1/threads/{thread_id}/messages/{message_id}/files", None),
        Route("GET", "/v1/threads/{thread_id}/messages/{message_id}/files/{file_id}", None),
        # -- runs
        Route("POST", "/v1/threads/runs", None),
        Route("POST", "/v1/threads/{thread_id}/runs", None),
        Route("GET", "/v1/threads/{thread_id}/runs", None),
        Route("GET", "/v1/threads/{thread_id}/runs/{run_id}", None),
        Route("POST", "/v1/threads/{thread_id}/runs/{run_id}", None),
        Route("POST", "/v1/threads/{thread_id}/runs/{run_id}/cancel", None),
        Route("POST", "/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs", None),
        Route("GET", "/v1/threads/{thread_id}/runs/{run_id}/steps", None),
        Route("GET", "/v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}", None),
        # -- assistants
        Route("GET", "/v1/assistants", None),
        Route("POST", "/v1/assistants", None),
        Route("GET", "/v1/assistants/{assistant_id}", None),
        Route("POST", "/v1/assistants/{assistant_id}", None),
        Route("PATCH", "/v1/assistants/{assistant_id}", None),
        Route("DELETE", "/v1/assistants/{assistant_id}", None),
        # -- files
        Route("POST", "/v1/files", None),
        Route("GET", "/v1/files", None),
        Route("GET", "/v1/files/{file_id}", None),
        Route("GET", "/v1/files/{file_id}/content", None),
        Route("DELETE", "/v1/files/{file_id}", None),
        # -- webhooks and events
        Route("POST", "/v1/webhooks", None),
        Route("GET", "/v1/webhooks", None),
        Route("GET", "/v1/webhooks/{webhook_id}", None),
        Route("DELETE", "/v1/webhooks/{webhook_id}", None),
        Route("GET", "/v1/events", None),
        # -- engines, hardware, configuration, system
        Route("GET", "/v1/engines", None),
        Route("POST", "/v1/engines", None),
        Route("GET", "/v1/engines/{name}", None),
        Route("GET", "/v1/engines/{name}/releases", None),
        Route("GET", "/v1/engines/{name}/releases/{version}", None),
        Route("GET", "/v1/engines/{name}/releases/latest", None),
        Route("POST", "/v1/engines/{name}/install", None),
        Route("DELETE", "/v1/engines/{name}/install", None),
        Route("POST", "/v1/engines/{name}/update", None),
        Route("GET", "/v1/engines/{name}/default", None),
        Route("POST", "/v1/engines/{name}/default", None),
        Route("POST", "/v1/engines/{name}/load", None),
        Route("DELETE", "/v1/engines/{name}/load", None),
        Route("GET", "/v1/hardware", None),
        Route("POST", "/v1/hardware/activate", None),
        Route("GET", "/v1/configs", None),
        Route("PATCH", "/v1/configs", None),
        Route("GET", "/v1/system", None),
        Route("DELETE", "/v1/system", None),
        Route("GET", "/v1/system/events/download", None),
        Route("GET", "/v1/system/events/model", None),
        Route("GET", "/v1/system/events/resources", None),
    )
