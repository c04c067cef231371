"""Step: a GGUF file to a safetensors folder with config, tokenizer and chat template, all weights float32.

transformers reads and dequantizes it. What is wrong with the file or cannot go on is said before the weights are read, where
that is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_SHARD = "4GB"


class NotConvertible(Exception):
    """The model is of a kind that cannot be converted; the text is for the user."""

    is_told = True


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Write the folder.

    Args:
        arguments: `source`: the file; `folder`: empty; `architectures`: what the builder takes, empty: unknown.
        show: Takes a text and a fraction.

    Returns:
        `architecture`, `context_length`, `has_template`, `size_bytes`.
    """
    source, folder = Path(arguments["source"]), Path(arguments["folder"])
    show("starting transformers")
    import torch
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "local_files_only": True}
    show("reading the header", 0.05)
    config = AutoConfig.from_pretrained(**place)
    architecture = _architecture(AutoModelForCausalLM, config)
    if arguments["architectures"] and architecture not in arguments["architectures"]:
        raise NotConvertible(
            f"{source.name} is a {config.model_type} model ({architecture}), which this version of the builder does not know; "
            f"it knows {', '.join(arguments['architectures'])}"
        )
    show("reading the tokenizer", 0.15)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    show("dequantizing", 0.3)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # the embedding once more; the builder makes both of one
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NotConvertible(f"{source.name}: the weights {name} are not all finite numbers; the file is broken")
    show("writing", 0.7)
    save_torch_state_dict(state, folder, max_shard_size=MAX_SHARD, metadata={"format": "pt"})
    config = model.config
    config.architectures = [architecture]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it is not any more
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "architecture": architecture,
        "context_length": int(getattr(config, "max_position_embeddings", 0) or 0),
        "has_template": bool(tokenizer.chat_template),
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def _architecture(auto: Any, config: Any) -> str:
    """The class that transformers would load; its name is what the builder goes by."""
    try:
        found = auto._model_mapping[type(config)]
    except KeyError:
        raise NotConvertible(f"transformers has no model of the kind {config.model_type} that writes text") from None
    return str((found[0] if isinstance(found, tuple | list) else found).__name__)
