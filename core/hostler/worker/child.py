"""The worker process: `python -m hostler.worker.child PARENT_PID`. One engine, one model; started by the supervisor.

Floor 3. Never imports falcon, waitress or sqlalchemy. Threads:

    main              loads the engine, then runs the loop (loop.py): receive, step, emit
    control           reads the host's messages; at the end of the stream it ends the process, whatever the others do
    preparation       renders and tokenizes (preparation_thread.py), with its watch
    grammars          makes constraints of forms (grammars.py), once a request wants one

Exit codes: exits.py. The process leaves by os._exit: interpreter teardown under a live native library helps nobody, and
`Engine.close` has had its say.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn, cast

import msgspec

from hostler.engine import Engine, EngineInfo, GuidedEngine, MessageEngine
from hostler.errors import HostlerError, InvalidRequest, ModelLoadFailed, PluginError
from hostler.modeldigest import digest_of
from hostler.ring import RingSegment
from hostler.worker import exits
from hostler.worker.descriptors import die_with_parent, set_signals, take_control_streams
from hostler.worker.embedding import EmbedPreparation
from hostler.worker.grammars import GrammarDesk
from hostler.worker.loop import (
    Arrived,
    Cancelled,
    EmbedArrived,
    EmbedDropped,
    EmbedFailed,
    EmbedPrepared,
    Inbox,
    Loop,
    PreparationFailed,
    StopAsked,
    Task,
)
from hostler.worker.preparation import Preparation, Prepared
from hostler.worker.preparation_thread import Count, PreparationThread
from hostler.worker.wire import (
    WIRE_VERSION,
    Call,
    Cancel,
    CancelCall,
    Counting,
    Embed,
    Hello,
    HostMessage,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    PromptSize,
    Reply,
    Stop,
    Stopped,
    Submit,
    WorkerMessage,
    encode,
    read_host_message,
)

SWITCH_INTERVAL_S = 0.0005
"""How long another Python thread may keep the loop from going on after native code; Python's 5 ms is a token's time."""
_PROGRESS_S = 0.1
"""At most so often is progress worth a message."""


class ControlWriter:
    """Writes messages to the host; any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()  # one message at a time

    def send(self, message: WorkerMessage) -> None:
        """Write one message; without a host there is nothing left to do."""
        data = memoryview(encode(message))
        with self._lock:
            try:
                while data:
                    data = data[self._stream.write(data) :]
            except OSError:
                os._exit(exits.HOST_GONE)


