"""One file of a kept prefix: its layout, and how it is written and read back.

Floor 2; any thread, one at a time for one file. It knows bytes and nothing of budgets: see prefixfiles.py. Integers are
little-endian.

    offset  bytes  field
         0      8  magic `HOSTLPFX`
         8      4  version of this layout
        12      4  CRC-32 of the bytes from 16 to 160, and of the tokens
        16      8  offset of the payload, a multiple of ALIGNMENT
        24      8  bytes of the payload; the file ends with it
        32      4  CRC-32 of the payload
        36      4  number of tokens before this prefix's own
        40      4  number of its own tokens
        44      4  0
        48      8  what it was worth when it was written, a double
        56      8  when it was written, Unix seconds, a double
        64     32  SHA-256 of the identity: model digest, engine version and settings
        96     32  its id, and
       128     32  its parent's id, as ASCII; zeros: it is a beginning
       160      4  CRC-32 of the next 12 bytes
       164      4  how often it was used since it was written
       168      8  when it was used last, Unix seconds, a double
       176      -  its own tokens, int32 each; then zeros up to the payload

The 16 bytes from 160 on are written again in place as the prefix is used; where a crash tears them, they count as never used.
All else is written once, under another name, synced, and only then renamed: what has its name is whole, unless the disk lies,
which the checksums are for. PERF: CRC-32 because zlib's is the fastest that comes with Python and does not hold the
interpreter's lock: 7.1 GB/s against adler32's 4.2, SHA-256's 2.1 and blake2b's 1.5 (one core, 64 MiB blocks).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import msgspec

MAGIC = b"HOSTLPFX"
VERSION = 1
SUFFIX = ".prefix"
TEMPORARY_SUFFIX = ".tmp"
ALIGNMENT = 65_536
"""Of the payload: the largest page in use, so that a mapped payload begins with one everywhere."""
BLOCK_BYTES = 1024 * 1024
"""Read and written at once: the interpreter's lock is free meanwhile, and a block stays in the processor's cache between
copy and checksum."""
ID_LENGTH = 32

_FIXED = struct.Struct("<QQIIIIdd32s32s32s")
_FIXED_OFFSET = 16
_USE = struct.Struct("<Id")
_USE_OFFSET = 160
_TOKENS_OFFSET = 176
_CHECKSUM = struct.Struct("<I")
_HEAD = struct.Struct("<8sII")


class StoredPrefix(msgspec.Struct, frozen=True):
    """What lies in one file, without its payload."""

    id: str
    parent: str
    """The id of the prefix that this one goes on from; empty: it is a beginning."""
    n_before: int
    """Tokens before its own: all of its parents' together."""
    tokens: bytes
    """Its own, int32 each, little-endian."""
    n_bytes: int
    """Of its payload."""
    worth: float = 1.0
    """As whoever wrote it said."""
    n_uses: int = 0
    """Since it was written."""
    last_used: float = 0.0
    """Unix seconds; when it was written, if it was not used since."""

    @property
    def n_after(self) -> int:
        """Tokens up to its end."""
        return self.n_before + len(self.tokens) // 4


class DamagedFile(Exception):
    """It is torn, damaged, or no such file at all; the text says which."""


