"""hostler: a local engine host for language models.

This is the surface for plugins; a plugin imports `hostler` and `hostler.testing`, nothing deeper. Names load when they are
first used, so `import hostler` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostler.batching import Cache, Pace, Packing, Turn, choose_cache, common_prefix, pass_by, share_out
    from hostler.cli.client import connect, model_path
    from hostler.cli.ondisk import LocalModel, find_model
    from hostler.cli.options import home_option, json_option, print_json, print_table, read_settings, show_bytes, show_seconds
    from hostler.config import Settings
    from hostler.cores import usable_cores
    from hostler.domain import (
        SEED_RANDOM,
        FinishReason,
        FormatKind,
        MemoryEstimate,
        MemoryUse,
        Message,
        OutputFormat,
        Priority,
        SamplingParams,
        Timings,
        TokenLogprob,
        TopLogprob,
        Usage,
    )
    from hostler.engine import (
        API_VERSION,
        Constraint,
        DeviceProbe,
        Engine,
        EngineInfo,
        EngineProbe,
        EngineSettings,
        EngineSpec,
        GuidedEngine,
        MessageEngine,
        ModelFiles,
        Progress,
        RawPrompt,
        SequenceSink,
        TokenTable,
        Vectors,
    )
    from hostler.errors import (
        ConfigError,
        ContextLengthExceeded,
        DownloadFailed,
        EmbeddingsDisabled,
        EngineFailed,
        EngineUnavailable,
        HostlerError,
        InsufficientMemory,
        InsufficientStorage,
        InvalidModelFile,
        InvalidRequest,
        ModelExists,
        ModelLoadFailed,
        ModelNotDownloaded,
        ModelNotFound,
        QueueFull,
        RequestCancelled,
        RequestTooLarge,
        UnsupportedParameter,
    )
    from hostler.hookspecs import hookimpl
    from hostler.library.gguf import GgufHeader, GgufTensor, read_gguf_header, read_gguf_tensors
    from hostler.listening import Event, ListenerSpec
    from hostler.longwork.folder import WorkFolder, WorkRuns
    from hostler.longwork.steps import ShowStep, StepFailed, run_step
    from hostler.mounts import RoutesContext, RoutesSpec
    from hostler.prefixfiles import PrefixFiles, StoredPrefix, prefix_id
    from hostler.prefixtree import PrefixNode, PrefixTree
    from hostler.sources.contract import RemoteFile, ResolvedSource, SourceContext, SourceSpec

__version__ = "0.1.0"

_HOME_OF = {
    "hostler.batching": ("Cache", "Pace", "Packing", "Turn", "choose_cache", "common_prefix", "pass_by", "share_out"),
    "hostler.cli.client": ("connect", "model_path"),
    "hostler.cli.ondisk": ("LocalModel", "find_model"),
    "hostler.cli.options": (
        "home_option", "json_option", "print_json", "print_table", "read_settings", "show_bytes", "show_seconds",
    ),
    "hostler.config": ("Settings",),
    "hostler.cores": ("usable_cores",),
    "hostler.domain": (
        "SEED_RANDOM", "FinishReason", "FormatKind", "MemoryEstimate", "MemoryUse", "Message", "OutputFormat",
        "Priority", "SamplingParams", "Timings",
        "TokenLogprob", "TopLogprob", "Usage",
    ),
    "hostler.engine": (
        "API_VERSION", "Constraint", "DeviceProbe", "Engine", "EngineInfo", "EngineProbe", "EngineSettings",
        "EngineSpec", "GuidedEngine", "MessageEngine", "ModelFiles", "Progress", "RawPrompt", "SequenceSink", "TokenTable",
        "Vectors",
    ),
    "hostler.errors": (
        "ConfigError", "ContextLengthExceeded", "DownloadFailed", "EmbeddingsDisabled", "EngineFailed", "EngineUnavailable",
        "HostlerError", "InsufficientMemory", "InsufficientStorage", "InvalidModelFile", "InvalidRequest", "ModelExists",
        "ModelLoadFailed", "ModelNotDownloaded", "ModelNotFound", "QueueFull", "RequestCancelled", "RequestTooLarge",
        "UnsupportedParameter",
    ),
    "hostler.hookspecs": ("hookimpl",),
    "hostler.library.gguf": ("GgufHeader", "GgufTensor", "read_gguf_header", "read_gguf_tensors"),
    "hostler.listening": ("Event", "ListenerSpec"),
    "hostler.longwork.folder": ("WorkFolder", "WorkRuns"),
    "hostler.longwork.steps": ("ShowStep", "StepFailed", "run_step"),
    "hostler.mounts": ("RoutesContext", "RoutesSpec"),
    "hostler.prefixtree": ("PrefixNode", "PrefixTree"),
    "hostler.prefixfiles": ("PrefixFiles", "StoredPrefix", "prefix_id"),
    "hostler.sources.contract": ("RemoteFile", "ResolvedSource", "SourceContext", "SourceSpec"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME_OF.items() for name in names}

__all__ = [
    # contract
    "API_VERSION", "Constraint", "DeviceProbe", "Engine", "EngineInfo", "EngineProbe", "EngineSettings", "EngineSpec",
    "GuidedEngine", "MessageEngine", "ModelFiles", "Progress", "RawPrompt", "SequenceSink", "TokenTable", "Vectors",
    "hookimpl",
    # sources
    "RemoteFile", "ResolvedSource", "SourceContext", "SourceSpec",
    # routes and events
    "Event", "ListenerSpec", "RoutesContext", "RoutesSpec",
    # values
    "SEED_RANDOM", "FinishReason", "FormatKind", "MemoryEstimate", "MemoryUse", "Message", "OutputFormat", "Priority",
    "SamplingParams", "Timings", "TokenLogprob", "TopLogprob", "Usage",
    # errors
    "ConfigError", "ContextLengthExceeded", "DownloadFailed", "EmbeddingsDisabled", "EngineFailed", "EngineUnavailable",
    "HostlerError", "InsufficientMemory", "InsufficientStorage", "InvalidModelFile", "InvalidRequest", "ModelExists",
    "ModelLoadFailed", "ModelNotDownloaded", "ModelNotFound", "QueueFull", "RequestCancelled", "RequestTooLarge",
    "UnsupportedParameter",
    # for commands
    "LocalModel", "Settings", "ShowStep", "StepFailed", "WorkFolder", "WorkRuns", "connect", "find_model", "home_option",
    "json_option", "model_path", "print_json", "print_table", "read_settings", "run_step", "show_bytes", "show_seconds",
    # for engines
    "Cache", "Pace", "Packing", "PrefixNode", "PrefixTree", "Turn", "choose_cache", "common_prefix", "pass_by", "share_out",
    "usable_cores",
    "PrefixFiles", "StoredPrefix", "prefix_id",
    # files
    "GgufHeader", "GgufTensor", "read_gguf_header", "read_gguf_tensors",
    "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'hostler' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