class Worker:
    """The pieces of one worker process, put together."""

    def __init__(self, control_in: BinaryIO, control_out: BinaryIO) -> None:
        self._control_in = control_in
        self._control = ControlWriter(control_out)
        self._inbox = Inbox()
        self._is_stop_asked = False
        """Set by the control thread, read by the load's progress."""
        self._desk: PreparationThread | None = None
        """None until the model is loaded; the host submits nothing before."""
        self._preparation: Preparation | None = None
        self._grammars: GrammarDesk | None = None
        self._load: Load | None = None
        self._embeds: dict[int, EmbedPreparation] = {}
        """Embeds in preparation: put in and dropped by the control thread, taken out by the preparation thread."""

    def run(self) -> NoReturn:
        """Live the worker's whole life."""
        self._control.send(Hello(WIRE_VERSION, os.getpid()))
        first = self._read()
        if not isinstance(first, Load) or first.wire_version != WIRE_VERSION:
            self._exit(exits.PROTOCOL, f"the host's first message is not Load of version {WIRE_VERSION}: {first!r}")
        self._load = first
        threading.Thread(target=self._read_control, name="control", daemon=True).start()
        engine, info, segment = self._load_engine(first)
        loop = Loop(
            engine,
            info,
            segment,
            self._inbox,
            self._control.send,
            stall_timeout_s=first.stall_timeout_s,
            takes_messages=first.takes_messages,
        )
        # What is loaded stays: the collector need not look at an engine's tables again and again.
        gc.collect()
        gc.freeze()
        code = loop.run()
        if code != exits.ORDERLY:
            self._exit(code)
        try:
            engine.close()
        except Exception:  # noqa: BLE001 - the model is stopped either way; the log has what the engine did wrong
            traceback.print_exc()
        segment.close()
        self._control.send(Stopped())
        self._exit(exits.ORDERLY)

    # -- loading ----------------------------------------------------------------------------------------------------

    def _load_engine(self, load: Load) -> tuple[Engine, EngineInfo, RingSegment]:
        try:
            segment = RingSegment.attach(load.ring_handle)
            engine = _make_engine(load.engine)
            if load.takes_messages:
                cast(MessageEngine, engine).wake_with(self._inbox.wake)
            settings = load.settings
            if settings.cache_folder:
                # Here and now: a worker that is started again may find other files under the names of those before.
                settings = msgspec.structs.replace(settings, model_digest=digest_of(load.files, settings.model_digest))
            info = engine.load(load.files, settings, self._progress())
            if info.n_slots < 1 or (min(info.n_ctx, info.n_vocab) < 1 and not load.takes_messages):
                raise ModelLoadFailed(f"{load.engine} says {info}; n_ctx, n_slots and n_vocab must be at least 1")
            self._preparation = Preparation(
                load.model_id,
                engine,
                info,
                load.prompt,
                is_embedding=load.settings.embedding,
                takes_messages=load.takes_messages,
            )
            memory = engine.memory()
        except MemoryError as error:
            traceback.print_exc()
            self._exit(exits.OUT_OF_MEMORY, f"loading {load.files.primary} took more memory than there is {error}")
        except HostlerError as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises while loading is a load that failed
            traceback.print_exc()
            self._refuse(ModelLoadFailed(f"The engine failed while loading: {type(error).__name__}: {error}"))
        if self._is_stop_asked:
            engine.close()
            self._control.send(Stopped())
            self._exit(exits.ORDERLY)
        self._desk = PreparationThread(
            self._preparation,
            render_timeout_s=load.prompt.render_timeout_s,
            on_prepared=self._prepared,
            on_failed=self._preparation_failed,
            exit_worker=lambda message: self._exit(exits.TEMPLATE_STUCK, message),
        )
        self._grammars = GrammarDesk(
            cast(GuidedEngine, engine), on_ready=self._inbox.put, on_failed=self._preparation_failed
        )
        self._control.send(Loaded(info, memory))
        return engine, info, segment

    def _prepared(self, prepared: Prepared) -> None:
        if prepared.params.output_format is None or prepared.raw is not None:
            self._inbox.put(prepared)
        else:
            assert self._grammars is not None
            self._grammars.put(prepared)

    def _preparation_failed(self, sequence_id: int, error: HostlerError) -> None:
        self._inbox.put(PreparationFailed(sequence_id, error))

    def _progress(self) -> Callable[[float], bool]:
        sent_at = 0.0

        def progress(fraction: float) -> bool:
            nonlocal sent_at
            now = time.monotonic()
            if now - sent_at >= _PROGRESS_S or fraction >= 1.0:
                sent_at = now
                self._control.send(Progress(min(max(float(fraction), 0.0), 1.0), "loading"))
            return not self._is_stop_asked

        return progress

    def _refuse(self, error: HostlerError) -> NoReturn:
        if self._is_stop_asked:
            self._control.send(Stopped())
            self._exit(exits.ORDERLY)
        self._control.send(LoadFailed(error.code, error.message, error.param))
        self._exit(exits.LOAD_FAILED)

    # -- control thread ---------------------------------------------------------------------------------------------

    def _read(self) -> HostMessage | None:
        try:
            return read_host_message(self._control_in)
        except (msgspec.DecodeError, ValueError, OSError) as error:
            self._exit(exits.PROTOCOL, f"the host sent what this worker cannot read: {error}")

    def _read_control(self) -> None:
        while (message := self._read()) is not None:
            self._route(message)
        # SAFETY: the host is gone. Nothing is flushed or closed: the loop may be inside native code for good.
        os._exit(exits.HOST_GONE)

    def _route(self, message: HostMessage) -> None:
        desk = self._desk
        match message:
            case Stop():
                self._is_stop_asked = True
                self._inbox.put(StopAsked())
            case Load():
                self._exit(exits.PROTOCOL, "the host sent a second Load")
            case Cancel(sequence_id):
                if desk is not None:
                    desk.discard(sequence_id)
                self._inbox.put(Cancelled(sequence_id))
            case Embed() if desk is not None:
                self._embed(desk, message)
            case CancelCall(call_id):
                self._drop_embed(call_id)
            case Call() if desk is not None:
                self._call(desk, message)
            case Submit() if desk is not None:
                # The loop must know the sequence before its preparation can come to an end.
                self._inbox.put(Arrived(message))
                desk.put(message)
            case _:
                self._exit(exits.PROTOCOL, f"the host sent {type(message).__name__} before the model was loaded")

    # -- calls ------------------------------------------------------------------------------------------------------

    def _call(self, desk: PreparationThread, call: Call) -> None:
        if call.name == "memory":
            self._inbox.put(Task(call.call_id, lambda engine: engine.memory()))
        elif call.name == "tokenize":
            desk.put_task(lambda: self._reply(call, lambda: self._tokenize(call.argument)))
        elif call.name == "count":
            self._count(desk, call)
        else:
            self._control.send(Reply(call.call_id, None, "not_implemented", f"A worker has no call {call.name!r}"))

    def _reply(self, call: Call, answer: Callable[[], Any]) -> None:
        try:
            reply = Reply(call.call_id, answer())
        except HostlerError as error:
            reply = Reply(call.call_id, None, error.code, error.message, error.param)
        except Exception as error:  # noqa: BLE001 - a bug in one answer costs that answer
            traceback.print_exc()
            reply = Reply(call.call_id, None, "engine_failed", f"The engine failed: {type(error).__name__}: {error}")
        self._control.send(reply)

    def _tokenize(self, text: object) -> list[int]:
        assert self._preparation is not None
        if not isinstance(text, str):
            raise InvalidRequest(f"tokenize takes a text, not {type(text).__name__}", param="text")
        return self._preparation.tokenize(text)

    def _count(self, desk: PreparationThread, call: Call) -> None:
        def done(result: int | HostlerError) -> None:
            self._reply(call, lambda: answer(result))

        def answer(result: int | HostlerError) -> PromptSize:
            assert self._preparation is not None
            if isinstance(result, HostlerError):
                raise result
            return PromptSize(result, self._preparation.n_ctx)

        try:
            counting = msgspec.convert(call.argument, Counting)
        except msgspec.ValidationError as error:
            done(InvalidRequest(f"count takes messages: {error}", param="messages"))
            return
        desk.put_count(Count(counting, done))

    def _embed(self, desk: PreparationThread, embed: Embed) -> None:
        assert self._preparation is not None
        # The loop must know it before its preparation can come to an end.
        self._inbox.put(EmbedArrived(embed.call_id))
        preparation = EmbedPreparation(
            embed,
            self._preparation,
            desk.put_task,
            on_prepared=lambda call_id, inputs: self._embed_is_prepared(EmbedPrepared(call_id, inputs)),
            on_failed=lambda call_id, error: self._embed_is_prepared(EmbedFailed(call_id, error)),
        )
        self._embeds[embed.call_id] = preparation
        desk.put_task(preparation.run)

    def _embed_is_prepared(self, item: EmbedPrepared | EmbedFailed) -> None:
        self._embeds.pop(item.call_id, None)
        self._inbox.put(item)

    def _drop_embed(self, call_id: int) -> None:
        preparation = self._embeds.pop(call_id, None)
        if preparation is not None:
            preparation.drop()
        self._inbox.put(EmbedDropped(call_id))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _exit(self, code: int, message: str = "") -> NoReturn:
        if message:
            print(message, file=sys.stderr)  # noqa: T201 - standard error is the worker's log
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _make_engine(path: str) -> Engine:
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
        return cast(Engine, getattr(module, class_name)())
    except (ImportError, AttributeError) as error:
        traceback.print_exc()
        raise PluginError(
            f"The engine {path} cannot be imported: {error}. Reinstall its plugin, with what it needs"
        ) from error


def main() -> NoReturn:
    """Entry point."""
    control_in, control_out = take_control_streams()
    set_signals()
    die_with_parent(int(sys.argv[1]))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    Worker(control_in, control_out).run()


if __name__ == "__main__":
    main()
