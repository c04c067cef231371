"""A runtime that does what a test wrote down: the API's tests need neither models nor workers."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec

from hostler.domain import (
    EmbedRequest,
    EmbedResult,
    FinishEvent,
    FinishReason,
    GenerateRequest,
    Lifecycle,
    PrefillEvent,
    TextEvent,
    Timings,
    Usage,
)
from hostler.errors import ModelNotDownloaded, ModelNotFound, QueueFull, RequestCancelled, RequestNotFound
from hostler.library.manifest import Manifest, ModelFile
from hostler.plugins import get_plugins
from hostler.reloading import Reloaded
from hostler.runs import Runs
from hostler.views import ModelChanges, ModelView, PullRequest, PullView, RequestView
from hostler.worker.wire import PromptSize

USAGE = Usage(prompt_tokens=33, completion_tokens=2, cached_tokens=8)
TIMINGS = Timings(prompt_n=25, prompt_ms=12.5, cached_n=8, predicted_n=2, predicted_ms=4.0)
DEADLINE_S = 20.0


def manifest(id: str = "zephyr-7b", **fields: Any) -> Manifest:
    """A downloaded model, as a library would know it."""
    known: dict[str, Any] = {
        "name": "Zephyr 7B",
        "created": 1700560000,
        "owned_by": "TheBloke",
        "format": "ggufv3",
        "source_url": "https://huggingface.co/TheBloke/zephyr-7B-beta-GGUF/blob/main/zephyr-7b-beta.Q4_K_M.gguf",
        "files": (ModelFile("zephyr-7b-beta.Q4_K_M.gguf", 4368438944),),
        "metadata": {"quantization": "Q4_K_M", "size": "7B"},
        "is_complete": True,
    }
    return Manifest(id=id, **{**known, **fields})


def view(id: str = "zephyr-7b", lifecycle: Lifecycle = Lifecycle.DOWNLOADED, **fields: Any) -> ModelView:
    """A snapshot of that model."""
    manifest_fields = fields.pop("manifest", {})
    known: dict[str, Any] = {"resting": Lifecycle.DOWNLOADED, "engine": "llamacpp", "ctx_len": 2048, "n_parallel": 4}
    return ModelView(manifest=manifest(id, **manifest_fields), lifecycle=lifecycle, **{**known, **fields})


def text(words: str, index: int = 0, n_tokens: int = 1, logprobs: tuple[Any, ...] = ()) -> TextEvent:
    return TextEvent(index, words, n_tokens, logprobs)


def finish(
    index: int = 0, reason: FinishReason = FinishReason.STOP, usage: Usage = USAGE, timings: Timings = TIMINGS
) -> FinishEvent:
    return FinishEvent(index, reason, usage, timings)


def prefill(n_done: int = 0, n_total: int = 33, index: int = 0) -> PrefillEvent:
    return PrefillEvent(index, n_done, n_total)


HELLO = (prefill(), text("Hello"), text(" user."), finish())


class Pause:
    """A step of a script: silence until the test says go on, or until the generation is cancelled."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()


