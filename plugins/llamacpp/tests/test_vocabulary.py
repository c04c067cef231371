"""Tokens and text, with the tiny vocabulary: letters, syllables, bytes and four control tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from hostler import InvalidRequest

from .running import Loaded


@pytest.mark.parametrize("text", ["", "a", "abacad eo", "Grüße 🦙 世界", "x" * 3000, "a\0b"])
def test_text_comes_back_from_its_tokens(llama: Loaded, text: str) -> None:
    tokens = llama.engine.tokenize(text, add_special=False, parse_special=False)

    # SentencePiece puts a blank in front.
    assert llama.engine.detokenize(tokens).removeprefix(b" ") == text.encode()


def test_special_tokens_are_added_when_asked_for(llama: Loaded) -> None:
    assert llama.info.adds_bos
    assert llama.engine.tokenize("a", add_special=True, parse_special=False)[0] == 1
    assert llama.engine.tokenize("a", add_special=False, parse_special=False)[0] != 1


def test_control_texts_are_tokens_only_when_parsed(llama: Loaded) -> None:
    assert llama.engine.tokenize("<|turn|>", add_special=False, parse_special=True) == [3]
    assert 3 not in llama.engine.tokenize("<|turn|>", add_special=False, parse_special=False)
    assert llama.engine.detokenize([3]) == b""


def test_special_texts_name_what_could_be_parsed(llama: Loaded) -> None:
    assert {"<s>", "</s>", "<|turn|>"} <= set(llama.info.special_texts)
    assert (llama.info.bos_text, llama.info.eos_text) == ("<s>", "</s>")


def test_chat_template_is_the_files_own_source(llama: Loaded) -> None:
    assert llama.info.chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize("tokens", [[-1], [100_000], [5, 2**40]])
def test_token_ids_outside_the_vocabulary_are_refused(llama: Loaded, tokens: list[int]) -> None:
    """llama.cpp would abort the process."""
    with pytest.raises(InvalidRequest, match="not in the model's vocabulary"):
        llama.engine.detokenize(tokens)


def test_token_ids_that_are_no_numbers_are_refused(llama: Loaded) -> None:
    with pytest.raises(InvalidRequest, match="whole numbers"):
        llama.engine.detokenize(["a"])  # type: ignore[list-item]


def test_lone_surrogates_do_not_break_the_tokenizer(llama: Loaded) -> None:
    assert llama.engine.tokenize("a\ud800b", add_special=False, parse_special=False)


def test_tokenizing_is_safe_from_many_threads(llama: Loaded) -> None:
    texts = [f"abac {index} dede" for index in range(50)]
    expected = [llama.tokens(text) for text in texts]

    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(llama.tokens, texts * 4))

    assert got == expected * 4
