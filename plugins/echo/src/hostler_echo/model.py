"""What an echo model is: a small JSON file. Read in the host for the ledger, in the worker for the engine; any thread."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hostler import EngineSettings, InvalidModelFile, MemoryEstimate
from hostler_echo.manners import Manners

MAX_FILE_BYTES = 1024 * 1024
BYTES_PER_CELL = 8

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' ~ message['role'] ~ '|>' }}{{ message['content'] or '' }}{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class EchoModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a `.echo` file; a blank file is one with all defaults."""

    script: str | None = None
    """What it answers; null: the last user message, or the prompt when there are no messages."""
    n_ctx: int = 32768
    """The context it was "trained" for."""
    bytes_per_token: int = 1
    """1, 2 or 3: how finely text is cut; a character beyond ASCII is split across tokens."""
    chat_template: str | None = CHAT_TEMPLATE
    """null: a model without one."""
    embedding: bool = True
    """Whether it can embed."""
    weights_bytes: int | None = None
    """What it claims to weigh, so that the memory ledger can be put to the test; null: the file's size."""
    manners: Manners = Manners()
    """Bad manners that all runs of this model show."""


def read_model(path: Path) -> EchoModel:
    """Read a `.echo` file.

    Raises:
        InvalidModelFile: It cannot be read, is no JSON, or says something unknown.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidModelFile(f"{path} cannot be read: {error.strerror}", path=str(path)) from error
    if len(data) > MAX_FILE_BYTES:
        raise InvalidModelFile(f"{path} is over {MAX_FILE_BYTES} bytes, so it is no echo model", path=str(path))
    try:
        model = msgspec.json.decode(data, type=EchoModel) if data.strip() else EchoModel()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidModelFile(f"{path} is no echo model: {error}", path=str(path)) from error
    if not 1 <= model.bytes_per_token <= 3:
        raise InvalidModelFile(f"{path} sets bytes_per_token to {model.bytes_per_token}; allowed: 1 to 3", path=str(path))
    if model.n_ctx < 2:
        raise InvalidModelFile(f"{path} sets n_ctx to {model.n_ctx}; allowed: at least 2", path=str(path))
    return model


def estimate(path: Path, settings: EngineSettings) -> MemoryEstimate:
    """What a run takes, or claims to."""
    model = read_model(path)
    weights_bytes = path.stat().st_size if model.weights_bytes is None else model.weights_bytes
    return MemoryEstimate(weights_bytes, settings.ctx_len * settings.n_parallel * BYTES_PER_CELL, 0)


def context_length(path: Path) -> int:
    """The context the file allows."""
    return read_model(path).n_ctx
