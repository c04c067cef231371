"""The source `file:`: a model that is already on this machine, linked where it lies and never copied.

Floor 2; a plugin as any other. Over HTTP the library refuses it unless `allow_file_sources` is set: a client could
otherwise learn which files exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hostler.errors import InvalidRequest
from hostler.hookspecs import hookimpl
from hostler.library import names
from hostler.sources.contract import RemoteFile, ResolvedSource, SourceContext, SourceSpec


@hookimpl
def register_sources() -> Iterable[SourceSpec]:
    """One scheme."""
    return (SourceSpec("file", resolve, "file:/PATH/model.gguf, linked in place", is_remote=False),)


def resolve(reference: str, context: SourceContext) -> ResolvedSource:  # noqa: ARG001 - the contract's signature
    """The path itself; what it holds is looked at when it is linked."""
    text = names.path_of_file_url(reference.strip())
    path = Path(text)
    if not text or "\0" in text or not path.is_absolute():
        raise InvalidRequest(f"{reference!r} names no absolute path; write file:/PATH", param="source_url")
    url = path.as_uri()
    return ResolvedSource(
        source_url=url,
        files=(RemoteFile(filename=path.name, url=url),),
        suggested_id=names.id_from_filename(path.name),
        is_link=True,
    )
