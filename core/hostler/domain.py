"""The values that travel between the floors: messages, sampling parameters, requests, events.

Lives on floor 0: frozen msgspec structs without behaviour beyond validation; they cross process borders as msgpack and
know neither HTTP nor an engine. Wire names of the API stand in `api/schema.py` only.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

SEED_RANDOM = -1
"""The seed that means "draw one"."""


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # end of generation, or a stop string
    LENGTH = "length"  # max_tokens reached, or the context is full
    CANCELLED = "cancelled"  # a client left or asked for it
    ERROR = "error"  # the engine gave up on this sequence; the text says why


class Priority(StrEnum):
    """Who goes first when there is a queue."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """0 goes first."""
        return _RANKS[self]


_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


class Lifecycle(StrEnum):
    """The seven states of a model; every state a client sees is derived from one of them."""

    NOT_DOWNLOADED = "not_downloaded"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a chat, text only.

    `role` is system, user, assistant or tool; `content` is None for an assistant turn that only called tools.
    """

    role: str
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None
    tool_call_id: str | None = None
    is_pinned: bool = False
    """The conversation up to here is to stay in the prefix cache when others must go. No template sees this."""


class FormatKind(StrEnum):
    """The languages in which a client says what an answer must look like."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"  # one of several texts
    GBNF = "gbnf"  # llama.cpp's grammars
    LARK = "lark"  # llguidance's grammars


class OutputFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer must look like, held to token by token, or the request is refused."""

    kind: FormatKind
    source: str = ""
    """JSON_SCHEMA: the schema as JSON text. CHOICE: a JSON array of strings. JSON_OBJECT: nothing. Else the expression or
    grammar itself."""
    param: str = "response_format"
    """The request's field, for errors."""
    name: str = ""
    """Of a JSON_SCHEMA; so is the rest."""
    description: str = ""
    is_strict: bool | None = None
    """As the client said. It changes nothing here, where every schema is enforced; another server may want to know."""


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen, with Jan's and Cortex's names and defaults. Ranges are those of spec/API.md 5.0."""

    temperature: float = 0.7
    """0 to 2; 0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 0.95
    """0 to 1; 1 is off."""
    min_p: float = 0.05
    """0 to 1; 0 is off."""
    typ_p: float = 1.0
    """1 is off."""
    min_keep: int = 0
    frequency_penalty: float = 0.0
    """-2 to 2."""
    presence_penalty: float = 0.0
    """-2 to 2."""
    repeat_penalty: float = 1.0
    """1 is off."""
    repeat_last_n: int = 64
    """How many of the last tokens (prompt included) the penalties see; 0 is none, -1 the whole context."""
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    """0 off, 1 or 2: the version."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    ignore_eos: bool = False
    seed: int = SEED_RANDOM
    logit_bias: dict[int, float] = {}
    """Token id -> value added to its logit; -100 and below bans, 100 and above all but forces."""
    logprobs: int | None = None
    """None: none. n: the chosen token's log probability and those of the n most likely tokens, before any truncation."""
    stop: tuple[str, ...] = ()
    max_tokens: int = 2048
    """Cut to the free context."""
    output_format: OutputFormat | None = None
    """None: any text. An engine reads `SequenceSink.constraint`, which is made of it."""


class GenerateRequest(msgspec.Struct, frozen=True):
    """What the API asks of the runtime: one prompt, `n` answers."""

    id: str
    """Unique; also what `DELETE /v1/requests/{id}` takes."""
    model: str
    """Any name the library resolves: id, alias, catalogue name, URL."""
    params: SamplingParams = SamplingParams()
    messages: tuple[Message, ...] | None = None
    """A chat, rendered with the model's own template; exclusive with `prompt`."""
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids, taken as they are; exclusive with `messages`."""
    n: int = 1
    """Answers wanted; with a fixed seed answer i uses seed + i."""
    cache_prompt: bool = True
    priority: Priority = Priority.NORMAL
    template_kwargs: dict[str, Any] = {}
    """Extra variables for the chat template (`enable_thinking` and the like)."""


class EmbedRequest(msgspec.Struct, frozen=True):
    """What the API asks of the runtime: one vector for each input."""

    id: str
    """As of a GenerateRequest."""
    model: str
    """Any name the library resolves."""
    inputs: tuple[str | tuple[int, ...], ...]
    """Texts and token ids, none of them empty; token ids are taken as they are."""
    dimensions: int | None = None
    """How long the vectors must be; another length than the model's is refused."""
    priority: Priority = Priority.NORMAL


class EmbedResult(msgspec.Struct, frozen=True):
    """The vectors of an EmbedRequest, in its order."""

    vectors: tuple[bytes, ...]
    """Each n_embd times float32, little-endian, of length 1 as a vector."""
    n_tokens: int
    """Of all inputs together."""


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one or several sequences."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens whose KV was reused; contained in `prompt_tokens`."""


class Timings(msgspec.Struct, frozen=True):
    """What one sequence took by the worker's monotonic clock."""

    prompt_n: int
    """Prompt tokens really evaluated (cached ones excluded)."""
    prompt_ms: float
    """From the first prefill step to the first output token."""
    cached_n: int
    predicted_n: int
    """Tokens generated, the first included."""
    predicted_ms: float
    """From the first output token to the last: predicted_n - 1 steps."""
    draft_n: int = 0
    """Tokens guessed in advance and tried, where the engine speculates."""
    draft_accepted_n: int = 0
    """Of these the ones that were right."""


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One candidate token. `token` holds its bytes, which need not be whole UTF-8."""

    token_id: int
    token: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The chosen token with its most likely rivals."""

    token_id: int
    token: bytes
    logprob: float
    top: tuple[TopLogprob, ...] = ()


class TextEvent(msgspec.Struct, frozen=True):
    """New text of answer `index`: whole UTF-8 characters, never part of a stop string."""

    index: int
    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class PrefillEvent(msgspec.Struct, frozen=True):
    """Answer `index` got its slot (`n_done` 0) or went on with its prompt."""

    index: int
    n_done: int
    n_total: int


class FinishEvent(msgspec.Struct, frozen=True):
    """The last event of answer `index`."""

    index: int
    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_string: str | None = None
    """The stop string that was met, if one was."""


GenerationEvent = TextEvent | PrefillEvent | FinishEvent


class ModelFiles(msgspec.Struct, frozen=True):
    """Where a model lies. `primary` is what an engine opens: a GGUF file (of a split model the first part) or a folder."""

    primary: str
    format: str
    """`gguf`, `onnxgenai`, ... as the engines list them."""
    others: tuple[str, ...] = ()
    """Further files by absolute path: later parts, a projector."""


class MemoryEstimate(msgspec.Struct, frozen=True):
    """Bytes a running model takes, before it is loaded."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    is_mapped: bool = True
    """The weights are pages of their files, which the system calls available as long as it can read them again. False: the
    engine keeps a copy, in memory that the system shows as taken."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


class MemoryUse(msgspec.Struct, frozen=True):
    """Bytes a loaded model takes by its engine's own account; 0 where the engine cannot tell."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    cache_bytes: int = 0
    """Of prompts' beginnings that are kept in main memory."""
