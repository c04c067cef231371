"""From files and settings to a llama.cpp model and context, or to a reason why not.

Worker process, engine thread only. It knows settings and llama.cpp's load parameters, nothing of sequences. Whatever
was made is freed before an error leaves.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as llama

from hostler import EngineSettings, InvalidModelFile, ModelFiles, ModelLoadFailed, Progress, usable_cores
from hostler_llamacpp import hugepages, kernels
from hostler_llamacpp.binding import log
from hostler_llamacpp.estimate import draft_rows, is_mostly_packed
from hostler_llamacpp.machine import Device, gpus

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""`cache_type` -> ggml_type."""
QUANTIZED_CACHES = frozenset({"q4_0", "q8_0"})
CONTEXT_PAD = 256
"""llama.cpp rounds a stream's cells up to this."""
MAX_UBATCH = 512
MAX_SLOTS = 256
EXTRAS = frozenset({"check_tensors", "huge_pages", "n_ubatch", "repack", "rope_freq_base", "rope_freq_scale", "swa_full"})
"""What `EngineSettings.extra` may hold here."""
_STATE_EXTRAS = frozenset({"repack", "rope_freq_base", "rope_freq_scale", "swa_full"})
"""Of these the ones that change keys and values."""

_LOAD_MODES = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}
"""(mmap, mlock) -> enum llama_load_mode."""
_BAD_FILE_SIGNS = (
    "failed to load GGUF",
    "failed to read magic",
    "gguf_init_from",
    "invalid magic",
    "not within the file bounds",
    "is not within",
    "corrupted or incomplete",
    "invalid data",
    "invalid values",
    "key not found",
    "missing tensor",
    "wrong number of tensors",
    "has wrong shape",
    "has wrong type",
    "wrong array length",
    "cannot find tokenizer",
    "error loading model hyperparameters",
    "error loading model vocabulary",
)
ALL_LAYERS = -1


@dataclass
class Loaded:
    """A model with its context. INVARIANT: the context is freed before the model."""

    model: int
    context: int
    """0: the model only embeds, in contexts that embedding.py makes."""
    n_ctx: int
    """Tokens one sequence may hold, as asked; llama.cpp's own streams are rounded up."""
    n_slots: int
    n_batch: int
    n_draft_rows: int
    """Guesses that a batch takes beside a token of each sequence and a chunk; 0: nothing is guessed."""
    n_threads: int
    device: str
    cache_type: int
    """ggml_type."""
    warnings: tuple[str, ...]

    def free(self) -> None:
        """Give everything back; may be called twice."""
        if self.context:
            llama.llama_free(self.context)
            self.context = 0
        if self.model:
            llama.llama_model_free(self.model)
            self.model = 0


def load(files: ModelFiles, settings: EngineSettings, progress: Progress) -> Loaded:
    """Load a model and make its context; evaluates nothing.

    Raises:
        ModelLoadFailed, InvalidModelFile: With llama.cpp's own last words.
    """
    cache_type = _check(settings)
    warnings: list[str] = [
        f"llamacpp has no setting {name!r}; it has no effect" for name in sorted(set(settings.extra) - EXTRAS)
    ]
    path = Path(files.primary)
    if not path.is_file():
        raise ModelLoadFailed(f"{path} does not exist or is no file; pull or import the model again")
    chosen = gpus(settings.device)
    if not chosen and settings.device == "auto" and settings.ngl not in (0, EngineSettings(ctx_len=1).ngl):
        warnings.append(f"ngl is {settings.ngl}, but this build of llama-cpp-python finds no GPU; all layers run on the CPU")
    if kernels.are_wanted(settings):
        warnings += kernels.attach()
    log.reset()
    _report(progress, 0.0)
    model = _load_model(path, settings, chosen, progress)
    try:
        _refuse_unsuitable(model, path)
        n_ctx = _context_length(model, settings, warnings)
        n_threads = settings.cpu_threads if settings.cpu_threads > 0 else usable_cores()
        n_rows = _draft_rows(model, settings)
        context, n_batch = _make_context(model, settings, n_ctx, cache_type, n_threads, n_rows)
        try:
            if context and only_embeds(model, context):
                llama.llama_free(context)
                context, n_batch = 0, 0
            if not context:
                n_ctx = _check_embedding_only(model, settings, path, n_ctx)
            _report(progress, 0.95)
        except ModelLoadFailed:
            if context:
                llama.llama_free(context)
            raise
    except BaseException:
        llama.llama_model_free(model)
        raise
    return Loaded(
        model=model,
        context=context,
        n_ctx=n_ctx,
        n_slots=settings.n_parallel,
        n_batch=n_batch,
        n_draft_rows=n_rows,
        n_threads=n_threads,
        device=_device_name(settings, chosen) if uses_gpu(chosen, settings) else "cpu",
        cache_type=cache_type,
        warnings=tuple(warnings),
    )


