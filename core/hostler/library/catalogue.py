"""The models hostler knows by name before anything is downloaded. The data stand in catalogue.json beside this module.

Floor 1; pure values, read once. An entry's id and aliases mean it everywhere, downloaded or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from hostler.library import names
from hostler.library.manifest import Manifest, ModelSource


class CatalogueEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One known model."""

    id: str
    name: str
    source: str
    """Reference that a pull resolves, and the `source_url` that is shown."""
    filename: str
    description: str
    owned_by: str
    quantization: str
    size: str
    """As the seed writes it: "7B"."""
    size_bytes: int
    """Of the weight file; what the source says at download time counts."""
    context_length: int
    license: str
    created: int = 1700560000
    """Unix seconds; of entries without a date of their own the seed's example."""
    aliases: tuple[str, ...] = ()
    format: str = "gguf"
    tags: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    parameters: dict[str, Any] = {}

    def manifest(self) -> Manifest:
        """The manifest of this entry while nothing of it is downloaded."""
        return Manifest(
            id=self.id,
            name=self.name,
            created=self.created,
            description=self.description,
            format=self.format,
            owned_by=self.owned_by,
            source_url=self.source,
            sources=(ModelSource(self.filename, self.source),),
            settings=dict(self.settings),
            parameters=dict(self.parameters),
            metadata={
                "quantization": self.quantization,
                "size": self.size,
                "size_bytes": self.size_bytes,
                "context_length": self.context_length,
                "license": self.license,
                "author": self.owned_by,
                "tags": list(self.tags),
            },
            aliases=self.aliases,
        )


class Catalogue:
    """Entries by id and by alias. Never changes."""

    def __init__(self, entries: Iterable[CatalogueEntry]) -> None:
        self.entries = tuple(entries)
        self._by_id = {entry.id: entry for entry in self.entries}
        self._by_alias = {alias: entry for entry in self.entries for alias in entry.aliases}
        self._by_source = {names.normalised_source(entry.source): entry for entry in self.entries}

    def by_id(self, model_id: str) -> CatalogueEntry | None:
        """The entry of exactly this id."""
        return self._by_id.get(model_id)

    def by_name(self, name: str) -> CatalogueEntry | None:
        """The entry of this id or alias."""
        return self._by_id.get(name) or self._by_alias.get(name)

    def by_source(self, source: str) -> CatalogueEntry | None:
        """The entry of this normalised source."""
        return self._by_source.get(source)

    @property
    def smallest(self) -> CatalogueEntry | None:
        """The entry with the fewest bytes: what a download without a name means, as shipped."""
        return min(self.entries, key=lambda entry: entry.size_bytes, default=None)


@cache
def shipped_catalogue() -> Catalogue:
    """The catalogue that came with this hostler."""
    data = resources.files("hostler.library").joinpath("catalogue.json").read_bytes()
    return Catalogue(msgspec.json.decode(data, type=tuple[CatalogueEntry, ...]))
