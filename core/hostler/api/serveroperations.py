"""What `/openapi.json` says of inference, of the server and of the machine.

Floor 5; pure values, apart from `routes.py` so that the table there stays one to read. Rows that only answer 501 say no more
than what they would be.
"""

from __future__ import annotations

from hostler.api.operation import Operation
from hostler.api.plugins import PluginAnswer
from hostler.api.schema.chat import ChatBody
from hostler.api.schema.completions import CompletionBody
from hostler.api.schema.embeddings import EmbeddingBody, EmbeddingList
from hostler.api.schema.inference_answers import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from hostler.api.schema.server_answers import (
    EngineAnswer,
    ErrorResponse,
    Health,
    Index,
    RequestCancelled,
    RequestItem,
)
from hostler.api.tags import CHAT, COMPLETIONS, EMBEDDINGS, ENGINES, EVENTS, HARDWARE, PLUGINS, REQUESTS, RESPONSES, SERVER
from hostler.hardware import Hardware
from hostler.library.fields import PARAMETERS
from hostler.records.objects import Page
from hostler.reloading import Reloaded

INFERENCE = (404, 409, 429, 499, 503, 504, 507)
STREAMED = ("application/json", "text/event-stream")

GET_INDEX = Operation("getIndex", SERVER, "Where to look", answer=Index)
HEALTH = Operation("HealthController_check", SERVER, "Whether the server lives", answer=Health)
GET_READINESS = Operation("getReadiness", SERVER, "Whether the server takes work", answer=Health, statuses=(503,))
TERMINATE = Operation("Terminate server process", SERVER, "Stop the server")
CREATE_CHAT_COMPLETION = Operation(
    "createChatCompletion",
    CHAT,
    "Create chat completion",
    ChatBody,
    ChatCompletion,
    (),
    INFERENCE,
    STREAMED,
    fields=PARAMETERS,
    example={"model": "smollm2", "messages": [{"role": "user", "content": "Hello!"}]},
    event=(ChatCompletionChunk, ErrorResponse),
)
CREATE_COMPLETION = Operation(
    "createCompletion",
    COMPLETIONS,
    "Go on with a text",
    CompletionBody,
    Completion,
    (),
    INFERENCE,
    STREAMED,
    fields=PARAMETERS,
    example={"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32},
    event=(CompletionChunk, ErrorResponse),
)
CREATE_EMBEDDING = Operation(
    "createEmbedding", EMBEDDINGS, "Create embeddings", EmbeddingBody, EmbeddingList, statuses=INFERENCE
)
CREATE_RESPONSE = Operation("createResponse", RESPONSES, "Create a response")
GET_RESPONSE = Operation("getResponse", RESPONSES, "Get a response")
DELETE_RESPONSE = Operation("deleteResponse", RESPONSES, "Delete a response")
CANCEL_RESPONSE = Operation("cancelResponse", RESPONSES, "Cancel a response")
LIST_INPUT_ITEMS = Operation("listInputItems", RESPONSES, "List what a response answered")
LIST_REQUESTS = Operation("listRequests", REQUESTS, "List what is being generated", answer=Page[RequestItem])
CANCEL_REQUEST = Operation("cancelRequest", REQUESTS, "Cancel a generation", answer=RequestCancelled)
ADD_ENGINE = Operation("addEngine", ENGINES, "Add a remote engine")
LIST_ENGINE_RELEASES = Operation("listEngineReleases", ENGINES, "List the releases of an engine")
LIST_ENGINE_VARIANTS = Operation("listEngineVariants", ENGINES, "List the variants of a release")
GET_LATEST_ENGINE_RELEASE = Operation("getLatestEngineRelease", ENGINES, "Get the latest release of an engine")
INSTALL_ENGINE = Operation("installEngine", ENGINES, "Install an engine")
UNINSTALL_ENGINE = Operation("uninstallEngine", ENGINES, "Remove an engine")
UPDATE_ENGINE = Operation("updateEngine", ENGINES, "Update an engine")
GET_DEFAULT_ENGINE_VARIANT = Operation("getDefaultEngineVariant", ENGINES, "Get the variant of an engine that is used")
SET_DEFAULT_ENGINE_VARIANT = Operation("setDefaultEngineVariant", ENGINES, "Choose the variant of an engine that is used")
LOAD_ENGINE = Operation("loadEngine", ENGINES, "Load an engine")
UNLOAD_ENGINE = Operation("unloadEngine", ENGINES, "Unload an engine")
ACTIVATE_HARDWARE = Operation("activateHardware", HARDWARE, "Choose the GPUs that are used")
GET_CONFIGS = Operation("getConfigs", SERVER, "Show the configuration")
UPDATE_CONFIGS = Operation("updateConfigs", SERVER, "Change the configuration")
GET_SYSTEM = Operation("SystemController_get", SERVER, "Show the server's state")
DELETE_SYSTEM = Operation("SystemController_delete", SERVER, "Stop the server")
DOWNLOAD_EVENTS = Operation("SystemController_downloadEvent", EVENTS, "Follow downloads")
MODEL_EVENTS = Operation("SystemController_modelEvent", EVENTS, "Follow models")
RESOURCE_EVENTS = Operation("SystemController_resourcesEvent", EVENTS, "Follow the use of the machine")
GET_DOCUMENT = Operation("getOpenApi", SERVER, "This document")
LIST_ENGINES = Operation("listEngines", ENGINES, "List the installed engines", answer=Page[EngineAnswer], statuses=(503,))
GET_ENGINE = Operation(
    "EnginesController_listInstalledEngines", ENGINES, "Get an installed engine", answer=EngineAnswer, statuses=(503,)
)
LIST_PLUGINS = Operation("listPlugins", PLUGINS, "List the plugins and how they fare", answer=Page[PluginAnswer])
RELOAD_PLUGINS = Operation(
    "reloadPlugins", PLUGINS, "See what was installed and removed since", answer=Reloaded, statuses=(429, 503)
)
GET_HARDWARE = Operation("getHardware", HARDWARE, "What this machine has", answer=Hardware, statuses=(429,))
