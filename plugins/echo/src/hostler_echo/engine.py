"""The engine: plays texts back, one token a sequence and step, and keeps account of a KV cache it does not have.

Imported in a worker only. One thread calls everything, save `tokenize` and `detokenize`, which read what `load` has set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hostler import (
    Constraint,
    DeviceProbe,
    EngineFailed,
    EngineInfo,
    EngineProbe,
    EngineSettings,
    FinishReason,
    MemoryUse,
    ModelFiles,
    ModelLoadFailed,
    Progress,
    SequenceSink,
    TokenTable,
    UnsupportedParameter,
    Vectors,
)
from hostler_echo import __version__
from hostler_echo.manners import (
    Manners,
    manner_names,
    merge,
    misbehave_at_load,
    misbehave_in_step,
    read_directive,
    stand_still,
)
from hostler_echo.model import BYTES_PER_CELL, EchoModel, read_model
from hostler_echo.sampler import Sampler, nearest
from hostler_echo.vocabulary import CONTROL_TEXTS, END, Vocabulary, decode, last_user_text, piece_of

N_EMBD = 64
MAX_GUIDED_VOCAB = 1 << 17
"""With three bytes a token there are 16 million: too many for masks."""
FLOOD_TEXT = b"And on it goes. "
"""What a flood repeats when there is no text."""


class EchoEngine:
    """See hostler's Engine."""

    def __init__(self) -> None:
        self._model = EchoModel()
        self._manners = Manners()
        self._vocabulary = Vocabulary(1)
        self._n_batch = 512
        self._n_ctx = 0
        self._is_caching = True
        self._weights_bytes = 0
        self._slots: list[_Slot] = []
        self._active: dict[int, _Slot] = {}

    def load(self, files: ModelFiles, settings: EngineSettings, progress: Progress) -> EngineInfo:
        """Read the file and show the manners of a load."""
        model = read_model(Path(files.primary))
        if settings.device not in ("auto", "cpu"):
            raise ModelLoadFailed(
                f"the engine echo runs on the CPU only, so device {settings.device!r} cannot be had; "
                f"set device to 'cpu' or 'auto'"
            )
        names = manner_names()
        wanted = {name: value for name, value in settings.extra.items() if name in names}
        warnings = [f"the setting {name!r} means nothing to echo" for name in settings.extra if name not in names]
        if settings.ctx_len > model.n_ctx:
            warnings.append(f"ctx_len {settings.ctx_len} is over the model's {model.n_ctx}, which holds")
        self._manners = merge(model.manners, wanted, "the model's settings")
        misbehave_at_load(self._manners, files.primary, progress)
        self._model = model
        self._vocabulary = Vocabulary(model.bytes_per_token)
        self._n_batch = max(1, settings.n_batch)
        self._n_ctx = min(settings.ctx_len, model.n_ctx)
        self._is_caching = settings.caching_enabled
        self._weights_bytes = os.stat(files.primary).st_size if model.weights_bytes is None else model.weights_bytes
        self._slots = [_Slot() for _ in range(settings.n_parallel)]
        return EngineInfo(
            n_ctx=self._n_ctx,
            n_slots=settings.n_parallel,
            n_vocab=self._vocabulary.n_vocab,
            n_ctx_train=model.n_ctx,
            chat_template=model.chat_template,
            special_texts=CONTROL_TEXTS,
            eos_text=CONTROL_TEXTS[0],
            can_guide=self._vocabulary.n_vocab <= MAX_GUIDED_VOCAB,
            can_embed=model.embedding and settings.embedding,
            n_embd=N_EMBD if model.embedding and settings.embedding else 0,
            version=f"echo {__version__}",
            warnings=tuple(warnings),
        )

    def add(self, sequence: SequenceSink) -> None:
        """Take the free slot that holds most of the prompt."""
        free = [slot for slot in self._slots if slot.sequence is None]
        if not free:
            raise RuntimeError(f"sequence {sequence.id} came when all {len(self._slots)} slots were taken")
        may_reuse = self._is_caching and sequence.cache_prompt
        tokens = list(sequence.tokens)
        n_cached, slot = 0, free[0]
        if may_reuse:
            found = ((_n_common(slot.cells, tokens) if slot.is_shared else 0, slot) for slot in free)
            n_cached, slot = max(found, key=lambda item: (item[0], -len(item[1].cells)))
        slot.take(sequence, tokens, min(n_cached, len(tokens) - 1))
        slot.is_shared = may_reuse
        self._active[sequence.id] = slot
        try:
            wanted, text = read_directive(last_user_text(tokens))
            script = wanted.pop("script", self._model.script)
            manners = merge(self._manners, wanted, "the prompt")
        except (ModelLoadFailed, ValueError) as error:
            manners, script, text = Manners(fail=str(error)), None, b""
        if script is not None:
            text = str(script).encode()
        if not text and (manners.flood or sequence.params.ignore_eos):
            text = FLOOD_TEXT
        slot.prepare(self._vocabulary.encode(text), manners)

    def cancel(self, sequence_id: int) -> None:
        """Free the slot; what it holds stays for the next prompt."""
        slot = self._active.pop(sequence_id, None)
        if slot is not None:
            slot.sequence = None

    def step(self) -> bool:
        """One chunk or one token for each active sequence."""
        has_worked = False
        delay_s = 0.0
        for sequence_id, slot in list(self._active.items()):
            sequence = slot.sequence
            if sequence is None or sequence.is_paused:
                continue
            has_worked = True
            if slot.manners.delay_s > delay_s:
                time.sleep(slot.manners.delay_s - delay_s)  # as in a batch, the slowest sequence sets the pace
                delay_s = slot.manners.delay_s
            if not (slot.prefill(self._n_batch) if slot.n_done < slot.n_prompt else slot.decode()):
                slot.sequence = None
                del self._active[sequence_id]
        return has_worked

    def embed(self, inputs: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        """Count the tokens of each kind, a chunk of `n_batch` tokens a piece."""
        if not self._model.embedding:
            raise UnsupportedParameter("this echo model says that it cannot embed ('embedding': false in its file)")
        for tokens in inputs:
            manners = self._manners_of_input(tokens)
            vector = [0.0] * N_EMBD
            for start in range(0, len(tokens), self._n_batch):
                if start:
                    yield []
                time.sleep(manners.delay_s)
                for token in tokens[start : start + self._n_batch]:
                    vector[token % N_EMBD] += 1.0
            yield [vector]

    def _manners_of_input(self, tokens: Sequence[int]) -> Manners:
        try:
            wanted, _ = read_directive(decode(tokens))
            wanted.pop("script", None)
            manners = merge(self._manners, wanted, "the input")
        except (ModelLoadFailed, ValueError) as error:
            raise EngineFailed(str(error)) from error
        if manners.fail:
            raise EngineFailed(manners.fail)
        misbehave_in_step(manners)
        return manners

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:  # noqa: ARG002 - no BOS here
        """Cut text into tokens."""
        return self._vocabulary.tokenize(text, parse_special=parse_special)

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        """Put tokens together."""
        return decode(token_ids)

    def token_table(self) -> TokenTable:
        """All tokens, where they are not millions."""
        return TokenTable([piece_of(token) for token in range(self._vocabulary.n_vocab)], (END,))

    def memory(self) -> MemoryUse:
        """What it claims."""
        n_cells = sum(len(slot.cells) for slot in self._slots)
        return MemoryUse(weights_bytes=self._weights_bytes, kv_bytes=n_cells * BYTES_PER_CELL)

    def close(self) -> None:
        """Forget everything, unless asked to hang."""
        if self._manners.close_hang:
            stand_still()
        self._slots.clear()
        self._active.clear()


class _Slot:
    """One place for a sequence, with the tokens that its KV cache would hold."""

    def __init__(self) -> None:
        self.sequence: SequenceSink | None = None
        self.cells: list[int] = []
        self.is_shared = False
        """Another prompt may begin with what the cells hold."""
        """Evaluated tokens; stays after the sequence, for the next one that begins so."""
        self.manners = Manners()
        self.n_prompt = 0
        self.n_done = 0
        """Prompt tokens evaluated, cached ones included."""
        self._prompt: list[int] = []
        self._has_begun = False
        self._sampler: Sampler | None = None
        self._constraint: Constraint | None = None
        self._answer: list[int] = []
        self._pieces: list[bytes] = []
        self._position = 0
        """Index of the next token in the answer."""
        self._n_pushed = 0
        self._is_plain = True
        """No sampler and nothing to misbehave with: the answer is just played."""
        self._is_endless = False

    def take(self, sequence: SequenceSink, prompt: list[int], n_cached: int) -> None:
        """Begin with a new sequence of which `n_cached` tokens are here already."""
        self.sequence = sequence
        del self.cells[n_cached:]
        self.n_prompt, self.n_done = len(prompt), n_cached
        self._prompt, self._has_begun = prompt, False
        self._position = self._n_pushed = 0

    def prepare(self, answer: list[int], manners: Manners) -> None:
        """Set what to say and how to behave."""
        assert self.sequence is not None
        params = self.sequence.params
        self.manners = manners
        self._answer, self._pieces = answer, [piece_of(token) for token in answer]
        self._sampler = Sampler(params, self._prompt) if Sampler.is_needed(params) else None
        self._constraint = self.sequence.constraint
        self._is_plain = self._sampler is None and manners.is_good and self._constraint is None
        self._is_endless = bool(answer) and (manners.flood or params.ignore_eos)

    def prefill(self, n_batch: int) -> bool:
        """One chunk of the prompt; False: the sequence is over."""
        sequence = self.sequence
        assert sequence is not None
        if not self._has_begun:
            self._has_begun = True
            sequence.begin(self.n_done)
            if self.manners.at < 0 and not self._show_manners():
                return False
        chunk = self._prompt[self.n_done : self.n_done + n_batch]
        self.cells += chunk
        self.n_done += len(chunk)
        sequence.prefilled(self.n_done)
        return True

    def decode(self) -> bool:
        """One token; False: the sequence is over."""
        sequence = self.sequence
        assert sequence is not None
        if self._position == len(self._answer) and self._is_endless:
            self._position = 0
        if self._is_plain:  # PERF: nothing but this path runs in a flood
            position = self._position
            if position == len(self._answer):
                sequence.end(FinishReason.STOP)
                return False
            self._position = position + 1
            token = self._answer[position]
            self.cells.append(token)
            return sequence.push(token, self._pieces[position])
        if self._n_pushed == self.manners.at and not self._show_manners():
            return False
        token = self._answer[self._position] if self._position < len(self._answer) else END
        logprob, wanted = None, token
        if self._constraint is not None:
            token = nearest(self._constraint, wanted)
        has_said_it = token == wanted
        if self._sampler is not None:
            token, logprob = self._sampler.choose(token, self._constraint)
        if token == END:
            sequence.end(FinishReason.STOP)
            return False
        if has_said_it:  # else the text goes on when the form is done with what it wants in between
            self._position = min(self._position + 1, len(self._answer))
        self._n_pushed += 1
        self.cells.append(token)
        return sequence.push(token, piece_of(token), logprob)

    def _show_manners(self) -> bool:
        if self.manners.fail:
            assert self.sequence is not None
            self.sequence.end(FinishReason.ERROR, self.manners.fail)
            return False
        misbehave_in_step(self.manners)
        return True


def _n_common(one: list[int], other: list[int]) -> int:
    """Length of the common beginning, by bisection over slice comparisons, which run in C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def probe() -> EngineProbe:
    """It runs wherever Python does."""
    return EngineProbe(f"echo {__version__}", (DeviceProbe("cpu", True, "plain Python, no weights"),))
