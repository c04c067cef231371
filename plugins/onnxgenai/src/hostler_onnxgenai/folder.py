"""A model folder in ONNX Runtime GenAI's format: read, checked, and refused where it is wrong, before any library sees it.

Any process: the host estimates with it, the worker loads with it. It knows genai_config.json, the tokenizer's side files and
the ONNX graph's header, nothing of settings, sessions or token ids. The files are a stranger's.

Source: https://onnxruntime.ai/docs/genai/reference/config.html, and src/config.cpp of onnxruntime-genai.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from hostler import InvalidModelFile, ModelLoadFailed
from hostler_onnxgenai.onnxfile import FLOAT, FLOAT16, OnnxFile, read_onnx

CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
MAX_CONFIG_BYTES = 4 * 1024 * 1024
PROVIDERS = ("cuda", "dml")
"""Execution providers beside the CPU's that this engine runs on."""
PROVIDER_OPTIONS = {
    "cuda": frozenset({
        "arena_extend_strategy", "cudnn_conv_algo_search", "do_copy_in_default_stream", "enable_cuda_graph",
        "enable_skip_layer_norm_strict_mode", "gpu_mem_limit", "prefer_nhwc", "use_tf32",
    }),
    "dml": frozenset({
        "disable_metacommands", "enable_dynamic_graph_fusion", "enable_graph_capture", "performance_preference",
    }),
}  # fmt: skip
"""Options that a folder may ask for. Some others name libraries to load or files to write, so all others are refused."""
SESSION_OPTIONS = frozenset({
    "disable_cpu_ep_fallback", "disable_quant_qdq", "enable_cpu_mem_arena", "enable_mem_pattern", "enable_quant_qdq_cleanup",
    "ep_context_enable", "graph_optimization_level", "inter_op_num_threads", "intra_op_num_threads", "log_id",
    "log_severity_level", "log_verbosity_level", "provider_options", "providers", "use_env_allocators",
    "session.disable_prepacking", "session.inter_op.allow_spinning", "session.intra_op.allow_spinning",
})  # fmt: skip
"""As above, of a folder's session options."""
_SEVERAL_GRAPHS = {
    "encoder": "an encoder", "vision": "images", "speech": "speech", "embedding": "a separate embedding model",
}  # fmt: skip
_KV_BYTES = {FLOAT: 4, FLOAT16: 2}


class _Decoder(msgspec.Struct):
    filename: str = "model.onnx"
    head_size: int = 0
    hidden_size: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    num_hidden_layers: int = 0
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    session_options: dict[str, Any] = {}
    sliding_window: dict[str, Any] | None = None
    pipeline: Any = None


class _Model(msgspec.Struct):
    decoder: _Decoder
    type: str = ""
    context_length: int = 0
    vocab_size: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    encoder: Any = None
    vision: Any = None
    speech: Any = None
    embedding: Any = None


class _Search(msgspec.Struct):
    past_present_share_buffer: bool = True


class _Config(msgspec.Struct):
    model: _Model
    search: _Search = msgspec.field(default_factory=_Search)


class ModelFolder(msgspec.Struct, frozen=True):
    """One model, as its files describe it."""

    path: str
    model_type: str
    graph: OnnxFile
    context_length: int
    n_vocab: int
    """Rows of the projection: one logit each."""
    n_layers: int
    """Of them, those with a KV cache."""
    n_heads_kv: int
    n_head: int
    hidden_size: int
    end_tokens: tuple[int, ...]
    """As genai_config.json lists them."""
    bos_token: int | None
    provider: str
    """What the folder was exported for: `cpu`, `cuda` or `dml`."""
    provider_options: dict[str, str]
    input_ids: str
    attention_mask: str
    position_ids: str | None
    """None: the graph counts positions itself."""
    logits: str
    kv_inputs: tuple[str, ...]
    """Key and value of each layer."""
    kv_outputs: tuple[str, ...]
    kv_element: int
    """TensorProto.DataType."""
    objection: str
    """Why a plain onnxruntime session with its own KV rows cannot run it; empty: it can."""

    @property
    def kv_token_bytes(self) -> int:
        """KV cache of one token."""
        return self.n_layers * 2 * self.n_heads_kv * self.n_head * _KV_BYTES.get(self.kv_element, 4)

    @property
    def weights_bytes(self) -> int:
        """The graph and its data files, on disk."""
        folder = Path(self.path)
        return self.graph.file_bytes + sum((folder / name).stat().st_size for name in self.graph.external)


