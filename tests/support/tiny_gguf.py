"""Tiny GGUF files for tests that pull and import: sound headers, a few bytes of weights, no model in them."""

from __future__ import annotations

import struct

_STRING, _UINT16, _UINT32, _INT32 = 8, 2, 4, 5


def tiny_gguf(
    architecture: str = "llama", context_length: int = 2048, size_label: str = "1M", padding: int = 0, **more: object
) -> bytes:
    """A GGUF file, version 3, with one float32 tensor of 32 values and `padding` more bytes of it.

    Args:
        padding: Makes the file so much longer, rounded up to 32 bytes.
        more: Further metadata: `split_count=2` becomes `split.count`; text or integers.
    """
    n_values = 32 + (padding + 31) // 32 * 8
    metadata: dict[str, object] = {
        "general.architecture": architecture,
        "general.size_label": size_label,
        "general.file_type": 0,
        f"{architecture}.context_length": context_length,
        **{key.replace("_", ".", 1): value for key, value in more.items()},
    }
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata))
    for key, value in metadata.items():
        header += _string(key)
        if isinstance(value, str):
            header += struct.pack("<I", _STRING) + _string(value)
        elif key in {"split.no", "split.count"}:
            header += struct.pack("<IH", _UINT16, value)
        elif key == "split.tensors.count":
            header += struct.pack("<Ii", _INT32, value)
        else:
            header += struct.pack("<II", _UINT32, value)
    header += _string("token_embd.weight") + struct.pack("<IQIQ", 1, n_values, 0, 0)
    header += bytes(-len(header) % 32)
    # Not zeros: a wrong piece in the middle must show.
    return header + bytes((7 * index + index // 251) % 256 for index in range(4 * n_values))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
