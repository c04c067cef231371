"""Step: the result's answer to the text that the source was asked, held against the source's.

The result is run by the library's Generators, which every one of its packages has: its prefill by the text, its decode by
going on, once on its own and once with the source's tokens. That a builder ended well proves nothing; some of its exports
cannot load, others die at their second token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class NotAsAsked(Exception):
    """The result cannot be run as it should; the text is for the user."""

    is_told = True


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Ask the result, and compare.

    Args:
        arguments: `folder`: the result; `device`; `text`; `logits`: the source's, a file; `tokens`, `bos`, `greedy`: as the
            step `reference` gave them.
        show: Takes a text and a fraction.

    Returns:
        `kl` (mean over the text's positions, nats), `kl_decode` (over those that the source went on with), `kl_max`, `top1`
        (share of all positions with the same likeliest token), `n_same` (greedy tokens before the first other one), `n_new`,
        `same_tokens` (the text becomes the same ids), `continuation`.
    """
    show("loading the result")
    import onnxruntime_genai as og

    config = og.Config(arguments["folder"])
    config.clear_providers()
    if arguments["device"] != "cpu":
        config.append_provider(arguments["device"])
    model = og.Model(config)
    if str(model.device_type).lower() != arguments["device"]:
        raise NotAsAsked(f"the library runs it on {model.device_type}, not on {arguments['device']}")
    tokenizer = og.Tokenizer(model)
    tokens, greedy = arguments["tokens"], arguments["greedy"]
    own = [int(token) for token in tokenizer.encode(arguments["text"])]
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=_room(Path(arguments["folder"]), len(tokens) + len(greedy) + 1), do_sample=False)
    generator = og.Generator(model, params)
    show("prefill")
    generator.append_tokens(np.array(tokens, dtype=np.int32))
    theirs = np.load(arguments["logits"], mmap_mode="r")
    kl, same = divergence(theirs[: len(tokens)], _all_logits(generator, og, model, params, tokens))
    written: list[int] = []
    for number in range(len(greedy)):
        written.append(int(_last(generator)[: theirs.shape[1]].argmax()))
        show("decode", number / len(greedy))
        generator.append_tokens(np.array([written[-1]], dtype=np.int32))
    generator.rewind_to(len(tokens))
    rows = []
    for token in greedy:
        generator.append_tokens(np.array([token], dtype=np.int32))
        rows.append(_last(generator))
    kl_decode, same_decode = divergence(theirs[len(tokens) :], np.array(rows))
    return {
        "kl": float(kl.mean()),
        "kl_decode": float(kl_decode.mean()),
        "kl_max": float(max(kl.max(), kl_decode.max())),
        "top1": float(np.concatenate([same, same_decode]).mean()),
        "n_same": next((n for n, pair in enumerate(zip(written, greedy, strict=True)) if pair[0] != pair[1]), len(greedy)),
        "n_new": len(greedy),
        "same_tokens": own in (tokens, tokens[1:] if arguments["bos"] is not None else tokens),
        "continuation": tokenizer.decode(np.array(written, dtype=np.int32)),
    }


def _room(folder: Path, n_tokens: int) -> int:
    """How many tokens the KV cache must hold: a window that slides must fit, whatever is asked."""
    model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    window = (model["decoder"].get("sliding_window") or {}).get("window_size", 0)
    return int(min(max(n_tokens, window + 1), model["context_length"]))


def _last(generator: Any) -> np.ndarray:
    last: np.ndarray = np.asarray(generator.get_logits(), dtype=np.float32)[0, -1]
    return last


def _all_logits(generator: Any, og: Any, model: Any, params: Any, tokens: list[int]) -> np.ndarray:
    """Logits of every position; token by token where the export has them for the last one only."""
    logits: np.ndarray = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
    if len(logits) == len(tokens):
        return logits
    single = og.Generator(model, params)
    rows = []
    for token in tokens:
        single.append_tokens(np.array([token], dtype=np.int32))
        rows.append(_last(single))
    return np.array(rows)


def divergence(theirs: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare two arrays of logits.

    Args:
        theirs: float32, (n_tokens, n_vocab): the source's.
        found: The same shape, or with more columns, which padding made.

    Returns:
        KL divergence of each position, in nats; whether each has the same likeliest token.
    """
    n_vocab = min(theirs.shape[1], found.shape[1])
    kl, same = [], []
    for row, other in zip(theirs, found, strict=True):
        if not np.isfinite(other[:n_vocab]).all():
            raise NotAsAsked("the result computes logits that are no numbers")
        p, q = _log_softmax(row[:n_vocab]), _log_softmax(other[:n_vocab])
        kl.append(float((np.exp(p) * (p - q)).sum()))
        same.append(bool(p.argmax() == q.argmax()))
    return np.array(kl), np.array(same)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result
