"""Which file a model is tuned from: its own, or a better one of the same model that the library holds.

Process of the command; reads headers only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hostler import (
    GgufHeader,
    HostlerError,
    InvalidRequest,
    Settings,
    connect,
    find_model,
    model_path,
    read_gguf_header,
    read_gguf_tensors,
)
from hostler_llamacpp.estimate import only_embeds, other_parts

BETTER = {"F32": 4, "F16": 3, "BF16": 3, "Q8_0": 2}
"""Quantizations that are worth more than others as a source."""


class Source(msgspec.Struct, frozen=True):
    """The model, and what it can be made anew from."""

    id: str
    path: Path
    """The file as it was pulled or imported."""
    quantization: str
    made_from: Path
    """The same file, or a better one."""
    made_from_id: str
    made_from_quantization: str
    n_params: int
    n_vocab: int
    n_ctx_train: int
    size_bytes: int
    settings: dict[str, Any]
    """Complete; without those that an earlier tuning has set."""
    is_running: bool
    is_tuned: bool
    """A variant is in its place now."""

    def fingerprint(self) -> dict[str, Any]:
        """What tells these very files from others."""
        return {"files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in (self.path, self.made_from)]}


def find_source(settings: Settings, reference: str) -> Source:
    """Look a model up.

    Raises:
        InvalidRequest: It is no model that can be tuned.
        ModelNotFound, ModelNotDownloaded, InvalidModelFile
    """
    found = find_model(settings, reference)
    if found.format != "gguf":
        raise InvalidRequest(
            f"{found.id} is a model of the format {found.format}; hostler tune is for GGUF models, which llama.cpp runs"
        )
    with connect(settings, "tune", is_reading=True) as client:
        view = client.get(model_path(found.id), schema="native")
        models = client.get("/v1/models", schema="native", all="false")["data"]
    if view["engine"] not in ("", "llamacpp"):
        raise InvalidRequest(f"{found.id} is run by the engine {view['engine']}; hostler tune measures llamacpp")
    path = found.replaced or found.path
    header = read_gguf_header(path)
    if only_embeds(header):
        raise InvalidRequest(f"{found.id} only gives embeddings ({header.architecture}); there is no text to measure it on")
    best, best_id, best_rank = path, found.id, BETTER.get(header.quantization or "", 1)
    others = [model for model in models if model["id"] != found.id and model["format"].lower().startswith("gguf")]
    for model in others if best_rank < max(BETTER.values()) else ():
        rank = BETTER.get(str(model["metadata"].get("quantization")), 0)
        if rank <= best_rank:
            continue
        try:
            other = find_model(settings, model["id"])
            other_path = other.replaced or other.path
            if is_same_model(path, other_path):
                best, best_id, best_rank = other_path, other.id, rank
        except (HostlerError, OSError):
            continue  # a model that is not whole is no source
    parts = [path, *other_parts(path)]
    headers = [read_gguf_header(part) for part in parts]
    return Source(
        id=found.id,
        path=path,
        quantization=header.quantization or "-",
        made_from=best,
        made_from_id=best_id,
        made_from_quantization=read_gguf_header(best).quantization or "-",
        n_params=sum(part.n_params for part in headers),
        n_vocab=header.n_vocab or 0,
        n_ctx_train=header.context_length or 0,
        size_bytes=sum(part.file_bytes for part in headers),
        settings=found.settings,
        is_running=view["lifecycle"] in ("running", "starting"),
        is_tuned=found.replaced is not None,
    )


def is_same_model(path: Path, other: Path) -> bool:
    """Whether two files hold the same model in different types: by their names and shapes. What is in the weights is compared
    when the better one is measured."""
    one, two = read_gguf_header(path), read_gguf_header(other)
    if (one.architecture, one.n_vocab, _name(one)) != (two.architecture, two.n_vocab, _name(two)):
        return False
    if one.is_split or two.is_split:
        return False
    shapes = [{tensor.name: tensor.dims for tensor in read_gguf_tensors(file)} for file in (path, other)]
    return shapes[0] == shapes[1]


def _name(header: GgufHeader) -> str:
    return (header.text("general.basename") or header.name or "").lower()
