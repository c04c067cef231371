"""What is to be converted: a model of this home, a GGUF file or a safetensors folder, and what its headers say.

Process of the command; reads headers only, never weights. The files are a stranger's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from hostler import (
    InvalidModelFile,
    InvalidRequest,
    LocalModel,
    ModelNotFound,
    Settings,
    find_model,
    read_gguf_header,
    read_gguf_tensors,
)

GGUF = "gguf"
SAFETENSORS = "safetensors"
MAX_HEADER_BYTES = 100_000_000
"""As the safetensors library itself has it."""
MAX_CONFIG_BYTES = 4 * 1024 * 1024
CARRIED = ("author", "cover", "license", "size", "tags")
"""Metadata that is as true of the result as of the source."""


class Source(msgspec.Struct, frozen=True):
    """A model that can be converted."""

    id: str
    """Of the library's model, or the name of the file or folder."""
    reference: str
    """What stands behind `convert:` in the result's source_url."""
    kind: str
    """GGUF or SAFETENSORS."""
    path: Path
    """The file, or the folder."""
    files: tuple[Path, ...]
    """All that carry weights."""
    n_params: int
    n_vocab: int
    n_embedding: int
    """Elements of the token embedding alone."""
    rotary_bytes: int
    """Tables of sines and cosines that an export has for each position of the context, as float32."""
    is_tied: bool
    """The embedding is the projection to logits, too."""
    quantization: str
    """`Q4_1`, `F32`, ...; empty: unknown."""
    name: str
    description: str = ""
    owned_by: str = "_"
    parameters: dict[str, Any] = {}
    metadata: dict[str, Any] = {}

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """What changes when the files do: path, size and time of each."""
        states = [(path, path.stat()) for path in self.files]
        return [(str(path), state.st_size, state.st_mtime_ns) for path, state in states]


def find_source(settings: Settings, reference: str) -> Source:
    """Find what a command names: a model of this home, else a path.

    Raises:
        ModelNotFound, ModelNotDownloaded
        InvalidRequest: It is there, and nothing that can be converted; the text says why.
        InvalidModelFile: A file is broken.
    """
    path = Path(reference).expanduser()
    if path.is_absolute() or reference.startswith((".", "~")) or reference.lower().endswith(".gguf"):
        return source_at(path)
    try:
        model = find_model(settings, reference)
    except ModelNotFound:
        if path.exists():
            return source_at(path)
        raise
    return _source_of(model)


def source_at(path: Path) -> Source:
    """The source that lies at a path.

    Raises:
        InvalidRequest, InvalidModelFile
    """
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise InvalidRequest(f"{path} does not exist, and no model of this home has that name")
    if path.is_dir():
        return _folder_source(path)
    if path.suffix.lower() != ".gguf":
        raise InvalidRequest(f"{path} is neither a GGUF file nor a folder with safetensors")
    return _gguf_source(path, path.stem, path.as_uri(), path.stem)


def _source_of(model: LocalModel) -> Source:
    if model.format != GGUF:
        raise InvalidRequest(f"{model.id} has the format {model.format}; GGUF files and safetensors folders can be converted")
    parts = [path for path in model.others if path.suffix.lower() == ".gguf" and "mmproj" not in path.name.lower()]
    if parts:
        raise _is_split(model.path, 1 + len(parts))
    found = _gguf_source(model.path, model.id, model.id, model.name)
    return msgspec.structs.replace(
        found,
        description=model.description,
        owned_by=model.owned_by,
        parameters=model.parameters,
        metadata={key: model.metadata[key] for key in CARRIED if key in model.metadata},
    )


def _gguf_source(path: Path, name: str, reference: str, title: str) -> Source:
    header = read_gguf_header(path)
    if header.split_count is not None and header.split_count > 1:
        raise _is_split(path, header.split_count)
    dims = {tensor.name: tensor.dims for tensor in read_gguf_tensors(path)}
    if "token_embd.weight" not in dims:
        raise InvalidRequest(f"{path} has no token embedding: it is no language model that could be converted")
    return Source(
        id=name,
        reference=reference,
        kind=GGUF,
        path=path,
        files=(path,),
        n_params=header.n_params,
        n_vocab=dims["token_embd.weight"][-1],
        n_embedding=math.prod(dims["token_embd.weight"]),
        rotary_bytes=_rotary_bytes(
            header.context_length or 0, header.key_length or 0, is_sliding=header.sliding_window is not None
        ),
        is_tied="output.weight" not in dims,
        quantization=header.quantization or "",
        name=title,
    )