def load_beside(path: Path, settings: EngineSettings, progress: Progress) -> int:
    """Load another model on the same devices, whose context the caller makes; its progress is only asked whether to go on.

    Raises:
        ModelLoadFailed, InvalidModelFile: With llama.cpp's own last words.
    """
    if not path.is_file():
        raise ModelLoadFailed(f"{path} does not exist or is no file; pull or import the draft model again")
    return _load_model(path, settings, gpus(settings.device), lambda _: progress(0.96))


def report(progress: Progress, fraction: float) -> None:
    """Tell how far a load is.

    Raises:
        ModelLoadFailed: The answer was to stop.
    """
    _report(progress, fraction)


def _report(progress: Progress, fraction: float) -> None:
    if not progress(fraction):
        raise ModelLoadFailed("the load was stopped on request")


def _device_name(settings: EngineSettings, chosen: list[Device]) -> str:
    return chosen[0].family if settings.device == "auto" else settings.device


def _check(settings: EngineSettings) -> int:
    if settings.cache_type not in CACHE_TYPES:
        raise ModelLoadFailed(f"cache_type is {settings.cache_type!r}; llamacpp knows {', '.join(sorted(CACHE_TYPES))}")
    if settings.cache_type in QUANTIZED_CACHES and not settings.flash_attn:
        raise ModelLoadFailed(
            f"cache_type {settings.cache_type} needs flash attention; set flash_attn to true or cache_type to f16"
        )
    if settings.ctx_len < 2:
        raise ModelLoadFailed(f"ctx_len is {settings.ctx_len}; a sequence needs room for at least 2 tokens")
    if not 1 <= settings.n_parallel <= MAX_SLOTS:
        raise ModelLoadFailed(f"n_parallel is {settings.n_parallel}; llamacpp takes 1 to {MAX_SLOTS} slots")
    if settings.n_batch < 1:
        raise ModelLoadFailed(f"n_batch is {settings.n_batch}; it must be at least 1")
    return CACHE_TYPES[settings.cache_type]


def _load_model(path: Path, settings: EngineSettings, chosen: list[Device], progress: Progress) -> int:
    is_stopped = False
    failure: BaseException | None = None

    @llama.llama_progress_callback  # type: ignore[untyped-decorator]
    def on_progress(fraction: float, _user_data: object) -> bool:
        # Called in this thread, by C, which must not see an exception.
        nonlocal is_stopped, failure
        try:
            goes_on = bool(progress(min(0.9, 0.9 * fraction)))
        except BaseException as error:  # noqa: BLE001 - raised again once C has returned
            failure, goes_on = error, False
        is_stopped = is_stopped or not goes_on
        return goes_on

    params = llama.llama_model_default_params()
    has_huge_pages = hugepages.are_given() and hugepages.are_wanted(path, settings)
    is_copied = not uses_gpu(chosen, settings) and (has_huge_pages or is_mostly_packed(path, settings))
    params.load_mode = _LOAD_MODES[settings.use_mmap and not is_copied, settings.mlock]
    params.use_extra_bufts = kernels.are_wanted(settings)
    # 15 ms per 100 MB, and without it garbage weights answer with arbitrary tokens.
    params.check_tensors = bool(settings.extra.get("check_tensors", True))
    params.progress_callback = on_progress
    device_list = (ctypes.c_void_p * (len(chosen) + 1))(*(device.handle for device in chosen), None)
    if settings.device != "auto":
        # An empty list keeps llama.cpp from taking what it finds.
        params.devices = ctypes.cast(device_list, ctypes.c_void_p)
    params.n_gpu_layers = _gpu_layers(path, settings.ngl) if chosen else 0
    try:
        model = llama.llama_model_load_from_file(str(path).encode(), params)
    finally:
        del device_list
    if failure is not None:
        if model:
            llama.llama_model_free(model)
        raise failure
    if model:
        return int(model)
    if is_stopped:
        raise ModelLoadFailed("the load was stopped on request")
    raise _refusal(path, "llama.cpp could not load it")


