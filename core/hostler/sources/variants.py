"""Which of a repository's model folders to take, where it has the same model for several devices. Floor 2; pure.

Repositories of ONNX Runtime GenAI's format hold one folder for each device and precision: `cpu_and_mobile/cpu-int4-...`,
`cuda/cuda-fp16`, `directml/directml-int4-...`, `gpu/...`. Each is a whole model with a genai_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hostler.errors import DownloadFailed

CONFIG = "genai_config.json"
_DEVICES = {
    "cpu": "cpu", "mobile": "cpu", "cuda": "cuda", "gpu": "cuda", "directml": "dml", "dml": "dml",
    "npu": "npu", "openvino": "openvino", "qnn": "npu", "rocm": "rocm", "trt": "tensorrt", "tensorrt": "tensorrt",
    "vitis": "npu", "vitisai": "npu", "webgpu": "webgpu",
}  # fmt: skip
"""A word of a folder's name -> the device it was made for."""
_RANKS = (r"int4.*acc-level-4", r"int4.*block-32", r"int4|4bit|q4", r"int8|8bit|q8", r"fp16|f16|bf16", r"fp32|f32")
"""What a reference without a folder means, the best first: the usual balance of size, speed and quality."""
_NOT_PART_OF_IT = re.compile(
    r"(^|/)(\.[^/]*|license[^/]*|notice[^/]*)$|\.(gif|gguf|ipynb|jpe?g|md|pdf|png|py|pt|safetensors)$", re.I
)
"""Files beside a model that no engine opens."""


@dataclass(frozen=True)
class Variant:
    """One model folder."""

    folder: str
    """In the repository; empty: its root."""

    @property
    def device(self) -> str:
        """What its name says it was made for; empty: nothing."""
        found = [_DEVICES[word] for word in re.split(r"[-_./]", self.folder.lower()) if word in _DEVICES]
        return found[-1] if found else ""

    @property
    def family(self) -> str:
        """Its path without what names a device or a precision: the same for variants of one model."""
        return "/".join(part for part in self.folder.split("/") if not _is_label(part))

    @property
    def name(self) -> str:
        """How it is shown, and can be asked for."""
        return self.folder or CONFIG

    def files(self, filenames: Sequence[str]) -> tuple[str, ...]:
        """Its files, the configuration first."""
        prefix = f"{self.folder}/" if self.folder else ""
        own = [name for name in filenames if name.startswith(prefix) and "/" not in name[len(prefix) :]]
        first = prefix + CONFIG
        return (first, *sorted(name for name in own if name != first and not _NOT_PART_OF_IT.search(name)))


@dataclass(frozen=True)
class Choice:
    """A variant, and why it and no other."""

    variant: Variant
    reason: str


def variants_in(filenames: Sequence[str]) -> list[Variant]:
    """The model folders of a repository."""
    found = sorted({name.rpartition("/")[0] for name in filenames if name.rpartition("/")[2] == CONFIG})
    variants = [Variant(folder) for folder in found]
    return [variant for variant in variants if any(name.endswith(".onnx") for name in variant.files(filenames))]


def choose_variant(variants: Sequence[Variant], wanted: str | None, devices: Sequence[str], where: str) -> Choice | None:
    """Choose a folder.

    Args:
        variants: At least one.
        wanted: A folder, the last part of one, or words of its name; None: whichever fits this machine.
        devices: What the installed engine's library was built for, the best first.
        where: The repository, for messages.

    Returns:
        The choice; None: there is none of the name that is wanted.

    Raises:
        DownloadFailed: Nothing fits, or several different models do; the text lists what there is.
    """
    fitting, asked = list(variants), ""
    if wanted is not None:
        fitting = _named(variants, wanted)
        if not fitting:
            return None
        if len(fitting) == 1:
            return Choice(fitting[0], "it was asked for by name")
        asked = f" {wanted!r}"
    if len(variants) == 1:
        return Choice(fitting[0], "it is the only one there")
    if len({variant.family for variant in fitting}) > 1:
        raise DownloadFailed(f"{where} has several models{asked}, name one of them with :FOLDER; it has {_listed(fitting)}")
    for device in (*devices, ""):
        made_for_it = sorted((variant for variant in fitting if variant.device == device), key=_rank)
        if made_for_it:
            chosen = made_for_it[0]
            others = f", the best of {len(made_for_it)} by size and speed" if len(made_for_it) > 1 else ""
            why = (
                f"it was made for {device}, which the installed engine runs on{others}"
                if device
                else f"its name says no device{others}"
            )
            return Choice(chosen, why)
    raise DownloadFailed(
        f"{where} has no variant{asked} for {' or '.join(devices)}, which is what the installed engine runs on; it has "
        f"{_listed(fitting)}. Name one of them with :FOLDER to have it all the same"
    )


def _named(variants: Sequence[Variant], wanted: str) -> list[Variant]:
    path = wanted.strip("/").removesuffix(CONFIG).rstrip("/")
    if path.lower() == "" and wanted.endswith(CONFIG):
        return [variant for variant in variants if not variant.folder]
    for is_it in (
        lambda variant: variant.folder == path,
        lambda variant: variant.folder.rpartition("/")[2].lower() == path.lower(),
        lambda variant: re.search(rf"(?:^|[-_./]){re.escape(path)}(?=$|[-_./])", variant.folder, re.IGNORECASE),
    ):
        found = [variant for variant in variants if path and is_it(variant)]
        if found:
            return found
    by_device = [variant for variant in variants if variant.device and variant.device == _DEVICES.get(path.lower())]
    return by_device


def _is_label(part: str) -> bool:
    words = re.split(r"[-_.]", part.lower())
    return words[0] in _DEVICES or re.fullmatch(r"onnx|u?int[48]|fp16|fp32|bf16|q[48]|[48]bit", words[0]) is not None


def _rank(variant: Variant) -> tuple[int, int, str]:
    name = variant.folder.lower()
    rank = next((index for index, pattern in enumerate(_RANKS) if re.search(pattern, name)), len(_RANKS))
    return (rank, len(name), name)


def _listed(variants: Sequence[Variant]) -> str:
    shown = [variant.name for variant in variants[:12]]
    more = len(variants) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
