"""Text to token ids and back, and what the model's vocabulary says of its special tokens.

Worker process only. `tokenize`, `detokenize` and `table` may run beside the engine thread: the vocabulary is read-only and
every call has its own buffer. Everything else belongs to the engine thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp as llama
import numpy as np

from hostler import InvalidRequest, TokenTable
from hostler_llamacpp.binding import short

_UNKNOWN_OR_CONTROL = llama.LLAMA_TOKEN_ATTR_UNKNOWN | llama.LLAMA_TOKEN_ATTR_CONTROL
_I32 = ctypes.POINTER(ctypes.c_int32)
_PIECE_BYTES = 256
_MAX_TEXT_BYTES = 2**31 - 2


class Vocabulary:
    """One loaded model's vocabulary."""

    def __init__(self, model: int) -> None:
        vocabulary = llama.llama_model_get_vocab(model)
        self._pointer: int = vocabulary
        self.n_tokens = int(llama.llama_vocab_n_tokens(vocabulary))
        is_end, attribute = short.llama_vocab_is_eog, short.llama_vocab_get_attr
        # PERF: two scans of the vocabulary, 13 ms each at 49k tokens, once a load.
        self.end_tokens = frozenset(token for token in range(self.n_tokens) if is_end(vocabulary, token))
        """Tokens that end a generation; a model has several."""
        self._control_tokens = [token for token in range(self.n_tokens) if attribute(vocabulary, token) & _UNKNOWN_OR_CONTROL]
        self.adds_bos = bool(llama.llama_vocab_get_add_bos(vocabulary))
        # PERF: filled as tokens come; a full table would take 50 ms to 0.3 s of every load.
        self.pieces: list[bytes | None] = [None] * self.n_tokens

    @property
    def special_texts(self) -> tuple[str, ...]:
        """Texts that `parse_special` would turn into control tokens."""
        texts = (self._text(token) for token in sorted({*self._control_tokens, *self.end_tokens}))
        return tuple(dict.fromkeys(text for text in texts if text))

    @property
    def bos_text(self) -> str:
        """The text of the begin-of-sequence token; empty when there is none."""
        return self._text(int(llama.llama_vocab_bos(self._pointer)))

    @property
    def eos_text(self) -> str:
        """The text of the end-of-sequence token; empty when there is none."""
        return self._text(int(llama.llama_vocab_eos(self._pointer)))

    def piece(self, token: int) -> bytes:
        """A token's bytes; control tokens are b""."""
        piece = self.pieces[token]
        if piece is None:
            piece = self.pieces[token] = self._read_piece(token)
        return piece

    def table(self) -> TokenTable:
        """All pieces, for constraints; thread-safe, 50 ms at 49k tokens."""
        return TokenTable([self.piece(token) for token in range(self.n_tokens)], sorted(self.end_tokens))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids; thread-safe.

        Raises:
            InvalidRequest: The text is longer than llama.cpp can count.
        """
        data = text.encode("utf-8", "replace")  # a lone surrogate becomes `?`
        if len(data) > _MAX_TEXT_BYTES:
            raise InvalidRequest(f"a text of {len(data)} bytes is too long to tokenize; the limit is {_MAX_TEXT_BYTES}")
        # A token is at least one byte of text, save for BOS, EOS and a prefixed blank.
        n_max = len(data) + 8
        while True:
            buffer = np.empty(n_max, np.int32)
            n_tokens: int = llama.llama_tokenize(
                self._pointer, data, len(data), _pointer_to(buffer), n_max, add_special, parse_special
            )
            if n_tokens >= 0:
                tokens: list[int] = buffer[:n_tokens].tolist()
                return tokens
            if -n_tokens <= n_max:
                raise InvalidRequest(f"llama.cpp cannot tokenize a text of {len(data)} bytes (code {n_tokens})")
            n_max = -n_tokens

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        """Token ids to bytes, control tokens as nothing; thread-safe.

        Raises:
            InvalidRequest: A token id is outside the vocabulary.
        """
        tokens = self.validate(token_ids).tolist()
        return b"".join(self._read_piece(token) for token in tokens)

    def validate(self, token_ids: Sequence[int]) -> np.ndarray:
        """Token ids as an int32 array.

        Raises:
            InvalidRequest: One is outside the vocabulary. (llama.cpp would abort the process.)
        """
        try:
            tokens = np.asarray(token_ids, np.int64).reshape(-1)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest("token ids must be whole numbers") from error
        wrong = (tokens < 0) | (tokens >= self.n_tokens)
        if wrong.any():
            index = int(wrong.argmax())
            raise InvalidRequest(
                f"token {int(tokens[index])} at place {index} is not in the model's vocabulary of {self.n_tokens} tokens"
            )
        return tokens.astype(np.int32)

    def _read_piece(self, token: int) -> bytes:
        n_max = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(n_max)
            n_bytes: int = short.llama_token_to_piece(self._pointer, token, ctypes.addressof(buffer), n_max, 0, False)
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            n_max = -n_bytes

    def _text(self, token: int) -> str:
        if not 0 <= token < self.n_tokens:
            return ""
        text: bytes | None = short.llama_vocab_get_text(self._pointer, token)
        return "" if text is None else text.decode("utf-8", "replace")


def _pointer_to(array: np.ndarray) -> Any:
    return ctypes.cast(array.ctypes.data, _I32)
