"""Every error hostler raises on purpose. The text of each is written for the person who asked.

Lives on floor 0: any thread, any process. It knows nothing of HTTP; `api/errors.py` maps each class to a status.

    HostlerError                      code
    ├── InvalidRequest                invalid_value               a field has a bad value; `param` is its path
    │   ├── InvalidJson               invalid_json
    │   ├── MissingParameter          missing_required_parameter
    │   ├── UnsupportedParameter      unsupported_parameter
    │   ├── ContextLengthExceeded     context_length_exceeded
    │   ├── EmbeddingsDisabled        embeddings_disabled
    │   └── RequestTooLarge           request_too_large
    ├── AccessDenied
    │   ├── InvalidApiKey             invalid_api_key
    │   ├── HostNotAllowed            host_not_allowed
    │   ├── OriginNotAllowed          origin_not_allowed
    │   └── CommandLineOnly           command_line_only           a route of the command line of this home
    ├── NotFound
    │   ├── ModelNotFound             model_not_found
    │   ├── EngineNotFound            engine_not_found
    │   ├── RequestNotFound           request_not_found
    │   ├── RouteNotFound             route_not_found
    │   ├── ThreadNotFound            thread_not_found
    │   ├── MessageNotFound           message_not_found
    │   ├── AssistantNotFound         assistant_not_found
    │   ├── UploadNotFound            file_not_found              an uploaded file, or a message that does not name it
    │   ├── RunNotFound               run_not_found
    │   ├── StepNotFound              step_not_found
    │   └── WebhookNotFound           webhook_not_found
    ├── MethodNotAllowed              method_not_allowed
    ├── Conflict
    │   ├── ModelExists               model_exists
    │   ├── ModelNotDownloaded        model_not_downloaded
    │   ├── HomeInUse                 home_in_use                 another server owns this home
    │   ├── RecordExists              record_exists               an imported id is taken
    │   ├── DefaultAssistant          default_assistant           it cannot be deleted
    │   ├── RunInProgress             run_in_progress             a thread has one run at a time
    │   └── ConfiguredWebhook         configured_webhook          it can only be changed in the configuration
    ├── QueueFull                     queue_full                  carries retry_after_s
    ├── InvalidModelFile              invalid_model_file          a weight file is truncated, corrupt or hostile
    ├── ModelLoadFailed               model_load_failed           the engine refused the model; carries the last output
    ├── StartTimeout                  start_timeout
    ├── StartCancelled                start_cancelled             a stop or delete arrived while starting
    ├── EngineUnavailable             engine_unavailable          worker died or backs off; carries retry_after_s
    ├── EngineFailed                  engine_failed               the engine gave up on this one sequence
    ├── RequestCancelled              request_cancelled
    ├── DownloadFailed                download_failed
    ├── InsufficientMemory            insufficient_memory         carries both numbers
    ├── InsufficientStorage           insufficient_storage        carries both numbers
    ├── StorageUnavailable            storage_unavailable
    ├── PluginError                   plugin_error                names the plugin
    ├── ConfigError                   config_error                names the setting
    ├── NotImplementedHere            not_implemented
    └── InternalError                 internal_error
"""

from __future__ import annotations

from typing import ClassVar


class HostlerError(Exception):
    """Something the user should read; `str(error)` is the whole sentence."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        """Keep what the caller needs to act.

        Args:
            message: What happened, where, with which value, and what to do next.
            param: Path of the request field to blame, such as `messages[2].role`.
            retry_after_s: Seconds after which the same request may succeed, if it may.
        """
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def copy(self) -> HostlerError:
        """The same error once more, for another thread to raise: a raised one carries its own traceback."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__)
        return twin


class InvalidRequest(HostlerError):
    """A field of a request has a value that cannot be meant."""

    code = "invalid_value"


class InvalidJson(InvalidRequest):
    """The body is not JSON."""

    code = "invalid_json"


class MissingParameter(InvalidRequest):
    """A required field is absent or null."""

    code = "missing_required_parameter"


class UnsupportedParameter(InvalidRequest):
    """A field that hostler understands but cannot honour here; it is never ignored in silence."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit; nothing is cut in silence."""

    code = "context_length_exceeded"


class EmbeddingsDisabled(InvalidRequest):
    """The model runs with `embedding` false, or its engine cannot embed."""

    code = "embeddings_disabled"


class RequestTooLarge(InvalidRequest):
    """The body is over `max_body_bytes`."""

    code = "request_too_large"


class AccessDenied(HostlerError):
    """Who asks, or from where, is not allowed."""


class InvalidApiKey(AccessDenied):
    """No key, or a wrong one, where keys are set."""

    code = "invalid_api_key"


