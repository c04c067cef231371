"""The engine contract: what a plugin implements so that hostler can run models in its engine.

Floor 2. An engine lives in a worker process of its own: one plugin, one model. The worker's loop receives, steps, emits;
everything that is the same for all engines (chat templates, text assembly, stop strings, `max_tokens`, the token ring,
back-pressure) is done by hostler, so that an engine only turns token ids into token ids. An engine that renders and
tokenizes by itself, such as one that asks another server, gets the request as it came: see MessageEngine.

Threads: `load`, `add`, `cancel`, `step`, `embed` (and the iterator it gives), `memory` and `close` are called from one
thread, the engine thread.
`tokenize`, `detokenize` and `token_table` may be called from other threads while `step` runs; they must be safe beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from hostler.domain import FinishReason, MemoryEstimate, MemoryUse, Message, SamplingParams, TokenLogprob, Usage
from hostler.domain import ModelFiles as ModelFiles  # part of the contract, shown here
from hostler.errors import HostlerError

API_VERSION = 1
"""Major version of what plugins are written against: the hooks, their answers and this contract. A plugin says which one it
was written for (`HOSTLER_API = 1` in its module); another one is refused by name. It changes when an old plugin would break,
not when something is added."""

Progress = Callable[[float], bool]
"""Takes the loaded fraction, 0 to 1; False means: stop loading and raise. Each call renews the start deadline."""


class EngineSettings(msgspec.Struct, frozen=True):
    """What was asked of a run, already validated and granted by the ledger. Names are Jan's (spec/API.md 5.0)."""

    ctx_len: int
    """Tokens per slot; never divided among slots."""
    n_parallel: int = 4
    """Concurrent slots."""
    ngl: int = 100
    """Layers on the GPU; at or above the layer count: all."""
    cpu_threads: int = 0
    """0: the physical cores this process may use."""
    embedding: bool = True
    n_batch: int = 512
    max_itl_ratio: float = 2.6
    """How many times its usual time between two tokens (ITL) a running answer may wait beside a prompt."""
    flash_attn: bool = True
    use_mmap: bool = True
    mlock: bool = False
    cache_type: str = "f16"
    caching_enabled: bool = True
    cache_ram_bytes: int = 0
    """Main memory for prompts' beginnings that lie in no slot; 0: none is kept."""
    cache_disk_bytes: int = 0
    """Disk for them, in `cache_folder`; 0: none is kept."""
    cache_folder: str = ""
    """Where PrefixFiles keeps what this engine finds again after a restart; empty: nowhere."""
    model_digest: str = ""
    """Of the model's files: other content, other digest. Part of what kept prefixes are found by."""
    speculation: str = "auto"
    """`auto`: an engine that can guess tokens in advance does so where that pays; `off`: it does not."""
    n_draft_max: int = 32
    """Most tokens guessed at once for one sequence."""
    draft_path: str = ""
    """Primary file of a small model of the same vocabulary that guesses; empty: none."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, ...; anything but auto is a demand that fails when it cannot be met."""
    extra: dict[str, Any] = {}
    """Settings that only this engine knows, as the user wrote them."""


class EngineInfo(msgspec.Struct, frozen=True):
    """What an engine says of the model it has loaded."""

    n_ctx: int
    """Tokens one sequence can really hold, prompt and answer together."""
    n_slots: int
    """Sequences that can be active at once."""
    n_vocab: int
    n_ctx_train: int = 0
    """Context the model was trained for; 0 when unknown."""
    device: str = "cpu"
    chat_template: str | None = None
    """Jinja source as the model's files carry it; None: no template, chat needs one from the settings."""
    special_texts: tuple[str, ...] = ()
    """Texts of control tokens such as `<|im_end|>`; inside a user's message they must stay text."""
    bos_text: str = ""
    eos_text: str = ""
    adds_bos: bool = False
    """`tokenize(add_special=True)` puts a BOS in front."""
    can_generate: bool = True
    """False: a model that only embeds; `add` and `step` are never called."""
    can_embed: bool = False
    n_embd: int = 0
    """Length of its vectors; 0 where it cannot embed."""
    can_guide: bool = False
    """It is a GuidedEngine: it keeps to `SequenceSink.constraint`. False: requests that want a form are refused."""
    version: str = ""
    """Engine and library version, for humans and for cache keys."""
    warnings: tuple[str, ...] = ()
    """Settings that were accepted but have no effect here."""


