"""The sources `https:` and `http:`: one file by its URL; `#sha256=HEX` says what it must be.

Floor 2; a plugin as any other. Resolving asks nobody: the fetch itself finds out size and version.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit, urlunsplit

from hostler.errors import InvalidRequest
from hostler.hookspecs import hookimpl
from hostler.library import names
from hostler.library.unpack import safe_filename
from hostler.sources.contract import RemoteFile, ResolvedSource, SourceContext, SourceSpec


@hookimpl
def register_sources() -> Iterable[SourceSpec]:
    """The two schemes; over http: anybody on the way can change the file, so give its SHA-256."""
    summary = "https://HOST/PATH/model.gguf[#sha256=HEX]"
    return (SourceSpec("https", resolve, summary), SourceSpec("http", resolve, "http" + summary[5:]))


def resolve(reference: str, context: SourceContext) -> ResolvedSource:  # noqa: ARG001 - the contract's signature
    """One file, named by the URL's last segment."""
    url = names.repair_url(reference.strip())
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"{names.shown_url(url)!r} is no URL: {error}", param="source_url") from error
    if parts.scheme.lower() not in {"http", "https"} or not host:
        raise InvalidRequest(f"{names.shown_url(url)!r} is no http(s) URL", param="source_url")
    headers = {}
    if parts.username is not None:
        # APPSEC: credentials travel as a header, which redirects do not inherit and errors do not show.
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    address = f"[{host}]" if ":" in host else host
    address = address if port is None else f"{address}:{port}"
    filename = safe_filename(unquote(parts.path), "model.gguf")
    if filename.lower().endswith((".onnx", ".onnx.data", "genai_config.json")):
        raise InvalidRequest(
            f"{names.shown_url(url)} is one file of a model folder, and a URL brings one file; pull the folder as "
            "hf:OWNER/REPO:FOLDER, or download it whole and import it",
            param="source_url",
        )
    if not filename.lower().endswith(".gguf"):
        filename += ".gguf"
    return ResolvedSource(
        source_url=names.normalised_source(url),
        files=(
            RemoteFile(
                filename=filename,
                url=urlunsplit((parts.scheme.lower(), address, parts.path or "/", parts.query, "")),
                sha256=_sha256_of(parts.fragment),
                headers=headers,
            ),
        ),
        suggested_id=names.id_from_filename(filename),
        owned_by="_",
    )


def _sha256_of(fragment: str) -> str | None:
    if not fragment.lower().startswith("sha256"):
        return None
    match = re.fullmatch(r"sha256[=:]([0-9a-f]{64})", fragment.lower())
    if match is None:
        raise InvalidRequest(f"#{fragment} is no SHA-256: write #sha256= and 64 hexadecimal digits", param="source_url")
    return match.group(1)
