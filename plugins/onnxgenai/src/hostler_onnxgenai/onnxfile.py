"""What an ONNX file says of itself, and one change to it, without any ONNX library.

Any process: the host asks before a load, the worker while loading. Standard library only. It knows the few
fields of onnx.proto that matter here, nothing of settings or sessions. The bytes are a stranger's: what is broken is refused,
and weights are stepped over, not read.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import msgspec

from hostler import InvalidModelFile
from hostler_onnxgenai.wire import (
    BYTES,
    VARINT,
    BrokenError,
    Field,
    as_bytes,
    as_text,
    fields,
    key,
    read_varint,
    tagged,
    varint,
)

FLOAT, FLOAT16, BFLOAT16, INT64 = 1, 10, 16, 7
"""TensorProto.DataType."""
MAX_EDITED_BYTES = 32 * 1024 * 1024
"""A larger file holds its weights itself; it is loaded as it is, because an edited copy would lie in memory twice."""

_MODEL_OPSET, _MODEL_GRAPH = 8, 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP = 1, 2, 4
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 8, 13, 14
_NODE_ATTRIBUTE, _ATTRIBUTE_NAME, _ATTRIBUTE_INT = 5, 1, 3
_TABLE_INPUTS = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}
"""Operator -> which of its inputs are tables of cosines and sines, a row for each position."""
_ELEMENTWISE = frozenset({"Cast", "Div", "Mul", "Tanh"})
"""What may stand between the projection to the vocabulary and the logits: a cast, a scale, a soft cap."""
_PROJECTIONS = frozenset({"MatMul", "MatMulNBits", "Gemm"})


class Port(msgspec.Struct, frozen=True):
    """One input or output of the graph."""

    name: str
    element: int
    """TensorProto.DataType."""
    shape: tuple[int | str, ...]
    """Numbers where they are fixed, else the dimension's name."""


class OnnxFile(msgspec.Struct, frozen=True):
    """What the host needs to know before anybody loads it."""

    path: str
    file_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: frozenset[str]
    opset: int
    """Of ONNX itself."""
    external: dict[str, int]
    """Data file, as the graph names it -> bytes of it that the graph refers to."""
    n_heads: int = 0
    """Heads of its attention; 0: it does not say, or not one number."""
    n_positions: int = 0
    """Tokens that its tables of rotary embeddings have a row for; 0: it has none, or computes them."""

    def input(self, name: str) -> Port | None:
        """The input of that name."""
        return next((port for port in self.inputs if port.name == name), None)

    def output(self, name: str) -> Port | None:
        """The output of that name."""
        return next((port for port in self.outputs if port.name == name), None)


