"""The same text by every way: with guesses and without, from memory, from disk, on real weights and the KV types users have.

Two measured facts make these tests sharp (SmolLM2, x86-64). What lies in a restored stream is what lay in it before, so an
answer from memory or disk equals, to the last bit, that of a stream which never left. And with a quantized KV cache flash
attention rounds alike for one row and for many, so that with and without guesses, too, every log probability is the same to
the last bit. With 16-bit keys and values it sums in 16 bits, in another order for many rows: log probabilities then differ by
up to 0.2, and a greedy text may part where two tokens are that near to each other, and nowhere else.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler.testing import Driver, RecordingSequence
from hostler_llamacpp import speculation
from hostler_llamacpp.drafting import Ngrams

from .running import GREEDY, Loaded, assert_same_answer

pytestmark = pytest.mark.weights

MIB = 1024 * 1024
PARAMS = msgspec.structs.replace(GREEDY, max_tokens=60, logprobs=5)
TIES = {"q8_0": 0.05, "f16": 0.25}
"""Nearer than this is a tie, by KV type. On other processors kernels for one row and for many may differ a little even with
q8_0."""
GEMMA_TIE = 0.5
"""Its weights' kernels round differently for many rows, too."""
MOST_GUESSES = 13
SENTENCES = """
The ferry left the harbour a little after six, and nobody on deck spoke until the lighthouse was behind us.
My grandmother kept her recipes in a biscuit tin, written on the backs of old electricity bills.
Three engineers spent a week looking for the fault, which turned out to be a single loose screw.
The museum bought the painting in 1931 for less than the price of a bicycle.
If the alarm rings at night, leave by the stairs and wait for the others under the big chestnut tree.
Copper turns green in the rain, while gold looks the same after a thousand years in the ground.
You can see four lakes from the top of the hill, but only when the wind comes from the north.
The old clock in the station runs four minutes fast so that people do not miss their trains.
""".strip().splitlines()

MODELS = [("smollm2_path", "f16"), ("smollm2_path", "q8_0"), ("gemma3_path", "f16"), ("gemma3_path", "q8_0")]


@pytest.fixture(params=MODELS, ids=lambda param: "-".join(param).replace("_path", ""))
def case(request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any], float]:
    """A model's file, settings, and what is a tie."""
    model, kind = request.param
    settings = {
        "ctx_len": 1536, "n_parallel": 1, "n_batch": 512, "cache_type": kind, "flash_attn": True, "cpu_threads": 0,
        "speculation": "off",
    }  # fmt: skip
    return request.getfixturevalue(model), settings, TIES[kind] if model == "smollm2_path" else GEMMA_TIE


def copy_prompt(loaded: Loaded, seed: int) -> list[int]:
    """A text, and the wish to have it once more; a base model sees it twice and goes on."""
    text = " ".join(random.Random(seed).sample(SENTENCES, 6))
    if "<|im_start|>" in loaded.info.special_texts:
        text = f"<|im_start|>user\nCopy this text word for word:\n{text}<|im_end|>\n<|im_start|>assistant\n"
    else:
        text = f"{text}\n{text}\n{text[:120]}"
    return loaded.engine.tokenize(text, add_special=True, parse_special=True)


def test_a_copy_with_guesses_is_the_copy_without(
    load: Callable[..., Loaded], case: tuple[Path, dict[str, Any], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of all lengths, whatever they cost, and every third with a wrong token in it."""
    path, settings, tie = case
    draw = random.Random(1)
    draft = Ngrams.draft

    def spoilt(ngrams: Ngrams, n: int) -> list[int]:
        tokens = draft(ngrams, n)
        if tokens and draw.random() < 1 / 3:
            tokens[draw.randrange(len(tokens))] = draw.randrange(300, 400)
        return tokens

    monkeypatch.setattr(Ngrams, "draft", spoilt)
    monkeypatch.setattr(speculation, "choose", lambda *_, **__: ([0], draw.choice((1, 2, 3, 5, 8, MOST_GUESSES))))
    plain, guessing = load(path, **settings), load(path, **{**settings, "speculation": "auto"})
    n_drafted = n_accepted = 0
    for seed in range(3):
        tokens = copy_prompt(plain, seed)
        expected = plain.answer(tokens, PARAMS, cache_prompt=False)

        guessed = guessing.sequence(tokens, PARAMS, cache_prompt=False)
        Driver(guessing.engine, n_slots=1, max_tokens_per_step=MOST_GUESSES + 1).run([guessed])

        assert_same_answer(expected, guessed, tie)
        n_drafted, n_accepted = n_drafted + guessed.n_drafted, n_accepted + guessed.n_accepted
    assert n_drafted > n_accepted > 60, "right and wrong guesses both occur"
    for loaded in (plain, guessing):
        loaded.engine.close()


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_an_answer_from_what_was_kept_is_that_of_the_stream_which_kept_it(
    load: Callable[..., Loaded], case: tuple[Path, dict[str, Any], float], tmp_path: Path, place: str
) -> None:
    path, settings, tie = case
    cache = {"cache_ram_bytes": 256 * MIB, "cache_disk_bytes": 256 * MIB, "cache_folder": str(tmp_path), "model_digest": "x"}
    stream, kept = load(path, **settings), load(path, **settings, **cache)
    prompts = [copy_prompt(stream, seed) for seed in range(3)]
    beginnings = [tokens[:-12] for tokens in prompts]
    first = msgspec.structs.replace(PARAMS, max_tokens=1)
    for tokens in beginnings:  # in one stream: each pushes the one before out
        kept.answer(tokens, first)
    if place == "disk":
        kept.engine.close()
        kept = load(path, **settings, **{**cache, "cache_ram_bytes": 0})

    for beginning, tokens in zip(beginnings[:-1], prompts[:-1], strict=True):
        restored = kept.answer(tokens, PARAMS)
        stream.answer(beginning, first)
        never_left = stream.answer(tokens, PARAMS)

        n_least = len(beginning) - 1 if "gemma" not in path.name else len(beginning) - 2
        assert min(restored.n_cached or 0, never_left.n_cached or 0) >= n_least
        if restored.n_cached == never_left.n_cached:
            assert_equal_to_the_bit(never_left, restored)
        assert_same_answer(never_left, restored, tie)
        assert_same_answer(stream.answer(tokens, PARAMS, cache_prompt=False), restored, tie)
    for loaded in (stream, kept):
        loaded.engine.close()


def assert_equal_to_the_bit(one: RecordingSequence, other: RecordingSequence) -> None:
    """The same chunks from the same keys and values: nothing may differ."""
    assert one.token_ids == other.token_ids
    assert [a.logprob for a in one.logprobs if a] == [b.logprob for b in other.logprobs if b]
