"""Changes a model folder that a test may spoil."""

from __future__ import annotations

import json
from pathlib import Path


def change_config(folder: Path, path: str, value: object) -> None:
    """Set one entry of genai_config.json, by its dotted path; None removes it."""
    file = folder / "genai_config.json"
    document = json.loads(file.read_text())
    *parents, name = path.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is None:
        place.pop(name, None)
    else:
        place[name] = value
    file.write_text(json.dumps(document))
