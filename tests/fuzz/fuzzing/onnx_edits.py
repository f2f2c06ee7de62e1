"""Mutations of ONNX files as the protocol buffers they are: trees of fields, written anew with lengths that fit."""

from dataclasses import dataclass, field
from random import Random

from .byte_edits import edit_bytes, extreme

_CHILDREN = {
    "model": {7: "graph", 8: "opset", 14: "entry", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "quantization", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {13: "entry"},
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "dimension"},
    "function": {7: "node"},
}
"""Message → number of a field → the message in it."""

_OPS = [
    "Add", "Gather", "MatMul", "Reshape", "Expand", "Tile", "ConstantOfShape", "Loop", "If", "Scan", "Resize",
    "Range", "Pad", "Slice", "OneHot", "Split", "Concat", "Transpose", "Attention", "LayerNormalization", "Conv",
    "Einsum", "TopK", "ScatterND", "GatherND", "GatherElements", "QuantizeLinear", "DequantizeLinear",
    "DynamicQuantizeLinear", "MatMulInteger", "LSTM", "Unique", "NonZero", "SequenceAt", "StringSplit",
    "ImageDecoder", "CumSum", "TensorScatter", "RotaryEmbedding", "Nothing", "", "MatMulNBits", "GroupQueryAttention",
    "FusedMatMul", "DFT", "Bernoulli", "EyeLike", "Squeeze", "Cast",
]  # fmt: skip

_TEXTS = [
    b"", b"a", b"input_ids", b"attention_mask", b"last_hidden_state", b"model.onnx_data", b"../outside.bin",
    b"/etc/passwd", b"/dev/zero", b"manifest.json", b"model.onnx", b"\xff\xfe", b"x" * 5000, b"com.microsoft",
    b"ai.onnx.ml", b"location", b"offset", b"length", b"18446744073709551615", b"-1", b"4294967296", b"0",
    b"9223372036854775807", b"abc,de->x", b"batch",
]  # fmt: skip


@dataclass
class Message:
    """A message: its fields in order, each a number, a wire type, and what it holds."""

    kind: str
    fields: list[tuple[int, int, "int | bytes | Message"]] = field(default_factory=list)


def parse(data: bytes, kind: str = "model") -> Message:
    """Read a message.

    Raises:
        ValueError: It is none.
    """
    made, at = Message(kind), 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value: int | bytes | Message
            value, at = _read_varint(data, at)
        elif wire == 2:
            size, at = _read_varint(data, at)
            value = data[at : at + size]
            if len(value) != size:
                raise ValueError("cut short")
            at += size
            child = _CHILDREN.get(kind, {}).get(number)
            value = value if child is None else parse(value, child)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value = data[at : at + size]
            at += size
        else:
            raise ValueError("unknown wire type")
        made.fields.append((number, wire, value))
    return made


def write(message: Message) -> bytes:
    """Write a message."""
    parts = []
    for number, wire, value in message.fields:
        parts.append(_varint(number << 3 | wire))
        if isinstance(value, Message):
            value = write(value)
        if isinstance(value, int):
            parts.append(_varint(value))
        else:
            parts += [_varint(len(value)), value] if wire == 2 else [value]
    return b"".join(parts)


def outside_data(data: bytes) -> list[str]:
    """List the files in which a graph's initializers lie; none where the graph cannot be read here."""
    try:
        graphs = [value for _, _, value in parse(data).fields if isinstance(value, Message) and value.kind == "graph"]
    except (ValueError, IndexError, RecursionError):
        return []
    locations = []
    for tensor in [value for graph in graphs for number, _, value in graph.fields if number == 5]:
        if not isinstance(tensor, Message) or (14, 0, 1) not in tensor.fields:
            continue
        for _, _, entry in [one for one in tensor.fields if one[0] == 13]:
            pair = {} if not isinstance(entry, Message) else {number: value for number, _, value in entry.fields}
            if pair.get(1) == b"location" and isinstance(pair.get(2), bytes):
                locations.append(pair[2].decode("utf-8", "replace"))
    return locations


def edit_onnx(rng: Random, data: bytes) -> bytes:
    """Change an ONNX file."""
    if rng.random() < 0.2:
        return edit_bytes(rng, data)
    try:
        model = parse(data)
    except (ValueError, IndexError, RecursionError):  # it was changed before
        return edit_bytes(rng, data)
    messages = list(_all(model))
    kinds = sorted({message.kind for message in messages})
    kind = rng.choice(kinds)  # each kind as often as any
    message = rng.choice([one for one in messages if one.kind == kind])
    if not message.fields:
        return edit_bytes(rng, data)
    edit = rng.random()
    index = rng.randrange(len(message.fields))
    number, wire, value = message.fields[index]
    if edit < 0.1:
        del message.fields[index]
    elif edit < 0.18:
        message.fields.insert(rng.randrange(len(message.fields) + 1), message.fields[index])
    elif edit < 0.23:
        rng.shuffle(message.fields)
    elif edit < 0.3:
        other = rng.choice([one for one in messages if one.kind == message.kind])
        message.fields = list(other.fields)
    elif edit < 0.34:
        message.fields[index] = rng.choice([1, 2, 3, 5, 9, 13, 15, 20, 536870911]), wire, value
    elif edit < 0.37:
        _nest(rng, message)
    elif edit < 0.55 and kind == "node":
        message.fields = [(4, 2, rng.choice(_OPS).encode()) if one[0] == 4 else one for one in message.fields]
    elif edit < 0.65 and kind == "tensor":
        _outside(rng, message)
    else:
        message.fields[index] = number, wire, _other(rng, value)
    return write(model)


def _other(rng: Random, value: "int | bytes | Message") -> "int | bytes | Message":
    if isinstance(value, int):
        return extreme(rng, value)
    if isinstance(value, Message):
        return rng.choice([b"", Message(value.kind), edit_bytes(rng, write(value))])
    return rng.choice(_TEXTS) if rng.random() < 0.5 else edit_bytes(rng, value)


def _nest(rng: Random, message: Message) -> None:
    """Put graphs within graphs: an If in an If, and so on."""
    inner = b""
    for _ in range(rng.choice([5, 40, 300])):
        attribute = _field(1, b"then_branch") + _field(6, inner) + b"\xa0\x01\x05"
        inner = _field(1, _field(4, b"If") + _field(5, attribute))
    message.fields.append(({"graph": 1, "node": 5, "attribute": 6}.get(message.kind, 7), 2, inner))


def _outside(rng: Random, message: Message) -> None:
    """Let a weight lie in a file: another, none, beyond its end, or before its start."""
    numbers = [b"0", b"-1", b"1", b"4096", b"4294967296", b"9223372036854775807", b"18446744073709551615", b"x", b"1e3"]
    names = [
        b"model.onnx_data",
        b"model.onnx",
        b"../manifest.json",
        b"../outside.bin",
        b"/dev/zero",
        b"",
        b".",
        b"a\0b",
        b"pipe",
    ]
    kept = [one for one in message.fields if one[0] not in (9, 13, 14)]
    pairs = [(b"location", rng.choice(names)), (b"offset", rng.choice(numbers)), (b"length", rng.choice(numbers))]
    rng.shuffle(pairs)
    entries = [(13, 2, _field(1, key) + _field(2, value)) for key, value in pairs[: rng.choice([1, 2, 3, 3])]]
    message.fields = [*kept, *entries, (14, 0, 1)]


def _all(message: Message) -> list[Message]:
    found = [message]
    for _, _, value in message.fields:
        if isinstance(value, Message):
            found += _all(value)
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def _varint(value: int) -> bytes:
    value, encoded = value % (1 << 64), bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content
