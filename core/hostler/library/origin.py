"""Where a model is to be had: which source a reference means, and who fetches from it.

Floor 2; pure values. What the source answers is asked by whoever pulls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hostler.errors import InvalidRequest, ModelNotFound
from hostler.library import names
from hostler.library.lookup import sources_of
from hostler.library.manifest import Manifest
from hostler.sources.contract import SourceSpec


def source_of(reference: str, known: Manifest | None, sources: Mapping[str, SourceSpec]) -> str:
    """What to ask a source for: the reference, or where the model that it names comes from.

    Raises:
        InvalidRequest: No installed source knows its scheme.
        ModelNotFound: A plain name that nothing here has.
    """
    scheme = names.scheme_of(reference)
    is_source = scheme in sources or scheme in {"http", "https"}
    if is_source and (known is None or known.id != reference):
        return reference  # with the hash or the token that it may carry
    if known is not None:
        return known.source_url
    triple = names.triple_forms(reference)
    if triple:
        return triple[1]
    if scheme is not None and len(scheme) > 1 and re.match(r"[a-z][a-z0-9+-]*:\S", reference, re.IGNORECASE):
        known_schemes = ", ".join(sorted(f"{name}:" for name in sources)) or "none"
        raise InvalidRequest(
            f"No installed source knows {scheme}: references such as {names.shown_url(reference)!r}; "
            f"installed: {known_schemes}",
            param="source_url",
        )
    raise not_found(reference)


def spec_of(source: str, sources: Mapping[str, SourceSpec], *, is_file_allowed: bool) -> SourceSpec:
    """Who fetches it.

    Raises:
        InvalidRequest: Nobody can, or only for the command line.
    """
    scheme = names.scheme_of(source)
    spec = sources.get("hf") if names.is_hub_url(source) else None
    spec = spec or (sources.get(scheme) if scheme is not None else None)
    if spec is None:
        raise InvalidRequest(
            f"No installed source can fetch {names.shown_url(source) or 'this model again'!r}", param="source_url"
        )
    if not spec.is_remote and not is_file_allowed:
        raise InvalidRequest(
            f"{scheme}: sources are off over HTTP; use `hostler import`, or set allow_file_sources", param="source_url"
        )
    return spec


def needs_answer(manifest: Manifest | None, source: str) -> bool:
    """Whether only the source can tell if an id that is taken, by `manifest`, means the same model."""
    if manifest is None or names.normalised_source(source) in sources_of(manifest):
        return False
    # One file's URL is what it is; what a repository or a package stands for must be asked.
    return names.scheme_of(source) not in {"http", "https", "file"} or not source.lower().endswith(".gguf")


def not_found(reference: str) -> ModelNotFound:
    """What a reference that means nothing is answered."""
    return ModelNotFound(f"The model {reference} does not exist", param=None)
