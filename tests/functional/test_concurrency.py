"""Sixteen streams at once on the real model say what each says alone: nothing of one gets into another."""

from __future__ import annotations

import concurrent.futures

import pytest

from support.server import DEADLINE_S, Stream, serving, text_of

MODEL = "smol"
N_TOKENS = 24
NEAR_TIE = 0.15
"""Nats between the two likeliest tokens. Batched and single steps sum in another order, which moves log probabilities of
this 4-bit model by some hundredths; below this gap either token may win, above it only a fault makes another win."""

PROMPTS = [
    f"{verb} {thing} in one sentence."
    for verb in ("Describe", "Explain", "Praise", "Question")
    for thing in ("the sea", "a bicycle", "bread", "winter")
]

pytestmark = [pytest.mark.weights, pytest.mark.slow]


def read(stream: Stream) -> tuple[str, list[dict]]:
    text, tokens = "", []
    for event in stream:
        assert "error" not in event, event
        text += text_of(event)
        for choice in event["choices"]:
            if choice.get("logprobs"):
                tokens += choice["logprobs"]["content"]
    assert stream.is_done
    return text, tokens


def ask(server, prompt: str) -> tuple[str, list[dict]]:
    with server.stream(MODEL, prompt, temperature=0, max_tokens=N_TOKENS, logprobs=True, top_logprobs=2) as stream:
        return read(stream)


def gap(token: dict) -> float:
    first, second = (top["logprob"] for top in token["top_logprobs"][:2])
    return first - second


def test_sixteen_streams_equal_the_same_prompts_alone(smollm2_home):
    assert len(set(PROMPTS)) == 16
    with serving(smollm2_home, "--model", MODEL) as server:
        alone = [ask(server, prompt) for prompt in PROMPTS]

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda prompt: ask(server, prompt), PROMPTS, timeout=DEADLINE_S * 4))

    n_equal = 0
    for prompt, (text, tokens), (other_text, other_tokens) in zip(PROMPTS, alone, together, strict=True):
        if text == other_text:
            n_equal += 1
            continue
        pairs = zip(tokens, other_tokens, strict=False)
        split = next((pair for pair in pairs if pair[0]["token"] != pair[1]["token"]), None)
        assert split is not None, f"{prompt!r}: the same tokens, but other text: {text!r} and {other_text!r}"
        assert gap(split[0]) < NEAR_TIE, f"{prompt!r} split at {split[0]} / {split[1]}: {text!r} and {other_text!r}"
    assert n_equal >= 12, "near ties are rare; so many splits mean something else"
