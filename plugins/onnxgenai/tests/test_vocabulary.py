"""Text, token ids and bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostler import InvalidModelFile, InvalidRequest, ModelLoadFailed
from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.folder import read_folder
from hostler_onnxgenai.tinymodel import END, TURN
from hostler_onnxgenai.vocabulary import Vocabulary

from .spoiling import change_config

TEXTS = ["", "a", "Hello, world!", "🦙🚂世界é", "a\0b", " two  blanks ", "x" * 2000, "ba be bi", "\udc80"]


def vocabulary(folder: Path) -> Vocabulary:
    return Vocabulary(read_folder(folder))


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_sentencepiece(folder: Path) -> None:
    """As llama 2's: blanks are ▁, unknown characters come as bytes, a BOS goes in front."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "▁a", "ab"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    rewrite(
        folder,
        truncation=None,
        added_tokens=[
            {"id": index, "content": words[index], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for index in range(3)
        ],
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
        pre_tokenizer=None,
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        model={"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
               "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
               "vocab": {word: index for index, word in enumerate(words)}, "merges": ["▁ a", "a b"]},
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    change_config(folder, "model.eos_token_id", 2)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_whole(tiny: Path, text: str) -> None:
    """The tokenizer.json says to cut at 16 tokens, as files that were used in training do; and NUL is a character."""
    known = vocabulary(tiny)

    tokens = known.tokenize(text, add_special=True, parse_special=False)

    assert known.detokenize(tokens) == text.encode("utf-8", "replace")
    assert b"".join(known.piece(token) for token in tokens) == text.encode("utf-8", "replace")


def test_control_texts_are_tokens_only_when_asked_for(tiny: Path) -> None:
    known = vocabulary(tiny)

    as_text = known.tokenize("ba<|end|>", add_special=False, parse_special=False)
    as_control = known.tokenize("ba<|end|>", add_special=False, parse_special=True)

    assert known.detokenize(as_text) == b"ba<|end|>"
    assert as_control[-1] == END
    assert known.detokenize(as_control) == b"ba"
    assert known.special_texts == ("<|end|>", "<|turn|>")
    assert (known.bos_text, known.eos_text, known.adds_bos) == ("<|turn|>", "<|end|>", False)


def test_sentencepiece_tokens_have_their_own_bytes(own: Path) -> None:
    write_sentencepiece(own)
    known = vocabulary(own)

    tokens = known.tokenize("a b🦙", add_special=True, parse_special=False)

    assert tokens[0] == 1
    assert known.adds_bos
    assert b"".join(known.piece(token) for token in tokens) == " a b🦙".encode()
    assert known.piece(3 + 0xF0) == b"\xf0"
    assert (known.piece(1), known.piece(2)) == (b"", b"")


def test_end_tokens_are_the_configs_and_the_tokenizers(own: Path) -> None:
    change_config(own, "model.eos_token_id", [TURN, 999_999])

    assert vocabulary(own).end_tokens == {TURN, END}


def test_a_model_that_could_never_end_is_refused(own: Path) -> None:
    change_config(own, "model.eos_token_id", None)
    (own / "tokenizer_config.json").unlink()

    with pytest.raises(InvalidModelFile, match="no token of the vocabulary ends an answer"):
        vocabulary(own)


def test_padded_logits_are_no_tokens(tmp_path: Path) -> None:
    folder = tinymodel.write_llama(tmp_path / "m", n_vocab=512)

    known = vocabulary(folder)

    assert known.n_tokens == tinymodel.N_VOCAB
    with pytest.raises(InvalidRequest, match="token 400 at place 1 is not in the model's vocabulary of 338"):
        known.validate([1, 400])


@pytest.mark.parametrize("tokens", [[-1], [10**12], ["x"], [10**30]])
def test_foreign_token_ids_are_refused(tiny: Path, tokens: list[object]) -> None:
    with pytest.raises(InvalidRequest):
        vocabulary(tiny).detokenize(tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "Nonsense"}}', "\udcff"])
def test_a_broken_tokenizer_is_refused_with_its_file(own: Path, content: str) -> None:
    (own / "tokenizer.json").write_text(content, errors="surrogateescape")

    with pytest.raises(InvalidModelFile, match=r"tokenizer\.json"):
        vocabulary(own)


def test_a_decoder_whose_tokens_have_no_bytes_of_their_own_is_refused(own: Path) -> None:
    rewrite(own, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})

    with pytest.raises(ModelLoadFailed, match="decoder 'WordPiece'"):
        vocabulary(own)