class HostNotAllowed(AccessDenied):
    """The Host header is a name nobody configured (DNS rebinding)."""

    code = "host_not_allowed"


class OriginNotAllowed(AccessDenied):
    """A web page of another origin asks."""

    code = "origin_not_allowed"


class CommandLineOnly(AccessDenied):
    """Only the command line of this home may ask for it."""

    code = "command_line_only"


class NotFound(HostlerError):
    """An id or a path that does not exist."""


class ModelNotFound(NotFound):
    """No model, alias or catalogue entry of that name."""

    code = "model_not_found"


class EngineNotFound(NotFound):
    """No installed plugin brings an engine of that name."""

    code = "engine_not_found"


class RequestNotFound(NotFound):
    """No running or queued request has that id."""

    code = "request_not_found"


class RouteNotFound(NotFound):
    """No route has that path."""

    code = "route_not_found"


class ThreadNotFound(NotFound):
    """No thread has that id."""

    code = "thread_not_found"


class MessageNotFound(NotFound):
    """The thread has no message of that id."""

    code = "message_not_found"


class AssistantNotFound(NotFound):
    """No assistant has that id."""

    code = "assistant_not_found"


class UploadNotFound(NotFound):
    """No uploaded file has that id, or the message does not name it."""

    code = "file_not_found"


class RunNotFound(NotFound):
    """The thread has no run of that id."""

    code = "run_not_found"


class StepNotFound(NotFound):
    """The run has no step of that id."""

    code = "step_not_found"


class WebhookNotFound(NotFound):
    """No webhook has that id."""

    code = "webhook_not_found"


class MethodNotAllowed(HostlerError):
    """The path exists, the method does not."""

    code = "method_not_allowed"


class Conflict(HostlerError):
    """The state of the thing forbids what was asked."""


class ModelExists(Conflict):
    """The id is taken by a model from another source."""

    code = "model_exists"


class ModelNotDownloaded(Conflict):
    """The model is known, its files are not here."""

    code = "model_not_downloaded"


class HomeInUse(Conflict):
    """Another hostler server owns this home folder."""

    code = "home_in_use"


class RecordExists(Conflict):
    """An import would write over a record of that id."""

    code = "record_exists"


class DefaultAssistant(Conflict):
    """The assistant that always exists cannot be deleted."""

    code = "default_assistant"


class RunInProgress(Conflict):
    """The thread has a run that is not over."""

    code = "run_in_progress"


class ConfiguredWebhook(Conflict):
    """A webhook of the configuration can only be changed there."""

    code = "configured_webhook"


class QueueFull(HostlerError):
    """No slot and no place in the queue."""

    code = "queue_full"


class InvalidModelFile(HostlerError):
    """A weight file is truncated, corrupt or hostile; the reason names the place."""

    code = "invalid_model_file"

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class ModelLoadFailed(HostlerError):
    """The engine could not load the model."""

    code = "model_load_failed"

    def __init__(self, message: str, *, last_output: str = "") -> None:
        super().__init__(message)
        self.last_output = last_output


class StartTimeout(HostlerError):
    """A load made no progress for `start_timeout_s`."""

    code = "start_timeout"


class StartCancelled(HostlerError):
    """A stop or delete arrived while the model was starting."""

    code = "start_cancelled"


class EngineUnavailable(HostlerError):
    """The worker died, or the supervisor waits before it tries again."""

    code = "engine_unavailable"


class EngineFailed(HostlerError):
    """The engine gave up on one sequence; the model lives."""

    code = "engine_failed"


class RequestCancelled(HostlerError):
    """Somebody cancelled the request before it could answer."""

    code = "request_cancelled"


class DownloadFailed(HostlerError):
    """A pull ended without the file; what arrived is kept and resumed."""

    code = "download_failed"


class InsufficientMemory(HostlerError):
    """A load that would not fit; checked before it starts."""

    code = "insufficient_memory"

    def __init__(self, message: str, *, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class InsufficientStorage(HostlerError):
    """A pull that would not fit on the disk; checked before it starts."""

    code = "insufficient_storage"

    def __init__(self, message: str, *, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class StorageUnavailable(HostlerError):
    """The data folder cannot be read or written."""

    code = "storage_unavailable"


class PluginError(HostlerError):
    """A plugin is broken; the text names it. The host goes on without it."""

    code = "plugin_error"


class ConfigError(HostlerError):
    """A setting has a bad value; the text names the setting and where it came from."""

    code = "config_error"


class NotImplementedHere(HostlerError):
    """A documented operation that this release does not have."""

    code = "not_implemented"


class InternalError(HostlerError):
    """A bug; the log has the traceback under the request id."""

    code = "internal_error"
