"""One conversion from its beginning to the registered model: which steps there are, what is done already, and the verdict.

Process of the command, its one thread. What a step does with which libraries stands in `steps/`, who does it in `tools.py`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hostler import (
    HostlerError,
    InsufficientMemory,
    InsufficientStorage,
    LocalModel,
    ModelExists,
    ModelNotDownloaded,
    ModelNotFound,
    Settings,
    connect,
    find_model,
    show_bytes,
    usable_cores,
)
from hostler_onnxgenai import __version__
from hostler_onnxgenai.conversion.child import StepFailed, run_step
from hostler_onnxgenai.conversion.display import Display
from hostler_onnxgenai.conversion.source import GGUF, Source
from hostler_onnxgenai.conversion.target import QUANTS, Needs, needs_of
from hostler_onnxgenai.conversion.tools import ASKED, TRANSFORMERS, Tools, builder_options, find_tools
from hostler_onnxgenai.conversion.work import Work

TEXT = """\
A steam locomotive turns the heat of its fire into motion. Coal burns in the firebox, the water in the boiler becomes \
steam, and the steam pushes the pistons that drive the wheels. Before a journey the crew fills the tender with water, lights \
the fire slowly and oils every bearing.

Question: What is the capital of France?
Answer: The capital of France is Paris.

def add(a, b):
    return a + b