def uses_gpu(chosen: list[Device], settings: EngineSettings) -> bool:
    """Whether some of the model lies on a GPU."""
    return bool(chosen) and settings.ngl > 0


def _gpu_layers(path: Path, ngl: int) -> int:
    """llama.cpp counts the output layer, too; users mean all of the model by its number of layers."""
    from hostler_llamacpp.estimate import n_layers  # late: only with a GPU

    layers = n_layers(path)
    return ALL_LAYERS if layers and ngl >= layers else ngl


def _refusal(path: Path, what: str) -> InvalidModelFile | ModelLoadFailed:
    reason = log.reason() or "it gave no reason"
    text = f"{path.name}: {what}: {reason}"
    if any(sign in reason for sign in _BAD_FILE_SIGNS):
        return InvalidModelFile(f"{text}. The file may be damaged; delete it and pull it again", path=str(path))
    return ModelLoadFailed(text, last_output=reason)


def _refuse_unsuitable(model: int, path: Path) -> None:
    if llama.llama_model_has_encoder(model) and llama.llama_model_has_decoder(model):
        raise ModelLoadFailed(f"{path.name} has an encoder and a decoder; only models with one of them run here")
    if llama.llama_model_is_diffusion(model):
        raise ModelLoadFailed(f"{path.name} is a diffusion model; only models that write token by token can answer here")
    if llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)) < 1:
        raise InvalidModelFile(f"{path.name} has no vocabulary, so that it can read no text", path=str(path))


def only_embeds(model: int, context: int) -> bool:
    """Whether a model cannot write text, by its own declaration: it keeps no cache, or every token sees every other."""
    return not llama.llama_get_memory(context) or metadata(model, "attention.causal") == "false"


def metadata(model: int, key: str) -> str:
    """A value of the file's header under the architecture's prefix, as text; empty when it is not there."""
    architecture = _metadata(model, "general.architecture")
    return _metadata(model, f"{architecture}.{key}")


def _metadata(model: int, key: str) -> str:
    buffer = ctypes.create_string_buffer(128)
    n_bytes = llama.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if n_bytes > 0 else ""


def pooling_of(model: int) -> int:
    """How the model's file wants the vectors of its tokens made one (enum llama_pooling_type); mean where it says nothing."""
    value = metadata(model, "pooling_type")
    known = int(value) if value.isdecimal() else llama.LLAMA_POOLING_TYPE_NONE
    return known if known != llama.LLAMA_POOLING_TYPE_NONE else int(llama.LLAMA_POOLING_TYPE_MEAN)


def _check_embedding_only(model: int, settings: EngineSettings, path: Path, n_ctx: int) -> int:
    """Refuse what could do nothing at all here; else the longest input."""
    if pooling_of(model) == llama.LLAMA_POOLING_TYPE_RANK:
        raise ModelLoadFailed(f"{path.name} is a reranker: it neither writes text nor gives embeddings")
    if not settings.embedding:
        raise ModelLoadFailed(f"{path.name} only gives embeddings, and the setting embedding is false; set it to true")
    # Learnt positions end there, whatever rope_freq_base says.
    return min(n_ctx, int(llama.llama_model_n_ctx_train(model)) or n_ctx)


def _context_length(model: int, settings: EngineSettings, warnings: list[str]) -> int:
    n_trained = int(llama.llama_model_n_ctx_train(model))
    is_stretched = "rope_freq_base" in settings.extra or "rope_freq_scale" in settings.extra
    if 0 < n_trained < settings.ctx_len and not is_stretched:
        warnings.append(
            f"ctx_len {settings.ctx_len} is more than the {n_trained} tokens the model was trained for; "
            f"it runs with {n_trained}"
        )
        return n_trained
    return settings.ctx_len


