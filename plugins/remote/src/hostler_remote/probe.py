"""Which remote models are configured: what `hostler doctor` shows. A process of its own; asks nobody over the network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from hostler import DeviceProbe, EngineProbe, InvalidModelFile
from hostler_remote import __version__
from hostler_remote.description import FORMAT, Description, read_description


def probe() -> EngineProbe:
    """The network, and the models that need it. HOSTLER_HOME says where to look for them."""
    home = os.environ.get("HOSTLER_HOME")
    found = [] if not home else [describe(model_id, path) for model_id, path in models(Path(home))]
    reason = "; ".join(found) or "no remote model; `hostler remote add NAME --url URL --model MODEL` makes one"
    return EngineProbe(__version__, (DeviceProbe("network", True, reason),))


def models(home: Path) -> Iterator[tuple[str, Path]]:
    """The remote models of a home with their files."""
    for path in sorted(home.glob("models/*/model.json")):
        try:
            manifest = json.loads(path.read_bytes())
            if manifest.get("format") == FORMAT:
                yield str(manifest["id"]), path.parent / manifest["files"][0]["path"]
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            continue  # a folder that is no model is the doctor's own finding


def describe(model_id: str, path: Path) -> str:
    """One model in a line."""
    try:
        description = read_description(path)
    except InvalidModelFile as error:
        return f"{model_id}: {error}"
    return f"{model_id} is {description.model} at {description.url}, {key_state(description)}"


def key_state(description: Description) -> str:
    """Where its key comes from, and whether it is there, as far as that is known without asking the keyring."""
    if description.key_env:
        is_set = bool(os.environ.get(description.key_env, "").strip())
        return f"key from {description.key_env}{'' if is_set else ', which is not set here'}"
    return f"key from the keyring ({description.key_keyring})" if description.key_keyring else "no key"
