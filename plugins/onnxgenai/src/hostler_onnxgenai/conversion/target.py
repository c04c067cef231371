"""What a model can be converted into: precisions, by device, and what each takes of disk and memory. Pure values.

The factors were measured with SmolLM2-135M-Instruct and onnxruntime-genai 0.18; README.md has the table.
"""

from __future__ import annotations

import msgspec

from hostler_onnxgenai.conversion.source import GGUF, Source

MB = 1_000_000
SIDE_BYTES = 15 * MB
"""The graph, and what is small."""
TOKENIZER_BYTES = 130
"""Of tokenizer.json, for each token."""
REFERENCE_TOKENS = 160
"""Of the text that source and result are asked, at most about."""
PROCESS_BYTES = 500 * MB
"""A process with torch and transformers, before it loads anything."""
LOAD_FACTOR = 1.4
"""Peak of dequantizing, in float32 bytes of the model."""


class Quant(msgspec.Struct, frozen=True):
    """One precision."""

    precision: str
    """The builder's word."""
    devices: tuple[str, ...]
    ceiling: float
    """Mean KL divergence from the source, in nats, above which a result is refused. README.md says what it catches."""
    bytes_per_weight: float
    build_factor: float
    """Peak of building, in float32 bytes of the model."""
    options: dict[str, str] = {}
    """Of the builder."""
    embedding_bytes: tuple[float, float] = (0.0, 0.0)
    """Bytes for each element of the embedding beside its weight's: where it is tied, and where it is not."""


QUANTS = {
    "int4": Quant("int4", ("cpu", "cuda", "dml"), 1.0, 0.66, 2.6, {}, (0.0, 3.4)),
    "int4-mixed": Quant("int4", ("cpu", "cuda"), 0.6, 0.8, 4.4, {"algo_config": "k_quant_mixed"}, (0.35, 3.2)),
    "int8": Quant("int8", ("cpu", "cuda"), 0.1, 1.1, 3.0, {}, (4.0, 2.9)),
    "fp16": Quant("fp16", ("cuda", "dml"), 0.05, 2.0, 2.0),
    "fp32": Quant("fp32", ("cpu", "cuda"), 0.05, 4.0, 1.4),
}
"""What users choose by --quant. Half precision on the CPU is missing on purpose: such exports die at their second token."""
DEVICES = ("cpu", "cuda", "dml")


class Needs(msgspec.Struct, frozen=True):
    """What a conversion takes."""

    export_bytes: int
    """The source as float32 safetensors; 0 where it is such a folder already."""
    reference_bytes: int
    """The source's logits."""
    result_bytes: int
    memory_bytes: int
    """Peak of the larger one of its steps."""

    @property
    def disk_bytes(self) -> int:
        """Of all that lies there at once."""
        return self.export_bytes + self.reference_bytes + self.result_bytes


def needs_of(source: Source, quant: Quant, device: str) -> Needs:
    """Estimate what a conversion takes."""
    float_bytes = 4 * source.n_params
    per_embedding = quant.embedding_bytes[0 if source.is_tied else 1]
    if device != "cpu":
        per_embedding /= 2  # what stays unquantized is of half precision there
    result = quant.bytes_per_weight * source.n_params + per_embedding * source.n_embedding
    side = SIDE_BYTES + TOKENIZER_BYTES * source.n_vocab
    export = float_bytes + side if source.kind == GGUF else 0
    factor = max(quant.build_factor, LOAD_FACTOR)
    return Needs(
        export_bytes=export,
        reference_bytes=4 * REFERENCE_TOKENS * source.n_vocab,
        result_bytes=int(1.02 * result) + source.rotary_bytes + side,
        memory_bytes=PROCESS_BYTES + int(factor * float_bytes),
    )


def default_id(source: Source, quant: str, device: str) -> str:
    """`ID-onnx-int4`; with the device where it is not the CPU."""
    return f"{source.id}-onnx-{quant}" if device == "cpu" else f"{source.id}-onnx-{device}-{quant}"
