"""What a model source is: a scheme, and a function from a reference to files with URLs. Floor 2 (a leaf of it).

A source only finds out what to fetch; fetching, resuming, verifying and unpacking are the same for all and live in
`library/`. Resolving runs in a pull's own thread, in the host or the CLI, and may take seconds and use the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec


class RemoteFile(msgspec.Struct, frozen=True):
    """One file to fetch."""

    filename: str
    """Name in the model's folder, relative, no `..`; of an archive the name it has until it is unpacked."""
    url: str
    """http(s): or, from sources that may, file:."""
    size_bytes: int | None = None
    """Of what is fetched."""
    sha256: str | None = None
    """Of what is fetched, lower-case hex."""
    headers: Mapping[str, str] = {}
    """Sent to the URL's own host only, never after a redirect to another; never stored."""
    archive_suffix: str | None = None
    """Set when `url` is a zip archive (a wheel): take the one member whose name ends so."""
    ca_file: str | None = None
    """Certificates to trust beside the machine's, as the source's own tool is configured."""
    proxy: str | None = None
    """Proxy that the source's own tool uses; `SourceContext.proxy` goes before it."""


class ResolvedSource(msgspec.Struct, frozen=True):
    """What a reference stands for."""

    source_url: str
    """Canonical reference, kept in the manifest; resolving it again finds the same model."""
    files: tuple[RemoteFile, ...]
    """The primary file first."""
    suggested_id: str
    name: str = ""
    format: str = "gguf"
    owned_by: str = ""
    description: str = ""
    metadata: Mapping[str, str] = {}
    """Kept in the manifest. `variant` and `variant_reason`: which of several was chosen and why; told to whoever pulls."""
    is_link: bool = False
    """True: `files` have file: URLs that are linked in place, never copied, never deleted."""


class SourceContext(msgspec.Struct, frozen=True):
    """What a source may use."""

    proxy: str | None = None
    verify_tls: bool = True
    huggingface_token: str | None = None
    timeout_s: float = 60.0
    should_stop: Callable[[], bool] | None = None
    """Asked now and then by a source that waits long; True: raise DownloadFailed, nobody wants the answer any more."""
    devices: Callable[[], Sequence[str]] | None = None
    """Gives what the installed engines' libraries were built for, the best first: `cuda`, `cpu`, ...; for sources that have
    a model in variants by device. None: the CPU."""


class SourceSpec(msgspec.Struct, frozen=True):
    """What a plugin registers."""

    scheme: str
    """`pypi`, `hf`, `https`, ...: what stands before the colon."""
    resolve: Callable[[str, SourceContext], ResolvedSource]
    """Takes the whole reference (`hf:owner/repo:Q4_K_M`); raises DownloadFailed or InvalidRequest with the reason."""
    summary: str
    """One line for `hostler pull --help`: the form of a reference."""
    is_remote: bool = True
    """False for `file`: over HTTP it is refused unless `allow_file_sources` is set."""
