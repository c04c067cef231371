"""Every route of the API in one table: method, path, what answers it.

Floor 5. `{model_id}` runs to the end of the path, save for an action behind it (`/start`, `/stop`); every other parameter is
one segment. Rows without a responder are documented upstream and come later: they answer 501, in the error form, so that a
client can tell them from a typing error. `docs/openai-compat.md` has a line for each row, and a test that compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from hostler.api import eventoperations as event
from hostler.api import modeloperations as model
from hostler.api import recordoperations as record
from hostler.api import runoperations as run
from hostler.api import serveroperations as server
from hostler.api.answers import KEEP_ALIVE_S
from hostler.api.assistants import Assistants
from hostler.api.chat import Chat
from hostler.api.completions import Completions
from hostler.api.docs import Docs
from hostler.api.embeddings import Embeddings
from hostler.api.events import Events
from hostler.api.files import Files
from hostler.api.health import Health
from hostler.api.machine import Machine
from hostler.api.messages import Messages
from hostler.api.models import Models
from hostler.api.operation import Operation
from hostler.api.plugins import Plugins
from hostler.api.records import RecordImports
from hostler.api.requests import Requests
from hostler.api.runs import Runs
from hostler.api.threads import Threads
from hostler.api.webhooks import Webhooks
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
    embeddings = Embeddings(runtime)
    health, models, requests = Health(runtime), Models(runtime, settings), Requests(runtime)
    machine, docs = Machine(runtime, settings), Docs(needs_key=bool(settings.api_key))
    plugins = Plugins(runtime)
    threads, messages, assistants = Threads(runtime), Messages(runtime), Assistants(runtime)
    files, runs = Files(runtime, settings), Runs(runtime, keep_alive_s)
    webhooks, events = Webhooks(runtime), Events(runtime, keep_alive_s)
    routes = (
        # -- the server itself
        Route("GET", "/", health.index, server.GET_INDEX),
        Route("GET", "/healthz", health.alive, server.HEALTH),
        Route("GET", "/readyz", health.ready, server.GET_READINESS),
        Route("DELETE", "/processManager/destroy", None, server.TERMINATE),
        Route("GET", "/openapi.json", docs.document, server.GET_DOCUMENT),
        Route("GET", "/events", None),
        # -- models: the seed
        Route("GET", "/v1/models", models.list_all, model.LIST_MODELS),
        Route("POST", "/v1/models", models.download, model.DOWNLOAD_MODEL),
        Route("GET", "/v1/models/{model_id}", models.get, model.GET_MODEL),
        Route("DELETE", "/v1/models/{model_id}", models.delete, model.DELETE_MODEL),
        Route("PUT", "/v1/models/{model_id}/start", models.start, model.START_MODEL),
        Route("PUT", "/v1/models/{model_id}/stop", models.stop, model.STOP_MODEL),
        # -- models: Jan, before and after the seed
        Route("POST", "/v1/models/{model_id}/start", models.start, model.START_MODEL_POST),
        Route("POST", "/v1/models/{model_id}/stop", models.stop, model.STOP_MODEL_POST),
        Route("GET", "/v1/models/download/{model_id}", models.download_known, model.DOWNLOAD_MODEL_BY_ID),
        Route("GET", "/v1/download/getDownloadProgress/{model_id}", models.progress, model.GET_PROGRESS),
        Route("GET", "/download/getDownloadProgress/{model_id}", models.progress, model.GET_PROGRESS),
        Route("GET", "/v1/models/available", models.list_available, model.LIST_AVAILABLE_MODELS),
        Route("POST", "/v1/models/load", models.start_named, model.LOAD_MODEL),
        Route("POST", "/v1/models/unload", models.unload_named, model.UNLOAD_MODEL),
        # -- models: Cortex
        Route("POST", "/v1/models/pull", models.pull, model.PULL_MODEL),
        Route("DELETE", "/v1/models/pull", models.cancel_pull, model.STOP_DOWNLOAD),
        Route("POST", "/v1/models/pull/info", None, model.PULL_MODEL_INFO),
        Route("POST", "/v1/models/start", models.start_named, model.START_NAMED),
        Route("POST", "/v1/models/stop", models.stop_named, model.STOP_NAMED),
        Route("GET", "/v1/models/status/{model_id}", models.status, model.GET_MODEL_STATUS),
        Route("PATCH", "/v1/models/{model_id}", models.update, model.UPDATE_MODEL),
        Route("POST", "/v1/models/import", models.import_path, model.IMPORT_MODEL),
        # -- models: hostler
        Route("PUT", "/v1/models/{model_id}/variant", models.take_variant, model.TAKE_VARIANT),
        Route("DELETE", "/v1/models/{model_id}/variant", models.drop_variant, model.DROP_VARIANT),
        # -- models: Cortex, later
        Route("POST", "/v1/models/add", None, model.ADD_MODEL),
        Route("GET", "/v1/models/remote/{engine}", None, model.LIST_REMOTE_MODELS),
        Route("GET", "/v1/models/sources", None, model.LIST_MODEL_SOURCES),
        Route("POST", "/v1/models/sources", None, model.ADD_MODEL_SOURCE),
        Route("DELETE", "/v1/models/sources", None, model.DELETE_MODEL_SOURCE),
        Route("GET", "/v1/models/hub", None, model.GET_MODEL_HUB),
        # -- inference
        Route("POST", "/v1/chat/completions", chat.create, server.CREATE_CHAT_COMPLETION),
        Route("POST", "/v1/completions", completions.create, server.CREATE_COMPLETION),
        Route("POST", "/v1/embeddings", embeddings.create, server.CREATE_EMBEDDING),
        Route("POST", "/v1/responses", None, server.CREATE_RESPONSE),
        Route("GET", "/v1/responses/{response_id}", None, server.GET_RESPONSE),
        Route("DELETE", "/v1/responses/{response_id}", None, server.DELETE_RESPONSE),
        Route("POST", "/v1/responses/{response_id}/cancel", None, server.CANCEL_RESPONSE),
        Route("GET", "/v1/responses/{response_id}/input_items", None, server.LIST_INPUT_ITEMS),
        # -- hostler: what runs now
        Route("GET", "/v1/requests", requests.list_all, server.LIST_REQUESTS),
        Route("DELETE", "/v1/requests/{request_id}", requests.cancel, server.CANCEL_REQUEST),
        # -- threads and messages
        Route("POST", "/v1/threads", threads.create, record.CREATE_THREAD),
        Route("GET", "/v1/threads", threads.list_all, record.LIST_THREADS),
        Route("GET", "/v1/threads/{thread_id}", threads.get, record.GET_THREAD),
        Route("POST", "/v1/threads/{thread_id}", threads.modify, record.MODIFY_THREAD),
        Route("PATCH", "/v1/threads/{thread_id}", threads.modify, record.PATCH_THREAD),
        Route("DELETE", "/v1/threads/{thread_id}", threads.delete, record.DELETE_THREAD),
        Route("GET", "/v1/threads/{thread_id}/assistants", threads.get, record.GET_THREAD_ASSISTANTS),
        Route(
            "POST",
            "/v1/threads/{thread_id}/assistants/{assistants_id}",
            threads.modify_assistant,
            record.POST_THREAD_ASSISTANTS,
        ),
        Route("GET", "/v1/threads/{thread_id}/messages", messages.list_all, record.LIST_MESSAGES),
        Route("POST", "/v1/threads/{thread_id}/messages", messages.create, record.CREATE_MESSAGE),
        Route("GET", "/v1/threads/{thread_id}/messages/{message_id}", messages.get, record.GET_MESSAGE),
        Route("POST", "/v1/threads/{thread_id}/messages/{message_id}", messages.modify, record.MODIFY_MESSAGE),
        Route("PATCH", "/v1/threads/{thread_id}/messages/{message_id}", messages.modify, record.PATCH_MESSAGE),
        Route("DELETE", "/v1/threads/{thread_id}/messages/{message_id}", messages.delete, record.DELETE_MESSAGE),
        Route("GET", "/v1/threads/{thread_id}/messages/{message_id}/files", messages.list_files, record.LIST_MESSAGE_FILES),
        Route(
            "GET",
            "/v1/threads/{thread_id}/messages/{message_id}/files/{file_id}",
            messages.get_file,
            record.GET_MESSAGE_FILE,
        ),
        # -- runs
        Route("POST", "/v1/threads/runs", runs.create_with_thread, run.CREATE_THREAD_AND_RUN),
        Route("POST", "/v1/threads/{thread_id}/runs", runs.create, run.CREATE_RUN),
        Route("GET", "/v1/threads/{thread_id}/runs", runs.list_all, run.LIST_RUNS),
        Route("GET", "/v1/threads/{thread_id}/runs/{run_id}", runs.get, run.GET_RUN),
        Route("POST", "/v1/threads/{thread_id}/runs/{run_id}", runs.modify, run.MODIFY_RUN),
        Route("POST", "/v1/threads/{thread_id}/runs/{run_id}/cancel", runs.cancel, run.CANCEL_RUN),
        Route(
            "POST",
            "/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
            runs.submit_tool_outputs,
            run.SUBMIT_TOOL_OUTPUTS,
        ),
        Route("GET", "/v1/threads/{thread_id}/runs/{run_id}/steps", runs.list_steps, run.LIST_RUN_STEPS),
        Route("GET", "/v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}", runs.get_step, run.GET_RUN_STEP),
        # -- assistants
        Route("GET", "/v1/assistants", assistants.list_all, record.LIST_ASSISTANTS),
        Route("POST", "/v1/assistants", assistants.create, record.CREATE_ASSISTANT),
        Route("GET", "/v1/assistants/{assistant_id}", assistants.get, record.GET_ASSISTANT),
        Route("POST", "/v1/assistants/{assistant_id}", assistants.modify_or_create, record.MODIFY_ASSISTANT),
        Route("PATCH", "/v1/assistants/{assistant_id}", assistants.modify, record.PATCH_ASSISTANT),
        Route("DELETE", "/v1/assistants/{assistant_id}", assistants.delete, record.DELETE_ASSISTANT),
        # -- files
        Route("POST", "/v1/files", files.create, record.CREATE_FILE),
        Route("GET", "/v1/files", files.list_all, record.LIST_FILES),
        Route("GET", "/v1/files/{file_id}", files.get, record.GET_FILE),
        Route("GET", "/v1/files/{file_id}/content", files.content, record.GET_FILE_CONTENT),
        Route("DELETE", "/v1/files/{file_id}", files.delete, record.DELETE_FILE),
        # -- hostler: records that come from elsewhere
        Route("POST", "/v1/records/import", RecordImports(runtime).create, record.IMPORT_RECORDS),
        # -- webhooks and events
        Route("POST", "/v1/webhooks", webhooks.create, event.CREATE_WEBHOOK),
        Route("GET", "/v1/webhooks", webhooks.list_all, event.LIST_WEBHOOKS),
        Route("GET", "/v1/webhooks/{webhook_id}", webhooks.get, event.GET_WEBHOOK),
        Route("DELETE", "/v1/webhooks/{webhook_id}", webhooks.delete, event.DELETE_WEBHOOK),
        Route("POST", "/v1/webhooks/{webhook_id}/test", webhooks.test, event.TEST_WEBHOOK),
        Route("GET", "/v1/events", events.stream, event.STREAM_EVENTS),
        # -- plugins
        Route("GET", "/v1/plugins", plugins.list_all, server.LIST_PLUGINS),
        Route("POST", "/v1/plugins/reload", plugins.reload, server.RELOAD_PLUGINS),
        # -- engines, hardware, configuration, system
        Route("GET", "/v1/engines", machine.engines, server.LIST_ENGINES),
        Route("POST", "/v1/engines", None, server.ADD_ENGINE),
        Route("GET", "/v1/engines/{name}", machine.engine, server.GET_ENGINE),
        Route("GET", "/v1/engines/{name}/releases", None, server.LIST_ENGINE_RELEASES),
        Route("GET", "/v1/engines/{name}/releases/{version}", None, server.LIST_ENGINE_VARIANTS),
        Route("GET", "/v1/engines/{name}/releases/latest", None, server.GET_LATEST_ENGINE_RELEASE),
        Route("POST", "/v1/engines/{name}/install", None, server.INSTALL_ENGINE),
        Route("DELETE", "/v1/engines/{name}/install", None, server.UNINSTALL_ENGINE),
        Route("POST", "/v1/engines/{name}/update", None, server.UPDATE_ENGINE),
        Route("GET", "/v1/engines/{name}/default", None, server.GET_DEFAULT_ENGINE_VARIANT),
        Route("POST", "/v1/engines/{name}/default", None, server.SET_DEFAULT_ENGINE_VARIANT),
        Route("POST", "/v1/engines/{name}/load", None, server.LOAD_ENGINE),
        Route("DELETE", "/v1/engines/{name}/load", None, server.UNLOAD_ENGINE),
        Route("GET", "/v1/hardware", machine.hardware, server.GET_HARDWARE),
        Route("POST", "/v1/hardware/activate", None, server.ACTIVATE_HARDWARE),
        Route("GET", "/v1/configs", None, server.GET_CONFIGS),
        Route("PATCH", "/v1/configs", None, server.UPDATE_CONFIGS),
        Route("GET", "/v1/system", None, server.GET_SYSTEM),
        Route("DELETE", "/v1/system", None, server.DELETE_SYSTEM),
        Route("GET", "/v1/system/events/download", None, server.DOWNLOAD_EVENTS),
        Route("GET", "/v1/system/events/model", None, server.MODEL_EVENTS),
        Route("GET", "/v1/system/events/resources", None, server.RESOURCE_EVENTS),
    )
    docs.describe(routes)
    return routes
