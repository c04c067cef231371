"""Chats of many turns, all at once: each turn sends everything said so far, the real answers included.

A chat's next turn goes out when the answer to the last has ended. What is asked is drawn anew for each round; what comes
back is the model's own, so the prompts of two servers are alike in length, not in every word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from answers import Reply
from common import median, percentile
from servers import Server
from streamclient import Request, Script, run_scripts
from workloads import draw, make_body, summarise

UNITS = {
    "new_tok_s": "tok/s",
    "ttft_p50": "ms",
    "ttft_p99": "ms",
    "ttft_after": "ms",
    "itl_p50": "ms",
    "itl_p99": "ms",
    "covered": "share",
    "covered_after": "share",
    "errors": "requests",
    "uncounted": "requests",
}
"""`after`: in the first turn after the break. README.md defines each."""


@dataclass
class Chat:
    """One conversation."""

    name: tuple[object, ...]
    """What its words are drawn from."""
    n_words: int = 60
    """Of each turn of the user's."""
    max_tokens: int = 48
    messages: list[dict[str, str]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)

    def turns(self, model: str, n_turns: int) -> Script:
        """Go on for so many turns; an answer that failed ends the chat."""
        for _ in range(n_turns):
            words = draw(self.n_words, *self.name, len(self.replies))
            self.messages.append({"role": "user", "content": words})
            exchange = yield Request("/chat/completions", make_body(model, list(self.messages), self.max_tokens))
            assert exchange is not None
            reply = exchange.reply()
            self.replies.append(reply)
            if reply.error is not None:
                return
            self.messages.append({"role": "assistant", "content": reply.text})


def open_chats(n_chats: int, *name: object) -> list[Chat]:
    """New chats, each with words of its own."""
    return [Chat((*name, index)) for index in range(n_chats)]


def talk(server: Server, chats: list[Chat], n_turns: int) -> float:
    """Let all chats go on at once; gives the seconds from before the first connection to the last byte."""
    replies = run_scripts(server.address, [chat.turns(server.model, n_turns) for chat in chats])
    flat = [reply for client in replies for reply in client]
    return max(reply.ended_s for reply in flat) - min(reply.sent_s for reply in flat)


def covered(before: Reply, reply: Reply) -> float:
    """The share of what was said up to the last answer, that answer included, which came out of the cache.

    At most 1. An answer's last token is never evaluated while it is given, and a tokenizer may join its end with what
    follows, so that a turn of 100 tokens can reach 0.99 and hardly more.
    """
    n_said = before.prompt_tokens + before.completion_tokens
    return min(1.0, reply.cached_tokens / n_said) if n_said else math.nan


def measure(chats: list[Chat], window_s: float, n_before: int = 0) -> dict[str, float]:
    """The metrics of chats that have ended.

    Args:
        window_s: Seconds that all of it took.
        n_before: Turns before the break; 0: there was none.
    """
    result = summarise([chat.replies for chat in chats])
    if "new_tokens" not in result:
        return result
    result["new_tok_s"] = result["new_tokens"] / window_s
    shares = [share for chat in chats for share in _shares(chat)]
    result["covered"] = sum(said for _, said in shares) / len(shares) if shares else math.nan
    if n_before:
        first = [chat.replies[n_before] for chat in chats if len(chat.replies) > n_before]
        times_s = [reply.arrival_s[0] - reply.sent_s for reply in first if reply.arrival_s and reply.error is None]
        result["ttft_after"] = 1e3 * median(times_s)
        result["ttft_after_p99"] = 1e3 * percentile(times_s, 99)
        result["covered_after"] = median(said for turn, said in shares if turn == n_before)
    return result


def _shares(chat: Chat) -> list[tuple[int, float]]:
    """(turn, covered) of each turn that has one before it."""
    replies = chat.replies
    return [
        (turn, covered(replies[turn - 1], replies[turn]))
        for turn in range(1, len(replies))
        if replies[turn].error is None and replies[turn].is_counted
    ]