def read_onnx(path: Path) -> OnnxFile:
    """Read a file's graph.

    Raises:
        InvalidModelFile: It is no ONNX file, or a broken one.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size == 0:
        raise InvalidModelFile(f"{path} is empty; pull or copy the model again", path=str(path))
    with path.open("rb") as stream:
        # Not closed by hand: it cannot be while an error's traceback holds a view of it. The last view takes it along.
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _read(str(path), size, memoryview(data))
    except (BrokenError, UnicodeDecodeError) as error:
        raise InvalidModelFile(
            f"{path} is no sound ONNX file: {error}; pull or copy the model again", path=str(path)
        ) from error


def with_last_logits_only(data: bytes, logits: str) -> bytes | None:
    """A model that projects only the last position of its input to the vocabulary.

    An export computes logits for every prompt token, which nobody reads: a fifth of this engine's prefill with a small
    model, and a chunk's length times the vocabulary in memory. A Gather is put before the projection.

    Args:
        data: The model file.
        logits: Name of the output.

    Returns:
        The changed file; None where the graph ends in another way than known ones do.
    """
    view = memoryview(data)
    try:
        graph = next(field for field in fields(view) if field[0] == _MODEL_GRAPH and field[1] == BYTES)
        changed = _edited_graph(as_bytes(graph[2]), logits)
    except (StopIteration, BrokenError, UnicodeDecodeError):
        return None
    if changed is None:
        return None
    return b"".join([view[: graph[3]], tagged(_MODEL_GRAPH, changed), view[graph[4] :]])


def _read(path: str, size: int, view: memoryview) -> OnnxFile:
    graph: memoryview | None = None
    opset = 0
    for number, wire, value, _, _ in fields(view):
        if number == _MODEL_GRAPH and wire == BYTES:
            graph = as_bytes(value)
        elif number == _MODEL_OPSET and wire == BYTES:
            domain, version = "", 0
            for inner, _, content, _, _ in fields(as_bytes(value)):
                if inner == 1:
                    domain = as_text(content)
                elif inner == 2 and isinstance(content, int):
                    version = content
            if domain in ("", "ai.onnx"):
                opset = version
    if graph is None:
        raise BrokenError("it holds no graph")
    inputs: list[Port] = []
    outputs: list[Port] = []
    operators: set[str] = set()
    external: dict[str, int] = {}
    tables: set[str] = set()
    heads: set[int] = set()
    n_rows: dict[str, int] = {}
    for number, wire, value, _, _ in fields(graph):
        if wire != BYTES:
            continue
        content = as_bytes(value)
        if number == _GRAPH_NODE:
            operator = next((as_text(item) for inner, _, item, _, _ in fields(content) if inner == _NODE_OP), "")
            operators.add(operator)
            if operator in _TABLE_INPUTS:
                names = [as_text(item) for inner, _, item, _, _ in fields(content) if inner == _NODE_INPUT]
                tables.update(names[place] for place in _TABLE_INPUTS[operator] if place < len(names) and names[place])
            if operator == "GroupQueryAttention":
                heads.add(_attribute(content, "num_heads"))
        elif number == _GRAPH_INITIALIZER:
            name = _note_external(content, external)
            n_rows[name] = next((_dim(item) for inner, _, item, _, _ in fields(content) if inner == _TENSOR_DIMS), 0)
        elif number == _GRAPH_INPUT:
            inputs.append(_port(content))
        elif number == _GRAPH_OUTPUT:
            outputs.append(_port(content))
    if not outputs:
        raise BrokenError("its graph has no outputs")
    return OnnxFile(
        path,
        size,
        tuple(inputs),
        tuple(outputs),
        frozenset(operators),
        opset,
        external,
        n_heads=heads.pop() if len(heads) == 1 else 0,
        n_positions=min((n_rows[name] for name in tables if n_rows.get(name)), default=0),
    )


def _attribute(node: memoryview, name: str) -> int:
    """A node's whole number of that name; 0: it has none."""
    for number, _, value, _, _ in fields(node):
        if number == _NODE_ATTRIBUTE:
            inner = {field: item for field, _, item, _, _ in fields(as_bytes(value))}
            found = inner.get(_ATTRIBUTE_INT)
            if _ATTRIBUTE_NAME in inner and as_text(inner[_ATTRIBUTE_NAME]) == name and isinstance(found, int):
                return found
    return 0


def _dim(value: int | memoryview) -> int:
    """The first of a tensor's dimensions, which newer writers pack into one field."""
    return value if isinstance(value, int) else read_varint(value)


def _port(view: memoryview) -> Port:
    name, element, shape = "", 0, []
    for number, _, value, _, _ in fields(view):
        if number == 1:
            name = as_text(value)
        elif number == 2:
            tensor = next((as_bytes(item) for inner, _, item, _, _ in fields(as_bytes(value)) if inner == 1), None)
            for inner, _, item, _, _ in fields(tensor) if tensor is not None else ():
                if inner == 1 and isinstance(item, int):
                    element = item
                elif inner == 2:
                    dimensions = (as_bytes(dim) for field, _, dim, _, _ in fields(as_bytes(item)) if field == 1)
                    shape = [_dimension(dimension) for dimension in dimensions]
    return Port(name, element, tuple(shape))


