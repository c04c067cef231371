"""Text to tokens: one to three bytes make a token, control tokens have texts of their own. Pure functions; any thread.

id                  token
0 .. 255            one byte
256 .. 260          the control tokens in CONTROL_TEXTS
512 .. 66047        two bytes, big-endian
66048 .. 16843263   three bytes, big-endian
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CONTROL_TEXTS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
END = 256
USER = 258
FIRST_CONTROL, LAST_CONTROL = 256, 255 + len(CONTROL_TEXTS)
_FIRST_PAIR = 512
_FIRST_TRIPLE = _FIRST_PAIR + 256**2
_N_VOCAB = {1: _FIRST_PAIR, 2: _FIRST_TRIPLE, 3: _FIRST_TRIPLE + 256**3}
_CONTROL = re.compile("(" + "|".join(re.escape(text) for text in CONTROL_TEXTS) + ")")
_SINGLE = [bytes([byte]) for byte in range(256)]


class Vocabulary:
    """All tokens of a cut."""

    def __init__(self, bytes_per_token: int) -> None:
        self.n_vocab = _N_VOCAB[bytes_per_token]
        self._width = bytes_per_token

    def encode(self, data: bytes) -> list[int]:
        """Bytes to tokens; only the last one may be shorter."""
        if self._width == 1:
            return list(data)
        return [token_of(data[index : index + self._width]) for index in range(0, len(data), self._width)]

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Text to tokens."""
        if not parse_special:
            return self.encode(text.encode("utf-8", "replace"))
        tokens: list[int] = []
        for index, part in enumerate(_CONTROL.split(text)):
            if index % 2:
                tokens.append(FIRST_CONTROL + CONTROL_TEXTS.index(part))
            else:
                tokens += self.encode(part.encode("utf-8", "replace"))
        return tokens


def token_of(piece: bytes) -> int:
    """The token of one to three bytes."""
    first = (0, 0, _FIRST_PAIR, _FIRST_TRIPLE)[len(piece)]
    return first + int.from_bytes(piece, "big")


def piece_of(token: int) -> bytes:
    """A token's bytes; a control token has none."""
    if token < 256:
        return _SINGLE[token]
    if token < _FIRST_PAIR:
        return b""
    if token < _FIRST_TRIPLE:
        return (token - _FIRST_PAIR).to_bytes(2, "big")
    return (token - _FIRST_TRIPLE).to_bytes(3, "big")


def decode(tokens: Iterable[int]) -> bytes:
    """Tokens to bytes."""
    return b"".join(map(piece_of, tokens))


def last_user_text(tokens: Sequence[int]) -> bytes:
    """What stands after the last `<|user|>`; the whole prompt when there is none."""
    start = max((index + 1 for index, token in enumerate(tokens) if token == USER), default=0)
    if start == 0:
        return decode(tokens)
    stop = next((index for index in range(start, len(tokens)) if FIRST_CONTROL <= tokens[index] <= LAST_CONTROL), len(tokens))
    return decode(tokens[start:stop])
