"""The source `hf:owner/repo[@revision][:quantisation, file or folder]`, and URLs of huggingface.co.

Floor 2; a plugin as any other. It asks the hub through huggingface_hub, which honours HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE and the login of `hf auth login`; fetching is hostler's own, so that it resumes as every pull does.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from hostler.errors import DownloadFailed, InvalidRequest
from hostler.hookspecs import hookimpl
from hostler.library import names
from hostler.library.describe import ONNX_GENAI
from hostler.library.unpack import safe_filename
from hostler.sources.contract import RemoteFile, ResolvedSource, SourceContext, SourceSpec
from hostler.sources.variants import CONFIG, Choice, choose_variant, variants_in

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

HUB = "https://huggingface.co"
PREFERRED = (
    "Q4_K_M", "Q4_0", "Q8_0", "Q4_K_S", "Q5_K_M", "Q4_1", "Q5_K_S", "Q6_K", "Q5_0", "Q5_1", "IQ4_XS", "IQ4_NL", "Q3_K_M",
    "Q3_K_L", "Q3_K_S", "Q2_K", "BF16", "F16", "F32",
)  # fmt: skip
"""What a reference without a quantisation means, the best first: the usual balance of size and quality, then its kin."""
_REFERENCE = re.compile(r"hf:(?P<owner>[^/:@\s]+)/(?P<repo>[^/:@\s]+)(?:@(?P<revision>[^:\s]+))?(?::(?P<choice>.+))?")
_QUANTISATION = re.compile(r"(?:^|[-._])((?:I?Q\d|TQ\d|MXFP\d)(?:_[A-Za-z0-9]+)*|BF16|F16|F32|FP16|FP32)(?=$|[-.])", re.I)
_SESSION_LOCK = threading.Lock()
"""huggingface_hub has one HTTP session a process; whoever needs another proxy has it alone meanwhile."""


@hookimpl
def register_sources() -> Iterable[SourceSpec]:
    """One scheme; the library also sends it the URLs of huggingface.co."""
    return (SourceSpec("hf", resolve, "hf:OWNER/REPO[@REVISION][:QUANTISATION, FILE or FOLDER]"),)


@dataclass(frozen=True)
class HubReference:
    """What a reference says, taken apart."""

    repo: str
    """owner/repo"""
    revision: str | None = None
    choice: str | None = None
    """A file of the repository, a quantisation such as Q4_K_M, or a model folder."""

    @property
    def is_file(self) -> bool:
        """Whether `choice` is a file's name."""
        return self.choice is not None and self.choice.lower().endswith(".gguf")


def resolve(reference: str, context: SourceContext) -> ResolvedSource:
    """Ask the hub which files there are, and choose."""
    asked = parse_reference(reference)
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    info, token = _ask_hub(asked, endpoint, context)
    filenames = [sibling.rfilename for sibling in info.siblings or ()]
    choice = choose_folder(filenames, asked, context)
    chosen = choose_files(filenames, asked) if choice is None else choice.variant.files(filenames)
    by_name = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    commit = info.sha or asked.revision or "main"
    files = tuple(_remote_file(by_name[name], asked.repo, endpoint, commit, headers) for name in chosen)
    card = info.card_data.to_dict() if info.card_data is not None else {}
    described = {"author": info.author or asked.repo.partition("/")[0], "license": card.get("license")}
    metadata = {"repo": asked.repo, "commit": info.sha, **described}
    if choice is not None:
        return _resolved_folder(asked, choice, files, metadata)
    metadata["quantization"] = quantisation_of(chosen[0])
    return ResolvedSource(
        source_url=f"{HUB}/{asked.repo}/resolve/{quote(asked.revision or 'main', safe='')}/{quote(chosen[0])}",
        files=files,
        suggested_id=names.id_from_filename(chosen[0]),
        name=names.id_from_filename(chosen[0]),
        owned_by=asked.repo.partition("/")[0],
        metadata={key: value for key, value in metadata.items() if isinstance(value, str) and value},
    )


def _resolved_folder(
    asked: HubReference, choice: Choice, files: tuple[RemoteFile, ...], metadata: dict[str, Any]
) -> ResolvedSource:
    owner, _, repo = asked.repo.partition("/")
    folder = choice.variant.folder
    stem = re.sub(r"[-_.]onnx$", "", repo, flags=re.IGNORECASE)
    label = folder.rpartition("/")[2]
    model_id = names.id_from_filename(f"{stem}-{label}" if label else stem)
    metadata |= {"variant": choice.variant.name, "variant_reason": choice.reason}
    revision = f"@{asked.revision}" if asked.revision else ""
    place = f"{folder}/{CONFIG}" if folder else CONFIG
    return ResolvedSource(
        source_url=f"hf:{asked.repo}{revision}:{place}",
        files=files,
        suggested_id=model_id,
        name=model_id,
        format=ONNX_GENAI,
        owned_by=owner,
        metadata={key: value for key, value in metadata.items() if isinstance(value, str) and value},
    )


