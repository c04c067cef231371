"""From files and settings to a loaded backend, or to a reason why not.

Worker process, engine thread only. It knows settings, devices and which backend runs what, nothing of sequences.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Before either library is imported: it is on by default, and writes a device id into the user's folders.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np

from hostler import EngineFailed, EngineSettings, InvalidModelFile, ModelFiles, ModelLoadFailed, Progress, usable_cores
from hostler_onnxgenai.backend import SPIN_US, Backend
from hostler_onnxgenai.folder import PROVIDERS, ModelFolder, read_folder
from hostler_onnxgenai.generators import GeneratorBackend

if TYPE_CHECKING:
    from hostler_onnxgenai.session import SessionBackend

MAX_SLOTS = 256
EXTRAS = frozenset({"backend", "spin_us"})
"""What `EngineSettings.extra` may hold here."""
DEVICE_NAMES = {"cpu": "cpu", "cuda": "cuda", "dml": "dml", "directml": "dml"}
TOLERANCE = 0.3
"""How far logits may be from what they should be, relative to their spread, where the same tokens were evaluated in another
way. Activations in 8 bits make up to 0.07; a row that sees another's keys, or none of its own, makes 1 and more."""
_CHECK_LENGTHS = (20, 33)


@dataclass
class Loaded:
    """A model that has computed something sensible."""

    backend: Backend
    folder: ModelFolder
    n_ctx: int
    n_slots: int
    warnings: tuple[str, ...]


def load(files: ModelFiles, settings: EngineSettings, progress: Progress) -> Loaded:
    """Load a model and its KV rows, and evaluate a few tokens in them.

    Raises:
        ModelLoadFailed, InvalidModelFile: With the libraries' own words.
    """
    _check(settings)
    report(progress, 0.0)
    folder = read_folder(Path(files.primary))
    device = choose_device(settings.device, folder)
    n_threads = settings.cpu_threads if settings.cpu_threads > 0 else usable_cores()
    spin_us = _spin_us(settings.extra)
    warnings = [f"onnxgenai has no setting {name!r}; it has no effect" for name in sorted(set(settings.extra) - EXTRAS)]
    n_ctx = settings.ctx_len
    if n_ctx > folder.context_length:
        n_ctx = folder.context_length
        warnings.append(
            f"ctx_len {settings.ctx_len} is more than the {n_ctx} tokens the model was made for; it runs with {n_ctx}"
        )
    objection = folder.objection
    wanted = settings.extra.get("backend")
    if wanted == "session" and (objection or device != "cpu"):
        raise ModelLoadFailed(f"backend is 'session', but {objection or f'on {device} models run in Generators'}")
    backend: Backend | None = None
    if device == "cpu" and not objection and wanted != "generators":
        backend = session_backend()(
            folder,
            settings.n_parallel,
            n_ctx,
            n_threads=n_threads,
            spin_us=spin_us,
            on_progress=lambda share: report(progress, 0.9 * share),
        )
        report(progress, 0.9)
        objection = check(backend, folder, n_ctx, settings.n_parallel)
        if objection:
            backend.close()
            backend = None
    if backend is None:
        if device == "cpu" and wanted != "generators":
            warnings.append(f"it runs in the library's Generators, one request at a time in each step, because {objection}")

        def on_row(n_made: int) -> None:
            report(progress, 0.5 + 0.4 * n_made / settings.n_parallel)

        backend = GeneratorBackend(
            library(), folder, device, settings.n_parallel, n_ctx, n_threads=n_threads, spin_us=spin_us, on_row=on_row
        )
        objection = check(backend, folder, n_ctx, settings.n_parallel)
        if objection:
            backend.close()
            raise InvalidModelFile(
                f"{folder.path} was loaded, but {objection}; take another export of the model", path=folder.path
            )
    return Loaded(backend, folder, n_ctx, settings.n_parallel, tuple(warnings))


def report(progress: Progress, fraction: float) -> None:
    """Tell how far a load is.

    Raises:
        ModelLoadFailed: The answer was to stop.
    """
    if not progress(fraction):
        raise ModelLoadFailed("the load was stopped on request")


