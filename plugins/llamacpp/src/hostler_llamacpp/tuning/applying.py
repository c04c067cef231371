"""Keeping what was chosen under the model's id, and taking it back. Process of the command."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler import InvalidRequest, Settings, connect, find_model, model_path, read_gguf_tensors
from hostler_llamacpp import __version__
from hostler_llamacpp.tuning.choice import ORIGINAL
from hostler_llamacpp.tuning.job import Tuned, Tuning
from hostler_llamacpp.tuning.report import settings_to_apply
from hostler_llamacpp.tuning.source import Source
from hostler_llamacpp.tuning.variants import label_of
from hostler_llamacpp.tuning.work import Work

READY = "ready.gguf"


class Applied(msgspec.Struct, frozen=True):
    """What became of it."""

    model: str
    variant: str
    settings: dict[str, Any]
    message: str
    """The library's own, which says whether a running model goes on as it is."""
    is_running: bool


def apply(settings: Settings, work: Work, tuning: Tuning, tuned: Tuned, source: Source, name: str) -> Applied:
    """Write the variant's file, and hand it to the library.

    Args:
        name: Of a variant that was measured; the original: only settings are kept.

    Raises:
        InvalidRequest: There is no variant of that name.
    """
    chosen = tuned.variant(name)
    if chosen is None:
        known = ", ".join(one.name for one in tuned.variants)
        raise InvalidRequest(f"{name} is no variant that was measured; there are {known}")
    changes = settings_to_apply(tuned, source.settings)
    body: dict[str, Any] = {"settings": changes}
    if name != ORIGINAL:
        path = work.path(READY)
        tuning.write(name, chosen, path)
        body["path"] = str(path)
        body["metadata"] = {
            "quantization": label_of(read_gguf_tensors(path)),
            "tuned_variant": name,
            "tuned_from": tuned.source,
            "tuned_with": f"hostler-llamacpp {__version__}",
            "tuned_perplexity_change": round(chosen.loss.change, 5),
            "tuned_kl_divergence": round(chosen.loss.kl, 5),
        }
    with connect(settings, "tune") as client:
        answer = client.put(model_path(source.id, "/variant"), body)
    return Applied(source.id, name, changes, answer["message"], "keeps running" in answer["message"])


def revert(settings: Settings, reference: str) -> Applied:
    """The model's own file and settings again.

    Raises:
        InvalidRequest: Nothing was applied to it.
    """
    found = find_model(settings, reference)
    with connect(settings, "tune") as client:
        before = client.get(model_path(found.id), schema="native")
        answer = client.delete(model_path(found.id, "/variant"))
        after = client.get(model_path(found.id), schema="native")
    if before["config"] == after["config"] and before["metadata"] == after["metadata"] and found.replaced is None:
        raise InvalidRequest(f"{found.id} runs its own file with its own settings; there is nothing to revert")
    was = before["config"]["settings"]
    changed = {name: value for name, value in after["config"]["settings"].items() if was.get(name) != value}
    return Applied(found.id, ORIGINAL, changed, answer["message"], "keeps running" in answer["message"])
