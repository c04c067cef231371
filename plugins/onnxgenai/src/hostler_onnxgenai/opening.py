"""From a model folder to an open onnxruntime session, or to a reason why not.

Worker process, engine thread; onnxruntime reads and packs the weights on a thread beside it, for it lets others run meanwhile
and says nothing of how far it is. So progress is what the process's memory has grown by. It knows onnxruntime's options and
its words, nothing of rows or runs.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import psutil

from hostler import InvalidModelFile, ModelLoadFailed
from hostler_onnxgenai.folder import ModelFolder
from hostler_onnxgenai.hugepages import use_huge_pages
from hostler_onnxgenai.onnxfile import MAX_EDITED_BYTES, with_last_logits_only

LOOK_S = 0.1
"""How often a long load looks how far it is."""
_BROKEN_SIGNS = (
    "INVALID_PROTOBUF",
    "INVALID_GRAPH",
    "Protobuf parsing failed",
    "Deserialize tensor",
    "external data",
    "out of bounds",
)
_TOO_NEW_SIGNS = (
    "opset",
    "Opset",
    "is not a registered function/op",
    "NOT_IMPLEMENTED",
    "Could not find an implementation",
    "IR version",
)
_MEMORY_SIGNS = ("bad_alloc", "Failed to allocate memory", "bad allocation", "Cannot allocate memory")


def open_session(folder: ModelFolder, n_threads: int, spin_us: int, on_progress: Callable[[float], None]) -> tuple[Any, bool]:
    """Open a session on the CPU.

    Args:
        on_progress: Told which part of the weights is there; may raise, and then nobody waits for the rest.

    Returns:
        The session, and whether it projects only the last position to the vocabulary.

    Raises:
        InvalidModelFile, ModelLoadFailed: With onnxruntime's own words.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # PERF: as fast as with onnxruntime's arena, and what a long prompt took goes back to the system.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    graph = folder.graph
    edited: bytes | None = None
    if graph.file_bytes <= MAX_EDITED_BYTES:
        edited = with_last_logits_only(Path(graph.path).read_bytes(), folder.logits)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.path.abspath(Path(graph.path).parent)
        )
    watch = _Watch(folder.weights_bytes, on_progress)
    is_edited = edited is not None
    try:
        session = watch.run(lambda: _session(edited or graph.path, options))
    except ModelLoadFailed:
        raise
    except Exception as error:
        if not is_edited:
            raise _refusal(graph.path, str(error)) from error
        # Whether the change or the model is to blame, the model itself tells.
        is_edited = False
        try:
            session = watch.run(lambda: _session(graph.path, options))
        except ModelLoadFailed:
            raise
        except Exception as again:
            raise _refusal(graph.path, str(again)) from again
    _give_back()
    use_huge_pages()
    return session, is_edited


def _give_back() -> None:
    """Have the C library give back what the load took for a moment: of a thread's own heap it keeps what it once had."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # it is not glibc


def _session(model: bytes | str, options: Any) -> Any:
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Watch:
    """Waits for a load and tells how far it is."""

    def __init__(self, expected_bytes: int, on_progress: Callable[[float], None]) -> None:
        self._expected_bytes = max(1, expected_bytes)
        self._on_progress = on_progress
        self._process = psutil.Process()
        self._before_bytes = self._resident_bytes()
        self._told = 0.0

    def run(self, work: Callable[[], Any]) -> Any:
        """Do it on a thread of its own.

        Raises:
            ModelLoadFailed: `on_progress` said to stop.
            Exception: What the work raises.
        """
        results: list[Any] = []
        errors: list[BaseException] = []

        def load() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - handed over as it is
                errors.append(error)

        # A daemon: whoever stops a load need not wait until the library has done with it.
        thread = threading.Thread(target=load, name="onnxruntime-load", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK_S)
            # Mapped from the file, then packed into memory of its own: it grows towards twice the weights.
            share = (self._resident_bytes() - self._before_bytes) / (2 * self._expected_bytes)
            share = min(share, 0.99)
            if share > self._told:  # no growth is no progress: it must not renew the deadline
                self._told = share
                self._on_progress(self._told)
        if errors:
            raise errors[0]
        return results[0]

    def _resident_bytes(self) -> int:
        return int(self._process.memory_info().rss)


def _refusal(path: str, words: str) -> InvalidModelFile | ModelLoadFailed:
    reason = " ".join(words.split()).rstrip(".")
    if any(sign in reason for sign in _MEMORY_SIGNS):
        return ModelLoadFailed(
            f"there is not enough memory to load {path}: {reason}. Stop another model, or take a smaller one",
            last_output=reason,
        )
    if any(sign in reason for sign in _TOO_NEW_SIGNS):
        return ModelLoadFailed(
            f"{path} uses what onnxruntime {ort.__version__} does not have: {reason}. Update onnxruntime-genai, or take an "
            "export for this device",
            last_output=reason,
        )
    if any(sign in reason for sign in _BROKEN_SIGNS):
        return InvalidModelFile(f"{path} cannot be loaded: {reason}. It may be damaged; pull the model again", path=path)
    return ModelLoadFailed(f"{path} cannot be loaded: {reason}", last_output=reason)
