"""Step: the source's own answer to a text, by the source's own runtime: how it goes on, greedily, and all logits on the way.

A GGUF file is run by llama-cpp-python, so that a mistake of the dequantizing shows, too; a folder by transformers in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SLACK_TOKENS = 8


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Ask the source.

    Args:
        arguments: `source`: the file or folder; `runtime`: `llama-cpp-python` or `transformers`; `text`; `n_new`: tokens to go
            on for; `n_threads`: for llama.cpp; `folder`: gets logits.npy, float32,
            (n_tokens + n_new, n_vocab): of each position of the text, then of each new token.
        show: Takes a text and a fraction.

    Returns:
        `tokens` of the text, `bos` (its first token if it is one that the text does not have, else null), `greedy`: token ids,
        `continuation`: their text.
    """
    show(f"running the source in {arguments['runtime']}")
    ask = _ask_llama if arguments["runtime"] == "llama-cpp-python" else _ask_transformers
    result, logits = ask(Path(arguments["source"]), arguments, show)
    np.save(Path(arguments["folder"]) / "logits.npy", logits.astype(np.float32))
    return result


def _ask_llama(path: Path, arguments: dict[str, Any], show: Callable[..., None]) -> tuple[dict[str, Any], np.ndarray]:
    from llama_cpp import Llama

    text, n_new = arguments["text"], arguments["n_new"]
    # As long as the text and its continuation at most: a token has a byte at least.
    n_ctx = len(text.encode()) + n_new + SLACK_TOKENS
    model = Llama(str(path), n_ctx=n_ctx, n_batch=512, n_threads=arguments["n_threads"], logits_all=True, verbose=False)
    plain = model.tokenize(text.encode(), add_bos=False, special=False)
    tokens = model.tokenize(text.encode(), add_bos=True, special=False)
    model.eval(tokens)
    greedy: list[int] = []
    for _ in range(n_new):
        greedy.append(int(model.scores[model.n_tokens - 1].argmax()))
        show("running the source in llama-cpp-python", len(greedy) / n_new)
        model.eval([greedy[-1]])
    result = {
        "tokens": [int(token) for token in tokens],
        "bos": int(tokens[0]) if len(tokens) == len(plain) + 1 else None,
        "greedy": greedy,
        "continuation": model.detokenize(greedy, special=True).decode(errors="replace"),
    }
    return result, np.array(model.scores[: len(tokens) + n_new], dtype=np.float32)


def _ask_transformers(path: Path, arguments: dict[str, Any], show: Callable[..., None]) -> tuple[dict[str, Any], np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text, n_new = arguments["text"], arguments["n_new"]
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32, local_files_only=True)
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = tokenizer(text)["input_ids"]
    if len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id != plain[-1]:
        tokens = tokens[:-1]
    greedy: list[int] = []
    with torch.no_grad():
        answer = model(torch.tensor([tokens]), use_cache=True)
        logits = [answer.logits[0].float().numpy()]
        for _ in range(n_new):
            greedy.append(int(answer.logits[0, -1].argmax()))
            show("running the source in transformers", len(greedy) / n_new)
            answer = model(torch.tensor([[greedy[-1]]]), past_key_values=answer.past_key_values, use_cache=True)
            logits.append(answer.logits[0].float().numpy())
    result = {
        "tokens": [int(token) for token in tokens],
        "bos": int(tokens[0]) if len(tokens) == len(plain) + 1 else None,
        "greedy": greedy,
        "continuation": tokenizer.decode(greedy),
    }
    return result, np.concatenate(logits)
