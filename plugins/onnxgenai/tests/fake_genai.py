"""A stand-in for the module onnxruntime_genai as its DirectML and CUDA packages have it: no machine of ours has those devices.

It has the classes and methods of 0.13.1 that the engine may use, and no others, so that a call of something newer fails here.
It keeps every call in order, and enforces what the library's documentation and our measurements say of their order: params are
not touched once a Generator has them, a rewound Generator is given tokens before it is asked for logits, nothing is appended
past max_length. Logits are a function of the tokens, so that a mixed-up row shows.

Source: src/python/python.cpp of onnxruntime-genai 0.13, and https://onnxruntime.ai/docs/genai/api/python.html.
"""

from __future__ import annotations

import json
import types
from typing import Any

import numpy as np


class FakeGenai(types.ModuleType):
    """The module; `calls` has what was asked of it."""

    def __init__(self, *, has: tuple[str, ...] = ("cuda", "dml"), falls_back: bool = False, n_vocab: int = 338) -> None:
        """Build one.

        Args:
            has: Providers that load.
            falls_back: Load on the CPU without a word, as the library does in some cases.
        """
        super().__init__("onnxruntime_genai")
        self.calls: list[tuple[Any, ...]] = []
        self.has = has
        self.falls_back = falls_back
        self.n_vocab = n_vocab
        self.max_generators = 1000
        module = self

        class Config:
            def __init__(self, path: str) -> None:
                module.calls.append(("Config", path))
                self.providers: list[str] = []
                self.options: dict[str, dict[str, str]] = {}

            def clear_providers(self) -> None:
                module.calls.append(("clear_providers",))
                self.providers.clear()

            def append_provider(self, name: str) -> None:
                module.calls.append(("append_provider", name))
                self.providers.append(name)

            def set_provider_option(self, provider: str, name: str, value: str) -> None:
                module.calls.append(("set_provider_option", provider, name, value))
                self.options.setdefault(provider, {})[name] = value

            def overlay(self, text: str) -> None:
                module.calls.append(("overlay", json.loads(text)))

        class Model:
            def __init__(self, config: Config) -> None:
                module.calls.append(("Model", tuple(config.providers)))
                missing = [name for name in config.providers if name not in module.has]
                if missing and not module.falls_back:
                    raise RuntimeError(f"{missing[0]} provider requested, but the installed GenAI has not been built with it")
                names = {"cuda": "CUDA", "dml": "DML"}
                self.device_type = "CPU" if missing or not config.providers else names[config.providers[0]]

        class GeneratorParams:
            def __init__(self, _model: Model) -> None:
                self.options: dict[str, Any] = {}
                self.is_used = False

            def set_search_options(self, **options: Any) -> None:
                assert not self.is_used, "a change of params that a Generator has corrupts the library's heap"
                module.calls.append(("set_search_options", options))
                self.options |= options

        class Generator:
            def __init__(self, _model: Model, params: GeneratorParams) -> None:
                module.calls.append(("Generator",))
                if module.max_generators < 1:
                    raise RuntimeError("Could not allocate the key-value buffer")
                module.max_generators -= 1
                params.is_used = True
                self.max_length = params.options["max_length"]
                self.tokens: list[int] = []
                self.has_logits = False

            def append_tokens(self, tokens: np.ndarray) -> None:
                assert tokens.dtype == np.int32
                assert tokens.ndim == 1
                if len(self.tokens) + len(tokens) > self.max_length:
                    raise RuntimeError(
                        f"input_ids size ({len(tokens)}) + current sequence length ({len(self.tokens)}) exceeds max length "
                        f"({self.max_length})"
                    )
                module.calls.append(("append_tokens", len(tokens)))
                self.tokens += tokens.tolist()
                self.has_logits = True

            def rewind_to(self, length: int) -> None:
                assert length <= len(self.tokens)
                module.calls.append(("rewind_to", length))
                del self.tokens[length:]
                self.has_logits = False

            def get_logits(self) -> np.ndarray:
                assert self.has_logits, "logits were asked for after rewind_to, before any token"
                drawn = np.random.default_rng(hash(tuple(self.tokens)) & 0xFFFFFFFF)
                return drawn.normal(0, 2, (1, 1, module.n_vocab)).astype(np.float32)

        for kind in (Config, Model, GeneratorParams, Generator):
            setattr(self, kind.__name__, kind)

    def names(self) -> list[str]:
        """The calls' names, in order."""
        return [call[0] for call in self.calls]