def _dimension(view: memoryview) -> int | str:
    for number, _, value, _, _ in fields(view):
        if number == 1 and isinstance(value, int):
            return value
        if number == 2:
            return as_text(value)
    return "?"


def _note_external(tensor: memoryview, external: dict[str, int]) -> str:
    """Note which part of which file it takes; gives its name."""
    entries: dict[str, str] = {}
    is_external = False
    name = ""
    for number, _, value, _, _ in fields(tensor):
        if number == _TENSOR_EXTERNAL:
            pair = {inner: as_text(item) for inner, _, item, _, _ in fields(as_bytes(value))}
            entries[pair.get(1, "")] = pair.get(2, "")
        elif number == _TENSOR_LOCATION:
            is_external = value == 1
        elif number == _TENSOR_NAME:
            name = as_text(value)
    if not is_external:
        return name
    location = entries.get("location", "")
    try:
        end = int(entries.get("offset", "0") or 0) + int(entries.get("length", "0") or 0)
    except ValueError:
        raise BrokenError(f"the tensor {name!r} has no readable place in its data file") from None
    if not location or end < 0:
        raise BrokenError(f"the tensor {name!r} names no data file")
    external[location] = max(external.get(location, 0), end)
    return name


# -- the change -------------------------------------------------------------------------------------------------------


def _edited_graph(graph: memoryview, logits: str) -> bytes | None:
    nodes = [field for field in fields(graph) if field[0] == _GRAPH_NODE and field[1] == BYTES]
    producers = {
        as_text(value): node
        for node in nodes
        for number, _, value, _, _ in fields(as_bytes(node[2]))
        if number == _NODE_OUTPUT
    }
    name = logits
    for _ in range(8):
        node = producers.get(name)
        if node is None:
            return None
        inputs = [as_text(value) for number, _, value, _, _ in fields(as_bytes(node[2])) if number == _NODE_INPUT]
        operator = next((as_text(value) for number, _, value, _, _ in fields(as_bytes(node[2])) if number == _NODE_OP), "")
        if operator in _PROJECTIONS:
            if not inputs or inputs[0] not in producers:
                return None
            return _with_gather(graph, node, inputs[0])
        computed = [value for value in inputs if value in producers]
        if operator not in _ELEMENTWISE or len(computed) != 1:
            return None
        name = computed[0]
    return None


def _with_gather(graph: memoryview, node: Field, hidden: str) -> bytes:
    gathered, index = f"hostler/{hidden}/last", "hostler/last_position"
    axis = tagged(1, b"axis") + key(20, VARINT) + varint(2) + key(3, VARINT) + varint(1)
    gather = b"".join(
        [
            tagged(_NODE_INPUT, hidden.encode()),
            tagged(_NODE_INPUT, index.encode()),
            tagged(_NODE_OUTPUT, gathered.encode()),
            tagged(3, b"hostler/gather_last"),
            tagged(_NODE_OP, b"Gather"),
            tagged(5, axis),
        ]
    )
    tensor = b"".join(
        [
            key(1, VARINT) + varint(1),
            key(2, VARINT) + varint(INT64),
            tagged(_TENSOR_NAME, index.encode()),
            tagged(9, struct.pack("<q", -1)),
        ]
    )
    content = as_bytes(node[2])
    is_first = True
    pieces: list[bytes] = []
    for number, _, _, start, end in fields(content):
        if number == _NODE_INPUT and is_first:
            pieces.append(tagged(_NODE_INPUT, gathered.encode()))
            is_first = False
        else:
            pieces.append(bytes(content[start:end]))
    return b"".join(
        [
            bytes(graph[: node[3]]),
            tagged(_GRAPH_INITIALIZER, tensor),
            tagged(_GRAPH_NODE, gather),
            tagged(_GRAPH_NODE, b"".join(pieces)),
            bytes(graph[node[4] :]),
        ]
    )
