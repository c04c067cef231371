"""Checks of `tokenize` and `detokenize`. Floor 2, tests only."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hostler.testing.rules.registry import EMOJI_TEXT, PROMPTS, check, tokenize, without_leading_space

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract


@check
def text_survives_tokenization(c: EngineContract) -> None:
    """`detokenize(tokenize(text))` gives the text back: emoji, blanks, odd lengths, nothing at all."""
    for text in ("", "a", "Hello, world!", EMOJI_TEXT, "🦙", "🦙" * 50, "x" * 2000, *PROMPTS):
        tokens = tokenize(c, text)
        assert all(isinstance(token, int) and 0 <= token < c.info.n_vocab for token in tokens), (
            f"tokenize({text[:40]!r}) gave a token outside 0 to {c.info.n_vocab - 1}: {tokens[:20]}"
        )
        got = c.engine.detokenize(tokens)
        assert isinstance(got, bytes), f"detokenize() gave {type(got).__name__}, not bytes"
        assert without_leading_space(got) == without_leading_space(text.encode()), f"{text[:80]!r} came back as {got[:160]!r}"


@check
def special_tokens_are_read_only_when_asked(c: EngineContract) -> None:
    """With `parse_special` false a control token's text stays text; with it true it is a token that renders as nothing.

    `add_special` puts the BOS in front exactly when EngineInfo says `adds_bos`.
    """
    for text in c.info.special_texts[:8]:
        plain = tokenize(c, f"a{text}b")
        assert without_leading_space(c.engine.detokenize(plain)) == f"a{text}b".encode(), (
            f"{text!r} did not stay text with parse_special=False: {plain}"
        )
        special = list(c.engine.tokenize(text, add_special=False, parse_special=True))
        assert special, f"{text!r} gave no token with parse_special=True"
        assert not c.engine.detokenize(special).strip(), f"{text!r}, a control token, rendered as {special}"
    with_special = list(c.engine.tokenize("Hello", add_special=True, parse_special=False))
    has_bos = with_special != tokenize(c, "Hello")
    assert has_bos or not c.info.adds_bos, "adds_bos is true, but add_special=True added nothing"


@check
def tokenization_is_safe_beside_step(c: EngineContract) -> None:
    """`tokenize` and `detokenize` on a second thread give the right answers while `step` runs."""
    texts = [EMOJI_TEXT, *PROMPTS[:4]]
    expected = [tokenize(c, text) for text in texts]
    reference = c.answer(PROMPTS[0])
    is_over = threading.Event()
    problems: list[str] = []
    n_rounds = 0

    def tokenize_all() -> None:
        nonlocal n_rounds
        while not (is_over.is_set() and n_rounds) and not problems:
            for text, tokens in zip(texts, expected, strict=True):
                try:
                    if tokenize(c, text) != tokens:
                        problems.append(f"tokenize({text!r}) gave other tokens beside step()")
                    c.engine.detokenize(tokens)
                except Exception as error:  # noqa: BLE001 - handed to the main thread
                    problems.append(f"tokenizing beside step() raised {type(error).__name__}: {error}")
            n_rounds += 1

    sequence = c.sequence(PROMPTS[0])
    thread = threading.Thread(target=tokenize_all)
    with c.driver() as driver:
        thread.start()
        try:
            driver.run([sequence])
        finally:
            is_over.set()
            thread.join()
    assert not problems, problems[0]
    c.assert_same(reference, sequence, "while another thread tokenizes")
