"""Our products of quantized matrices and our attention (cpp/), where llama.cpp has none that are made for several vectors.

On x86 llama.cpp packs some types for its fast kernels and multiplies the others, Q4_1 and Q8_0 among them, one row with one
vector at a time; and its flash attention takes heads one by one though they share keys. SmolLM2-135M in Q4_1, 2 threads of
an AMD EPYC (Zen 5), llama.cpp's and ours: prefill of 512 482 and 3,100 tokens/s, behind 1,536 tokens 338 and 1,600; decode
168 and 400; four sequences a step 13.9 and 2.9 ms. Values are rounded as llama.cpp does it, so that texts differ as they do
between its own kernels, at near-ties.

Processes that load models; the host asks for the types. The setting `repack` of a model (in `extra`) turns them off, and
llama.cpp's own packing.
"""

from __future__ import annotations

from hostler import EngineSettings
from hostler_llamacpp import _kernels


def are_wanted(settings: EngineSettings) -> bool:
    """Whether matrices are to be packed at all: by the setting `repack`, which is llama-server's."""
    return bool(settings.extra.get("repack", True))


def packed_types() -> frozenset[str]:
    """Tensor types that are packed on this processor, as GGUF files name them."""
    return frozenset(kind.upper() for kind, _ in _kernels.kernels())


def names() -> list[str]:
    """All that there is for this processor, by instruction set: what was measured with others does not hold for them."""
    products = [f"{kind} {instructions}" for kind, instructions in _kernels.kernels()]
    return products + [f"attention {instructions}" for instructions in _kernels.attention_kernels()]


def attach() -> list[str]:
    """Have what is loaded from now on multiplied by them; to be called before each load, does something at the first.

    Returns:
        Warnings: why they cannot be used, where they could be used with another llama-cpp-python.
    """
    import llama_cpp as llama  # late: the host has none

    try:
        _kernels.attach(llama.llama_cpp._lib._name)
    except _kernels.NotAttached as reason:
        return [f"matrices are multiplied by llama.cpp's own kernels, which are slower for Q4_1 and Q8_0: {reason}"]
    return []
