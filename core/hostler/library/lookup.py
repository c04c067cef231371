"""Which model a reference means. Source: spec/API.md section 2: exact id; alias; source; Cortex triple.

Floor 1; pure values, made from one state of the disk and of the running downloads.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hostler.library import names
from hostler.library.catalogue import Catalogue
from hostler.library.manifest import Manifest
from hostler.library.shelf import Contents


class Index(msgspec.Struct, frozen=True):
    """The ways to the models on disk, made once for each state of it."""

    contents: Contents
    by_id: dict[str, Manifest]
    by_alias: dict[str, Manifest]
    by_source: dict[str, Manifest]


def index_of(contents: Contents) -> Index:
    """Make the index of what stands on the shelf; of two models with one source the first by id is found."""
    index = Index(contents, {}, {}, {})
    for manifest in contents.manifests:
        index.by_id[manifest.id] = manifest
        for alias in manifest.aliases:
            index.by_alias.setdefault(alias, manifest)
        for source in sources_of(manifest):
            index.by_source.setdefault(source, manifest)
    return index


def sources_of(manifest: Manifest) -> set[str]:
    """All references, normalised, that are known to mean this model."""
    found = {names.normalised_source(reference) for reference in manifest.references}
    if manifest.source_url:
        found.add(names.normalised_source(manifest.source_url))
    return found


class Lookup(msgspec.Struct, frozen=True):
    """One moment's answer to "which model is that?"."""

    index: Index
    running: Mapping[str, Manifest]
    """Downloads that run, by id; what is on disk goes before them."""
    catalogue: Catalogue

    def manifest(self, reference: str) -> Manifest | None:
        """The model a reference means: on disk, else downloading, else in the catalogue."""
        repaired = names.repair_url(reference)
        found = self._by_id(reference) or self._by_id(repaired) or self._by_alias(reference)
        if found is None and names.scheme_of(repaired) is not None:
            found = self._by_source(names.normalised_source(repaired))
        for form in () if found is not None else names.triple_forms(reference):
            found = found or self._by_id(form) or self._by_source(form)
        if found is None and reference.count("/") == 2:
            found = self._by_id(reference.replace("/", ":"))
        return found

    def owner_of_name(self, name: str) -> tuple[str, str] | None:
        """(id, source) of the model that has this id or alias already, if one has."""
        other = self.index.by_id.get(name) or self.index.by_alias.get(name) or self.running.get(name)
        if other is not None:
            return other.id, other.source_url
        named = self.catalogue.by_name(name)
        return (named.id, named.source) if named is not None else None

    def _by_id(self, model_id: str) -> Manifest | None:
        found = self.index.by_id.get(model_id) or self.running.get(model_id)
        if found is None:
            known = self.catalogue.by_id(model_id)
            found = known.manifest() if known is not None else None
        return found

    def _by_alias(self, alias: str) -> Manifest | None:
        found = self.index.by_alias.get(alias)
        if found is None:
            named = self.catalogue.by_name(alias)
            found = self._by_id(named.id) if named is not None else None
        return found

    def _by_source(self, source: str) -> Manifest | None:
        if source in self.index.by_source:
            return self.index.by_source[source]
        for manifest in self.running.values():
            if source in sources_of(manifest):
                return manifest
        known = self.catalogue.by_source(source)
        # Its folder may exist while the source was never written: the id decides.
        return self._by_id(known.id) if known is not None else None