def _folder_source(folder: Path) -> Source:
    config_path = folder / "config.json"
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "genai_config.json").is_file():
        raise InvalidRequest(f"{folder} is in this format already; use it with: hostler import {folder}")
    if not config_path.is_file():
        raise InvalidRequest(f"{folder} has no config.json; a safetensors folder has one, and a tokenizer")
    if not files:
        raise InvalidRequest(f"{folder} holds no .safetensors file; other weights are not read, they can run code")
    config = _read_config(config_path)
    if config.get("quantization_config"):
        raise InvalidRequest(f"{folder} is quantized already ({config_path}: quantization_config); take the original weights")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InvalidRequest(f"{folder} has no tokenizer.json; put the tokenizer's files beside the weights")
    shapes = {name: shape for path in files for name, shape in _tensors_of(path)}
    embeddings = [shape for name, shape in shapes.items() if "embed_tokens" in name or "wte" in name]
    embedding = max(embeddings, key=math.prod, default=[0])
    return Source(
        id=folder.name,
        reference=folder.as_uri(),
        kind=SAFETENSORS,
        path=folder,
        files=(*files, config_path),
        n_params=sum(math.prod(shape) for shape in shapes.values()),
        n_vocab=embedding[0],
        n_embedding=math.prod(embedding),
        rotary_bytes=_rotary_bytes_of(config),
        is_tied=bool(config.get("tie_word_embeddings", "lm_head.weight" not in shapes)),
        quantization=str(config.get("dtype") or config.get("torch_dtype") or ""),
        name=folder.name,
    )


def _rotary_bytes(n_positions: int, head_length: int, *, is_sliding: bool) -> int:
    """A sine and a cosine for half of a head; models with windows have tables of their own for those layers."""
    return (2 if is_sliding else 1) * 4 * n_positions * head_length


def _rotary_bytes_of(config: dict[str, Any]) -> int:
    names = ("max_position_embeddings", "head_dim", "hidden_size", "num_attention_heads")
    n_positions, head, hidden, n_heads = (value if isinstance(value := config.get(name), int) else 0 for name in names)
    return _rotary_bytes(n_positions, head or hidden // (n_heads or 1), is_sliding=bool(config.get("sliding_window")))


def _read_config(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        data = stream.read(MAX_CONFIG_BYTES + 1)
    try:
        return msgspec.json.decode(data[:MAX_CONFIG_BYTES], type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidModelFile(f"{path} is no JSON object: {error}", path=str(path)) from error


def _tensors_of(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes. Source: the safetensors format: u64 length, that many bytes of JSON, data."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise InvalidModelFile(f"{path} is no safetensors file, or it was cut off", path=str(path))
        header = stream.read(length)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, dict[str, Any]])
        entries = {
            name: msgspec.convert((entry["shape"], entry["data_offsets"]), tuple[list[int], tuple[int, int]])
            for name, entry in tensors.items()
            if name != "__metadata__"
        }
    except (msgspec.MsgspecError, KeyError, RecursionError) as error:
        raise InvalidModelFile(f"{path} has a header that cannot be read: {error}", path=str(path)) from error
    end = max((end for _, (_, end) in entries.values()), default=0)
    if 8 + length + end > size:
        raise InvalidModelFile(
            f"{path} has {size} bytes and its header speaks of {8 + length + end}: it was cut off", path=str(path)
        )
    for name, (shape, _) in entries.items():
        yield name, shape


def _is_split(path: Path, n_parts: int) -> InvalidRequest:
    return InvalidRequest(
        f"{path} is one of {n_parts} parts; transformers reads whole files only: put them together with "
        f"`llama-gguf-split --merge {path} WHOLE.gguf`, and convert that"
    )
