"""Which files beside an ONNX file hold its weights: read from the file itself, in protobuf's wire format.

The messages and fields are those of onnx.proto (onnx.ai/onnx/repo-docs/ExternalData.html): a tensor whose weights lie
elsewhere has entries in `external_data`, and the one of the key "location" is a path relative to the ONNX file. A
tensor may be anywhere in the graph: an initializer, an attribute, a subgraph, a function.
"""

from collections.abc import Iterator

_KEY = b"location"

# Fields that lead to a tensor, by message; each field's number → the message that it holds.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)
_FIELDS: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 100
"""Messages within messages; protobuf's own readers stop there too."""


def weights_file(graph: str) -> str:
    """Name the file beside an ONNX file that holds its weights, as optimum and transformers.js do.

    Args:
        graph: Name or path of the ONNX file.
    """
    return f"{graph}_data"


def external_locations(content: bytes) -> list[str]:
    """List the locations of a model's external weights.

    Args:
        content: Of an ONNX file.

    Returns:
        Each location once, in the order in which they appear.

    Raises:
        ValueError: The content is no protobuf message, or a location is no text.
    """
    found = dict.fromkeys(_locations(content, 0, len(content), _MODEL, 0))
    return [location.decode("utf-8") for location in found]


def _locations(content: bytes, start: int, end: int, message: int, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise ValueError(f"messages lie more than {_DEEPEST} deep in each other")
    if message == _ENTRY:
        # StringStringEntryProto: key 1, value 2.
        fields = {number: content[first:last] for number, first, last in _fields(content, start, end)}
        # Other keys, as "offset" and "length", say where in the file a tensor lies.
        if fields.get(1) == _KEY:
            yield fields.get(2, b"")
        return
    inner = _FIELDS[message]
    for number, first, last in _fields(content, start, end):
        # Most of a graph has no such entry, and is passed over in one step: nodes are many, and weights large.
        if number in inner and content.find(_KEY, first, last) >= 0:
            yield from _locations(content, first, last, inner[number], depth + 1)


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Go through a message's fields that have a length: number, and where the content of each begins and ends."""
    while start < end:
        # A tag is the field's number and, in its lowest three bits, how it is written.
        tag, start = _varint(content, start, end)
        kind = tag & 7
        if kind == _BYTES:
            size, start = _varint(content, start, end)
            # Said before it is used: a slice beyond the end would be a shorter one, without an error.
            if size > end - start:
                raise ValueError(f"a field at byte {start} ends {size - (end - start)} bytes past its message")
            yield tag >> 3, start, start + size
            start += size
        elif kind == _VARINT:
            _, start = _varint(content, start, end)
        elif kind in (_FIXED64, _FIXED32):
            start += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"there is no field of wire type {kind}, as at byte {start}")
    if start > end:
        raise ValueError(f"a message ends within a field, at byte {end}")


def _varint(content: bytes, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    # Seven bits a byte, the lowest first; 64 bits take ten bytes at most.
    while start < end and shift < 70:
        byte = content[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
        shift += 7
    raise ValueError(f"a number at byte {start} does not end")