def choose_device(wanted: str, folder: ModelFolder) -> str:
    """The device to run on: what is demanded, or what the folder was exported for.

    Raises:
        ModelLoadFailed: There is no such device here.
    """
    if wanted == "auto":
        return folder.provider
    device = DEVICE_NAMES.get(wanted.lower())
    if device is None:
        raise ModelLoadFailed(
            f"device is {wanted!r}; onnxgenai runs on cpu, {', '.join(PROVIDERS)}: choose one of them, or auto"
        )
    return device


def session_backend() -> type[SessionBackend]:
    """The class, whose module imports onnxruntime.

    Raises:
        ModelLoadFailed: It is not installed, or broken.
    """
    try:
        from hostler_onnxgenai.session import SessionBackend
    except Exception as error:
        raise _missing("onnxruntime", error) from error
    return SessionBackend


def library() -> ModuleType:
    """The module onnxruntime_genai.

    Raises:
        ModelLoadFailed: It is not installed, or broken: two of its packages in one environment overwrite each other.
    """
    try:
        import onnxruntime_genai  # late: a model that runs in a plain session does without it
    except Exception as error:
        raise _missing("onnxruntime_genai", error) from error
    module: ModuleType = onnxruntime_genai
    return module


def _missing(module: str, error: Exception) -> ModelLoadFailed:
    return ModelLoadFailed(
        f'{module} cannot be imported: {error}; pip install "hostler-onnxgenai[cpu]" (or [cuda], [directml]) into an '
        "environment that has no other of them"
    )


def check(backend: Backend, folder: ModelFolder, n_ctx: int, n_slots: int) -> str:
    """Evaluate a few tokens in two ways that must agree: in one piece, and as a prompt and a step over two rows.

    Returns:
        What is wrong; empty: nothing.

    Raises:
        InvalidModelFile: It computes no numbers.
    """
    n_rows = min(n_slots, len(_CHECK_LENGTHS))
    prompts = [
        np.arange(7 * row, 7 * row + min(n, n_ctx - 1) + 1, dtype=np.int32) % folder.n_vocab
        for row, n in enumerate(_CHECK_LENGTHS)
    ]
    prompts = prompts[:n_rows]
    try:
        for row, prompt in enumerate(prompts):
            backend.prefill(row, 0, prompt[:-1])
        stepped = backend.decode(
            list(range(n_rows)), [len(prompt) - 1 for prompt in prompts], [int(prompt[-1]) for prompt in prompts]
        )
        stepped = [row.copy() for row in stepped]
        whole = [backend.prefill(row, 0, prompt).copy() for row, prompt in enumerate(prompts)]
    except EngineFailed as error:
        return f"it cannot evaluate a few tokens: {error.message}"
    for one, other in zip(stepped, whole, strict=True):
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            raise InvalidModelFile(
                f"{folder.graph.path}: the model computes no valid probabilities; its weights are corrupt. Delete it and pull "
                "it again",
                path=folder.graph.path,
            )
        difference = float(np.linalg.norm(one - other) / max(1e-6, float(np.linalg.norm(other - other.mean()))))
        if difference > TOLERANCE:
            return f"a step over its KV rows computes something else than the prompt in one piece ({difference:.2f})"
    return ""


def _check(settings: EngineSettings) -> None:
    if settings.ctx_len < 2:
        raise ModelLoadFailed(f"ctx_len is {settings.ctx_len}; a sequence needs room for at least 2 tokens")
    if not 1 <= settings.n_parallel <= MAX_SLOTS:
        raise ModelLoadFailed(f"n_parallel is {settings.n_parallel}; onnxgenai takes 1 to {MAX_SLOTS} slots")
    if settings.n_batch < 1:
        raise ModelLoadFailed(f"n_batch is {settings.n_batch}; it must be at least 1")
    backend = settings.extra.get("backend", "session")
    if backend not in ("session", "generators"):
        raise ModelLoadFailed(f"backend is {backend!r}; it is session or generators")


def _spin_us(extra: Mapping[str, Any]) -> int:
    value = extra.get("spin_us", SPIN_US)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise ModelLoadFailed(f"spin_us is {value!r}; it is microseconds from 0 (do not spin) to 1,000,000")
    return value
