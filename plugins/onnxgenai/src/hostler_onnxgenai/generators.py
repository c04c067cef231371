"""onnxruntime-genai's Generators, one a row: what its CPU, CUDA and DirectML packages all have.

Worker process, engine thread only; every call holds the GIL for as long as it lasts, so prompts come in short chunks.
It knows the library's Config, Model, GeneratorParams and Generator, nothing of requests. Only what 0.13 has is used: newer
is not to be had for DirectML.

A Generator is made once for each row, which allocates its KV cache for `max_length` (10 to 140 ms), and rewound between
sequences. Three habits of the library shape this module: its params are never touched once a Generator has them (a later
`max_length` corrupts the heap), a rewound Generator is given a token before it is asked for logits, and a provider is named
by `clear_providers` and `append_provider` and compared after the load, because other ways fall back to the CPU in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from hostler import EngineFailed, ModelLoadFailed
from hostler_onnxgenai.folder import ModelFolder

EXTRAS = {"cpu": "cpu", "cuda": "cuda", "dml": "directml"}
"""Device -> extra of this package that brings the library for it."""


class GeneratorBackend:
    """See Backend."""

    can_copy = False

    def __init__(
        self,
        library: ModuleType,
        folder: ModelFolder,
        device: str,
        n_rows: int,
        n_ctx: int,
        *,
        n_threads: int,
        spin_us: int,
        on_row: Callable[[int], None],
    ) -> None:
        """Load the model and make its Generators.

        Args:
            library: The module onnxruntime_genai.
            device: `cpu`, `cuda` or `dml`.
            n_ctx: Tokens a row holds.
            on_row: Told how many Generators there are; may raise.

        Raises:
            ModelLoadFailed: With the library's own words.
        """
        self.device = device
        self.kv_bytes = n_rows * n_ctx * folder.kv_token_bytes
        self._model = _load(library, folder, device, n_threads, spin_us)
        self._generators: list[Any] = []
        self._lengths = [0] * n_rows
        try:
            for number in range(n_rows):
                params = library.GeneratorParams(self._model)
                params.set_search_options(max_length=n_ctx, do_sample=False)
                self._generators.append(library.Generator(self._model, params))
                on_row(number + 1)
        except (RuntimeError, MemoryError) as error:
            raise ModelLoadFailed(
                f"onnxruntime-genai could not make {n_rows} KV caches of {n_ctx} tokens ({self.kv_bytes >> 20} MiB): "
                f"{error}; a smaller ctx_len or n_parallel needs less",
                last_output=str(error),
            ) from error

    def prefill(self, row: int, start: int, tokens: np.ndarray) -> np.ndarray:
        """See Backend."""
        generator = self._generators[row]
        try:
            if self._lengths[row] != start:
                generator.rewind_to(start)
                self._lengths[row] = start
            generator.append_tokens(tokens.astype(np.int32, copy=False))
            self._lengths[row] = start + len(tokens)
            return _last_logits(generator)
        except RuntimeError as error:
            raise EngineFailed(f"onnxruntime-genai could not evaluate {len(tokens)} tokens: {error}") from error

    def decode(self, rows: Sequence[int], starts: Sequence[int], tokens: Sequence[int]) -> Sequence[np.ndarray]:
        """See Backend. One after the other: a Generator is a batch of its own."""
        return [
            self.prefill(row, start, np.array([token], np.int32))
            for row, start, token in zip(rows, starts, tokens, strict=True)
        ]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """See Backend. The library has no way to put keys and values into a Generator."""
        raise NotImplementedError

    def close(self) -> None:
        """See Backend. The library keeps its arena; the memory is back when the process ends."""
        self._generators.clear()
        del self._model


def _last_logits(generator: Any) -> np.ndarray:
    logits: np.ndarray = generator.get_logits()
    # A copy: what the library gives is a view of its own memory in some versions.
    return np.array(logits.reshape(-1, logits.shape[-1])[-1], np.float32)


def _version(library: ModuleType) -> str:
    return str(getattr(library, "__version__", "that is installed"))


def _load(library: ModuleType, folder: ModelFolder, device: str, n_threads: int, spin_us: int) -> Any:
    try:
        config = library.Config(folder.path)
        config.clear_providers()
        if device != "cpu":
            config.append_provider(device)
            for name, value in folder.provider_options.items() if folder.provider == device else ():
                config.set_provider_option(device, name, value)
        options = {
            "intra_op_num_threads": n_threads,
            "session.intra_op.allow_spinning": "1" if spin_us else "0",
            "session.intra_op.spin_duration_us": str(spin_us),
        }
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        model = library.Model(config)
    except RuntimeError as error:
        advice = (
            ""
            if device == "cpu"
            else f'. Install what {device} needs: pip install "hostler-onnxgenai[{EXTRAS[device]}]" in an environment without '
            "another of its extras, and the device's driver. Nothing falls back to the CPU in silence: set device to cpu if "
            "that is wanted"
        )
        if "Unsupported model_type" in str(error):
            advice = (
                f". The model is newer than onnxruntime-genai {_version(library)}, or of a kind it does not run: update it"
            )
        raise ModelLoadFailed(
            f"{folder.path} cannot be loaded on {device}: {error}{advice}", last_output=str(error)
        ) from error
    found = str(model.device_type).lower()
    if found != device:
        raise ModelLoadFailed(
            f"device is {device}, but onnxruntime-genai loaded {folder.path} on {found}; set device to {found} if that is "
            "wanted"
        )
    return model