def parse_reference(reference: str) -> HubReference:
    """Take a reference apart.

    Raises:
        InvalidRequest: It is neither form.
    """
    text = reference.strip()
    if names.scheme_of(text) in {"http", "https"}:
        return _parse_url(text)
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            f"{reference!r} names no repository; write hf:OWNER/REPO, and :QUANTISATION or :FILE if you like",
            param="source_url",
        )
    choice = match["choice"]
    if choice and re.fullmatch(r"latest|main", choice, re.IGNORECASE):
        choice = None
    return HubReference(f"{match['owner']}/{match['repo']}", match["revision"], choice)


def _parse_url(url: str) -> HubReference:
    # The path is decoded once, segment by segment: a file's own %2F stays inside its name.
    try:
        parts = [unquote(part) for part in urlsplit(names.repair_url(url)).path.split("/") if part]
    except ValueError as error:
        raise InvalidRequest(f"{names.shown_url(url)!r} is no URL: {error}", param="source_url") from error
    if len(parts) < 2 or parts[0] in {"datasets", "spaces"}:
        raise InvalidRequest(f"{names.shown_url(url)} names no model repository", param="source_url")
    repo = f"{parts[0]}/{parts[1]}"
    if len(parts) == 2:
        return HubReference(repo)
    if len(parts) >= 4 and parts[2] in {"blob", "resolve", "raw", "tree"}:
        revision = None if parts[3] == "main" else parts[3]
        path = "/".join(parts[4:]) or None
        is_model = path is None or path.lower().endswith(".gguf") or path.rpartition("/")[2] == CONFIG
        if is_model or parts[2] == "tree":
            return HubReference(repo, revision, path)
        raise InvalidRequest(f"{names.shown_url(url)} is neither a GGUF file nor a {CONFIG}", param="source_url")
    raise InvalidRequest(f"{names.shown_url(url)} names neither a repository nor a file in one", param="source_url")


def choose_folder(filenames: Sequence[str], asked: HubReference, context: SourceContext) -> Choice | None:
    """Choose a model folder of ONNX Runtime GenAI's format; None: a GGUF file is meant, or there is nothing else.

    Raises:
        DownloadFailed: No folder fits; the text lists them.
    """
    variants = variants_in(filenames)
    if not variants or asked.is_file:
        return None
    has_gguf = bool(_models_of(filenames))
    if asked.choice is None and has_gguf:
        return None
    devices = tuple(context.devices()) if context.devices is not None else ("cpu",)
    choice = choose_variant(variants, asked.choice, devices, f"{asked.repo} on the hub")
    if choice is None and not has_gguf:
        listed = ", ".join(variant.name for variant in variants[:12])
        raise DownloadFailed(f"{asked.repo} on the hub has no {asked.choice}; it has the model folders {listed}")
    return choice


def choose_files(filenames: Sequence[str], asked: HubReference) -> tuple[str, ...]:
    """Choose the files of one model: a single file, or all parts of a split one in order.

    Raises:
        DownloadFailed: Nothing fits; the text lists what there is.
    """
    models = _models_of(filenames)
    where = f"{asked.repo} on the hub"
    if asked.is_file:
        wanted = asked.choice or ""
        for parts in models:
            if wanted in parts or wanted.lower() in {part.lower() for part in parts}:
                return parts
        matching = [parts for parts in models if wanted.lower() in {part.rpartition("/")[2].lower() for part in parts}]
        if len(matching) == 1:
            return matching[0]
        raise DownloadFailed(f"{where} has no file {wanted!r}; it has {_listed(models)}")
    if not models:
        raise DownloadFailed(
            f"{where} has no GGUF file and no folder with a {CONFIG}; look for a repository that has one of them"
        )
    if asked.choice is not None:
        label = asked.choice.upper()
        exact = [parts for parts in models if (quantisation_of(parts[0]) or "").upper() == label]
        if not exact:
            # Repositories spell labels in their own ways (UD-Q4_K_XL): the label as a whole word will do.
            word = re.compile(rf"(?:^|[-._/]){re.escape(label)}(?=$|[-._/])", re.IGNORECASE)
            exact = [parts for parts in models if word.search(parts[0])]
        if exact:
            return min(exact, key=lambda parts: (len(parts[0]), parts[0]))
        raise DownloadFailed(f"{where} has no {asked.choice}; it has {_listed(models)}")
    if len(models) == 1:
        return models[0]
    for label in PREFERRED:
        fitting = [parts for parts in models if (quantisation_of(parts[0]) or "").upper() == label]
        if fitting:
            return min(fitting, key=lambda parts: (len(parts[0]), parts[0]))
    raise DownloadFailed(f"{where} has several models, name one of them with :FILE; it has {_listed(models)}")