def read_folder(path: Path) -> ModelFolder:
    """Read a model folder.

    Raises:
        InvalidModelFile: A file is missing, broken, or contradicts another; the text names it.
        ModelLoadFailed: It is a model of a kind that this engine does not run.
        OSError: A file cannot be read.
    """
    if not path.is_dir():
        raise ModelLoadFailed(f"{path} is no folder; a model of ONNX Runtime GenAI is a folder with a {CONFIG}")
    config_path = path / CONFIG
    document = _document(config_path)
    try:
        config = msgspec.convert(document, _Config, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidModelFile(f"{config_path}: {error}", path=str(config_path)) from error
    model, decoder = config.model, config.model.decoder
    provider, options = _check_safety(config_path, document)
    for name, what in _SEVERAL_GRAPHS.items():
        if getattr(model, name) is not None:
            raise ModelLoadFailed(f"{config_path} describes a model with {what}; this engine runs text decoders only")
    if decoder.pipeline is not None:
        raise ModelLoadFailed(f"{config_path} describes a pipeline of several graphs; this engine runs single decoders only")
    graph_path = member(path, decoder.filename, config_path)
    graph = read_onnx(graph_path)
    if "PagedAttention" in graph.operators:
        raise ModelLoadFailed(
            f"{graph.path} is an export with paged attention, which only onnxruntime-genai's own Engine runs; hostler does "
            "not use it, because it chooses tokens by itself: take or make an export without use_paged_attention"
        )
    _check_external(path, graph)
    _check_tokenizer(path)
    return _described(path, config_path, config, graph, provider, options)


def read_context_length(path: Path) -> int:
    """The context that a folder's configuration allows, read from it alone; 0 when it does not say.

    Raises:
        InvalidModelFile: There is no configuration, or it is none.
    """
    model = _document(path / CONFIG).get("model")
    length = model.get("context_length") if isinstance(model, Mapping) else None
    return length if isinstance(length, int) and length > 0 else 0


def member(folder: Path, name: str, config_path: Path) -> Path:
    """A file that another file of the folder names.

    Raises:
        InvalidModelFile: It leads out of the folder, or is not there.
    """
    # APPSEC: links are followed, as a download cache makes them; names are not, out of the folder.
    parts = PurePosixPath(name.replace("\\", "/"))
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0] or "\0" in name:
        raise InvalidModelFile(
            f"{config_path} names {name!r}, which is no file inside the model's folder", path=str(config_path)
        )
    target = folder.joinpath(*parts.parts)
    if not target.is_file():
        raise InvalidModelFile(
            f"{config_path} names {name!r}, and {target} is missing; pull the model again", path=str(target)
        )
    return target


def chat_template(folder: Path) -> str | None:
    """The Jinja source that the folder carries: a file of its own, or the tokenizer's; None: it has none.

    Raises:
        InvalidModelFile: The tokenizer's side file is no JSON.
    """
    own = folder / TEMPLATE
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    template = tokenizer_config(folder).get("chat_template")
    if isinstance(template, list):  # several by name: the one without a purpose of its own
        by_name = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = by_name.get("default") or next(iter(by_name.values()), None)
    return template if isinstance(template, str) else None


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty where there is none.

    Raises:
        InvalidModelFile: It is no JSON object.
    """
    path = folder / TOKENIZER_CONFIG
    return dict(_document(path)) if path.is_file() else {}


def token_text(config: Mapping[str, Any], name: str) -> str:
    """A special token's text in tokenizer_config.json: a string, or an object that has it; empty: none."""
    token = config.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


# -- checks -----------------------------------------------------------------------------------------------------------