class RawPrompt(msgspec.Struct, frozen=True):
    """What was asked, neither rendered nor tokenized. One of the first two is set."""

    messages: tuple[Message, ...] | None = None
    """A chat."""
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids to go on from."""
    template_kwargs: dict[str, Any] = {}
    """Extra variables for the chat template."""


class TokenTable(msgspec.Struct, frozen=True):
    """What tokens say, for constraints."""

    pieces: Sequence[bytes]
    """By token id, `n_vocab` of them: the bytes that `push` would get. b"" for tokens that are no text, such as control
    tokens; a constraint never allows those."""
    end_tokens: Sequence[int]
    """All that end a generation."""


class Constraint(Protocol):
    """What one sequence may say next. Only the engine thread touches it. `SequenceSink.push` moves it on; the engine asks.

    Mask before every sampler: what is drawn is then drawn from the tokens allowed, by their own probabilities. To draw first
    and again after a refusal gives the same only while nothing cuts the distribution (top_k, top_p, min_p and the like do).
    A greedy choice may be tried with `allows` alone: the best of all tokens is the best of those allowed, if it is one.
    """

    def allows(self, token_id: int) -> bool:
        """Whether a token may come next: some microseconds."""

    def mask(self) -> bytes:
        """One bit for each token, the lowest bit of a byte first, 1 where it may come next; padded to 32 bits. At least one
        bit is set: an end-of-generation token where nothing else can follow. 5 to 100 us at 49k tokens, 20 to 250 at 262k.

        Raises:
            HostlerError: It cannot go on; hand it to `SequenceSink.fail`.
        """


@runtime_checkable
class SequenceSink(Protocol):
    """What an engine holds of a request: read the fields, call the methods, from the engine thread.

    Created by the worker (`worker/sequence.py`) and, in tests, by `hostler.testing`.
    """

    id: int
    """Unique within the worker's life."""
    tokens: Sequence[int]
    """The prompt's token ids, at least one, at most n_ctx - 1."""
    params: SamplingParams
    """`seed` is never SEED_RANDOM here: the worker has drawn one. `stop` and `max_tokens` are not the engine's business."""
    cache_prompt: bool
    """False: reuse no other request's KV for this prompt, and keep nothing of it for others."""
    priority: int
    """0 interactive, 1 normal, 2 batch: whose prompt goes first, and whose answer must not wait for whose prompt."""
    n_pinned: int
    """So many first tokens of the prompt are pinned: their KV is the last to be evicted. 0: none."""
    raw: RawPrompt | None
    """For a MessageEngine, whose sequences have no tokens; None for all others."""

    @property
    def constraint(self) -> Constraint | None:
        """None: any token may come. Else only what it allows, an end of generation included; anything else ends the sequence
        with an error. An engine that speculates does not draft for it."""

    @property
    def is_paused(self) -> bool:
        """True while its reader is too slow: leave it out of this step, keep its slot and KV."""

    def begin(self, n_cached: int) -> None:
        """Its prefill starts; `n_cached` prompt tokens need no evaluation. Call once, before the first `prefilled`."""

    def prefilled(self, n_done: int) -> None:
        """`n_done` prompt tokens (cached ones included) are in the KV cache now. Call after each chunk."""

    def push(self, token_id: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
        """Hand over one output token. False: the sequence is over (stop string, max_tokens, context full, a constraint that
        allows nothing more); free its slot.

        Args:
            token_id: Never an end-of-generation token, save with `ignore_eos`.
            piece: The token's bytes; may end inside a UTF-8 character.
            logprob: Required when `params.logprobs` is not None.
        """

    def end(self, reason: FinishReason, message: str = "") -> None:
        """The engine ends it: STOP at an end-of-generation token, ERROR with a message a user can read. Frees nothing."""

    def fail(self, error: HostlerError) -> None:
        """The engine ends it with an error of its own choice; `end(ERROR, message)` is `fail(EngineFailed(message))`."""

    def counted(self, usage: Usage) -> None:
        """What its tokens really are, where a push is not one token; the last call before the end counts."""

    def drafted(self, n_drafted: int, n_accepted: int) -> None:
        """An engine that speculates tried so many guessed tokens in one step, and so many of them were right. Call before
        they are pushed; calls add up. Others need not call it."""


Vectors = Sequence[Sequence[float]]
"""Finite numbers, (n, n_embd); not normalised."""


class Engine(Protocol):
    """One engine with one model. Raising `hostler.HostlerError` anywhere shows its text to the user; anything else is a bug
    of the engine: it fails the call's sequences (`step`: the worker) and is reported with its traceback."""

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        """Load the model and evaluate something small, so that what cannot run fails here.

        Raises:
            ModelLoadFailed, InvalidModelFile: With the reason a user can act on.
        """

    def add(self, sequence: SequenceSink) -> None:
        """Take a sequence into a free slot; called only while fewer than `n_slots` are active. Evaluates nothing yet."""

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence before the next step: its slot and KV are free on return. Unknown ids are ignored."""

    def step(self) -> bool:
        """Advance every active, unpaused sequence once: one prefill chunk or one token each. False: nothing to do."""

    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        """Embed token sequences of 1 to n_ctx tokens each, piece by piece; a generator is what it is written as most easily.

        Each `next` does a bounded piece of work, about what a step does, and gives the vectors that it completed, in the
        inputs' order; none in the middle of a long input. Between two pieces sequences are added, stepped and cancelled;
        another `embed` has its turn only after a piece that gave vectors. Closed early, it drops the rest.

        Raises:
            UnsupportedParameter: This engine or model cannot embed; from the call or its first piece.
        """

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids. `add_special`: BOS and the like as the model wants; `parse_special`: read control tokens."""

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        """Token ids to bytes, control tokens rendered as nothing."""

    def memory(self) -> MemoryUse:
        """Bytes in use by the engine's own account."""

    def close(self) -> None:
        """Free the model; called once, no call follows."""


class GuidedEngine(Engine, Protocol):
    """An engine that can hold a sequence to a constraint, as its EngineInfo says with `can_guide`."""

    def token_table(self) -> TokenTable:
        """The bytes of all tokens. Called when the first constraint is wanted, from another thread while `step` runs."""


class MessageEngine(Engine, Protocol):
    """An engine whose EngineSpec says `takes_messages`: it renders and tokenizes by itself, or asks somebody who does.

    A sequence has `raw` and no tokens. Its `params.seed` may be SEED_RANDOM; `max_tokens` is the engine's business, and so
    are stop strings, which the worker looks for all the same; so is `params.output_format`, to be honoured or refused. `push`
    takes any piece of text, with token id -1 where none is known; `prefilled` need not be called; `end` takes LENGTH, too;
    `counted` says what the tokens were. `step` may hand over all that has come, and gives False while it waits: it must not
    block. `tokenize` and `detokenize` are never called.
    In its EngineInfo `n_vocab` is 0, and `n_ctx` is 0 where the context is unknown; so is `EngineSettings.ctx_len` where
    the user has set none. `embed` gets texts, or token ids where a client sent some, gives no vectors while it waits, and,
    written as a generator, returns the number of tokens.
    """

    def embed(self, inputs: Sequence[Sequence[int] | str]) -> Iterator[Vectors]:
        """See above and Engine."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Called once, before `load`. `wake`, called from any thread, has `step` and `embed` looked at again soon."""


class DeviceProbe(msgspec.Struct, frozen=True):
    """One device an engine could use."""

    name: str
    """`cpu`, `cuda`, `dml`, ..."""
    is_available: bool
    reason: str = ""
    """Why not, and what to do; or what it is (`AVX512, 2 threads`)."""


class EngineProbe(msgspec.Struct, frozen=True):
    """What an engine finds on this machine."""

    version: str
    devices: tuple[DeviceProbe, ...]


class EngineSpec(msgspec.Struct, frozen=True):
    """What a plugin registers: cheap to make, no engine library imported."""

    name: str
    """As users see it: `llamacpp`."""
    formats: tuple[str, ...]
    """Model formats it takes: `gguf`, `onnxgenai`, ..."""
    engine: str
    """`package.module:Class`, imported in a worker only; called without arguments it gives an Engine."""
    probe: str
    """`package.module:function` without arguments giving an EngineProbe; run in a process of its own."""
    estimate: Callable[[Path, EngineSettings], MemoryEstimate] | None = None
    """Called in the host with the primary path before a load: bytes that a run would take. Must import nothing heavy. None:
    the ledger counts the files' size alone."""
    context_length: Callable[[Path], int] | None = None
    """Called in the host: the context the model's file allows, 0 when unknown."""
    devices: Callable[[], Sequence[str]] | None = None
    """Called in the host: the devices that the installed library was built for, the best first, without looking at the
    machine. Where a source offers variants of a model by device, the first that is listed here is taken."""
    takes_messages: bool = False
    """It is a MessageEngine: it gets requests as they came instead of tokens."""
    keeps_prefixes: bool = False
    """It has a prefix cache beside its slots, and reads the four `cache_` settings and `model_digest`: memory and disk are
    granted for it."""
    speculates: bool = False
    """It guesses tokens in advance, and reads `draft_path`. False: a model that has a `draft_model` set does not start."""
    ignores: tuple[str, ...] = ()
    """Settings of a model that mean nothing to it, by name. The answer of a start names those that were set all the same."""
    sample: str = ""
    """`package.module:function` that takes an empty folder and gives a `hostler.testing.Sample`: what `hostler plugins check`
    checks the engine with. Called in a process of its own."""
    environment: Mapping[str, str] = {}
    """Set in the worker before the engine is imported, unless the user has set it."""
    api_version: int = 1
    """As HOSTLER_API, where one package brings engines for several; a default could only name this hostler's own."""
    version: str = ""
    """The plugin's own version."""
