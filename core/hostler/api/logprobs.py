"""Log probabilities in OpenAI's two forms: of chats, and of the older completions. Floor 5; pure, one thread a request."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from hostler.domain import TokenLogprob

LOWEST = -9999.0
"""What OpenAI writes for minus infinity, which JSON does not have."""

_new_decoder = codecs.getincrementaldecoder("utf-8")


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """The `content` list of a chat's logprobs. A token need not be whole UTF-8: `bytes` is exact, `token` is for eyes."""
    return [
        {**_chat_token(token.token, token.logprob), "top_logprobs": [_chat_token(top.token, top.logprob) for top in token.top]}
        for token in tokens
    ]


def _chat_token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(token)}


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST


class LegacyLogprobs:
    """Turns the tokens of one completion, in order, into the four parallel lists; remembers the text offset between calls."""

    def __init__(self) -> None:
        self._offset = 0
        self._decoder = _new_decoder("replace")

    def render(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        """The lists for the next tokens; offsets are in characters and run through the whole answer."""
        names: list[str] = []
        chosen: list[float] = []
        tops: list[dict[str, float]] = []
        offsets: list[int] = []
        for token in tokens:
            name = _legacy_name(token.token)
            names.append(name)
            chosen.append(_finite(token.logprob))
            # The chosen token is among them, likely or not.
            tops.append({**{_legacy_name(top.token): _finite(top.logprob) for top in token.top}, name: _finite(token.logprob)})
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.token))
        return {"tokens": names, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets}


def _legacy_name(token: bytes) -> str:
    """The token as text; OpenAI's `bytes:\\xe2\\x80` where it is not whole UTF-8."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
