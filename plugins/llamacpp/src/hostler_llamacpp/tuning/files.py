"""The files of a model's variants: whole ones that libllama's quantizer writes, and mixes spliced out of those.

Process of the command, its one thread. Each is made when it is first asked for, and stays until the work is cleared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hostler import ShowStep, read_gguf_tensors
from hostler_llamacpp.tuning import texts
from hostler_llamacpp.tuning.source import Source
from hostler_llamacpp.tuning.splice import splice
from hostler_llamacpp.tuning.variants import FINE, Variant, changeable, coarse_types, single
from hostler_llamacpp.tuning.work import Work

Found = dict[str, Any]
Run = Callable[[str, dict[str, Any], ShowStep | None], Found]
"""Runs a step: its name and arguments."""
Step = Callable[[str, Callable[[ShowStep], Found], Callable[[Found], str]], Found]
"""Shows what is done meanwhile, and in words what came of it."""


_VARIANT = "variant.gguf.part"


class Files:
    """Of one source."""

    def __init__(
        self, source: Source, work: Work, run: Run, step: Step, show: ShowStep, n_cores: int, packed: Collection[str]
    ) -> None:
        """Nothing is made yet.

        Args:
            packed: Types that the plugin packs itself on this processor.
        """
        self._source = source
        self._work = work
        self._run = run
        self._step = step
        self._show = show
        self._n_cores = n_cores
        types = coarse_types(read_gguf_tensors(source.made_from), packed)
        own = "" if source.made_from != source.path else source.quantization
        self.coarse = tuple(name for name in types if name != own)
        """The types worth trying, the closest first; a file is not made anew in the type it has."""

    def singles(self) -> list[Variant]:
        """The variants of one type; those that are no other than the source are left out."""
        sizes = {} if not self.coarse else changeable(self.quantized(FINE), self.quantized(self.coarse[0]))
        names = [FINE, *self.coarse] if self._source.quantization != FINE else list(self.coarse)
        return [single(name, sizes) for name in names]

    def quantized(self, name: str) -> Path:
        """The whole model in one type, written by libllama."""
        importance = "" if name == FINE else str(self._importance())

        def make(part: Path) -> None:
            self._run(
                "quantize",
                {
                    "source": str(self._source.made_from),
                    "out": str(part),
                    "type": name,
                    "is_pure": True,
                    "overrides": [],
                    "output_type": name,
                    "embedding_type": name,
                    "importance": importance,
                    "n_threads": self._n_cores,
                },
                self._show,
            )

        return self._work.file(f"{name}.gguf", make)

    def _importance(self) -> Path:
        def make(part: Path) -> None:
            arguments = {
                "path": str(self._source.made_from),
                "text": texts.calibration(),
                "n_threads": self._n_cores,
                "out": str(part),
            }
            self._step(
                "importance of the weights' inputs",
                lambda show: self._run("importance", arguments, show),
                lambda found: f"{found['n_tensors']} weights, {found['n_tokens']} tokens",
            )

        return self._work.file("importance.npz", make)

    def of(self, variant: Variant) -> Path:
        """A variant's file; one lies there at a time beside the fine and the coarse ones."""
        fine = self.quantized(FINE)
        if not variant.weights:
            return fine
        out = self._work.path(_VARIANT)
        splice(fine, {name: self.quantized(kind) for name, kind in variant.weights.items()}, out)
        return out

    def drop_variant(self) -> None:
        """Free the room that the last of them took."""
        self._work.path(_VARIANT).unlink(missing_ok=True)
