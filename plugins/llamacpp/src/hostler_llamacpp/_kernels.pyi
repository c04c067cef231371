"""
Products of matrices and attention for llama.cpp's CPU backend. Import hostler_llamacpp.kernels instead.
"""

class NotAttached(Exception):
    pass

def attach(llama_library: str) -> list[str]:
    """
    Have matrices packed from now on; which types, with which instructions. NotAttached says why not.
    """

def kernels() -> list[tuple[str, str]]:
    """Pairs of a type and an instruction set that this processor can run."""

def multiply(type: str, instruction_set: str, matrix: bytes, vectors: bytes, n_rows: int) -> bytes:
    """
    Products (n_vectors, n_rows) of a matrix, as files hold it, and float32 vectors: for tests.
    """

def attention_kernels() -> list[str]:
    """Instruction sets that attention can use here, the fastest first."""

def attend(
    type: str,
    instruction_set: str,
    q: bytes,
    k: bytes,
    v: bytes,
    mask: bytes,
    shape: tuple[int, int, int, int],
    scale: float,
    n_threads: int,
) -> bytes:
    """
    Attention (n_streams, n_tokens, n_heads, width); keys and values are f16 or q8_0; cut as for n_threads: for tests.
    """
