"""One tuning from its beginning to the table: which measurements there are, in which order, and what is known already.

Process of the command, its one thread. What a step does with llama.cpp stands in `steps/`; what is made of the figures in
`choice.py` and `mixes.py`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from hostler import (
    EngineSettings,
    HostlerError,
    InsufficientStorage,
    Settings,
    ShowStep,
    read_gguf_tensors,
    show_bytes,
    usable_cores,
)
from hostler_llamacpp import ENVIRONMENT, hugepages, kernels
from hostler_llamacpp.tuning import texts
from hostler_llamacpp.tuning.bench import BUSY_CORES, Effort, Running, Speeds, compare
from hostler_llamacpp.tuning.child import StepFailed, run_step
from hostler_llamacpp.tuning.choice import ORIGINAL, WIDE_LOSS, Loss, Measured, front, recommend
from hostler_llamacpp.tuning.display import Display
from hostler_llamacpp.tuning.files import Files
from hostler_llamacpp.tuning.mixes import Group, Option, groups_of, plan
from hostler_llamacpp.tuning.settings_search import Finding, Found, Search
from hostler_llamacpp.tuning.source import Source
from hostler_llamacpp.tuning.variants import (
    FINE,
    SHARES,
    Variant,
    changeable,
    coarse_bytes,
    fine_bytes,
    types_of,
)
from hostler_llamacpp.tuning.words import disturbed, listed, loss_words, machine, search_words
from hostler_llamacpp.tuning.work import Work

SPEEDS = Effort(n_rounds=3, n_prompt=512, n_new=64, n_repeats=2)
QUICK_SPEEDS = Effort(n_rounds=2, n_prompt=256, n_new=32, n_repeats=1)
SEARCH = Effort(n_rounds=3, n_prompt=512, n_new=48, n_repeats=1)
QUICK_SEARCH = Effort(n_rounds=2, n_prompt=256, n_new=24, n_repeats=1)
SENSITIVITY_TOKENS = 1024
QUICK_TOKENS = 1024
"""Of the text, with --quick."""
SAME_MODEL_KL = 1.0
"""Mean KL divergence of a better source from the original above which they are not the same model."""
LOSS_RUNNING = {"flash_attn": True, "cache_type": "f16"}
REFERENCE = "source.logp"
_Result = TypeVar("_Result")


class TuningRefused(HostlerError):
    """Nothing is wrong, but it cannot be done."""

    code = "tuning_refused"


class RunStep(Protocol):
    """As `child.run_step`; an argument, so that tests can watch and fail."""

    def __call__(
        self, step: str, arguments: dict[str, Any], *, log: Path, show: ShowStep
    ) -> dict[str, Any]: ...


class Order(msgspec.Struct, frozen=True):
    """What was asked for."""

    source: Source
    max_loss: float = 0.01
    is_quick: bool = False
    is_again: bool = False


class Tuned(msgspec.Struct, frozen=True):
    """All that was found."""

    id: str
    source: str
    """What the variants are made from, in words."""
    machine: str
    max_loss: float
    variants: list[Measured]
    """The original first."""
    front: list[str]
    recommended: str
    wide: str
    """Recommended if 5 % were allowed."""
    settings: list[Finding]
    best_settings: Running
    settings_of: str
    """The variant that settings were tried on."""
    measured_at: int
    """Unix seconds."""
    took_s: float

    def variant(self, name: str) -> Measured | None:
        """By its name."""
        return next((one for one in self.variants if one.name == name), None)


class Tuning:
    """Runs an order. Make one inside `with work`, call `run`, then `write` for the one that is chosen."""

    def __init__(
        self,
        settings: Settings,
        order: Order,
        work: Work,
        display: Display,
        *,
        run: RunStep = run_step,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        n_cores: int | None = None,
    ) -> None:
        self.order = order
        self._settings = settings
        self._work = work
        self._display = display
        self._run_step = run
        self._free_bytes = free_bytes
        self._n_cores = n_cores or usable_cores()
        self._number = self._of = 0
        source = order.source
        own = source.settings
        extra = own.get("extra") or {}
        given = EngineSettings(ctx_len=1, use_mmap=own["use_mmap"], extra=extra)
        self._repack = kernels.are_wanted(given)
        self._has_huge_pages = hugepages.are_given({**ENVIRONMENT, **os.environ})
        self.start = Running(
            cpu_threads=own.get("cpu_threads") or self._n_cores,
            n_batch=own["n_batch"],
            n_ubatch=extra.get("n_ubatch") or min(own["n_batch"], 512),
            flash_attn=own["flash_attn"],
            cache_type=own["cache_type"],
            use_mmap=own["use_mmap"],
            huge_pages=self._has_huge_pages and hugepages.are_wanted(source.path, given),
        )
        """As the model runs now."""
        self._files: Files
        """Of `begin`."""
        self._is_from_other = source.made_from != source.path

    # -- before -------------------------------------------------------------------------------------------------------

    def needed_bytes(self) -> int:
        """Of disk, at most at once: the fine file, the coarse ones, a mix, and the source's distributions on both texts."""
        source = self.order.source
        files = 2 * fine_bytes(source.n_params) + len(self._files.coarse) * coarse_bytes(source.n_params)
        return files + min(2 * 2600 * source.n_vocab, 600 * 1024 * 1024) + 2 * SENSITIVITY_TOKENS * source.n_vocab

    def begin(self) -> None:
        """Read what is known, and see that there is room.

        Raises:
            InsufficientStorage
        """
        source = self.order.source
        known = self._work.resume(
            {
                **source.fingerprint(),
                "llama_cpp": version("llama-cpp-python"),
                "machine": machine(),
                "running": msgspec.to_builtins(self.start),
                "repack": self._repack,
                "kernels": kernels.names(),
                "is_quick": self.order.is_quick,
                "text": texts.digest(),
            },
            is_again=self.order.is_again,
        )
        packed = self._packed_types()
        self._files = Files(source, self._work, self._run, self._step, self._display.show, self._n_cores, packed)
        needed, free = self.needed_bytes(), self._free_bytes(self._work.folder)
        made = (
            f"{source.quantization}, as it is"
            if not self._is_from_other
            else (f"{source.made_from_id}, a better source of the same model ({source.made_from_quantization})")
        )
        self._display.note(
            f"{source.id}: variants are made from {made}; up to {show_bytes(needed)} of disk meanwhile, {show_bytes(free)} "
            f"are free; {self._n_cores} cores"
        )
        if not self._is_from_other and source.quantization not in ("F32", "F16", "BF16", "Q8_0"):
            self._display.note(
                f"A requantized {source.quantization} loses what {source.quantization} has lost and some more; with an F16 or "
                "Q8_0 file of the same model in the library, variants would be made from that."
            )
        if known:
            self._display.note(f"{len(known)} measurements of an earlier command are known; --again makes them anew.")
        if source.is_running:
            self._display.note(f"{source.id} is running; what it answers meanwhile disturbs the measurements.")
        if needed > free and "tuned" not in self._work.state.done:
            raise InsufficientStorage(
                f"tuning {source.id} needs {needed} bytes in {self._work.folder}, and {free} are free; free some, or choose a "
                "home on a larger disk with --home",
                needed_bytes=needed,
                available_bytes=free,
            )

    def _packed_types(self) -> frozenset[str]:
        """What the plugin packs when it loads this model."""
        if not self._repack or not kernels.packed_types():
            return frozenset()
        warnings: list[str] = self._work.once("kernels", lambda: self._run("attach", {}, None))["warnings"]
        for warning in warnings:
            self._display.note(warning)
        return frozenset() if warnings else kernels.packed_types()

    # -- all of it ----------------------------------------------------------------------------------------------------

    def run(self) -> Tuned:
        """Measure, or give what an earlier command has measured.

        Raises:
            InsufficientStorage, StepFailed, TuningRefused
        """
        self.begin()
        known = self._work.state.done.get("tuned")
        if known is not None:
            return self._chosen(msgspec.convert(known, Tuned))
        started = time.monotonic()
        quick = self.order.is_quick
        n_coarse = len(self._files.coarse)
        self._of = 2 + self._is_from_other + 1 + n_coarse + (0 if quick else 1 + n_coarse + len(SHARES)) + 2
        losses: dict[str, Loss] = {}
        losses[ORIGINAL] = self._original()
        variants = self._files.singles()
        for variant in variants:
            losses[variant.name] = self._loss(variant, losses[ORIGINAL])
        mixes = [] if quick else self._mixes()
        for variant in mixes:
            losses[variant.name] = self._loss(variant, losses[ORIGINAL])
        variants += mixes
        speeds = self._speeds(variants)
        measured = [self._measured(ORIGINAL, None, losses[ORIGINAL], speeds[ORIGINAL])]
        measured += [self._measured(one.name, one, losses[one.name], speeds[one.name]) for one in variants]
        best = recommend(measured, self.order.max_loss)
        findings, running = self._search(next((one for one in variants if one.name == best.name), None), losses[ORIGINAL])
        source = self.order.source
        tuned = Tuned(
            id=source.id,
            source=f"{source.made_from_id} ({source.made_from_quantization})",
            machine=machine(),
            max_loss=self.order.max_loss,
            variants=measured,
            front=[],
            recommended="",
            wide="",
            settings=findings,
            best_settings=running,
            settings_of=best.name,
            measured_at=int(time.time()),
            took_s=round(time.monotonic() - started, 1),
        )
        self._work.note("variants", {one.name: one.weights for one in variants})
        self._work.note("tuned", msgspec.to_builtins(tuned))
        return self._chosen(tuned)

    def _chosen(self, tuned: Tuned) -> Tuned:
        """The same figures, judged by what this command allows."""
        return msgspec.structs.replace(
            tuned,
            max_loss=self.order.max_loss,
            front=[one.name for one in front(tuned.variants)],
            recommended=recommend(tuned.variants, self.order.max_loss).name,
            wide=recommend(tuned.variants, max(WIDE_LOSS, self.order.max_loss)).name,
        )

    def write(self, name: str, measured: Measured, out: Path) -> None:
        """Write a variant's file, and see that it is the one that was measured.

        Raises:
            StepFailed: It is not.
        """
        weights = self._work.state.done["variants"][name]
        path = self._files.of(Variant(name, weights))
        if path != out:
            out.unlink(missing_ok=True)
            path.rename(out)
        found = self._ask_loss(out)
        if abs(found["perplexity"] / measured.loss.perplexity - 1) > 1e-6:
            raise StepFailed(
                f"{name} was measured with a perplexity of {measured.loss.perplexity:.6f} and now has "
                f"{found['perplexity']:.6f}; measure again with --again"
            )

    # -- losses -------------------------------------------------------------------------------------------------------

    def _original(self) -> Loss:
        source = self.order.source
        known = self._work.once("loss source", lambda: self._step("the source on the text", self._read_source, loss_words))
        if not self._is_from_other:
            return Loss(known["perplexity"], 0.0, 0.0, 0.0, 1.0)
        own = self._work.once(
            "loss original",
            lambda: self._step("the original on the text", lambda show: self._ask_loss(source.path, show=show), loss_words),
        )
        if own["kl"] > SAME_MODEL_KL:
            raise TuningRefused(
                f"{source.made_from_id} looks like a better source of {source.id}, but is another model: its mean KL "
                f"divergence is {own['kl']:.2f}; give one of them another name, or delete {source.made_from_id}"
            )
        return Loss(own["perplexity"], 0.0, 0.0, own["kl"], own["same_top"])

    def _read_source(self, show: ShowStep) -> dict[str, Any]:
        return self._ask_loss(self.order.source.made_from, is_reference=True, show=show)

    def _loss(self, variant: Variant, original: Loss) -> Loss:
        def measure() -> dict[str, Any]:
            return self._step(
                f"{variant.name} on the text",
                lambda show: self._ask_loss(self._files.of(variant), show=show),
                lambda found: f"{loss_words(found)}, KL {found['kl']:.4f}",
            )

        found = self._work.once(f"loss {variant.name}", measure)
        change = found["perplexity"] / original.perplexity
        return Loss(found["perplexity"], change - 1, found["nll_change_se"] * change, found["kl"], found["same_top"])

    def _ask_loss(
        self, path: Path, *, is_reference: bool = False, show: ShowStep | None = None, cache_type: str = "f16"
    ) -> dict[str, Any]:
        if not is_reference and not self._reference_is_there():
            # An earlier command's is gone with its files.
            self._ask_loss(self.order.source.made_from, is_reference=True)
        arguments = {
            **LOSS_RUNNING,
            "cache_type": cache_type,
            "path": str(path),
            "text": texts.evaluation(),
            "n_tokens": QUICK_TOKENS if self.order.is_quick else 0,
            "n_threads": self._n_cores,
            "reference": str(self._work.path(REFERENCE)),
            "is_reference": is_reference,
        }
        return self._run("loss", arguments, show)

    def _reference_is_there(self) -> bool:
        return self._work.path(REFERENCE).exists() and self._work.path(REFERENCE).with_suffix(".npy").exists()

    # -- mixes --------------------------------------------------------------------------------------------------------

    def _mixes(self) -> list[Variant]:
        fine = self._files.quantized(FINE)
        groups: dict[str, Group] = {}
        options: list[Option] = []
        costs = self._work.once("type speeds", self._type_speeds)
        for kind in self._files.coarse:
            sizes = changeable(fine, self._files.quantized(kind))
            found = groups_of(sizes)
            groups |= {group.name: group for group in found}
            known = self._work.once(f"sensitivity {kind}", partial(self._sensitivity, kind, found))
            total = sum(group.n_elements for group in found)
            saved = costs[FINE] - costs[kind]
            options += [
                Option(group.name, kind, known["groups"][group.name] - known["fine"], saved * group.n_elements / total)
                for group in found
            ]
        mixes = plan(options, SHARES)
        return [
            Variant(mix.name, {weight: kind for name, kind in mix.types.items() for weight in groups[name].weights})
            for mix in mixes
        ]

    def _sensitivity(self, kind: str, groups: list[Group]) -> dict[str, Any]:
        self._files.drop_variant()
        arguments = {
            **LOSS_RUNNING,
            "original": str(self.order.source.made_from),
            "fine": str(self._files.quantized(FINE)),
            "coarse": str(self._files.quantized(kind)),
            "groups": {group.name: list(group.weights) for group in groups},
            "folder": str(self._work.folder),
            "text": texts.calibration(),
            "n_tokens": SENSITIVITY_TOKENS,
            "n_threads": self._n_cores,
        }
        return self._step(
            f"what {kind} costs, group by group",
            lambda show: self._run("sensitivity", arguments, show),
            lambda found: f"{len(found['groups'])} groups",
        )

    def _type_speeds(self) -> dict[str, Any]:
        """Seconds of a request for the fine and the coarse files, roughly: for weighing groups against each other."""

        def measure(show: ShowStep) -> dict[str, Any]:
            entries = {name: (partial(self._files.quantized, name), self.start) for name in (FINE, *self._files.coarse)}
            found = compare(entries, QUICK_SPEEDS, self._measure_speed, lambda name, at, of: show(name, at / of))
            return {name: one.request_s for name, one in found.items()}

        return self._step("what each type saves", measure, lambda found: listed({k: f"{v:.2f} s" for k, v in found.items()}))

    # -- speeds -------------------------------------------------------------------------------------------------------

    def _speeds(self, variants: list[Variant]) -> dict[str, Speeds]:
        def measure(show: ShowStep) -> dict[str, Speeds]:
            entries: dict[str, tuple[Callable[[], Path], Running]] = {ORIGINAL: (lambda: self.order.source.path, self.start)}
            entries |= {one.name: (partial(self._files.of, one), self.start) for one in variants}
            effort = QUICK_SPEEDS if self.order.is_quick else SPEEDS
            return compare(entries, effort, self._measure_speed, lambda name, at, of: show(name, at / of))

        def words(found: dict[str, Speeds]) -> str:
            own = found[ORIGINAL]
            text = f"{len(found)} files; the original {own.prefill.median:.0f} and {own.decode.median:.0f} tok/s"
            n_others = max(one.n_others for one in found.values())
            return text if n_others <= BUSY_CORES else f"{text}; {disturbed(n_others)}"

        known = self._work.once("speeds", lambda: msgspec.to_builtins(self._step("speeds, in turns", measure, words)))
        return {name: msgspec.convert(found, Speeds) for name, found in known.items()}

    def _measure_speed(self, path: Path, running: Running, effort: Effort) -> dict[str, Any]:
        arguments = {
            "path": str(path),
            **running.arguments(),
            "n_prompt": effort.n_prompt,
            "n_new": effort.n_new,
            "n_repeats": effort.n_repeats,
        }
        return self._run("speed", arguments, None)

    def _measured(self, name: str, variant: Variant | None, loss: Loss, speeds: Speeds) -> Measured:
        path = self.order.source.path if variant is None else self._files.of(variant)
        size = self.order.source.size_bytes if variant is None else path.stat().st_size
        types = types_of(read_gguf_tensors(path))
        return Measured(name, types, size, loss, speeds.prefill, speeds.decode, speeds.memory_bytes)

    # -- settings -----------------------------------------------------------------------------------------------------

    def _search(self, variant: Variant | None, original: Loss) -> tuple[list[Finding], Running]:
        quick = self.order.is_quick
        path = self.order.source.path if variant is None else self._files.of(variant)

        def keeps_loss(running: Running) -> bool:
            found = self._ask_loss(path, cache_type=running.cache_type)
            return bool(found["perplexity"] <= (1 + self.order.max_loss) * original.perplexity)

        def measure(show: ShowStep) -> Found:
            search = Search(
                path,
                self.start,
                QUICK_SEARCH if quick else SEARCH,
                self._measure_speed,
                lambda name, at, of: show(name, at / of),
                n_cores=self._n_cores,
                n_ctx_train=self.order.source.n_ctx_train or 2048,
                keeps_loss=keeps_loss,
                has_huge_pages=self._has_huge_pages,
            )
            search.run(is_quick=quick)
            return Found(search.findings, search.best)

        name = variant.name if variant is not None else ORIGINAL
        known = self._work.once(f"settings {name}", lambda: msgspec.to_builtins(self._step("settings", measure, search_words)))
        found = msgspec.convert(known, Found)
        return found.findings, found.best

    # -- inside -------------------------------------------------------------------------------------------------------

    def _step(self, text: str, make: Callable[[ShowStep], _Result], words: Callable[[_Result], str]) -> _Result:
        self._number += 1
        self._of = max(self._of, self._number)
        self._display.begin(text, self._number, self._of)
        result = make(self._display.show)
        self._display.end(words(result))
        return result

    def _run(self, step: str, arguments: dict[str, Any], show: ShowStep | None) -> dict[str, Any]:
        arguments = {**arguments, "repack": self._repack}
        return self._run_step(step, arguments, log=self._work.log(step), show=show or _show_nothing)


def _show_nothing(text: str, fraction: float | None = None) -> None:
    del text, fraction