class ScriptedGeneration:
    """Plays one script. An exception among the steps is raised, None is one poll of silence."""

    def __init__(self, request: GenerateRequest, model: ModelView, script: tuple[Any, ...]) -> None:
        self.id = request.id
        self.model = model
        self.created = 1700193928
        self.n = request.n
        self.script = script
        self.n_closed = 0
        self.closed = threading.Event()
        self.is_finished = False
        self._is_cancelled = threading.Event()

    def events(self, poll_s: float, *, gathers: bool = False) -> Iterator[Any]:
        del gathers  # a script's steps come as they come
        for step in self.script:
            if isinstance(step, Pause):
                step.reached.set()
                yield from self._silence(step, poll_s)
                if self._is_cancelled.is_set():
                    for index in range(self.n):
                        yield finish(index, FinishReason.CANCELLED)
                    return
            elif isinstance(step, BaseException):
                raise step
            else:
                yield step
        self.is_finished = True

    def _silence(self, pause: Pause, poll_s: float) -> Iterator[None]:
        deadline = time.monotonic() + DEADLINE_S
        while not pause.go_on.wait(poll_s):
            if self._is_cancelled.is_set() or self.closed.is_set():
                return
            assert time.monotonic() < deadline, "nobody ended the pause"
            yield None

    def cancel(self) -> None:
        self._is_cancelled.set()

    def close(self) -> None:
        self.n_closed += 1
        self.closed.set()

    def __enter__(self) -> ScriptedGeneration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ScriptedEmbedding:
    """Gives one result, after a script of silences: an exception among the steps is raised, a Pause waits."""

    def __init__(self, request: EmbedRequest, model: ModelView, script: tuple[Any, ...], result: EmbedResult) -> None:
        self.id = request.id
        self.model = model
        self.script = script
        self.result = result
        self.closed = threading.Event()
        self._is_cancelled = threading.Event()

    def progress(self, poll_s: float) -> Iterator[None]:
        for step in self.script:
            if isinstance(step, BaseException):
                raise step
            step.reached.set()
            deadline = time.monotonic() + DEADLINE_S
            while not step.go_on.wait(poll_s):
                if self._is_cancelled.is_set():
                    raise RequestCancelled("The request was cancelled before its embeddings were complete")
                assert time.monotonic() < deadline, "nobody ended the pause"
                yield None

    def cancel(self) -> None:
        self._is_cancelled.set()

    def close(self) -> None:
        self.closed.set()

    def __enter__(self) -> ScriptedEmbedding:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ScriptedRuntime:
    """Answers from dictionaries and scripts; remembers what it was asked."""

    def __init__(self, *views: ModelView, max_requests: int = 8) -> None:
        self.views = {one.manifest.id: one for one in views}
        self.plugins = get_plugins()
        self.pulls: dict[str, PullView] = {}
        self.scripts: list[Any] = []
        self.asked: list[GenerateRequest] = []
        self.generations: list[ScriptedGeneration] = []
        self.embeds: list[EmbedRequest] = []
        self.embeddings: list[ScriptedEmbedding] = []
        self.calls: list[tuple[Any, ...]] = []
        self.held: list[str] = []
        self.n_free = max_requests
        self.is_ready = True
        self.to_raise: BaseException | None = None
        self.records: Any = None
        """Real ones, where a test gives it some: what is kept needs no script."""
        self.events: Any = None
        self.webhooks: Any = None
        self.listeners: Any = SimpleNamespace(views=list)
        self.settings: Any = None
        self.runs = Runs(self)  # type: ignore[arg-type]
        """Real ones, too: what they generate and count is scripted."""
        self.may_count = threading.Event()
        """Cleared by a test, it holds counts up, as a model that is being loaded does."""
        self.may_count.set()

    def enqueue(self, *script: Any) -> None:
        """The next generation plays this."""
        self.scripts.append(script)

    # -- what the API calls ---------------------------------------------------------------------------------------------

    def models(self, *, include_catalogue: bool = False) -> list[ModelView]:
        self._maybe_raise()
        return [one for one in self.views.values() if include_catalogue or one.lifecycle is not Lifecycle.NOT_DOWNLOADED]

    def model(self, reference: str) -> ModelView:
        self._maybe_raise()
        for one in self.views.values():
            if reference in (one.manifest.id, one.manifest.source_url, *one.manifest.aliases):
                return one
        raise ModelNotFound(f"The model {reference} does not exist")

    def reload_plugins(self) -> Reloaded:
        self._maybe_raise()
        self.calls.append(("reload",))
        return Reloaded(["red"], [], [], ["phi"], [], [])

    def start_model(self, reference: str, overrides: dict[str, Any] | None = None, *, is_waiting: bool = True) -> ModelView:
        found = self.model(reference)
        self.calls.append(("start", found.manifest.id, overrides, is_waiting))
        if found.lifecycle in {Lifecycle.NOT_DOWNLOADED, Lifecycle.DOWNLOADING}:
            raise ModelNotDownloaded(f"The model {found.manifest.id} is not downloaded")
        return self._become(found, Lifecycle.RUNNING if is_waiting else Lifecycle.STARTING)

    def stop_model(self, reference: str) -> ModelView:
        found = self.model(reference)
        self.calls.append(("stop", found.manifest.id))
        return self._become(found, Lifecycle.STOPPED) if found.lifecycle is Lifecycle.RUNNING else found

    def delete_model(self, reference: str) -> str:
        found = self.model(reference)
        if found.lifecycle is Lifecycle.NOT_DOWNLOADED:
            raise ModelNotFound(f"The model {found.manifest.id} is not here")
        del self.views[found.manifest.id]
        return found.manifest.id

    def update_model(self, reference: str, changes: ModelChanges) -> ModelView:
        found = self.model(reference)
        self.calls.append(("update", found.manifest.id, changes))
        if found.lifecycle is Lifecycle.NOT_DOWNLOADED:
            raise ModelNotDownloaded(f"The model {found.manifest.id} is not downloaded")
        return found

    def pull_model(self, request: PullRequest, *, is_waiting: bool = False) -> PullView:
        self._maybe_raise()
        self.calls.append(("pull", request, is_waiting))
        name = request.id or request.reference
        lifecycle = Lifecycle.DOWNLOADED if is_waiting else Lifecycle.DOWNLOADING
        if name in self.views and self.views[name].lifecycle is Lifecycle.DOWNLOADED:
            lifecycle = Lifecycle.DOWNLOADED
        files = (("zephyr.gguf", "https://example.test/zephyr.gguf", 100, 42),)
        self.pulls[name] = PullView(name, lifecycle, files, 100, 42, 10.0, 12.0)
        return self.pulls[name]

    def pull(self, model_id: str) -> PullView | None:
        return self.pulls.get(model_id)

    def cancel_pull(self, model_id: str) -> bool:
        return self.pulls.pop(model_id, None) is not None

    def import_model(
        self, path: str, model_id: str | None = None, name: str | None = None, *, is_moved: bool = False
    ) -> ModelView:
        self._maybe_raise()
        self.calls.append(("move" if is_moved else "import", path, model_id, name))
        made = view(model_id or "imported")
        self.views[made.manifest.id] = made
        return made

    def take_variant(
        self, reference: str, path: str | None, settings: dict[str, Any], metadata: dict[str, Any]
    ) -> ModelView:
        self._maybe_raise()
        self.calls.append(("take_variant", reference, path, settings, metadata))
        return self.model(reference)

    def drop_variant(self, reference: str) -> ModelView:
        self.calls.append(("drop_variant", reference))
        return self.model(reference)

    @contextmanager
    def hold(self, what: str) -> Iterator[None]:
        if self.n_free < 1:
            raise QueueFull("Too many requests", retry_after_s=2.0)
        self.n_free -= 1
        self.held.append(what)
        try:
            yield
        finally:
            self.n_free += 1

    def generate(self, request: GenerateRequest) -> ScriptedGeneration:
        found = self.model(request.model)
        if found.lifecycle is Lifecycle.NOT_DOWNLOADED:
            raise ModelNotDownloaded(f"The model {found.manifest.id} is not downloaded")
        self.asked.append(request)
        script = self.scripts.pop(0) if self.scripts else HELLO
        if len(script) == 1 and isinstance(script[0], QueueFull):
            raise script[0]
        generation = ScriptedGeneration(request, found, script)
        self.generations.append(generation)
        return generation

    def embed(self, request: EmbedRequest) -> ScriptedEmbedding:
        """Input `i` has the vector (1, i) and as many tokens as characters or ids."""
        found = self.model(request.model)
        if found.lifecycle is Lifecycle.NOT_DOWNLOADED:
            raise ModelNotDownloaded(f"The model {found.manifest.id} is not downloaded")
        self.embeds.append(request)
        script = self.scripts.pop(0) if self.scripts else ()
        if len(script) == 1 and isinstance(script[0], QueueFull):
            raise script[0]
        vectors = tuple(struct.pack("<2f", 1.0, float(index)) for index in range(len(request.inputs)))
        result = EmbedResult(vectors, sum(len(one) for one in request.inputs))
        embedding = ScriptedEmbedding(request, found, script, result)
        self.embeddings.append(embedding)
        return embedding

    def count_tokens(self, reference: str, messages: Any, *, template_kwargs: Any = None, settings: Any = None) -> PromptSize:
        """One token a character and one a message."""
        found = self.model(reference)
        if found.lifecycle is Lifecycle.NOT_DOWNLOADED:
            raise ModelNotDownloaded(f"The model {found.manifest.id} is not downloaded")
        self.calls.append(("count", found.manifest.id, messages, settings))
        assert self.may_count.wait(DEADLINE_S), "nobody let it count"
        return PromptSize(sum(len(message.content) + 1 for message in messages), found.ctx_len)

    def requests(self) -> list[RequestView]:
        return [
            RequestView(one.id, one.model.manifest.id, "decode", 33, 2, 0.5)
            for one in self.generations
            if not one.closed.is_set()
        ]

    def cancel_request(self, request_id: str) -> None:
        for one in self.generations:
            if one.id == request_id and not one.closed.is_set():
                one.cancel()
                return
        raise RequestNotFound(f"No request {request_id} is queued or running")

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _become(self, found: ModelView, lifecycle: Lifecycle) -> ModelView:
        changed = msgspec.structs.replace(found, lifecycle=lifecycle)
        self.views[found.manifest.id] = changed
        return changed

    def _maybe_raise(self) -> None:
        if self.to_raise is not None:
            raise self.to_raise