def prefix_id(parent_id: str, tokens: bytes) -> str:
    """The id of a prefix: a hash over the whole chain, so that equal beginnings have equal ids.

    Args:
        parent_id: Of the prefix before; empty: there is none.
        tokens: Its own tokens, int32 each, little-endian.
    """
    return hashlib.blake2b(parent_id.encode() + b"\0" + tokens, digest_size=ID_LENGTH // 2).hexdigest()


def identity_hash(identity: str) -> bytes:
    """The 32 bytes that stand for an identity."""
    return hashlib.sha256(identity.encode()).digest()


def file_bytes(prefix: StoredPrefix) -> int:
    """How long its file is."""
    return _payload_offset(prefix) + prefix.n_bytes


def write(
    path: Path, prefix: StoredPrefix, identity: bytes, payload: Sequence[memoryview], between: Callable[[], bool]
) -> bool:
    """Write one file, so that at no moment half of it has the name. The folder is not synced: what a power cut takes out of
    a cache is no loss.

    Args:
        identity: What `identity_hash` gave.
        payload: Contiguous pieces, `prefix.n_bytes` together.
        between: Called after each block; False: give up.

    Returns:
        Whether it was written.

    Raises:
        OSError: It was not.
    """
    temporary = path.with_suffix(TEMPORARY_SUFFIX)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        with open(descriptor, "wb", buffering=0) as stream:
            is_whole = _fill(stream, prefix, identity, payload, between)
        if is_whole:
            os.replace(temporary, path)
        else:
            temporary.unlink()
        return is_whole
    except BaseException:
        remove(temporary)
        raise


def read_prefix(path: Path, identity: bytes) -> StoredPrefix:
    """Read what a file says of itself; its payload is not looked at.

    Raises:
        DamagedFile: It is torn, damaged, of another identity, or not what its name says.
        OSError: It cannot be read.
    """
    with open(path, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        begin = stream.read(_TOKENS_OFFSET)
        if len(begin) < _TOKENS_OFFSET:
            raise DamagedFile("it is too short")
        magic, version, checksum = _HEAD.unpack_from(begin)
        if (magic, version) != (MAGIC, VERSION):
            raise DamagedFile("it is no file of this version")
        offset, n_bytes, _, n_before, n_tokens, _, worth, written, owner, own_id, parent = _FIXED.unpack_from(
            begin, _FIXED_OFFSET
        )
        if offset + n_bytes != size or _TOKENS_OFFSET + 4 * n_tokens > offset:
            raise DamagedFile("it is not as long as it says")
        tokens = stream.read(4 * n_tokens)
    if zlib.crc32(tokens, zlib.crc32(begin[_FIXED_OFFSET:_USE_OFFSET])) != checksum:
        raise DamagedFile("its header is damaged")
    if owner != identity:
        raise DamagedFile("it is of another model, engine or setting")
    parent_id = parent.rstrip(b"\0").decode("ascii", "replace")
    known_id = own_id.decode("ascii", "replace")
    if known_id != path.stem or known_id != prefix_id(parent_id, tokens):
        raise DamagedFile("its name is not its own")
    use = begin[_USE_OFFSET + _CHECKSUM.size : _TOKENS_OFFSET]
    n_uses, last_used = _USE.unpack(use)
    if _CHECKSUM.unpack_from(begin, _USE_OFFSET)[0] != zlib.crc32(use):
        n_uses, last_used = 0, written
    return StoredPrefix(known_id, parent_id, n_before, tokens, n_bytes, worth, n_uses, last_used)


def map_payload(path: Path, n_bytes: int, *, is_checked: bool) -> memoryview:
    """A file's payload, mapped; it stays valid when the file is removed.

    Read through once before: a disk that fails is an error here, and would be the end of the process in a mapping.

    Args:
        n_bytes: As `read_prefix` said.
        is_checked: It was found whole before, so it need not be read through.

    Raises:
        DamagedFile: Its checksum is another, or it is not the file that was read before.
        OSError: It cannot be read.
    """
    with open(path, "rb", buffering=0) as stream:
        begin = stream.read(_TOKENS_OFFSET)
        if len(begin) < _TOKENS_OFFSET:
            raise DamagedFile("it is too short")
        offset, length, checksum, *_ = _FIXED.unpack_from(begin, _FIXED_OFFSET)
        if length != n_bytes or offset + length != os.fstat(stream.fileno()).st_size:
            raise DamagedFile("it is not as long as it was")
        if not is_checked and _checksum(stream, offset) != checksum:
            raise DamagedFile("its payload is damaged")
        if not length:
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))[offset:]


def write_use(path: Path, n_uses: int, last_used: float) -> None:
    """Note how often and when a prefix was used.

    Raises:
        OSError: It could not be noted.
    """
    use = _use(n_uses, last_used)
    with open(path, "r+b", buffering=0) as stream:
        stream.seek(_USE_OFFSET)
        _write_all(stream, use)


def remove(path: Path) -> bool:
    """Remove a file if that is possible. False: it is still there."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _fill(
    stream: FileIO, prefix: StoredPrefix, identity: bytes, payload: Sequence[memoryview], between: Callable[[], bool]
) -> bool:
    offset = _payload_offset(prefix)
    stream.seek(offset)
    checksum = 0
    for piece in payload:
        data = piece.cast("B")
        for begin in range(0, len(data), BLOCK_BYTES):
            block = data[begin : begin + BLOCK_BYTES]
            checksum = zlib.crc32(block, checksum)
            _write_all(stream, block)
            if not between():
                return False
    if not prefix.n_bytes:
        stream.truncate(offset)
    stream.seek(0)
    _write_all(stream, _header(prefix, identity, offset, checksum))
    os.fsync(stream.fileno())
    return True


def _header(prefix: StoredPrefix, identity: bytes, offset: int, checksum: int) -> bytes:
    fixed = _FIXED.pack(
        offset,
        prefix.n_bytes,
        checksum,
        prefix.n_before,
        len(prefix.tokens) // 4,
        0,
        prefix.worth,
        prefix.last_used,
        identity,
        prefix.id.encode(),
        prefix.parent.encode(),
    )
    head = _HEAD.pack(MAGIC, VERSION, zlib.crc32(prefix.tokens, zlib.crc32(fixed)))
    return head + fixed + _use(prefix.n_uses, prefix.last_used) + prefix.tokens


def _use(n_uses: int, last_used: float) -> bytes:
    use = _USE.pack(min(n_uses, 2**32 - 1), last_used)
    return _CHECKSUM.pack(zlib.crc32(use)) + use


def _payload_offset(prefix: StoredPrefix) -> int:
    return -(-(_TOKENS_OFFSET + len(prefix.tokens)) // ALIGNMENT) * ALIGNMENT


def _checksum(stream: FileIO, offset: int) -> int:
    stream.seek(offset)
    buffer = memoryview(bytearray(BLOCK_BYTES))
    checksum = 0
    while n_read := stream.readinto(buffer):
        checksum = zlib.crc32(buffer[:n_read], checksum)
    return checksum


def _write_all(stream: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