def quantisation_of(filename: str) -> str | None:
    """The label in a file's name, upper-case: Q4_K_M, IQ2_XS, F16, ...; None when it has none."""
    stem = filename.rpartition("/")[2]
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", stem, flags=re.IGNORECASE)
    found = _QUANTISATION.findall(stem)
    return str(found[-1]).upper() if found else None


def _models_of(filenames: Iterable[str]) -> list[tuple[str, ...]]:
    """The models among a repository's files; split ones whole, incomplete ones and projectors left out."""
    present = {name for name in filenames if name.lower().endswith(".gguf")}
    models: list[tuple[str, ...]] = []
    for name in sorted(present):
        base = name.rpartition("/")[2].lower()
        if base.startswith("mmproj") or "-mmproj" in base or "imatrix" in base:
            continue
        parts = names.split_part_names(name)
        if not parts:
            models.append((name,))
        elif parts[0] == name and present.issuperset(parts):
            models.append(parts)
    return models


def _listed(models: Sequence[tuple[str, ...]]) -> str:
    shown = [parts[0] for parts in models[:12]]
    more = len(models) - len(shown)
    return (", ".join(shown) or "no GGUF file") + (f" and {more} more" if more else "")


def _remote_file(sibling: RepoSibling, repo: str, endpoint: str, commit: str, headers: dict[str, str]) -> RemoteFile:
    from huggingface_hub import hf_hub_url

    path = sibling.rfilename
    # APPSEC: the hub's file name becomes ours only as a plain one, without its folders.
    return RemoteFile(
        filename=safe_filename(path, "model.gguf" if path.lower().endswith(".gguf") else "unnamed"),
        # Pinned to the commit: what a resumed pull goes on with cannot have changed.
        url=hf_hub_url(repo, path, revision=commit, endpoint=endpoint),
        size_bytes=sibling.lfs.size if sibling.lfs else sibling.size,
        sha256=sibling.lfs.sha256 if sibling.lfs else None,
        headers=headers,
    )


def _ask_hub(asked: HubReference, endpoint: str, context: SourceContext) -> tuple[ModelInfo, str | None]:
    """The repository's files, and the token that the fetch needs, too."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    token = context.huggingface_token or get_token()
    login = "set huggingface_token (HOSTLER_HUGGINGFACE_TOKEN) to a token that may read it"
    try:
        with _session(context):
            api = HfApi(endpoint=endpoint, token=token or False)
            info = api.model_info(asked.repo, revision=asked.revision, files_metadata=True, timeout=context.timeout_s)
        return info, token
    except HFValidationError as error:
        raise InvalidRequest(f"{asked.repo!r} is no repository name: {error}", param="source_url") from error
    except OfflineModeIsEnabled as error:
        raise DownloadFailed(f"{asked.repo} cannot be asked for: HF_HUB_OFFLINE is set, unset it to pull") from error
    except GatedRepoError as error:
        raise DownloadFailed(f"{asked.repo} is gated: accept its terms at {HUB}/{asked.repo}, then {login}") from error
    except RepositoryNotFoundError as error:
        raise DownloadFailed(f"{asked.repo} is not on the hub, or it is private: check the name, or {login}") from error
    except RevisionNotFoundError as error:
        raise DownloadFailed(f"{asked.repo} has no revision {asked.revision!r}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        hint = f"; {login}" if status in {401, 403} else ""
        raise DownloadFailed(f"The hub answered {status} for {asked.repo}{hint}") from error
    except DownloadFailed:
        raise
    except Exception as error:
        # The hub client's transport is its own affair and has changed from release to release; what it says is kept.
        raise DownloadFailed(f"The hub at {endpoint} cannot be asked for {asked.repo}: {error}") from error


@contextmanager
def _session(context: SourceContext) -> Iterator[None]:
    """Give huggingface_hub this pull's proxy and certificates while it asks."""
    import huggingface_hub

    with _SESSION_LOCK:
        if context.proxy is None and context.verify_tls:
            yield
            return
        from huggingface_hub.utils._http import default_client_factory

        def client() -> Any:
            usual: Any = default_client_factory()
            hooks = usual.event_hooks  # they refuse to go out while HF_HUB_OFFLINE is set
            usual.close()
            return type(usual)(
                proxy=context.proxy,
                verify=context.verify_tls,
                event_hooks=hooks,
                follow_redirects=True,
                timeout=context.timeout_s,
            )

        huggingface_hub.set_client_factory(client)
        try:
            yield
        finally:
            huggingface_hub.set_client_factory(default_client_factory)