def context_params(settings: EngineSettings, cache_type: int, n_threads: int) -> Any:
    """What all contexts of one run have in common."""
    params = llama.llama_context_default_params()
    params.n_threads = params.n_threads_batch = n_threads
    params.type_k = params.type_v = cache_type
    # Auto is on wherever the device can; a quantized V demands it.
    params.flash_attn_type = 0 if not settings.flash_attn else 1 if settings.cache_type in QUANTIZED_CACHES else -1
    params.offload_kqv = True
    params.no_perf = True
    params.rope_freq_base = _number(settings.extra, "rope_freq_base")
    params.rope_freq_scale = _number(settings.extra, "rope_freq_scale")
    return params


def _draft_rows(model: int, settings: EngineSettings) -> int:
    """Guesses that a step has room for; none where a sequence could not be taken back to before a wrong one."""
    if llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model):
        return 0
    n_rows = draft_rows(settings, int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))))
    if llama.llama_model_n_swa(model):  # they must be evaluated at once: see Streams.can_take_back
        n_rows = max(0, min(n_rows, n_ubatch(settings) - settings.n_parallel))
    return n_rows


def _make_context(
    model: int, settings: EngineSettings, n_ctx: int, cache_type: int, n_threads: int, n_draft_rows: int
) -> tuple[int, int]:
    """The context that writes text, 0 for a model without a decoder; and how many tokens a batch of it takes."""
    if not llama.llama_model_has_decoder(model):
        return 0, 0
    n_slots = settings.n_parallel
    params = context_params(settings, cache_type, n_threads)
    params.n_ctx = padded(n_ctx) * n_slots
    params.n_seq_max = n_slots
    # Room for a token of every decoding sequence, and guesses, beside a full chunk.
    params.n_batch = settings.n_batch + n_slots + n_draft_rows
    params.n_ubatch = n_ubatch(settings)
    # A row of logits a sequence and guess: the compute buffer shrinks by n_ubatch rows of the vocabulary (98 MB to 22 here).
    params.n_outputs_max = n_slots + n_draft_rows
    # Measured: one stream a sequence, since in a unified cache each pays for the others' cells (README.md).
    params.kv_unified = False
    params.swa_full = bool(settings.extra.get("swa_full", False))
    context = llama.llama_init_from_model(model, params)
    if not context:
        reason = log.reason() or "it gave no reason"
        advice = "; a smaller ctx_len or n_parallel needs less memory" if "alloc" in reason or not log.reason() else ""
        raise ModelLoadFailed(
            f"llama.cpp could not make a context of {n_slots} x {n_ctx} tokens: {reason}{advice}",
            last_output=log.reason(),
        )
    if llama.llama_n_ctx_seq(context) < n_ctx:
        n_real = int(llama.llama_n_ctx_seq(context))
        llama.llama_free(context)
        raise ModelLoadFailed(f"llama.cpp gave each slot {n_real} tokens where {n_ctx} were asked for")
    return int(context), int(llama.llama_n_batch(context))


def state_settings(settings: EngineSettings) -> str:
    """What the settings change in a stream's state: states saved under others mean something else, or are refused."""
    extra = {name: settings.extra[name] for name in sorted(_STATE_EXTRAS & set(settings.extra))}
    return f"cache_type={settings.cache_type} flash_attn={settings.flash_attn} {extra}"


def padded(n_ctx: int) -> int:
    """Cells that llama.cpp makes of a stream's tokens."""
    return -(-n_ctx // CONTEXT_PAD) * CONTEXT_PAD


def n_ubatch(settings: EngineSettings) -> int:
    """Tokens that go through the compute graph at once."""
    wanted = settings.extra.get("n_ubatch")
    return int(wanted) if isinstance(wanted, int) and wanted > 0 else min(settings.n_batch, MAX_UBATCH)


def _number(extra: dict[str, Any], name: str) -> float:
    value = extra.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ModelLoadFailed(f"{name} is {value!r}; it must be a number above 0")
    return float(value)
