"""Text to token ids and back, and what the folder says of its special tokens.

Worker process only. `tokenize`, `detokenize` and `table` may run beside the engine thread; `_lock` guards the tokenizer's one
switch.
It knows tokenizer.json, nothing of sessions.

The `tokenizers` package reads the file, not onnxruntime-genai, whose tokenizer gives the same ids but cuts a text at NUL
without a word, always reads control tokens in it, and holds the GIL. Token by token the bytes are ours to find: a decoder
that repairs half a character would spoil streams.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from hostler import InvalidModelFile, InvalidRequest, ModelLoadFailed, TokenTable
from hostler_onnxgenai.folder import TOKENIZER, ModelFolder, token_text, tokenizer_config

_DECODERS = frozenset({"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "Sequence"})


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    byte_fallback: bool = False


class _File(msgspec.Struct):
    added_tokens: list[_AddedToken] = []
    decoder: dict[str, Any] | None = None
    model: _Model = msgspec.field(default_factory=_Model)


class Vocabulary:
    """One loaded model's vocabulary."""

    def __init__(self, folder: ModelFolder) -> None:
        """Read the tokenizer.

        Raises:
            InvalidModelFile: tokenizer.json is broken.
            ModelLoadFailed: It is of a kind whose tokens have no bytes of their own.
        """
        path = Path(folder.path) / TOKENIZER
        try:
            data = path.read_bytes()
            file = msgspec.json.decode(data, type=_File)
            self._tokenizer = Tokenizer.from_buffer(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidModelFile(f"{path} is no tokenizer: {error}; pull the model again", path=str(path)) from error
        except Exception as error:  # the library raises bare Exceptions
            raise InvalidModelFile(
                f"{path} cannot be read by tokenizers: {error}; pull the model again", path=str(path)
            ) from error
        # Some files carry settings of their training; a prompt must be neither cut nor filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lock = threading.Lock()
        self._added = {token.id: token for token in file.added_tokens}
        self._decoder = _Decoder(path, file)
        n_known = max([self._tokenizer.get_vocab_size(with_added_tokens=False), *(token + 1 for token in self._added)])
        self.n_tokens = min(folder.n_vocab, n_known) if folder.n_vocab else n_known
        """Tokens that have both a row of logits and a text; exports pad the rows to a round number."""
        config = tokenizer_config(Path(folder.path))
        self.bos_text = token_text(config, "bos_token") or self._text(folder.bos_token)
        self.eos_text = token_text(config, "eos_token") or self._text(next(iter(folder.end_tokens), None))
        ends = {*folder.end_tokens, self._tokenizer.token_to_id(self.eos_text) if self.eos_text else None}
        self.end_tokens = frozenset(token for token in ends if token is not None and 0 <= token < self.n_tokens)
        """Tokens that end a generation; a model has several."""
        if not self.end_tokens:
            raise InvalidModelFile(
                f"{folder.path}: no token of the vocabulary ends an answer; eos_token_id is {list(folder.end_tokens)}",
                path=folder.path,
            )
        self._prefix = self._special_prefix()
        self.adds_bos = bool(self._prefix)
        # PERF: filled as tokens come; a full table takes 0.1 s of a load at 262k tokens.
        self.pieces: list[bytes | None] = [None] * self.n_tokens

    @property
    def special_texts(self) -> tuple[str, ...]:
        """Texts that `parse_special` would turn into control tokens."""
        texts = [token.content for token in self._added.values() if token.special]
        return tuple(dict.fromkeys([*texts, *(self._text(token) for token in sorted(self.end_tokens))]))

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
        """Text to token ids; thread-safe."""
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate becomes `?`
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._prefix, *tokens] if add_special else tokens

    def detokenize(self, token_ids: Sequence[int]) -> bytes:
        """Token ids to bytes, control tokens as nothing; thread-safe.

        Raises:
            InvalidRequest: A token id is outside the vocabulary.
        """
        return b"".join(self._read_piece(token) for token in self.validate(token_ids).tolist())

    def validate(self, token_ids: Sequence[int]) -> np.ndarray:
        """Token ids as an int32 array.

        Raises:
            InvalidRequest: One is outside the vocabulary. (onnxruntime-genai would go on with nonsense.)
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

    def _special_prefix(self) -> list[int]:
        """What the tokenizer puts in front of every text: a BOS, usually, or nothing."""
        bare: list[int] = self._tokenizer.encode("a", add_special_tokens=False).ids
        full: list[int] = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def _text(self, token: int | None) -> str:
        return (self._tokenizer.id_to_token(token) if token is not None and token >= 0 else None) or ""

    def _read_piece(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special or token in self.end_tokens else added.content.encode()
        text = self._tokenizer.id_to_token(token)
        return b"" if text is None else self._decoder.decode(text)


class _Decoder:
    """From a vocabulary entry's text to its bytes."""

    def __init__(self, path: Path, file: _File) -> None:
        steps = list(_steps(file.decoder))
        kinds = {str(step.get("type")) for step in steps}
        unknown = sorted(kinds - _DECODERS)
        if unknown or not kinds:
            raise ModelLoadFailed(
                f"{path} has the decoder {unknown[0] if unknown else None!r}; this engine knows byte-level and SentencePiece "
                "vocabularies"
            )
        self._bytes = _byte_characters() if "ByteLevel" in kinds else {}
        self._has_bytes = file.model.byte_fallback or "ByteFallback" in kinds
        replaced = [step for step in steps if step.get("type") == "Replace"]
        self._space = next(
            (str(step["replacement"]) for step in steps if step.get("type") == "Metaspace" and step.get("replacement")), ""
        )
        self._replacements = [(_pattern(step), str(step.get("content", ""))) for step in replaced]

    def decode(self, text: str) -> bytes:
        if self._bytes:
            return b"".join(self._bytes.get(character) or character.encode("utf-8", "replace") for character in text)
        if self._has_bytes and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            try:
                return bytes([int(text[3:5], 16)])
            except ValueError:
                pass
        if self._space:
            text = text.replace(self._space, " ")
        for pattern, content in self._replacements:
            if pattern:
                text = text.replace(pattern, content)
        return text.encode("utf-8", "replace")


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not isinstance(decoder, Mapping):
        return []
    if decoder.get("type") == "Sequence":
        inner = decoder.get("decoders")
        return [step for item in (inner if isinstance(inner, list) else ()) for step in _steps(item)]
    return [decoder]


def _pattern(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    return str(pattern.get("String", "")) if isinstance(pattern, Mapping) else ""


def _byte_characters() -> dict[str, bytes]:
    """Byte-level vocabularies write each byte as a printable character: itself, or the next one from U+0100 on.

    Source: `bytes_to_unicode` in openai/gpt-2, encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(0x100) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(shifted)}