One, two, three, four, five, six, seven, eight, nine, ten, eleven,"""
"""What source and result are both asked: prose, a question, code, and numbers, which even a small model can go on with."""
N_NEW = 24
DECODE_FACTOR = 2.0
"""A mean over so few tokens, of which the source is sure, strays more."""
REGISTERING = "register"


class ConversionRefused(HostlerError):
    """The result is not what the source is; it is kept for a look, and for --force."""

    code = "conversion_refused"


class RunStep(Protocol):
    """As `child.run_step`; an argument, so that tests can watch and fail."""

    def __call__(
        self, python: str, step: str, arguments: dict[str, Any], *, log: Path, show: Callable[[str, float | None], None]
    ) -> dict[str, Any]: ...


class Order(msgspec.Struct, frozen=True):
    """What was asked for."""

    source: Source
    device: str
    quant: str
    model_id: str
    python: str | None = None
    is_forced: bool = False
    keeps_work: bool = False


class Converted(msgspec.Struct, frozen=True):
    """What came of it."""

    id: str
    source_url: str
    size_bytes: int
    check: dict[str, Any] | None
    """What `steps/compare.py` found; None: it was not checked."""
    seconds: float


class Conversion:
    """Runs an order. Make one, call `run` once."""

    def __init__(
        self,
        settings: Settings,
        order: Order,
        display: Display,
        *,
        run: RunStep = run_step,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        free_memory: Callable[[], int] | None = None,
    ) -> None:
        self.order = order
        self.quant = QUANTS[order.quant]
        self.work = Work(settings.home, f"{order.source.reference} {order.device} {order.quant}")
        self.source_url = f"convert:{order.source.reference}"
        self._settings = settings
        self._display = display
        self._run_step = run
        self._free_bytes = free_bytes
        self._free_memory = free_memory or _available_memory

    @property
    def steps(self) -> list[str]:
        """The names of all steps, in order."""
        first = ["load"] if self.order.source.kind == GGUF else []
        return [*first, "reference", "build", "check", REGISTERING]

    def run(self) -> Converted:
        """Convert, check, register.

        Raises:
            ModelExists: The id is taken.
            MissingTools, InsufficientStorage, InsufficientMemory: Before anything is done.
            StepFailed: What earlier steps made is kept.
            ConversionRefused: The result strays too far from the source.
        """
        started = time.monotonic()
        with self.work:
            already = self._handed_over()
            if already is None:
                self._refuse_taken_id()
                tools = find_tools(self.order.source, self.order.python, self._ask)
                self._begin(tools)
                try:
                    check = self._make(tools)
                    self._register(tools, check)
                finally:
                    self.work.drop()
                already = find_model(self._settings, self.order.model_id)
            else:
                check = self.work.state.done.get("check")
            size = sum(path.stat().st_size for path in already.path.rglob("*") if path.is_file())
        if not self.order.keeps_work:
            self.work.remove()
        return Converted(already.id, self.source_url, size, check, time.monotonic() - started)

    # -- before -------------------------------------------------------------------------------------------------------

    def _ask(self, python: str) -> dict[str, Any]:
        return self._run_step(python, "tools", {"packages": list(ASKED)}, log=self.work.log("tools"), show=_show_nothing)

    def _handed_over(self) -> LocalModel | None:
        """The model, where an earlier command died between handing it to the library and saying so."""
        state = self.work.read()
        handed = state.done.get(REGISTERING) if state is not None else None
        if handed is None or state is None or self.work.path("build").exists():
            return None
        try:
            found = find_model(self._settings, handed["id"])
        except (ModelNotFound, ModelNotDownloaded):
            return None
        self.work.state = state
        return found if found.source_url == self.source_url and found.id == self.order.model_id else None

    def _refuse_taken_id(self) -> None:
        name = self.order.model_id
        try:
            find_model(self._settings, name)
        except ModelNotFound:
            return
        except ModelNotDownloaded:
            pass
        raise ModelExists(f"{name} is here already; choose another name with --id, or delete that one: hostler rm {name}")

    def _begin(self, tools: Tools) -> None:
        """Read what is done, and see that the rest fits."""
        order = self.order
        request = {
            "source": order.source.fingerprint(),
            "device": order.device,
            "quant": order.quant,
            "tools": tools.versions(),
        }
        done = self.work.resume(request)
        needs = needs_of(order.source, self.quant, order.device)
        needed = max(0, needs.disk_bytes - self.work.used_bytes())
        free, memory = self._free_bytes(self.work.folder), self._free_memory()
        self._display.note(_announcement(order, needs, free, memory))
        if done:
            self._display.note(f"Going on after {', '.join(done)}, which an earlier command has finished.")
        if needed > free:
            raise InsufficientStorage(
                f"converting {order.source.id} needs {needed} bytes more in {self.work.folder}, and {free} are free; "
                "free some, or choose a home on a larger disk with --home",
                needed_bytes=needed,
                available_bytes=free,
            )
        if needs.memory_bytes > memory and "build" not in done and not order.is_forced:
            raise InsufficientMemory(
                f"converting {order.source.id} needs about {needs.memory_bytes} bytes of memory, and {memory} are free; "
                "end other programs, or try all the same with --force",
                needed_bytes=needs.memory_bytes,
                available_bytes=memory,
            )

    # -- steps --------------------------------------------------------------------------------------------------------

    def _make(self, tools: Tools) -> dict[str, Any] | None:
        """All but the last step; gives what the check found."""
        order, work = self.order, self.work
        exported = work.path("load") if order.source.kind == GGUF else order.source.path
        converter = tools.converter
        if order.source.kind == GGUF:
            self._step(
                "load",
                converter.path,
                "load",
                {"source": str(order.source.path), "architectures": converter.architectures},
                lambda result: f"{result['architecture']}, {show_bytes(result['size_bytes'])} of float32",
            )
        else:
            self._refuse_unknown_architecture(tools)
        asked = exported if tools.reference_runtime == TRANSFORMERS else order.source.path
        reference: dict[str, Any] | None
        try:
            reference = self._step(
                "reference",
                tools.reference.path,
                "reference",
                {
                    "source": str(asked),
                    "runtime": tools.reference_runtime,
                    "text": TEXT,
                    "n_new": N_NEW,
                    "n_threads": usable_cores(),
                },
                lambda result: f"{len(result['tokens'])} tokens asked of the source, run by {tools.reference_runtime}",
            )
        except StepFailed as error:
            self._go_on_unchecked(error)
            reference = None
        self._step(
            "build",
            converter.path,
            "build",
            {
                "source": str(exported),
                "cache": str(work.folder / "cache"),
                "precision": self.quant.precision,
                "device": order.device,
                "options": builder_options(self.quant.options, converter),
            },
            lambda result: f"{show_bytes(result['size_bytes'])} for {order.device}, {order.quant}",
        )
        if reference is None:
            return None
        arguments = {
            "folder": str(work.path("build")),
            "device": order.device,
            "text": TEXT,
            "logits": str(work.path("reference") / "logits.npy"),
            **{name: reference[name] for name in ("tokens", "bos", "greedy")},
        }
        try:
            check = self._step("check", tools.checker.path, "compare", arguments, _words_of_check, has_folder=False)
        except StepFailed as error:
            self._go_on_unchecked(error)
            return None
        self._judge(check, reference)
        return check

    def _step(
        self,
        name: str,
        python: str,
        module: str,
        arguments: dict[str, Any],
        words: Callable[[dict[str, Any]], str],
        *,
        has_folder: bool = True,
    ) -> dict[str, Any]:
        """Do a step, unless it is done."""
        steps = self.steps
        self._display.begin(name, steps.index(name) + 1, len(steps))
        found = self.work.state.done.get(name)
        if found is not None:
            self._display.end(words(found), was_done=True)
            return found
        if has_folder:
            arguments = {**arguments, "folder": str(self.work.part(name))}
        try:
            result = self._run_step(python, module, arguments, log=self.work.log(name), show=self._display.show)
        except BaseException:
            self.work.drop()
            raise
        self.work.finish(name, result)
        self._display.end(words(result))
        return result

    def _refuse_unknown_architecture(self, tools: Tools) -> None:
        """Before the weights are read; of a GGUF file the step `load` knows first what it is."""
        config = msgspec.json.decode((self.order.source.path / "config.json").read_bytes(), type=dict[str, Any])
        known, named = tools.converter.architectures, config.get("architectures")
        architecture = str(named[0]) if isinstance(named, list) and named else "none"
        if known and architecture not in known:
            raise StepFailed(
                f"{self.order.source.path} is a model of the architecture {architecture}, which this version of the builder "
                f"does not know; it knows {', '.join(known)}"
            )

    def _go_on_unchecked(self, error: StepFailed) -> None:
        """Only where that was asked for.

        Raises:
            ConversionRefused: It was not.
        """
        if not self.order.is_forced:
            raise ConversionRefused(f"the result cannot be checked: {error}; --force registers it all the same") from error
        self._display.note(f"Not checked: {error}")

    def _judge(self, check: dict[str, Any], reference: dict[str, Any]) -> None:
        """Show both texts, and refuse a result that strays too far."""
        self._display.note(f"  source: {_start_of(reference['continuation'])}")
        self._display.note(f"  result: {_start_of(check['continuation'])}")
        reasons = []
        for kl, ceiling, where in (
            (check["kl"], self.quant.ceiling, ""),
            (check["kl_decode"], DECODE_FACTOR * self.quant.ceiling, ", as it goes on,"),
        ):
            if not kl <= ceiling:
                reasons.append(
                    f"its mean KL divergence from the source{where} is {kl:.3f}, and {ceiling:g} is the most that "
                    f"{self.order.quant} may cost"
                )
        if not check["same_tokens"]:
            reasons.append("its tokenizer makes other tokens of the same text")
        if not reasons:
            return
        if not self.order.is_forced:
            raise ConversionRefused(
                f"the result is refused: {'; '.join(reasons)}. It lies in {self.work.path('build')}; try another --quant, or "
                "register it all the same with --force"
            )
        self._display.note(f"Registered all the same: {'; '.join(reasons)}")

    # -- the end ------------------------------------------------------------------------------------------------------

    def _register(self, tools: Tools, check: dict[str, Any] | None) -> None:
        order, folder = self.order, self.work.path("build")
        self._display.begin(REGISTERING, len(self.steps), len(self.steps))
        (folder / "model.json").write_bytes(msgspec.json.encode(self._manifest(tools, check)))
        self.work.finish(REGISTERING, {"id": order.model_id})
        body = {"model": order.model_id, "modelPath": str(folder), "option": "move"}
        with connect(self._settings, "convert") as client:
            client.post("/v1/models/import", body)
        self._display.end(order.model_id)

    def _manifest(self, tools: Tools, check: dict[str, Any] | None) -> dict[str, Any]:
        """What the library is told of the result, as a model.json in its folder."""
        source, order = self.order.source, self.order
        with_what = [f"hostler-onnxgenai {__version__}", *(f"{name} {one}" for name, one in tools.versions().items())]
        metadata = {
            **source.metadata,
            "quantization": order.quant,
            "base_model": source.id,
            "base_quantization": source.quantization,
            "converted_for": order.device,
            "converted_with": ", ".join(with_what),
        }
        if check is not None:
            metadata["kl_divergence"] = round(check["kl"], 4)
        return {
            "id": order.model_id,
            "name": f"{source.name} (ONNX {order.quant})",
            "created": int(time.time()),
            "description": source.description,
            "owned_by": source.owned_by,
            "format": "onnxgenai",
            "source_url": self.source_url,
            "parameters": source.parameters,
            "metadata": metadata,
        }


def _announcement(order: Order, needs: Needs, free: int, memory: int) -> str:
    return (
        f"{order.source.id} ({order.source.quantization or order.source.kind}) becomes {order.model_id} ({order.quant}, for "
        f"{order.device}): about {show_bytes(needs.disk_bytes)} of disk meanwhile and {show_bytes(needs.result_bytes)} at the "
        f"end, {show_bytes(free)} are free; about {show_bytes(needs.memory_bytes)} of memory, {show_bytes(memory)} are free."
    )


def _words_of_check(check: dict[str, Any]) -> str:
    return (
        f"KL {check['kl']:.3f} from the source, {check['kl_decode']:.3f} going on, the same likeliest token in "
        f"{check['top1']:.0%}, the first {check['n_same']} of {check['n_new']} new tokens the same"
    )


def _show_nothing(text: str, fraction: float | None) -> None:
    del text, fraction


def _start_of(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= 90 else shown[:87] + "..."


def _available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
