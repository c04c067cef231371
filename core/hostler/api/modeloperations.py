"""What `/openapi.json` says of the model routes.

Floor 5; pure values, apart from `routes.py` so that the table there stays one to read. Ids are spec/API.md's (section 14);
rows that only answer 501 say no more than what they would be.
"""

from __future__ import annotations

from typing import Literal

from hostler.api.operation import Operation, Query
from hostler.api.schema.model_answers import (
    DeleteModelResponse,
    DownloadCancelled,
    DownloadModelResponse,
    DownloadProgress,
    GetModelResponse,
    ImportModelResponse,
    ListAvailableModelsResponse,
    ListModelsResponse,
    ModelStatus,
    StartModelResponse,
    StartNamedResponse,
    StopModelResponse,
    StopNamedResponse,
    UpdateModelResponse,
)
from hostler.api.schema.models import (
    DownloadBody,
    ImportModelBody,
    ModelBody,
    PullBody,
    StartBody,
    StartNamedBody,
    TaskBody,
    UpdateBody,
    VariantBody,
)
from hostler.api.tags import MODELS
from hostler.library.fields import PARAMETERS, SETTINGS

WRITES = (503, 507)
STARTS = (409, 429, 503, 504, 507)
DOWNLOADS = (409, 429, 502, 503, 507)

SCHEMA = Query("schema", Literal["seed", "native"], "native: settings and parameters as numbers and booleans.")
WAIT = Query("wait", bool, "Answer when it is done; so unless told otherwise. The body's own `wait` counts more.")
LISTED = (Query("all", bool, "Also what the catalogue offers and is not downloaded."), SCHEMA)
DOWNLOADED = (
    Query("source_url", str, "Where to get it, for clients that send no body."),
    Query("wait", bool, "Answer when the download is complete."),
)
INSECURE = (
    Query("ignoreSSL", bool, "Trust any certificate; only where the server's settings allow it."),
    Query("proxy", str, "An HTTP proxy for this download; only where the server's settings allow it."),
)

LIST_MODELS = Operation("listModels", MODELS, "List Models", answer=ListModelsResponse, query=LISTED, statuses=(503,))
DOWNLOAD_MODEL = Operation(
    "downloadModel",
    MODELS,
    "Download Model",
    body=DownloadBody,
    answer=DownloadModelResponse,
    query=DOWNLOADED,
    statuses=(404, *DOWNLOADS),
)
GET_MODEL = Operation("getModel", MODELS, "Get Model", answer=GetModelResponse, query=(SCHEMA,), statuses=(503,))
DELETE_MODEL = Operation("deleteModel", MODELS, "Delete Model", answer=DeleteModelResponse, statuses=(429, *WRITES))
START_MODEL = Operation("startModel", MODELS, "Start Model", StartBody, StartModelResponse, (WAIT,), STARTS, fields=SETTINGS)
STOP_MODEL = Operation("stopModel", MODELS, "Stop Model", answer=StopModelResponse, statuses=(429, 503))
START_MODEL_POST = Operation(
    "startModelPost", MODELS, "Start Model", StartBody, StartModelResponse, (WAIT,), STARTS, fields=SETTINGS
)
STOP_MODEL_POST = Operation("stopModelPost", MODELS, "Stop Model", answer=StopModelResponse, statuses=(429, 503))
DOWNLOAD_MODEL_BY_ID = Operation(
    "downloadModelById", MODELS, "Download Model", answer=DownloadModelResponse, query=INSECURE, statuses=DOWNLOADS
)
GET_PROGRESS = Operation("getDownloadProgress", MODELS, "How far a download is", answer=DownloadProgress, statuses=(503,))
LOAD_MODEL = Operation(
    "loadModel",
    MODELS,
    "Start a model named in the body",
    StartNamedBody,
    StartNamedResponse,
    (WAIT,),
    (404, *STARTS),
    fields=SETTINGS,
)
UNLOAD_MODEL = Operation(
    "unloadModel", MODELS, "Stop a model that is loaded", ModelBody, StopNamedResponse, statuses=(404, 429, 503)
)
PULL_MODEL = Operation(
    "ModelsController_pullModel",
    MODELS,
    "Download a model named in the body",
    PullBody,
    DownloadModelResponse,
    DOWNLOADED,
    (404, *DOWNLOADS),
)
STOP_DOWNLOAD = Operation(
    "ModelsController_stopModelDownload", MODELS, "Cancel a download", TaskBody, DownloadCancelled, statuses=(404, 503)
)
PULL_MODEL_INFO = Operation("pullModelInfo", MODELS, "What a download would bring")
START_NAMED = Operation(
    "ModelsController_startModel",
    MODELS,
    "Start a model named in the body",
    StartNamedBody,
    StartNamedResponse,
    (WAIT,),
    (404, *STARTS),
    fields=SETTINGS,
)
STOP_NAMED = Operation(
    "ModelsController_stopModel",
    MODELS,
    "Stop a model named in the body",
    ModelBody,
    StopNamedResponse,
    statuses=(404, 429, 503),
)
GET_MODEL_STATUS = Operation(
    "getModelStatus", MODELS, "Whether a model runs: 200, else 400", answer=ModelStatus, statuses=(503,)
)
UPDATE_MODEL = Operation(
    "ModelsController_update",
    MODELS,
    "Change what is kept of a model",
    UpdateBody,
    UpdateModelResponse,
    statuses=(409, *WRITES),
    fields=(*SETTINGS, *PARAMETERS),
)
IMPORT_MODEL = Operation(
    "ModelsController_importModel",
    MODELS,
    "Use files where they lie",
    ImportModelBody,
    ImportModelResponse,
    statuses=(409, 429, *WRITES),
)
TAKE_VARIANT = Operation(
    "takeModelVariant",
    MODELS,
    "Run a file that was made of the model's own; for hostler's commands",
    VariantBody,
    UpdateModelResponse,
    statuses=(409, 429, *WRITES),
)
DROP_VARIANT = Operation(
    "dropModelVariant",
    MODELS,
    "Run the model's own file again; for hostler's commands",
    answer=UpdateModelResponse,
    statuses=WRITES,
)
ADD_MODEL = Operation("ModelsController_addModel", MODELS, "Add a remote model")
LIST_REMOTE_MODELS = Operation("listRemoteModels", MODELS, "List a provider's models")
LIST_MODEL_SOURCES = Operation("listModelSources", MODELS, "List where models come from")
ADD_MODEL_SOURCE = Operation("addModelSource", MODELS, "Add a place where models come from")
DELETE_MODEL_SOURCE = Operation("deleteModelSource", MODELS, "Forget a place where models come from")
GET_MODEL_HUB = Operation("getModelHub", MODELS, "Show the hub's models")
LIST_AVAILABLE_MODELS = Operation(
    "listAvailableModels", MODELS, "List what can be asked now", answer=ListAvailableModelsResponse, statuses=(503,)
)
