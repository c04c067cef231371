"""What tells a model's files from others, so that nothing kept of one model is ever taken for another's.

Floor 2. The host knows the SHA-256s of what it downloaded; the worker, which opens the files, adds what they are like at that
moment, for a file can be replaced under its name, and a model that a person keeps elsewhere has no sum at all. A file counts
as another one when its size, one of its two times or one of the samples differs. That is sometimes too careful, as after a
copy of the whole library, which costs what was kept and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hostler.domain import ModelFiles
from hostler.library.manifest import Manifest

SAMPLES = 16
SAMPLE_BYTES = 65_536
"""A megabyte of each file, its beginning and its end included: milliseconds, also for a hundred gigabytes."""


def known_digest(manifest: Manifest) -> str:
    """What the manifest knows of the content: the sums of its files, as far as it has them."""
    found = hashlib.sha256()
    for file in manifest.files:
        found.update(f"{file.path}\0{file.size_bytes}\0{file.sha256}\n".encode())
    return found.hexdigest()


def digest_of(files: ModelFiles, known: str = "") -> str:
    """The digest of files as they lie there now; reads samples of them.

    Args:
        known: What `known_digest` said.

    Raises:
        OSError: One cannot be read.
    """
    found = hashlib.sha256(known.encode())
    for name in (files.primary, *files.others):
        path = Path(name)
        parts = [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())
        for part in parts:
            found.update(f"{part.name}\0".encode())
            _add(found, part)
    return found.hexdigest()


def _add(found: hashlib._Hash, path: Path) -> None:
    with open(path, "rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        found.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
        last = max(0, status.st_size - SAMPLE_BYTES)
        for place in sorted({last * n // (SAMPLES - 1) for n in range(SAMPLES)}):
            stream.seek(place)
            found.update(stream.read(SAMPLE_BYTES))