def _document(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise InvalidModelFile(f"{path} is missing; pull or copy the model again", path=str(path)) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidModelFile(f"{path} is larger than {MAX_CONFIG_BYTES} bytes", path=str(path))
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidModelFile(f"{path} is not valid JSON: {error}", path=str(path)) from error
    if not isinstance(document, dict):
        raise InvalidModelFile(f"{path} holds no JSON object", path=str(path))
    return document


def _check_safety(path: Path, document: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Refuse what would run code or write files; find out what the model was exported for.

    APPSEC: `custom_ops_library` loads a library out of the folder, and onnxruntime runs its code at once.
    """
    provider, chosen = "cpu", {}
    for options in _session_options(document):
        for key in options:
            if key == "custom_ops_library":
                raise InvalidModelFile(
                    f"{path} asks for custom_ops_library {options[key]!r}, a library that would run as this program; hostler "
                    "loads no code out of model folders. Take an export without custom operators",
                    path=str(path),
                )
            if key not in SESSION_OPTIONS:
                raise InvalidModelFile(
                    f"{path} has the session option {key!r}, which hostler does not know to be harmless; remove it",
                    path=str(path),
                )
        for name, values in _provider_options(path, options.get("provider_options")):
            name = "cpu" if name == "CPUExecutionProvider" else name
            if name != "cpu" and name not in PROVIDERS:
                raise ModelLoadFailed(
                    f"{path} was exported for {name!r}; this engine runs on cpu, {', '.join(PROVIDERS)}: take another variant"
                )
            unknown = sorted(set(values) - PROVIDER_OPTIONS.get(name, frozenset()))
            if unknown:
                raise InvalidModelFile(
                    f"{path} has the option {unknown[0]!r} of {name}, which hostler does not know to be harmless; remove it",
                    path=str(path),
                )
            if name != "cpu":
                provider, chosen = name, {key: str(value) for key, value in values.items()}
    return provider, chosen


def _session_options(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Every object named session_options, or holding custom_ops_library, wherever it stands."""
    if depth > 32:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "session_options" and isinstance(inner, Mapping):
                yield inner
            elif key == "custom_ops_library":
                yield {key: inner}
            else:
                yield from _session_options(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _session_options(inner, depth + 1)


def _provider_options(path: Path, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, Mapping):
            raise InvalidModelFile(f"{path}: provider_options must be a list of objects", path=str(path))
        for name, options in item.items():
            yield str(name), options if isinstance(options, Mapping) else {}


def _check_external(folder: Path, graph: OnnxFile) -> None:
    for name, n_bytes in graph.external.items():
        data = member(folder, name, Path(graph.path))
        size = data.stat().st_size
        if size < n_bytes:
            raise InvalidModelFile(
                f"{data} has {size} bytes and {Path(graph.path).name} refers to {n_bytes}: it was cut off, or belongs to "
                "another model; pull it again",
                path=str(data),
            )


def _check_tokenizer(folder: Path) -> None:
    path = folder / TOKENIZER
    if path.is_file():
        return
    if (folder / "tokenizer.model").is_file():
        raise InvalidModelFile(
            f"{folder} has a tokenizer.model and no {TOKENIZER}; save the tokenizer with transformers' "
            "AutoTokenizer.from_pretrained(..).save_pretrained(..)",
            path=str(path),
        )
    raise InvalidModelFile(f"{path} is missing; pull or copy the model again", path=str(path))


def _described(
    path: Path, config_path: Path, config: _Config, graph: OnnxFile, provider: str, options: dict[str, str]
) -> ModelFolder:
    model, decoder = config.model, config.model.decoder
    name = Path(graph.path).name
    if model.context_length < 2:
        raise InvalidModelFile(f"{config_path}: context_length is {model.context_length}", path=str(config_path))
    logits = graph.output(str(decoder.outputs.get("logits", "logits")))
    if logits is None:
        raise InvalidModelFile(
            f"{graph.path} has no output named {decoder.outputs.get('logits', 'logits')!r}", path=graph.path
        )
    rows = logits.shape[-1] if logits.shape else "?"
    n_vocab = rows if isinstance(rows, int) and rows > 0 else model.vocab_size
    heads = decoder.num_attention_heads
    ends = [token for token in _listed(model.eos_token_id) if token is not None]
    is_foreign = bool(ends) and not any(0 <= token < n_vocab for token in ends)
    for is_wrong, what in (
        (model.vocab_size < 1, f"vocab_size {model.vocab_size}, and a model has tokens"),
        (n_vocab != model.vocab_size, f"vocab_size {model.vocab_size}, and {name} computes {n_vocab} logits"),
        (heads and graph.n_heads and heads != graph.n_heads, f"{heads} heads, and {name} has {graph.n_heads}"),
        (
            graph.n_positions and model.context_length > graph.n_positions,
            f"context_length {model.context_length}, and {name} has rotary embeddings for {graph.n_positions} positions",
        ),
        (is_foreign, f"eos_token_id {ends}, and the vocabulary has {n_vocab} tokens"),
    ):
        if is_wrong:
            raise InvalidModelFile(f"{config_path} says {what}: they do not belong together", path=str(config_path))
    kv_inputs, kv_outputs, objection = _kv_names(config_path, decoder, graph)
    first = graph.input(kv_inputs[0]) if kv_inputs else None
    position_ids = str(decoder.inputs.get("position_ids", "position_ids"))
    described = ModelFolder(
        path=str(path),
        model_type=model.type,
        graph=graph,
        context_length=model.context_length,
        n_vocab=n_vocab,
        n_layers=len(kv_inputs) // 2,
        n_heads_kv=_fixed(first.shape, 1) if first else decoder.num_key_value_heads,
        n_head=_fixed(first.shape, 3) or decoder.head_size if first else decoder.head_size,
        hidden_size=decoder.hidden_size,
        end_tokens=tuple(ends),
        bos_token=model.bos_token_id,
        provider=provider,
        provider_options=options,
        input_ids=str(decoder.inputs.get("input_ids", "input_ids")),
        attention_mask=str(decoder.inputs.get("attention_mask", "attention_mask")),
        position_ids=position_ids if graph.input(position_ids) is not None else None,
        logits=logits.name,
        kv_inputs=kv_inputs,
        kv_outputs=kv_outputs,
        kv_element=first.element if first else 0,
        objection=objection,
    )
    return msgspec.structs.replace(described, objection=described.objection or _objection(described, config, logits.element))


def _kv_names(config_path: Path, decoder: _Decoder, graph: OnnxFile) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The KV cache's inputs and outputs, layer by layer; the names are patterns with a %d for the layer."""
    patterns = [str(decoder.inputs.get(f"past_{kind}_names", f"past_key_values.%d.{kind}")) for kind in ("key", "value")]
    results = [str(decoder.outputs.get(f"present_{kind}_names", f"present.%d.{kind}")) for kind in ("key", "value")]
    if any(pattern.count("%d") != 1 for pattern in (*patterns, *results)):
        return (), (), "its KV caches have no numbered names"
    present = {port.name for port in graph.inputs}
    layers = [layer for layer in range(decoder.num_hidden_layers) if patterns[0].replace("%d", str(layer)) in present]
    beyond = patterns[0].replace("%d", str(decoder.num_hidden_layers))
    if beyond in present:
        raise InvalidModelFile(
            f"{config_path} says {decoder.num_hidden_layers} layers, and {Path(graph.path).name} has more: {beyond}",
            path=str(config_path),
        )
    inputs = tuple(pattern.replace("%d", str(layer)) for layer in layers for pattern in patterns)
    outputs = tuple(result.replace("%d", str(layer)) for layer in layers for result in results)
    if not layers:
        return (), (), "it has no KV cache"
    if len(layers) < decoder.num_hidden_layers and not any(
        port.name.startswith(("past", "conv")) for port in graph.inputs if port.name not in inputs
    ):
        raise InvalidModelFile(
            f"{config_path} says {decoder.num_hidden_layers} layers, and {Path(graph.path).name} has KV caches for "
            f"{len(layers)}",
            path=str(config_path),
        )
    for layer, name in zip([layer for layer in layers for _ in "kv"], inputs, strict=True):
        port = graph.input(name)
        shape = port.shape if port is not None else ()
        for place, wanted, what in ((1, decoder.num_key_value_heads, "KV heads"), (3, decoder.head_size, "as head size")):
            found = _fixed(shape, place)
            if wanted and found and wanted != found:
                raise InvalidModelFile(
                    f"{config_path} says {wanted} {what}, and {Path(graph.path).name} has {found} in layer {layer}",
                    path=str(config_path),
                )
    return inputs, outputs, ""


def _objection(folder: ModelFolder, config: _Config, logits_element: int) -> str:
    known = {folder.input_ids, folder.attention_mask, folder.position_ids, *folder.kv_inputs}
    others = [port.name for port in folder.graph.inputs if port.name not in known]
    if others:
        return f"it has inputs that are no KV cache ({', '.join(others[:3])})"
    missing = {folder.input_ids, folder.attention_mask, *folder.kv_inputs} - {port.name for port in folder.graph.inputs}
    missing |= set(folder.kv_outputs) - {port.name for port in folder.graph.outputs}
    if missing:
        return f"it lacks {', '.join(sorted(missing)[:3])}"
    if config.model.decoder.sliding_window is not None:
        return "its KV cache slides"
    if not config.search.past_present_share_buffer:
        return "its KV cache is a new one in every step"
    if "If" in folder.graph.operators:
        return "it computes otherwise above some length, which rows of different lengths in one run would mix up"
    if "GroupQueryAttention" not in folder.graph.operators:
        return "its attention cannot write into a KV cache in place"
    if folder.kv_element not in _KV_BYTES or logits_element not in _KV_BYTES:
        return "its numbers are neither float32 nor float16"
    return "" if folder.n_heads_kv and folder.n_head else "the shape of its KV cache is not fixed"


def _listed(tokens: int | list[int] | None) -> Sequence[int | None]:
    return tokens if isinstance(tokens, list) else [tokens]


def _fixed(shape: tuple[int | str, ...], place: int) -> int:
    size = shape[place] if len(shape) > place else 0
    return size if isinstance(size, int) else 0
